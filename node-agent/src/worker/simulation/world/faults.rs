//! What happens to pods, and what goes wrong around them.

use super::{Nic, SimulatedNode, Wish};
use crate::worker::simulation::agent::Dies;
use crate::worker::simulation::machine::Trouble;
use crate::worker::simulation::random::Chance;
use std::time::Duration;

/// Between the parts of an agent's look: all three take less than the 10 seconds between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_secs(3);

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker::simulation) enum Happening {
    PodCreated,
    PodStarted,
    PodEnded,
    SandboxKilled,
    LateDel,
    Looked,
    Decided,
    AgentKilled,
    AgentStarted,
    DiskFull,
    TableLost,
    KubeletRestarted,
    CheckpointLost,
    PodResourcesSilent,
    Unplugged,
    Replugged,
    CarrierLost,
    Enslaved,
    PoolEdited,
    Rebooted,
    PowerLost,
    ApiAway,
}

use Happening as H;

/// How often each happens, beside the others.
pub(in crate::worker::simulation) const HAPPENINGS: [(Happening, usize); 22] = [
    (H::PodCreated, 16),
    (H::PodStarted, 22),
    (H::PodEnded, 10),
    (H::SandboxKilled, 4),
    (H::LateDel, 6),
    (H::Looked, 40),
    (H::Decided, 14),
    (H::AgentKilled, 4),
    (H::AgentStarted, 8),
    (H::DiskFull, 3),
    (H::TableLost, 1),
    (H::KubeletRestarted, 3),
    (H::CheckpointLost, 2),
    (H::PodResourcesSilent, 2),
    (H::Unplugged, 3),
    (H::Replugged, 5),
    (H::CarrierLost, 2),
    (H::Enslaved, 2),
    (H::PoolEdited, 6),
    (H::Rebooted, 1),
    (H::PowerLost, 1),
    (H::ApiAway, 3),
];

impl SimulatedNode {
    pub(in crate::worker::simulation) fn happen(&mut self, what: Happening, chance: &mut Chance) {
        self.wait(Duration::from_millis(chance.next() % if chance.percent(5) { 90_000 } else { 6_000 }));
        let told = match what {
            H::PodCreated => self.create_pod(chance).map(|uid| self.told_of(uid)).unwrap_or_default(),
            H::PodStarted => self.pod_started(chance),
            H::PodEnded => self.pod_ended(chance),
            H::SandboxKilled => self.sandbox_killed(chance),
            H::LateDel => self.late_del(chance),
            H::Looked => self.looked(chance),
            H::Decided => {
                self.decide(None);
                String::new()
            }
            H::AgentKilled => self.agent_killed(chance),
            H::AgentStarted => {
                if self.worker.is_none() {
                    self.start_agent();
                }
                String::new()
            }
            H::TableLost => self.table_lost(chance),
            H::Rebooted => self.reboot(chance),
            H::PowerLost => self.power_lost(chance),
            H::ApiAway => self.api_fails(chance),
            H::KubeletRestarted | H::CheckpointLost | H::PodResourcesSilent => {
                self.kubelet_fails(what, chance)
            }
            H::DiskFull => {
                self.disk_full = chance.percent(50);
                format!("{}", self.disk_full)
            }
            H::Unplugged | H::Replugged | H::CarrierLost | H::Enslaved => self.nic_changes(what, chance),
            H::PoolEdited => self.pool_edited(chance),
        };
        self.history.push(format!("{:>9.3} s {what:?} {told}", self.since.as_secs_f64()));
    }

    /// Lets time pass, in which the agent goes on with its looks.
    fn wait(&mut self, mut time: Duration) {
        while time > BETWEEN_LOOKS {
            self.pass(BETWEEN_LOOKS);
            self.look();
            self.decide(None);
            time = time.saturating_sub(BETWEEN_LOOKS);
        }
        self.pass(time);
    }

    fn told_of(&self, uid: u64) -> String {
        let pod = &self.kubelet.pods[&uid];
        format!(
            "{uid} {} {} tap{}: up {}, taps {:?}",
            pod.name,
            pod.device,
            pod.promised,
            pod.is_up(),
            pod.opened
        )
    }

    fn some_pod(&self, chance: &mut Chance, is_meant: impl Fn(&super::Tenant) -> bool) -> Option<u64> {
        let pods = self.kubelet.pods.iter().filter(|(_, pod)| is_meant(pod));
        chance.pick(&pods.map(|(uid, _)| *uid).collect::<Vec<_>>()).copied()
    }

