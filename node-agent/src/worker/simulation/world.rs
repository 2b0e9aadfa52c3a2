//! One node, and what may happen to it.

use super::Planted;
use super::agent::{Dies, Disk, SimulatedWorker};
use super::machine::{Hands, Machine, NODE, Trouble};
use super::node::{Clock, Sandbox, SimulatedKubelet, Tenant};
use super::random::Chance;
use crate::devices::offer::Granted;
use crate::links::inventory::tests::nic;
use crate::links::link::{Link, Master};
use crate::pools::pool::Pool;
use crate::pools::selection::tests::pool;
use macvtap::attach::{self, Begun, Pending as _, Repeat, Request};
use macvtap::detach;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::link::Macvtap;
use macvtap::netns::NetnsId;
use macvtap::paths::Paths;
use macvtap::record::{Attachment, Holder};
use macvtap::table_file;
use serde_json::json;
use std::time::{Duration, Instant};

/// Index of the bridge that NICs are enslaved to.
const BRIDGE: u32 = 90_000;

pub(super) const RESOURCES: [&str; 2] = ["a", "b"];

/// A NIC of the node.
#[derive(Clone, Debug)]
pub(super) struct Nic {
    name: String,
    slot: u8,
    pub(super) index: Option<u32>,
    carrier: bool,
    enslaved: bool,
}

/// What an administrator wants of a pool.
#[derive(Clone, Copy, Debug)]
struct Wish {
    present: bool,
    per_link: u32,
    nics: usize,
    mode: &'static str,
}

pub(super) struct SimulatedNode {
    pub(super) dir: tempfile::TempDir,
    pub(super) paths: Paths,
    pub(super) machine: Machine,
    pub(super) kubelet: SimulatedKubelet,
    pub(super) worker: Option<SimulatedWorker>,
    pub(super) nics: Vec<Nic>,
    wishes: [Wish; 2],
    pub(super) boots: u32,
    origin: Instant,
    pub(super) since: Duration,
    disk_full: bool,
    /// What the agent meets when it cleans up.
    refused: Option<Trouble>,
    /// Whether the agent hears no news of pools.
    api_away: bool,
    /// What it received last.
    heard: [Wish; 2],
    /// Tables that were on the disk, the newest last: a disk may lose the newest when the power goes.
    tables: Vec<Vec<u8>>,
    /// DELs that may come at any time, or again.
    late: Vec<(DeviceId, String)>,
    made: u64,
    /// Counts losses of the device table: what nobody noted is given again.
    pub(super) tables_lost: u32,
    pub(super) planted: Option<Planted>,
    pub(super) history: Vec<String>,
}

impl SimulatedNode {
    pub(super) fn new(planted: Option<Planted>) -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        for name in ["state", "run", "netns", "plugins"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut machine = Machine::default();
        let nics = (1..=2_u8).map(|slot| {
            let (index, name) = (machine.fresh_index(), format!("eth{slot}"));
            machine.plug(index, &name);
            Nic { name, slot, index: Some(index), carrier: true, enslaved: false }
        });
        let nics = nics.collect();
        let wishes = [
            Wish { present: true, per_link: 3, nics: 1, mode: "Bridge" },
            Wish { present: true, per_link: 2, nics: 2, mode: "Bridge" },
        ];
        let mut world = Self {
            paths: Paths::new(dir.path().join("state"), dir.path().join("run")),
            dir,
            machine,
            kubelet: SimulatedKubelet::new(),
            worker: None,
            nics,
            wishes,
            heard: wishes,
            api_away: false,
            tables: Vec::new(),
            boots: 1,
            origin: Instant::now(),
            since: Duration::ZERO,
            disk_full: false,
            refused: None,
            late: Vec::new(),
            made: 0,
            tables_lost: 0,
            planted,
            history: Vec::new(),
        };
        world.kubelet.start(&world.dir.path().join("plugins"));
        world.start_agent();
        world
    }

    pub(super) fn boot(&self) -> String {
        format!("boot-{}", self.boots)
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.since += time;
    }

    pub(super) fn start_agent(&mut self) {
        let (plugins, now) = (self.dir.path().join("plugins"), self.origin + self.since);
        let boot = self.boot();
        let worker =
            SimulatedWorker::start(&self.paths, &plugins, &boot, now, self.kubelet.starts, self.planted);
        self.worker = Some(worker);
        self.decide(None);
    }

