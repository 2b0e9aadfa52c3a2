//! kube-ovn in a run: its subnet for one of the load's networks, and its processes, which are started again when they end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::history::History;
use super::snapshot::NAMESPACE;
use crate::{KubeOvn, Kubectl};

/// The network whose addresses kube-ovn assigns.
pub(super) const NETWORK: &str = "chaos-kube-ovn";

/// What all addresses of its subnet begin with, and no others.
const ADDRESSES: &str = "198.51.100.";

/// The subnet. It is small, so that addresses are assigned again soon after their release.
const SUBNET: &str = "chaos";
const CIDR: &str = "198.51.100.0/27";

/// How often processes that ended are started again.
const STEP: Duration = Duration::from_secs(2);

/// Whether kube-ovn assigned this address.
pub(super) fn assigned(address: &str) -> bool {
    address.starts_with(ADDRESSES)
}

/// The annotation with a pod's address.
pub(super) fn annotation() -> String {
    format!("{NETWORK}.{NAMESPACE}.kubernetes.io/ip_address")
}

/// Creates the subnet and waits until addresses of it can be assigned.
pub(super) fn apply_subnet(kubectl: &Kubectl) -> Result<()> {
    kubectl.apply(&format!(
        "apiVersion: kubeovn.io/v1\nkind: Subnet\nmetadata: {{name: {SUBNET}}}\nspec:\n  protocol: IPv4\n  \
         cidrBlock: {CIDR}\n  provider: {NETWORK}.{NAMESPACE}\n  disableGatewayCheck: true\n"
    ))?;
    kubectl.wait_until("", &format!("subnet.kubeovn.io/{SUBNET}"), Duration::from_mins(1), |subnet| {
        let conditions = subnet["status"]["conditions"].as_array()?;
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(())
    })
}

/// Deletes the subnet. It goes when no address of it is assigned any more.
pub(super) fn delete_subnet(kubectl: &Kubectl) -> Result<()> {
    let subnet = format!("subnet.kubeovn.io/{SUBNET}");
    kubectl.run(&["delete", &subnet, "--ignore-not-found", "--wait", "--timeout=60s"]).map(drop)
}

/// Does for kube-ovn's processes what the kubelet does for those of pods: starts what ended, but not what a fault stopped.
#[derive(Debug)]
pub(super) struct Keeper<'c> {
    kube_ovn: KubeOvn<'c>,
    /// Names of daemons, and of nodes without power.
    stopped: Mutex<BTreeSet<String>>,
    ended: AtomicBool,
}

impl<'c> Keeper<'c> {
    pub(super) fn new(kube_ovn: KubeOvn<'c>) -> Self {
        Self { kube_ovn, stopped: Mutex::default(), ended: AtomicBool::new(false) }
    }

    /// Starts what ended until [`Keeper::end`].
    pub(super) fn run(&self, history: &History) {
        while !self.ended.load(Ordering::Relaxed) {
            let stopped = self.lock();
            // A database that is not there yet is tried again.
            if let Err(error) = self.kube_ovn.revive(|name| stopped.contains(name)) {
                history.note(format_args!("start kube-ovn: {error:#}"));
            }
            drop(stopped);
            thread::sleep(STEP);
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Kills by `kill` what is called `name`; it is not started while `meanwhile` runs.
    pub(super) fn without<T>(
        &self,
        name: &str,
        kill: impl FnOnce(&KubeOvn<'c>) -> Result<()>,
        meanwhile: impl FnOnce() -> T,
    ) -> Result<T> {
        // Nothing is being started while this is locked.
        self.lock().insert(name.to_owned());
        let killed = kill(&self.kube_ovn);
        let ended = meanwhile();
        self.lock().remove(name);
        killed.map(|()| ended)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
