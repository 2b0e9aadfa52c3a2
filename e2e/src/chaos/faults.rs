//! Does what the plan says, and undoes it.

mod disk;
mod kube_ovn;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use self::disk::Disk;
use super::history::History;
use super::judge::Judge;
use super::kube_ovn::Keeper;
use super::load::Pools;
use super::numbers::Numbers;
use super::observe;
use super::plan::{Kind, Step};
use super::processes::{self, Process};
use crate::{Cluster, Node, install, namespaces, process};

/// The lower link that loses its name, its carrier, itself. The first pool's link stays, so that nothing excuses its pods.
const LINK: &str = "dp1";
const RENAMED: &str = "moved1";

/// A bridge that takes it.
const BRIDGE: &str = "taker1";

/// Where the kubelet keeps which pod has which device.
const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";

/// Commands of CNI calls, as the kernel shortens them. One that is killed at any moment is what a runtime's time-out or a
/// node without memory does.
const CALLS: [&str; 3] = ["multus", "macvtap", "kube-ovn"];

/// Breaks a cluster.
pub(super) struct Breaker<'r> {
    pub(super) cluster: &'r Cluster,
    pub(super) history: &'r History,
    pub(super) judge: &'r Mutex<Judge>,
    pub(super) keeper: &'r Keeper<'r>,
    /// What is a limit of what can be known.
    pub(super) excuses: &'r Mutex<Excuses>,
}

/// What excuses a pod that does not start, or a lease that stays.
#[derive(Clone, Debug, Default)]
pub(super) struct Excuses {
    pub(super) checkpoint_lost: BTreeSet<String>,
    pub(super) link_deleted: BTreeSet<String>,
    pub(super) runtime_killed: BTreeSet<String>,
}