    pub(super) fn end_agent(&mut self) {
        self.worker = None;
        // The kubelet takes the devices of an endpoint that is gone for lost.
        self.kubelet.offered.clear();
    }

    /// Lets the agent decide, if there is one.
    pub(super) fn decide(&mut self, dies: Option<Dies>) {
        if !self.api_away {
            self.heard = self.wishes;
        }
        let (links, pools, now) = (self.links(), self.pools(), self.origin + self.since);
        let Some(worker) = &mut self.worker else { return };
        let disk = Disk { paths: &self.paths, full: self.disk_full, dies };
        worker.decide(links, pools, disk, &mut self.kubelet, now);
        self.note_table();
        if dies.is_some() {
            self.end_agent();
        }
    }

    /// The next part of a look of the agent, if there is one.
    pub(super) fn look(&mut self) {
        let plugins = self.dir.path().join("plugins");
        let (now, since) = (self.origin + self.since, self.since);
        let Some(worker) = &mut self.worker else { return };
        let clock = Clock { now, since, plugins: &plugins };
        worker.look(&self.paths, &mut self.machine, &mut self.kubelet, clock, self.refused);
    }

    fn links(&self) -> Vec<Link> {
        let there = self.nics.iter().filter_map(|known| Some((known, known.index?)));
        let mut links: Vec<Link> = there
            .map(|(known, index)| {
                let mut link = nic(index, &known.name, known.slot);
                link.carrier = known.carrier;
                link.master = known.enslaved.then(|| Master { ifindex: BRIDGE, kind: "bridge".into() });
                link
            })
            .collect();
        links.push(crate::links::inventory::tests::link(
            BRIDGE,
            "br0",
            crate::links::link::Kind::Other("bridge".into()),
        ));
        links
    }

    fn pools(&self) -> Vec<Pool> {
        let wishes = RESOURCES.iter().zip(&self.heard).filter(|(_, wish)| wish.present);
        wishes
            .map(|(name, wish)| {
                let names: Vec<&str> =
                    self.nics.iter().take(wish.nics).map(|nic| nic.name.as_str()).collect();
                pool(
                    name,
                    &json!({
                        "links": [{"names": names}], "overlap": "Shared",
                        "capacity": {"perLink": wish.per_link}, "macvtap": {"mode": wish.mode},
                    }),
                )
            })
            .collect()
    }

    pub(super) fn create_pod(&mut self, chance: &mut Chance) -> Option<u64> {
        self.create_pod_of(&RESOURCES[chance.below(2)].parse().unwrap())
    }

    pub(super) fn create_pod_of(&mut self, resource: &ResourceName) -> Option<u64> {
        let granted = self.kubelet.allocate(resource)?;
        let Granted::Macvtap { device, ifindex, .. } = &granted else { return None };
        let (device, promised) = (device.clone(), *ifindex);
        self.made += 1;
        let uid = self.made;
        // Names come again, as those of a StatefulSet do.
        let mut names = (0..).map(|number| format!("vm-{number}"));
        let free = |name: &String| !self.kubelet.pods.values().any(|pod| pod.name == *name && !pod.ended);
        let name = names.find(free)?;
        self.kubelet.given.insert(device.clone(), (uid, granted));
        self.kubelet.note(&self.dir.path().join("plugins"));
        if let Some(worker) = &mut self.worker {
            worker.allocated(device.clone(), self.origin + self.since);
        }
        let tenant = Tenant { name, device, promised, sandbox: None, opened: None, ended: false };
        self.kubelet.pods.insert(uid, tenant);
        Some(uid)
    }

    /// Pods whose link went with its NIC.
    pub(super) fn without_link(&self) -> Vec<u64> {
        let lost = |pod: &Tenant| {
            let Some(sandbox) = pod.sandbox.as_ref().filter(|sandbox| sandbox.attached) else { return false };
            !self.machine.links.keys().any(|(netns, _)| *netns == sandbox.netns)
        };
        self.kubelet.pods.iter().filter(|(_, pod)| !pod.ended && lost(pod)).map(|(uid, _)| *uid).collect()
    }

    /// Whether two pods were given the device, which a kubelet that lost its checkpoint does.
    pub(super) fn is_held_twice(&self, device: &DeviceId) -> bool {
        self.kubelet.pods.values().filter(|pod| !pod.ended && pod.device == *device).count() > 1
    }

