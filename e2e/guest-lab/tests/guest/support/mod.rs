//! The machine of a test: its links, its hardware, the product's programs.

pub(crate) mod agent;
pub(crate) mod cni;
#[path = "../../../../../cni-plugin/tests/support/flows.rs"]
pub(crate) mod flows;
#[path = "../../../../../node-agent/tests/support/kubelet.rs"]
#[allow(dead_code, reason = "shared with the agent's own tests, which use the rest")]
pub(crate) mod kubelet;
pub(crate) mod machine;
#[path = "../../../../../cni-plugin/tests/support/port.rs"]
pub(crate) mod port;
#[path = "../../../../../cni-plugin/tests/support/queue.rs"]
pub(crate) mod queue;
#[path = "../../../../../node-agent/tests/support/run.rs"]
mod run;
#[path = "../../../../../cni-plugin/tests/support/vhost.rs"]
pub(crate) mod vhost;

use std::path::PathBuf;
use std::time::Duration;

/// An emulated machine is slow, and a busy host makes it slower.
pub(crate) const DEADLINE: Duration = Duration::from_secs(100);

/// Whether this is the machine of a test, which the test needs.
pub(crate) fn in_guest() -> bool {
    run::runs(std::env::var_os("GUEST_LAB").is_some(), "a machine of its own: make test-guest")
}

/// The whole machine is the node.
#[derive(Debug)]
pub(crate) struct Node;

#[expect(clippy::unused_self, reason = "what other tests' nodes are asked for, which are several")]
impl Node {
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        inside.into()
    }

    pub(crate) fn plugins(&self) -> PathBuf {
        "/var/lib/kubelet/device-plugins".into()
    }
}

/// Looks again until there is something, or fails with what was waited for.
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    run::eventually_in(DEADLINE, what, look)
}
