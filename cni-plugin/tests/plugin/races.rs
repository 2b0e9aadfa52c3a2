//! Calls at the same time, and calls that are killed.

use crate::support::{
    Answer, Call, Node, bare_node_and_pods, link, node_and_pods, record, state, tap_in, wait_until,
};
use macvtap::kernel::Rtnl;
use macvtap::record::State;
use macvtap::{detach, lock, park, records};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;

#[test]
fn of_two_adds_at_once_for_one_device_exactly_one_wins() {
    let Some((node, [one, two])) = node_and_pods() else { return };
    let calls = [Call::new(&node, &one, "one"), Call::new(&node, &two, "two")];
    for _ in 0..5 {
        let running = calls.each_ref().map(|call| call.start("ADD"));
        let answers = running.map(Answer::of);
        let winners = answers.iter().filter(|answer| answer.success).count();
        assert_eq!(winners, 1, "{answers:?}");
        let loser = answers.iter().find(|answer| !answer.success).unwrap();
        assert_eq!(loser.json["code"], 11, "{loser:?}");
        let links = [&one, &two].map(|pod| link(pod) != Value::Null);
        assert_eq!(links, answers.each_ref().map(|answer| answer.success));
        for call in &calls {
            call.ok("DEL");
        }
    }
}

#[test]
fn what_a_killed_add_left_is_cleared_by_the_next() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    // As an ADD leaves it that is killed after it made the link.
    let mut left = record(&node, 0).unwrap();
    left.state = State::Creating;
    records::write(&node.paths(), &left).unwrap();
    Node::ip(&pod, "link set net1 down");
    call.ok("ADD");
    assert_eq!(record(&node, 0).unwrap().state, State::Attached);
    assert!(link(&pod)["flags"].to_string().contains("\"UP\""));
}

#[test]
fn an_add_killed_at_any_moment_is_undone_by_del_and_by_the_collector() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1");
    let collect = || {
        let leftover = record(&node, 0)?;
        node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), &leftover).unwrap());
        Some(leftover.state)
    };
    let mut killed = 0;
    for step in 0..60_u32 {
        let mut running = call.start("ADD");
        // Not to wait for something, but to hit another moment each time.
        std::thread::sleep(std::time::Duration::from_micros(u64::from(step) * 120));
        running.kill().unwrap();
        running.wait().unwrap();
        let found = if step % 2 == 0 { collect() } else { record(&node, 0).map(|record| record.state) };
        killed += u32::from(found == Some(State::Creating));
        if step % 2 == 1 {
            call.ok("DEL");
        }
        node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
        assert_eq!(state(&node, &pod), before, "step {step}, {found:?}");
    }
    println!("{killed} of 60 were killed while they made the link");
    call.ok("ADD");
}

#[test]
fn many_adds_at_once_each_get_a_tap_of_their_own() {
    const COUNT: usize = 24;
    let Some((node, pods)) = bare_node_and_pods::<COUNT>() else { return };
    node.store_table(|table| {
        let resource = table.resources.values_mut().next().unwrap();
        resource.links_mut()[0].ranges[0].count = u32::try_from(COUNT).unwrap();
    });
    let call = |slot: u32, pod| Call::new(&node, pod, &format!("c{slot}")).device(slot);
    let running: Vec<_> = (0..).zip(&pods).map(|(slot, pod)| call(slot, pod).start("ADD")).collect();
    for child in running {
        let answer = Answer::of(child);
        assert!(answer.success, "{answer:?}");
    }
    let taps: std::collections::HashSet<_> =
        (0..).zip(&pods).map(|(slot, _)| record(&node, slot).unwrap().tap.unwrap().minor).collect();
    assert_eq!(taps.len(), pods.len());
    for (slot, pod) in (0..).zip(&pods) {
        assert_eq!(tap_in(pod), record(&node, slot).unwrap().tap.unwrap().to_string());
    }
}

#[test]
fn an_add_waits_for_the_one_that_works_on_the_device() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let held = lock::device(&node.paths(), &"dataplaneMvp0".parse().unwrap()).unwrap();
    let mut running = Call::new(&node, &pod, "c1").start("ADD");
    // It must reach the lock: a process that waits for a flock is listed with "->".
    let inode = std::fs::metadata(node.paths().locks().join("dataplaneMvp0")).unwrap().ino();
    let waits = || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("->") && line.contains(&format!(":{inode} ")))
    };
    wait_until("an ADD that waits for the lock", || {
        assert_eq!(running.try_wait().unwrap(), None, "it did not wait");
        waits()
    });
    assert_eq!(link(&pod), Value::Null);
    drop(held);
    assert!(Answer::of(running).success);
}
