//! Failure at every step: each system call of the plugin fails once, or is its last, and file systems are full.

use crate::support::{Answer, Call, Holder, Node, give_eth0, has, has_plugins, link, node_and_pods, state};
use macvtap::kernel::Rtnl;
use macvtap::park;
use serde_json::{Value, json};

/// The calls that do something: files, sockets, namespaces, mounts. `?`: not on every architecture.
pub(crate) const CALLS: [&str; 50] = [
    "?open",
    "openat",
    "?stat",
    "newfstatat",
    "statx",
    "fstat",
    "fstatfs",
    "?readlink",
    "readlinkat",
    "?rename",
    "renameat",
    "renameat2",
    "?unlink",
    "unlinkat",
    "?symlink",
    "symlinkat",
    "?mkdir",
    "mkdirat",
    "?mknod",
    "mknodat",
    "?lchown",
    "?chown",
    "fchownat",
    "?rmdir",
    "flock",
    "read",
    "write",
    "socket",
    "bind",
    "connect",
    "setsockopt",
    "getsockopt",
    "getsockname",
    "sendto",
    "sendmsg",
    "recvfrom",
    "recvmsg",
    "setns",
    "fsopen",
    "fsconfig",
    "fsmount",
    "pread64",
    "close",
    "?poll",
    "pidfd_open",
    "pipe2",
    "clone",
    "?clone3",
    "?vfork",
    "waitid",
];

/// Those that an ADD makes more of when it has addresses to lease and to set.
const WITH_ADDRESSES: [&str; 13] = [
    "sendto",
    "recvfrom",
    "setns",
    "mknodat",
    "socket",
    "?poll",
    "pidfd_open",
    "pipe2",
    "clone",
    "?clone3",
    "?vfork",
    "waitid",
    "wait4",
];

/// Far more than an ADD makes of one kind.
const MOST: u32 = 200;

/// What stays after the agent has looked: it removes placeholders nobody needs, and notes of tap numbers that no record
/// confirms, which are written before the record.
fn swept(node: &Node, pod: &Holder) -> (String, String) {
    node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
    state(node, pod)
}

/// Disturbs each call in turn, and lets `judge` see what came of it.
pub(crate) fn disturb_each(
    call: &Call<'_>,
    command: &str,
    how: &str,
    kinds: &[&str],
    mut judge: impl FnMut(&str, &Answer),
) {
    let mut disturbed = 0;
    for name in kinds {
        // strace counts each kind for itself.
        let last = (1..MOST).find(|number| {
            let Some(answer) = call.disturbed(command, name, how, *number) else { return true };
            disturbed += 1;
            judge(&format!("{name} {number}"), &answer);
            false
        });
        assert!(last.is_some(), "{name} never ended");
        // The last one was not disturbed.
        call.ok("DEL");
        if command == "DEL" {
            call.ok("ADD");
        }
    }
    call.ok("DEL");
    println!("{command} with {how}: {disturbed} calls");
    assert!(disturbed > 20, "only {disturbed} calls were disturbed");
}

pub(crate) fn ready() -> bool {
    has("/usr/bin/strace", "strace")
}

#[test]
fn an_add_in_which_any_one_system_call_fails_either_succeeds_or_leaves_nothing() {
    let Some((node, [pod])) = ready().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1");
    // So that directories and locks are there already.
    call.ok("ADD");
    call.ok("DEL");
    let before = state(&node, &pod);
    let mut failed = 0;
    disturb_each(&call, "ADD", "error=EIO", &CALLS, |number, answer| {
        // Without an error it ended before it could write one, or in writing its result.
        if !answer.success && answer.json["code"].is_u64() {
            failed += 1;
            assert_eq!(swept(&node, &pod), before, "call {number}: {answer:?}");
        }
        call.ok("DEL");
        assert_eq!(swept(&node, &pod), before, "after the DEL, call {number}: {answer:?}");
    });
    assert!(failed > 30, "only {failed} of them failed");
}

