//! The machine of a test: its links, its hardware, the product's programs.

pub(crate) mod agent;
pub(crate) mod cni;
#[path = "../../../../../node-agent/tests/support/kubelet.rs"]
#[allow(dead_code, reason = "shared with the agent's own tests, which use the rest")]
pub(crate) mod kubelet;
pub(crate) mod machine;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// An emulated machine is slow, and a busy host makes it slower.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// Whether this is the machine of a test. Elsewhere a test says that it was left out.
pub(crate) fn in_guest() -> bool {
    let guest = std::env::var_os("GUEST_LAB").is_some();
    assert!(
        guest || std::env::var("REQUIRE_ROOT").as_deref() != Ok("1"),
        "REQUIRE_ROOT=1, but this test needs a machine of its own: make test-guest"
    );
    if !guest {
        println!("skipped: needs a machine of its own, make test-guest");
    }
    guest
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
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
