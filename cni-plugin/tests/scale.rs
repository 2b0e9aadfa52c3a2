//! A thousand devices of one lower link.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod support;

use macvtap::records;
use std::collections::HashSet;
use std::time::Instant;
use support::{Answer, Call, Holder, Node, is_root, pod};

/// How many devices, and how many ADDs run at once. A pod namespace here serves many of them.
const DEVICES: u32 = 1_000;
const AT_ONCE: u32 = 500;
const PODS: u32 = 20;

fn call<'n>(node: &'n Node, pods: &[Holder], slot: u32) -> Call<'n> {
    let pod = &pods[usize::try_from(slot % PODS).unwrap()];
    Call::new(node, pod, &format!("c{slot}")).device(slot).var("CNI_IFNAME", &format!("net{slot}"))
}

fn all_at_once(node: &Node, pods: &[Holder], slots: std::ops::Range<u32>, command: &str) {
    let start = Instant::now();
    let count = slots.len();
    let running: Vec<_> = slots.map(|slot| call(node, pods, slot).start(command)).collect();
    for child in running {
        let answer = Answer::of(child);
        assert!(answer.success, "{command}: {answer:?}");
    }
    let took = start.elapsed();
    println!("{count} {command}s at once: {:.2} s", took.as_secs_f64());
}

#[test]
fn a_thousand_devices_of_one_lower_link_come_five_hundred_at_once_and_go_without_a_trace() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.store_table(|table| {
        table.resources.values_mut().for_each(|resource| resource.links_mut()[0].ranges[0].count = DEVICES);
        table.next_ifindex = node.first_ifindex + DEVICES;
    });
    let pods: Vec<Holder> = (0..PODS).map(|_| pod()).collect();
    let before = node.traces();
    all_at_once(&node, &pods, 0..AT_ONCE, "ADD");
    all_at_once(&node, &pods, AT_ONCE..DEVICES, "ADD");
    let listing = records::list(&node.paths()).unwrap();
    let taps: HashSet<_> = listing.records.iter().map(|record| record.tap.unwrap()).collect();
    let macs: HashSet<_> = listing.records.iter().map(|record| record.mac.unwrap()).collect();
    let count = usize::try_from(DEVICES).unwrap();
    assert_eq!((listing.damaged.len(), taps.len(), macs.len()), (0, count, count));
    let links: usize =
        pods.iter().map(|pod| Node::ip(pod, "-br link show type macvtap").lines().count()).sum();
    assert_eq!(links, count);
    // One among a thousand is as quick to find.
    let last = call(&node, &pods, DEVICES - 1);
    let start = Instant::now();
    last.ok("DEL");
    last.ok("ADD");
    println!("DEL and ADD of one among {DEVICES}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    all_at_once(&node, &pods, 0..AT_ONCE, "DEL");
    all_at_once(&node, &pods, AT_ONCE..DEVICES, "DEL");
    assert_eq!(node.traces(), before);
}