    /// What the kubelet does for a pod that is not up: a sandbox, and ADD.
    pub(super) fn start_pod(&mut self, uid: u64, trouble: Option<Trouble>) -> bool {
        let Some(pod) = self.kubelet.pods.get(&uid).filter(|pod| !pod.ended && !pod.is_up()).cloned() else {
            return false;
        };
        // Multus asks the kubelet for the device; one that has forgotten it gives the plugin none.
        if self.kubelet.given.get(&pod.device).is_none_or(|(owner, _)| *owner != uid) {
            return false;
        }
        let sandbox = pod.sandbox.clone().unwrap_or_else(|| {
            self.made += 1;
            let netns = self.machine.new_space(&self.dir.path().join("netns"));
            Sandbox { netns, container: format!("c{}", self.made), attached: false }
        });
        let attached = self.add(uid, &pod, &sandbox, trouble);
        let node = self.paths.device_node(pod.promised);
        let opened = self.machine.nodes.get(&node).copied().filter(|_| attached);
        if matches!(trouble, Some(Trouble::Killed(_))) {
            self.tear_record(&self.paths.attachments().join(pod.device.to_string()));
        }
        if !attached {
            // The kubelet makes another sandbox; of this one DEL is called, now or later.
            self.late.push((pod.device.clone(), sandbox.container.clone()));
            self.machine.end_space(sandbox.netns);
        }
        let is_up = attached && opened.is_some();
        let pod = self.kubelet.pods.get_mut(&uid).unwrap();
        pod.sandbox = attached.then_some(Sandbox { attached: true, ..sandbox });
        pod.opened = opened;
        is_up
    }

    fn add(&mut self, uid: u64, pod: &Tenant, sandbox: &Sandbox, trouble: Option<Trouble>) -> bool {
        let table = table_file::load(&self.paths).ok().flatten().filter(|table| table.boot_id == self.boot());
        let Some(table) = table else { return false };
        let Some(found) = table.macvtap(&pod.device) else { return false };
        let space = &self.machine.spaces[&sandbox.netns];
        let request = Request {
            device: pod.device.clone(),
            holder: Holder::Pod {
                container_id: sandbox.container.clone(),
                ifname: "net1".into(),
                pod_uid: uid.to_string(),
                pod_namespace: "default".into(),
                pod_name: pod.name.clone(),
                netns: space.path.to_string_lossy().into_owned(),
                netns_inode: space.inode,
            },
            network: Some("net".into()),
            netns_id: Some(NetnsId(sandbox.netns)),
            lower_name: found.link.name.clone(),
            lower_identity: found.link.identity.clone(),
            link: Macvtap {
                lower: found.link.ifindex,
                index: found.ifindex,
                name: "net1".parse().unwrap(),
                mode: found.link.mode,
                mac: None,
                mtu: None,
                promiscuous: false,
                all_multicast: true,
            },
            owner: found.resource.owner,
            spare_macs: Vec::new(),
            also_mac: None,
            has_ipv6: false,
            repeat: Repeat::Keep,
        };
        let record = self.paths.attachments().join(pod.device.to_string());
        let hands = Hands::new(&mut self.machine, sandbox.netns);
        let mut hands = hands.troubled(trouble).leaving(record, self.paths.taps());
        let done = attach(&self.paths, &mut hands, request);
        if hands.bury() { false } else { done }
    }

    /// DEL of a sandbox.
    pub(super) fn del(&mut self, device: &DeviceId, container: &str, trouble: Option<Trouble>) -> bool {
        let record = self.paths.attachments().join(device.to_string());
        let anybodys = self.planted == Some(Planted::DelOfAnybody);
        let meant = |record: &Attachment| {
            anybodys
                || matches!(&record.holder, Holder::Pod { container_id, ifname, .. }
                    if container_id == container && ifname == "net1")
        };
        let hands = Hands::new(&mut self.machine, NODE);
        let mut hands = hands.troubled(trouble).leaving(record, self.paths.taps());
        let done = detach::detach(&self.paths, &mut hands, device, meant).is_ok();
        if hands.bury() { false } else { done }
    }
}

fn attach(paths: &Paths, hands: &mut Hands<'_>, request: Request) -> bool {
    let attached = match attach::begin(paths, hands, request) {
        Ok(Begun::Present(_)) => return true,
        Ok(Begun::New(mut attaching)) => attaching
            .place()
            .and_then(|()| attaching.no_autoconfiguration())
            .and_then(|()| attaching.up())
            .and_then(|()| attaching.finish()),
        Err(_) => return false,
    };
    attached.is_ok()
}

pub(super) mod faults;
mod outages;
