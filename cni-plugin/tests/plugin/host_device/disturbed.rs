//! Failure at every step of an ADD and of a DEL.

use super::{call, leases, ready_node, shape, state};
use crate::disturbed::{CALLS, disturb_each, ready};
use crate::support::{has_plugins, link, record};
use macvtap::detach;
use macvtap::kernel::Rtnl;
use macvtap::record::State;
use serde_json::json;

/// The calls after which something is another than before: who is killed elsewhere is killed before or after one of them.
const CHANGES: [&str; 11] = [
    "sendto",
    "recvfrom",
    "openat",
    "write",
    "?rename",
    "renameat",
    "renameat2",
    "?unlink",
    "unlinkat",
    "flock",
    "setns",
];

#[test]
fn the_agent_brings_back_a_nic_whose_add_was_killed_in_between() {
    let Some((node, pod)) = ready().then(ready_node).flatten() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    let mut seen = 0;
    for number in 1.. {
        let Some(_) = call.disturbed("ADD", "sendto", "signal=KILL", number) else { break };
        if let Some(record) = record(&node, 0) {
            assert_eq!(record.state, State::Creating);
            seen += 1;
            let kernel = || Rtnl::node().unwrap();
            node.inside(|| detach::collect(&node.paths(), &mut kernel(), &record)).unwrap();
        }
        assert_eq!(state(&node, &pod), before, "call {number}");
    }
    call.ok("DEL");
    assert!(seen > 5, "only {seen} were killed with a record");
}

#[test]
fn an_add_of_a_nic_in_which_any_one_system_call_fails_either_succeeds_or_leaves_it_as_it_was() {
    let Some((node, pod)) = (ready() && has_plugins()).then(ready_node).flatten() else { return };
    for (kinds, keys) in [
        (&CALLS[..], json!({"mtu": 1400})),
        (&["sendto", "setns", "pidfd_open", "pipe2"][..], json!({"ipam": leases("/run/leases")})),
    ] {
        let call = call(&node, &pod, "c1").with(keys);
        call.ok("ADD");
        call.ok("DEL");
        let all = || (state(&node, &pod), node.sh("find /run/leases -type f -name '1*' 2>/dev/null; true"));
        let before = all();
        disturb_each(&call, "ADD", "error=EIO", kinds, |number, answer| {
            if !answer.success && answer.json["code"].is_u64() {
                assert_eq!(all(), before, "call {number}: {answer:?}");
            }
            call.ok("DEL");
            assert_eq!(all(), before, "after the DEL, call {number}: {answer:?}");
        });
    }
}

#[test]
fn an_add_of_a_nic_that_is_killed_at_any_system_call_is_undone_by_del_or_by_the_next_add() {
    let Some((node, pod)) = ready().then(ready_node).flatten() else { return };
    let call = call(&node, &pod, "c1").with(json!({"mac": "02:00:00:00:00:03"}));
    let before = state(&node, &pod);
    let mut add_first = false;
    disturb_each(&call, "ADD", "signal=KILL", &CHANGES, |number, answer| {
        assert!(!answer.success, "call {number}");
        add_first = !add_first;
        if add_first {
            call.ok("ADD");
            assert_eq!(shape(&link(&pod))["mac"], "02:00:00:00:00:03", "call {number}");
        }
        call.ok("DEL");
        assert_eq!(state(&node, &pod), before, "call {number}");
    });
}

#[test]
fn a_del_of_a_nic_in_which_any_one_system_call_fails_is_completed_by_the_next() {
    let Some((node, pod)) = ready().then(ready_node).flatten() else { return };
    let call = call(&node, &pod, "c1").with(json!({"mtu": 1400}));
    let before = state(&node, &pod);
    for (how, kinds) in [("error=EIO", &CALLS[..]), ("signal=KILL", &CHANGES[..])] {
        call.ok("ADD");
        disturb_each(&call, "DEL", how, kinds, |number, answer| {
            if answer.success {
                assert_eq!(state(&node, &pod), before, "call {number} hid that something stayed");
            }
            call.ok("DEL");
            assert_eq!(state(&node, &pod), before, "call {number}: {answer:?}");
            call.ok("ADD");
        });
    }
}
