//! Whether a pod has a user namespace of its own, as its network namespace tells.

use crate::support::{is_root, pod};
use macvtap::kernel::Rtnl;
use macvtap::netns::Netns;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that sleeps until this goes.
struct Sleeper(Child);

impl Sleeper {
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(words).args(["sleep", "100"]);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// A namespace of it, once that is another one than ours.
    fn namespace(&self, kind: &str) -> String {
        let path = format!("/proc/{}/ns/{kind}", self.0.id());
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let begun = Instant::now();
        while fs::read_link(&path).is_ok_and(|found| found == own) {
            assert!(begun.elapsed() < Duration::from_secs(10), "no {kind} namespace");
            std::thread::yield_now();
        }
        path
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_pod_with_a_user_namespace_is_told_from_one_without() {
    if !is_root() {
        return;
    }
    let plain = pod();
    let has_users = |path: &Path| Rtnl::with_pod_and_users(Netns::open(path).unwrap()).unwrap().1;
    assert!(!has_users(&plain.netns()));
    // As a runtime does it: a user namespace first, with the pod's share of the node's users; the others belong to it.
    let users = Sleeper::start(&["unshare", "-U"]);
    users.namespace("user");
    let pid = users.0.id().to_string();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 100000 65536").unwrap();
    }
    let pod = Sleeper::start(&["nsenter", "-U", "-t", &pid, "-S", "0", "-G", "0", "--", "unshare", "-n"]);
    assert!(has_users(pod.namespace("net").as_ref()));
}