#[test]
fn an_add_with_addresses_in_which_any_one_system_call_fails_leaves_no_lease() {
    let Some((node, [pod])) = (ready() && has_plugins()).then(node_and_pods).flatten() else { return };
    let ranges = json!([[{"subnet": "10.9.0.0/24"}]]);
    let ipam = json!({"type": "host-local", "dataDir": "/run/leases", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]});
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": ipam}));
    // Its default route must stay.
    give_eth0(&pod);
    let all = |node: &Node| {
        let leases = node.sh("cd /run; find leases -type f -name '1*' 2>/dev/null | sort; true");
        (leases, swept(node, &pod), Node::ip(&pod, "-4 route show table all type unicast"))
    };
    let before = all(&node);
    disturb_each(&call, "ADD", "error=EIO", &WITH_ADDRESSES, |number, answer| {
        if !answer.success && answer.json["code"].is_u64() {
            assert_eq!(all(&node), before, "call {number}: {answer:?}");
        }
        call.ok("DEL");
        assert_eq!(all(&node), before, "after the DEL, call {number}: {answer:?}");
    });
}

#[test]
fn an_add_that_is_killed_at_any_system_call_is_undone_by_del() {
    let Some((node, [pod])) = ready().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1");
    let before = state(&node, &pod);
    disturb_each(&call, "ADD", "signal=KILL", &CALLS, |number, answer| {
        assert!(!answer.success, "call {number}");
        call.ok("DEL");
        assert_eq!(swept(&node, &pod), before, "call {number}");
    });
}

#[test]
fn a_del_in_which_any_one_system_call_fails_is_completed_by_the_next() {
    let Some((node, [pod])) = ready().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1");
    let before = state(&node, &pod);
    call.ok("ADD");
    disturb_each(&call, "DEL", "error=EIO", &CALLS, |number, answer| {
        if answer.success {
            assert_eq!(state(&node, &pod), before, "call {number} hid that something stayed");
        }
        call.ok("DEL");
        assert_eq!(state(&node, &pod), before, "call {number}: {answer:?}");
        call.ok("ADD");
    });
}

#[test]
fn an_add_on_a_full_file_system_leaves_nothing() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let mut refused = 0;
    // Room for one file more each time: directories, lock, record, entry of the tap number, device node.
    for inodes in 2..40 {
        node.sh(&format!("mkdir -p /run/macvtap; mount -t tmpfs -o nr_inodes={inodes} tmpfs /run/macvtap"));
        let call = Call::new(&node, &pod, "c1");
        let answer = call.run("ADD");
        if answer.success {
            call.ok("DEL");
            node.sh("umount /run/macvtap; rmdir /run/macvtap");
            break;
        }
        refused += 1;
        assert!(answer.json["msg"].as_str().unwrap().contains("No space left on device"), "{answer:?}");
        assert_eq!(state(&node, &pod), before, "with {inodes} files: {answer:?}");
        call.run("DEL");
        node.sh("umount /run/macvtap; rmdir /run/macvtap");
        assert_eq!(link(&pod), Value::Null);
    }
    assert!(refused > 5, "only {refused} were refused");
}

#[test]
fn a_record_that_cannot_be_written_means_no_link() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh("mkdir -p /run/macvtap; mount -t tmpfs -o size=64k tmpfs /run/macvtap");
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    call.ok("DEL");
    // Files can be made, and nothing written to them.
    node.sh("dd if=/dev/zero of=/run/macvtap/full bs=1k count=1000 2>/dev/null; true");
    let before = state(&node, &pod);
    let message = call.with(json!({"mtu": 1400})).fails("ADD", 100);
    assert!(message.contains("write /") && message.contains("No space left on device"), "{message}");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn an_add_that_hears_of_its_tap_mounts_no_sysfs() {
    let Some((node, [pod])) = ready().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1");
    // Unmounting waits for all processors of the node.
    assert!(call.disturbed("ADD", "fsopen", "error=EIO", 1).is_none());
    call.ok("DEL");
}
