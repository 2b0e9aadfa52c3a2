//! Faults of kube-ovn's processes.

use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::Breaker;
use crate::chaos::plan::Kind;
use crate::{KubeOvn, Node, kube_ovn};

impl Breaker<'_> {
    /// Kills or stops the controller, or the daemon of a node, for a while.
    pub(super) fn disturb_kube_ovn(&self, kind: Kind, node: &Node, hold: Duration) -> Result<()> {
        let daemon = kube_ovn::daemon(node);
        match kind {
            Kind::KubeOvnControllerKilled => {
                self.keeper.without(kube_ovn::CONTROLLER, KubeOvn::kill_controller, || thread::sleep(hold))
            }
            Kind::KubeOvnDaemonKilled => {
                self.keeper.without(&daemon, |kube_ovn| kube_ovn.kill_daemon(node), || thread::sleep(hold))
            }
            Kind::KubeOvnControllerPaused => self.daemon_paused(kube_ovn::CONTROLLER, hold),
            _ => self.daemon_paused(&daemon, hold),
        }
    }

    /// Takes the power of a node, and of what kube-ovn has on it, for a while.
    pub(super) fn reboot(&self, node: &Node, hold: Duration) -> Result<()> {
        self.excuses(|excuses| excuses.runtime_killed.insert(node.name()));
        self.keeper.without(
            &node.name(),
            |_| node.power_off(),
            || {
                thread::sleep(hold);
                node.power_on()
            },
        )?
    }
}