impl Breaker<'_> {
    /// Does one step, from its begin to its end. What a broken cluster does not allow is noted: it is not a failure.
    pub(super) fn play(&self, step: &Step) {
        self.history.say(format_args!("begin {step}"));
        self.disturbed();
        if let Err(error) = self.begin_and_end(step) {
            self.history.note(format_args!("{step}: {error:#}"));
        }
        self.disturbed();
        self.history.note(format_args!("end {step}"));
    }

    fn disturbed(&self) {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner).disturbed(self.history.now());
    }

    fn begin_and_end(&self, step: &Step) -> Result<()> {
        let name = format!("n{}", step.node);
        let node = self.cluster.node(&name)?;
        match step.kind {
            Kind::WorkerKilled => self.signal(&self.agents(&name, true)?, Signal::KILL),
            Kind::AgentKilled => self.signal(&self.agents(&name, false)?, Signal::KILL),
            Kind::AgentDeleted => self.delete_agent(&name)?,
            Kind::Rollout => {
                self.kubectl(&[
                    "-n",
                    install::NAMESPACE,
                    "rollout",
                    "restart",
                    "daemonset/macvtap-node-agent",
                ])?;
            }
            Kind::OperatorKilled => self.signal(&self.leader()?, Signal::KILL),
            Kind::OperatorPaused => self.paused(&self.leader()?, step.hold),
            Kind::KubeletKilled => {
                node.kill_kubelet()?;
                thread::sleep(step.hold);
                node.start_kubelet()?;
            }
            Kind::CheckpointLost => self.lose_checkpoint(node, step.hold)?,
            Kind::RuntimeKilled => {
                self.excuses(|excuses| excuses.runtime_killed.insert(node.name()));
                node.kill_containerd()?;
                thread::sleep(step.hold);
                node.start_containerd()?;
            }
            Kind::ApiKilled => {
                self.cluster.kill_api_server()?;
                thread::sleep(step.hold);
                self.cluster.start_api_server()?;
            }
            Kind::ApiPaused => self.daemon_paused("kube-apiserver", step.hold)?,
            Kind::EtcdKilled => {
                self.cluster.kill_etcd()?;
                thread::sleep(step.hold);
                self.cluster.start_api_server()?;
            }
            Kind::EtcdPaused => self.daemon_paused("etcd", step.hold)?,
            Kind::LinkDown => {
                let back = ["link", "set", LINK, "up"];
                Self::around(step.hold, node, &["link", "set", LINK, "down"], &back)?;
            }
            Kind::CarrierLost => self.lose_carrier(node, step.hold)?,
            Kind::LinkRenamed => {
                let back = ["link", "set", RENAMED, "name", LINK];
                Self::around(step.hold, node, &["link", "set", LINK, "name", RENAMED], &back)?;
            }
            Kind::LinkDeleted => self.delete_link(node, step.hold)?,
            Kind::LinkEnslaved => Self::enslave_link(node, step.hold)?,
            Kind::DiskFull => self.disturb_disk(&name, Disk::Full, step.hold)?,
            Kind::DiskSlow => self.disturb_disk(&name, Disk::Slow, step.hold)?,
            Kind::CallsKilled => self.kill_calls(node, step.hold),
            Kind::PoolEdited => self.edit_pools(step.hold)?,
            Kind::Drained => self.drain(&name, step.hold)?,
            Kind::NodeDeleted => self.delete_node(node, step.hold)?,
            Kind::NodeRebooted => self.reboot(node, step.hold)?,
            Kind::StateDeleted => {
                self.kubectl(&["delete", "macvtapnodestate", &name, "--wait=false", "--ignore-not-found"])?;
            }
            Kind::KubeOvnControllerKilled
            | Kind::KubeOvnControllerPaused
            | Kind::KubeOvnDaemonKilled
            | Kind::KubeOvnDaemonPaused => self.disturb_kube_ovn(step.kind, node, step.hold)?,
        }
        Ok(())
    }

    fn kubectl(&self, words: &[&str]) -> Result<String> {
        process::output(self.cluster.kubectl().command().arg("--request-timeout=10s").args(words))
    }

    fn signal(&self, processes: &[Process], signal: Signal) {
        for process in processes.iter().filter(|process| process.runs()) {
            self.history.note(format_args!("{signal:?} to {} {}", process.command, process.pid));
            process::send(process.pid, signal);
        }
    }

    fn paused(&self, processes: &[Process], hold: Duration) {
        self.signal(processes, Signal::STOP);
        thread::sleep(hold);
        self.signal(processes, Signal::CONT);
    }

    fn daemon_paused(&self, name: &str, hold: Duration) -> Result<()> {
        let pid = self.cluster.processes().and_then(|all| all.pid(name));
        let pid = pid.with_context(|| format!("{name} does not run"))?;
        process::send(pid, Signal::STOP);
        thread::sleep(hold);
        process::send(pid, Signal::CONT);
        Ok(())
    }

    /// The agent's workers on a node, or their supervisors.
    fn agents(&self, node: &str, workers: bool) -> Result<Vec<Process>> {
        let layout = self.cluster.layout().context("a local cluster has a layout")?;
        let mut agents = processes::of_pods(layout);
        agents.retain(|process| process.node == node && process.command.starts_with("macvtap-node-ag"));
        let pids: BTreeSet<u32> = agents.iter().map(|process| process.pid).collect();
        agents.retain(|process| pids.contains(&process.parent) == workers);
        if agents.is_empty() {
            bail!("no agent runs on {node}");
        }
        Ok(agents)
    }

    fn delete_agent(&self, node: &str) -> Result<()> {
        let label = "app.kubernetes.io/name=macvtap-node-agent";
        let field = format!("spec.nodeName={node}");
        let words = ["delete", "pods", "-l", label, "--field-selector", &field, "--wait=false"];
        self.kubectl(&[&["-n", install::NAMESPACE], &words[..]].concat()).map(drop)
    }

    /// The processes of the operator that leads.
    fn leader(&self) -> Result<Vec<Process>> {
        let kubectl = self.cluster.kubectl();
        let leases = observe::get(kubectl, &["-n", install::NAMESPACE, "leases"])?;
        let holders = leases["items"].as_array().into_iter().flatten();
        let holders: Vec<&str> =
            holders.filter_map(|lease| lease["spec"]["holderIdentity"].as_str()).collect();
        let pods = observe::get(kubectl, &["-n", install::NAMESPACE, "pods"])?;
        let leads = |name: &str| holders.iter().any(|holder| holder.starts_with(name));
        let uids: Vec<&str> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["name"].as_str().is_some_and(leads))
            .filter_map(|pod| pod["metadata"]["uid"].as_str())
            .collect();
        let layout = self.cluster.layout().context("a local cluster has a layout")?;
        let mut found = processes::of_pods(layout);
        found.retain(|process| uids.contains(&process.pod.as_str()) && !process.is_sandbox());
        Ok(found)
    }

    fn lose_checkpoint(&self, node: &Node, hold: Duration) -> Result<()> {
        node.kill_kubelet()?;
        self.excuses(|excuses| excuses.checkpoint_lost.insert(node.name()));
        let lost = node.exec(&["rm", "-f", CHECKPOINT]);
        thread::sleep(hold);
        node.start_kubelet()?;
        lost.map(drop)
    }

    fn excuses(&self, change: impl FnOnce(&mut Excuses) -> bool) {
        change(&mut self.excuses.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn around(hold: Duration, node: &Node, begin: &[&str], end: &[&str]) -> Result<()> {
        let ip = |words: &[&str]| node.exec(&[&["ip"], words].concat()).map(drop);
        ip(begin)?;
        thread::sleep(hold);
        ip(end)
    }

    /// The kernel refuses it while the link carries macvtaps.
    fn enslave_link(node: &Node, hold: Duration) -> Result<()> {
        let ip = |words: &[&str]| node.exec(&[&["ip"], words].concat()).map(drop);
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        let enslaved = ip(&["link", "set", LINK, "master", BRIDGE]);
        if enslaved.is_ok() {
            thread::sleep(hold);
        }
        // The link is free when its bridge is gone.
        ip(&["link", "del", BRIDGE])?;
        enslaved
    }

    fn lose_carrier(&self, node: &Node, hold: Duration) -> Result<()> {
        let layout = self.cluster.layout().context("a local cluster has a layout")?;
        let port = format!("{}-{LINK}", node.name());
        let set = |state: &str| {
            let mut command = namespaces::in_netns(&layout.netns("sw"));
            process::output(command.args(["ip", "link", "set", &port, state])).map(drop)
        };
        set("down")?;
        thread::sleep(hold);
        set("up")
    }

    fn delete_link(&self, node: &Node, hold: Duration) -> Result<()> {
        let index = node.exec(&["cat", &format!("/sys/class/net/{LINK}/ifindex")])?;
        let index = index.trim().parse().context("read the index of a link")?;
        self.judge.lock().unwrap_or_else(PoisonError::into_inner).deleted(&node.name(), index);
        self.excuses(|excuses| excuses.link_deleted.insert(node.name()));
        node.exec(&["ip", "link", "del", LINK])?;
        thread::sleep(hold);
        namespaces::ensure_node(node.layout())
    }

    fn kill_calls(&self, node: &Node, hold: Duration) {
        let netns = namespaces::identity(&namespaces::path(&node.layout().netns()));
        let mut delays = Numbers::new(u64::from(std::process::id()), 3);
        let (begun, mut killed) = (Instant::now(), 0);
        let mut known: BTreeMap<u32, Instant> = BTreeMap::new();
        while begun.elapsed() < hold {
            for pid in process::find(|process| is_call(process, netns)) {
                // At any moment of its life, which is a tenth of a second at most.
                let delay = Duration::from_millis(delays.between(0, 100));
                known.entry(pid).or_insert_with(|| Instant::now() + delay);
            }
            for (pid, _) in known.iter().filter(|(_, due)| **due <= Instant::now()) {
                if is_call(format!("/proc/{pid}").as_ref(), netns) {
                    process::send(*pid, Signal::KILL);
                    killed += 1;
                }
            }
            known.retain(|_, due| *due > Instant::now());
            thread::sleep(Duration::from_millis(5));
        }
        self.history.note(format_args!("{killed} CNI calls killed on {}", node.name()));
    }

    fn edit_pools(&self, hold: Duration) -> Result<()> {
        Pools::EDITED.apply(self.cluster.kubectl())?;
        thread::sleep(hold);
        Pools::NORMAL.apply(self.cluster.kubectl())
    }

    fn drain(&self, node: &str, hold: Duration) -> Result<()> {
        let drained = self.kubectl(&[
            "drain",
            node,
            "--ignore-daemonsets",
            "--force",
            "--delete-emptydir-data",
            "--disable-eviction",
            &format!("--timeout={}s", hold.as_secs() + 5),
        ]);
        thread::sleep(hold);
        self.kubectl(&["uncordon", node])?;
        drained.map(drop)
    }

    /// The kubelet registers its node when it starts.
    fn delete_node(&self, node: &Node, hold: Duration) -> Result<()> {
        self.kubectl(&["delete", "node", &node.name(), "--wait=false", "--ignore-not-found"])?;
        thread::sleep(hold);
        node.kill_kubelet()?;
        node.start_kubelet()
    }

    /// Undoes whatever is broken: every part runs, every link is as it was.
    pub(super) fn repair(&self) -> Result<()> {
        for name in ["etcd", "kube-apiserver"] {
            if let Some(pid) = self.cluster.processes().and_then(|all| all.pid(name)) {
                process::send(pid, Signal::CONT);
            }
        }
        self.cluster.start_api_server()?;
        for node in self.cluster.nodes() {
            // What is as it was needs no undoing.
            let _ = node.exec(&["ip", "link", "set", RENAMED, "name", LINK]);
            let _ = node.exec(&["ip", "link", "del", BRIDGE]);
            node.power_on()?;
            node.exec(&["ip", "link", "set", LINK, "up"])?;
        }
        for process in processes_of_pods(self.cluster) {
            process::send(process.pid, Signal::CONT);
        }
        let patience = Duration::from_mins(1);
        for node in self.cluster.nodes() {
            let resource = format!("node/{}", node.name());
            if self
                .cluster
                .kubectl()
                .wait_until("", &resource, Duration::from_secs(20), |_| Some(()))
                .is_err()
            {
                // Its object was deleted, and the kubelet started while the API server was away.
                node.kill_kubelet()?;
                node.start_kubelet()?;
            }
            self.cluster.kubectl().wait_for("", &resource, "condition=Ready", patience)?;
            self.cluster.kubectl().run(&["uncordon", &node.name()])?;
        }
        Pools::NORMAL.apply(self.cluster.kubectl())
    }
}

/// Whether the process behind this `/proc` directory is a CNI call in a node's namespace.
fn is_call(process: &Path, netns: Option<(u64, u64)>) -> bool {
    let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
    CALLS.contains(&command.trim()) && netns.is_some_and(|netns| namespaces::holds(process, &[netns]))
}

fn processes_of_pods(cluster: &Cluster) -> Vec<Process> {
    cluster.layout().map(processes::of_pods).unwrap_or_default()
}