    fn trouble(chance: &mut Chance) -> Option<Trouble> {
        match chance.below(10) {
            0 => Some(Trouble::Killed(1 + chance.below(9))),
            1 => Some(Trouble::Refused(1 + chance.below(9))),
            _ => None,
        }
    }

    /// From now on the kernel may refuse a call of each clean-up.
    fn looked(&mut self, chance: &mut Chance) -> String {
        self.refused = chance.percent(50).then(|| Trouble::Refused(1 + chance.below(5)));
        self.look();
        self.refused.map(|refused| format!("{refused:?}")).unwrap_or_default()
    }

    fn pod_started(&mut self, chance: &mut Chance) -> String {
        let Some(uid) = self.some_pod(chance, |pod| !pod.ended && !pod.is_up()) else { return String::new() };
        let trouble = Self::trouble(chance);
        self.start_pod(uid, trouble);
        format!("{} {trouble:?}", self.told_of(uid))
    }

    fn pod_ended(&mut self, chance: &mut Chance) -> String {
        let Some(uid) = self.some_pod(chance, |pod| !pod.ended || pod.sandbox.is_some()) else {
            return String::new();
        };
        self.end_pod(uid, chance.percent(20), Self::trouble(chance), chance.percent(30))
    }

    /// Containers are dead first; then the kubelet gives the device up, and the runtime ends the sandbox, in any order.
    pub(in crate::worker::simulation) fn end_pod(
        &mut self,
        uid: u64,
        no_del: bool,
        trouble: Option<Trouble>,
        lingers: bool,
    ) -> String {
        let told = self.told_of(uid);
        let pod = self.kubelet.pods.get_mut(&uid).unwrap();
        (pod.ended, pod.opened) = (true, None);
        self.kubelet.given.retain(|_, (owner, _)| *owner != uid);
        let pod = pod.clone();
        self.kubelet.note(&self.dir.path().join("plugins"));
        if lingers {
            return format!("{told}, its sandbox lingers");
        }
        let mut done = true;
        if let Some(sandbox) = &pod.sandbox {
            if !no_del {
                done = self.del(&pod.device, &sandbox.container, trouble);
                self.late.push((pod.device.clone(), sandbox.container.clone()));
            }
            if done || no_del {
                self.machine.end_space(sandbox.netns);
            }
        }
        if done {
            self.kubelet.pods.remove(&uid);
        }
        format!("{told}, without DEL {no_del}, {trouble:?}, done {done}")
    }

    fn sandbox_killed(&mut self, chance: &mut Chance) -> String {
        let Some(uid) = self.some_pod(chance, |pod| !pod.ended && pod.is_up()) else { return String::new() };
        let told = self.told_of(uid);
        let pod = self.kubelet.pods.get_mut(&uid).unwrap();
        pod.opened = None;
        let sandbox = pod.sandbox.take().unwrap();
        let device = pod.device.clone();
        self.machine.end_space(sandbox.netns);
        self.late.push((device, sandbox.container));
        told
    }

    fn late_del(&mut self, chance: &mut Chance) -> String {
        let Some((device, container)) = chance.pick(&self.late).cloned() else { return String::new() };
        // Of a sandbox that is gone: kubelets and runtimes call it again and again.
        let alive = |pod: &super::Tenant| pod.sandbox.as_ref().is_some_and(|own| own.container == container);
        if self.kubelet.pods.values().any(alive) {
            return String::new();
        }
        let trouble = Self::trouble(chance);
        self.del(&device, &container, trouble);
        format!("{device} of {container} {trouble:?}")
    }

    fn agent_killed(&mut self, chance: &mut Chance) -> String {
        let dies = [None, Some(Dies::BeforeTheTable), Some(Dies::AfterTheTable)][chance.below(3)];
        match dies {
            None => self.end_agent(),
            Some(_) => self.decide(dies),
        }
        let is_back = chance.percent(70);
        // The next agent starts with other pools than the last one had.
        let edited = if chance.percent(30) { self.pool_edited(chance) } else { String::new() };
        if is_back {
            self.start_agent();
        }
        format!("{dies:?}, back {is_back} {edited}")
    }

    /// The state directory is lost or damaged, which an agent notices when it starts.
    fn table_lost(&mut self, chance: &mut Chance) -> String {
        let damaged = chance.percent(50);
        let table = self.paths.table();
        if damaged && let Ok(text) = std::fs::read(&table) {
            std::fs::write(&table, &text[..chance.below(text.len().max(1))]).unwrap();
        } else {
            let _ = std::fs::remove_file(table);
        }
        self.tables_lost += 1;
        self.end_agent();
        self.start_agent();
        format!("damaged {damaged}")
    }

    fn kubelet_fails(&mut self, what: Happening, chance: &mut Chance) -> String {
        if what == H::PodResourcesSilent {
            self.kubelet.answers = chance.percent(50);
            return format!("answers {}", self.kubelet.answers);
        }
        self.kubelet.start(&self.dir.path().join("plugins"));
        self.kubelet.deaf_until = self.since + Duration::from_secs(chance.next() % 30);
        self.kubelet.lists_static = chance.percent(50);
        if what == H::CheckpointLost {
            self.kubelet.given.clear();
            self.kubelet.note(&self.dir.path().join("plugins"));
        }
        // The agent registers again within a moment.
        self.decide(None);
        format!("deaf until {:?}, lists static pods {}", self.kubelet.deaf_until, self.kubelet.lists_static)
    }

    fn nic_changes(&mut self, what: Happening, chance: &mut Chance) -> String {
        let place = chance.below(self.nics.len());
        let Nic { name, index, .. } = self.nics[place].clone();
        match (what, index) {
            (H::Unplugged, Some(index)) => {
                self.machine.unplug(index);
                self.machine.enslaved.remove(&index);
                (self.nics[place].index, self.nics[place].enslaved) = (None, false);
            }
            (H::Replugged, None) => {
                let index = self.machine.fresh_index();
                self.machine.plug(index, &name);
                self.nics[place].index = Some(index);
            }
            (H::CarrierLost, _) => self.nics[place].carrier = chance.percent(50),
            (H::Enslaved, Some(index)) => {
                let enslaved = chance.percent(50);
                // The kernel refuses a master for a link that carries macvtaps.
                let carries = self.machine.links.values().any(|wired| wired.link.lower == Some(index));
                if !carries || !enslaved {
                    self.nics[place].enslaved = enslaved;
                    if enslaved {
                        self.machine.enslaved.insert(index)
                    } else {
                        self.machine.enslaved.remove(&index)
                    };
                }
            }
            _ => return String::new(),
        }
        if chance.percent(80) {
            self.decide(None);
        }
        format!("{:?}", self.nics[place])
    }

    fn pool_edited(&mut self, chance: &mut Chance) -> String {
        let wish = Wish {
            present: chance.percent(85),
            per_link: u32::try_from(1 + chance.below(5)).unwrap(),
            nics: 1 + chance.below(2),
            mode: ["Bridge", "VEPA"][chance.below(2)],
        };
        self.wishes[chance.below(2)] = wish;
        self.decide(None);
        format!("{wish:?}")
    }

    /// Everything ends at once: links, namespaces and `/run` are gone, the disk is as it was.
    pub(super) fn reboot(&mut self, chance: &mut Chance) -> String {
        self.end_agent();
        let spaces: Vec<i32> = self.machine.spaces.keys().copied().collect();
        for number in spaces {
            self.machine.end_space(number);
        }
        (self.machine.links, self.machine.nodes) = Default::default();
        self.machine.enslaved.clear();
        std::fs::remove_dir_all(self.paths.run()).unwrap();
        std::fs::create_dir(self.paths.run()).unwrap();
        self.boots += 1;
        for place in [chance.below(2), 0, 1] {
            let known = &mut self.nics[place];
            if known.index.is_none_or(|index| !self.machine.links.contains_key(&(super::NODE, index))) {
                let index = self.machine.fresh_index();
                self.machine.plug(index, &known.name);
                *known = Nic { index: Some(index), carrier: true, enslaved: false, ..known.clone() };
            }
        }
        // No pod survives: the kubelet admits them again before there is a device plugin, and refuses them for good.
        self.kubelet.pods.clear();
        self.kubelet.given.clear();
        self.late.clear();
        let told = self.kubelet_fails(H::KubeletRestarted, chance);
        self.start_agent();
        self.kubelet.note(&self.dir.path().join("plugins"));
        told
    }

    /// Ends every fault.
    pub(in crate::worker::simulation) fn heal(&mut self) {
        (self.disk_full, self.api_away, self.refused) = (false, false, None);
        self.kubelet.answers = true;
        for known in &mut self.nics {
            (known.carrier, known.enslaved) = (true, false);
            if known.index.is_none() {
                let index = self.machine.fresh_index();
                self.machine.plug(index, &known.name);
                known.index = Some(index);
            }
        }
        self.machine.enslaved.clear();
        self.wishes = [Wish { present: true, per_link: 4, nics: 2, mode: "Bridge" }; 2];
        if self.worker.is_none() {
            self.start_agent();
        }
        self.decide(None);
    }
}
