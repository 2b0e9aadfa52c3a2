//! ADD, DEL and CHECK through the real binary on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod support;

use macvtap::detach;
use macvtap::kernel::Rtnl;
use macvtap::mode::Mode;
use macvtap::record::{Holder, State, UNKNOWN};
use macvtap::tap::{self, Node as DeviceNode};
use macvtap::{lock, park, records, table_file};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use support::{Answer, Call, Node, is_root, link, pod, record};

/// The device number that the pod's own sysfs shows for its link.
fn tap_in(pod: &support::Holder) -> String {
    let net = format!("--net={}", pod.netns().display());
    let script = "mount -t sysfs none /sys && cat /sys/class/net/net1/tap*/dev";
    let output = std::process::Command::new("nsenter")
        .args([&net, "unshare", "--mount", "sh", "-c", script])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_pod_gets_the_link_the_table_describes_and_nothing_of_it_stays() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let before = (node.traces(), Node::ip(&pod, "-br link"));
    let call = Call::new(&node, &pod, "c1").with(json!({"mtu": 1400, "mac": "02:00:00:00:00:07"}));
    let result = call.ok("ADD");
    assert_eq!(result["cniVersion"], "1.0.0");
    let sandbox = pod.netns().display().to_string();
    assert_eq!(
        result["interfaces"],
        json!([{"name": "net1", "mac": "02:00:00:00:00:07", "sandbox": sandbox}])
    );
    assert_eq!(result.get("ips"), None);
    let link = link(&pod);
    assert_eq!(link["ifindex"], node.first_ifindex);
    assert_eq!((&link["mtu"], &link["address"]), (&json!(1400), &json!("02:00:00:00:00:07")));
    assert_eq!(link["linkinfo"]["info_kind"], "macvtap");
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
    assert_eq!(link["inet6_addr_gen_mode"], "none");
    let flags = link["flags"].to_string();
    assert!(flags.contains("\"UP\"") && link["allmulti"] == 1, "{link}");
    assert!(!Node::ip(&pod, "addr show dev net1").contains("inet"), "the pod's kernel took an address");
    let record = record(&node, 0).unwrap();
    assert_eq!(record.state, State::Attached);
    let path = node.paths().device_node(node.first_ifindex);
    let number = record.tap.unwrap();
    let owner = macvtap::table::Owner { uid: 107, gid: 107 };
    assert_eq!(tap::node_at(&path), Some(DeviceNode { number, owner }));
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(tap_in(&pod), number.to_string());
    assert_eq!(call.ok("DEL"), Value::Null);
    assert_eq!((node.traces(), Node::ip(&pod, "-br link")), before);
    assert_eq!(call.ok("DEL"), Value::Null, "a second DEL");
}

#[test]
fn the_node_is_the_links_own_though_another_namespace_has_a_tap_of_the_same_index() {
    if !is_root() {
        return;
    }
    let (node, pod, other) = (Node::with_table(), pod(), pod());
    let index = node.first_ifindex;
    // Made first, so it is the one that devtmpfs shows as /dev/tap<index>.
    Node::ip(&other, "link add low type veth peer name low2");
    Node::ip(&other, &format!("link add link low name net1 index {index} type macvtap"));
    Call::new(&node, &pod, "c1").ok("ADD");
    let foreign = tap_in(&other);
    let ours = record(&node, 0).unwrap().tap.unwrap();
    assert_ne!(foreign, ours.to_string());
    assert_eq!(tap::node_at(&node.paths().device_node(index)).unwrap().number, ours);
    assert_eq!(tap_in(&pod), ours.to_string());
}

#[test]
fn a_repeated_add_gives_the_same_device_untouched() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let call = Call::new(&node, &pod, "c1");
    let first = call.ok("ADD");
    let tap = record(&node, 0).unwrap().tap;
    Node::ip(&pod, "link set net1 alias kept");
    assert_eq!(call.ok("ADD"), first);
    assert_eq!(link(&pod)["ifalias"], "kept", "the link was made anew");
    assert_eq!(record(&node, 0).unwrap().tap, tap);
    // Asked for something else, it is made anew.
    let changed = call.with(json!({"mtu": 1300}));
    changed.ok("ADD");
    assert_eq!(link(&pod)["mtu"], 1300);
}

#[test]
fn a_sandbox_made_again_takes_its_device_and_address_along_and_a_late_del_of_the_old_one_does_nothing() {
    if !is_root() {
        return;
    }
    let (node, old, new) = (Node::with_table(), pod(), pod());
    let uid = "K8S_POD_NAMESPACE=tenant-a;K8S_POD_NAME=web-0;K8S_POD_UID=6f1c";
    let first = Call::new(&node, &old, "c1").var("CNI_ARGS", uid);
    let second = Call::new(&node, &new, "c2").var("CNI_ARGS", uid);
    let mac = first.ok("ADD")["interfaces"][0]["mac"].clone();
    assert_eq!(second.ok("ADD")["interfaces"][0]["mac"], mac);
    assert_eq!(link(&old), Value::Null, "the old sandbox kept its link");
    assert_eq!(link(&new)["ifindex"], node.first_ifindex);
    let before = node.traces();
    first.ok("DEL");
    // Also when the runtime used the path again.
    Call::new(&node, &new, "c1").ok("DEL");
    assert_eq!(link(&new)["ifindex"], node.first_ifindex);
    assert_eq!(node.traces(), before);
    second.ok("DEL");
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_del_after_the_namespace_is_gone_removes_record_and_node() {
    if !is_root() {
        return;
    }
    let (node, mut pod) = (Node::with_table(), pod());
    let before = node.traces();
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    pod.end();
    call.ok("DEL");
    assert_eq!(node.traces(), before);
    call.var("CNI_NETNS", "").ok("DEL");
}

#[test]
fn a_del_finds_its_device_without_a_device_id_or_a_table() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let before = node.traces();
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    std::fs::remove_file(node.paths().table()).unwrap();
    call.with(json!({"deviceID": null})).var("CNI_NETNS", "").ok("DEL");
    assert_eq!(node.traces(), before);
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn a_record_that_the_agent_wrote_anew_is_its_pods_and_nobody_elses() {
    if !is_root() {
        return;
    }
    let (node, pod, other) = (Node::with_table(), pod(), pod());
    let before = (node.traces(), Node::ip(&pod, "-br link"));
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let mut adopted = record(&node, 0).unwrap();
    let Holder::Pod { container_id, pod_uid, .. } = &mut adopted.holder else { panic!("{adopted:?}") };
    (*container_id, *pod_uid) = (UNKNOWN.into(), UNKNOWN.into());
    adopted.network = None;
    records::write(&node.paths(), &adopted).unwrap();
    Call::new(&node, &other, "c2").ok("DEL");
    assert_eq!(record(&node, 0), Some(adopted), "another pod's DEL removed it");
    assert_eq!(call.ok("DEL"), Value::Null);
    assert_eq!((node.traces(), Node::ip(&pod, "-br link")), before);
}

#[test]
fn the_device_of_a_dead_pod_is_taken_over_and_that_of_a_living_one_is_not() {
    if !is_root() {
        return;
    }
    let (node, mut dead, next) = (Node::with_table(), pod(), pod());
    Call::new(&node, &dead, "dead").ok("ADD");
    let call = Call::new(&node, &next, "next");
    let before = node.traces();
    let message = call.fails("ADD", 11);
    assert_eq!(message, "device dataplaneMvp0 is in use by pod tenant-a/dead (net1)");
    assert_eq!(link(&dead)["ifindex"], node.first_ifindex, "somebody else's ADD touched it");
    assert_eq!((node.traces(), link(&next)), (before, Value::Null));
    // A DEL of the refused container is no way to it either.
    call.ok("DEL");
    assert_eq!(link(&dead)["ifindex"], node.first_ifindex);
    dead.end();
    call.ok("ADD");
    assert_eq!(link(&next)["ifindex"], node.first_ifindex);
}

#[test]
fn one_device_does_not_serve_two_networks_of_a_pod() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let message = call.clone().var("CNI_IFNAME", "net2").fails("ADD", 7);
    assert!(message.contains("one device cannot serve two networks"), "{message}");
    call.clone().var("CNI_IFNAME", "net2").device(1).ok("ADD");
    assert_eq!(record(&node, 1).unwrap().ifindex, node.first_ifindex + 1);
}

#[test]
fn of_two_adds_at_once_for_one_device_exactly_one_wins() {
    if !is_root() {
        return;
    }
    let (node, one, two) = (Node::with_table(), pod(), pod());
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
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
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
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let before = (node.traces(), Node::ip(&pod, "-br link"));
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
        let state = if step % 2 == 0 { collect() } else { record(&node, 0).map(|record| record.state) };
        killed += u32::from(state == Some(State::Creating));
        if step % 2 == 1 {
            call.ok("DEL");
        }
        node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
        assert_eq!((node.traces(), Node::ip(&pod, "-br link")), before, "step {step}, {state:?}");
    }
    println!("{killed} of 60 were killed while they made the link");
    call.ok("ADD");
}

#[test]
fn many_adds_at_once_each_get_a_tap_of_their_own() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let count = 24;
    let mut table = node.table();
    table.resources.values_mut().next().unwrap().links[0].ranges[0].count = count;
    table_file::store(&node.paths(), &table).unwrap();
    let pods: Vec<_> = (0..count).map(|_| pod()).collect();
    let call = |slot: u32, pod| Call::new(&node, pod, &format!("c{slot}")).device(slot);
    let running: Vec<_> = (0..).zip(&pods).map(|(slot, pod)| call(slot, pod).start("ADD")).collect();
    for child in running {
        let answer = Answer::of(child);
        assert!(answer.success, "{answer:?}");
    }
    let taps: std::collections::HashSet<_> =
        (0..count).map(|slot| record(&node, slot).unwrap().tap.unwrap().minor).collect();
    assert_eq!(taps.len(), pods.len());
    for (slot, pod) in (0..).zip(&pods) {
        assert_eq!(tap_in(pod), record(&node, slot).unwrap().tap.unwrap().to_string());
    }
}

#[test]
fn an_add_waits_for_the_one_that_works_on_the_device() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let held = lock::device(&node.paths(), &"dataplaneMvp0".parse().unwrap()).unwrap();
    let mut running = Call::new(&node, &pod, "c1").start("ADD");
    // It must reach the lock: a process that waits for a flock is listed with "->".
    let inode = std::fs::metadata(node.paths().locks().join("dataplaneMvp0")).unwrap().ino();
    let waits = || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("->") && line.contains(&format!(":{inode} ")))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !waits() {
        assert_eq!(running.try_wait().unwrap(), None, "it did not wait");
        assert!(std::time::Instant::now() < deadline, "it never asked for the lock");
        std::thread::yield_now();
    }
    assert_eq!(link(&pod), Value::Null);
    drop(held);
    assert!(Answer::of(running).success);
}

#[test]
fn a_pod_that_lost_its_link_never_meets_the_next_pod_on_its_tap() {
    if !is_root() {
        return;
    }
    let (node, lost, next) = (Node::with_table(), pod(), pod());
    Call::new(&node, &lost, "lost").ok("ADD");
    let old = record(&node, 0).unwrap().tap.unwrap();
    for _ in 0..5 {
        if link(&lost) != Value::Null {
            Node::ip(&lost, "link del net1");
        }
        let call = Call::new(&node, &next, "next").device(1);
        call.ok("ADD");
        assert_ne!(record(&node, 1).unwrap().tap.unwrap(), old);
        call.ok("DEL");
    }
    // Its own DEL still works, and gives the number free.
    Call::new(&node, &lost, "lost").ok("DEL");
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_pod_that_took_an_index_in_its_namespace_hurts_only_itself() {
    if !is_root() {
        return;
    }
    let (node, squatter, other) = (Node::with_table(), pod(), pod());
    let index = node.first_ifindex;
    Node::ip(&squatter, &format!("link add squat index {index} type veth peer name squat2"));
    let before = node.traces();
    let message = Call::new(&node, &squatter, "c1").fails("ADD", 100);
    assert!(message.contains(&index.to_string()) && message.contains("squat"), "{message}");
    assert_eq!(node.traces(), before);
    Call::new(&node, &other, "c2").ok("ADD");
}

#[test]
fn a_name_that_is_taken_is_refused_and_its_owner_left_alone() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    Node::ip(&pod, "link add net1 type veth peer name net1p");
    let before = (node.traces(), Node::ip(&pod, "-br link"));
    let call = Call::new(&node, &pod, "c1");
    let message = call.fails("ADD", 100);
    assert_eq!(message, "interface net1 already exists in the pod's network namespace");
    call.ok("DEL");
    assert_eq!((node.traces(), Node::ip(&pod, "-br link")), before, "DEL deleted a link that is not ours");
}

#[test]
fn an_mtu_above_the_lower_links_is_refused_before_anything_exists() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let before = node.traces();
    let message = Call::new(&node, &pod, "c1").with(json!({"mtu": 9000})).fails("ADD", 7);
    assert!(message.starts_with("mtu 9000 is above the 1500 of lower link dp0;"), "{message}");
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
}

#[test]
fn a_mac_that_is_taken_is_told_with_the_lower_link_and_a_derived_one_is_exchanged() {
    if !is_root() {
        return;
    }
    let (node, one, two) = (Node::with_table(), pod(), pod());
    let first = Call::new(&node, &one, "one").ok("ADD")["interfaces"][0]["mac"].clone();
    let before = node.traces();
    let call = Call::new(&node, &two, "two").device(1);
    let message = call.clone().with(json!({"mac": first})).fails("ADD", 100);
    assert!(
        message.starts_with(&format!("MAC address {} is in use on lower link dp0:", first.as_str().unwrap()))
    );
    assert_eq!((node.traces(), link(&two)), (before, Value::Null));
    // The same UID gives the same address first.
    let twin = call.var("CNI_ARGS", "K8S_POD_UID=uid-of-one");
    let second = twin.ok("ADD")["interfaces"][0]["mac"].clone();
    assert_ne!(second, first);
    assert_eq!(link(&two)["address"], second);
    assert_eq!(json!(record(&node, 1).unwrap().mac), second);
}

#[test]
fn a_lower_link_that_is_gone_is_told() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    node.sh("ip link del dp0");
    let message = Call::new(&node, &pod, "c1").fails("ADD", 11);
    assert!(message.starts_with("lower link dp0 (index "), "{message}");
    assert_eq!(record(&node, 0), None);
}

#[test]
fn check_finds_what_was_changed() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let call = Call::new(&node, &pod, "c1");
    let checked = call.clone().with(json!({"prevResult": call.ok("ADD")}));
    assert_eq!(checked.ok("CHECK"), Value::Null);
    let told = |change: &str, undo: &str, problem: &str| {
        Node::ip(&pod, change);
        let message = checked.fails("CHECK", 102);
        assert!(message.contains(problem), "{change}: {message}");
        Node::ip(&pod, undo);
        checked.ok("CHECK");
    };
    let mac = link(&pod)["address"].as_str().unwrap().to_owned();
    told("link set net1 down", "link set net1 up", "is down");
    told(
        "link set net1 address 02:00:00:00:00:99",
        &format!("link set net1 address {mac}"),
        "has MAC address",
    );
    told(
        "link set net1 type macvtap mode vepa",
        "link set net1 type macvtap mode bridge",
        "the pod changed it",
    );
    told("link set net1 name other", "link set other name net1", "is gone");
    let path = node.paths().device_node(node.first_ifindex);
    std::fs::remove_file(&path).unwrap();
    assert!(checked.fails("CHECK", 102).contains("owner 107:107"));
    assert!(call.fails("CHECK", 7).contains("prevResult is missing"));
}

#[test]
fn a_table_that_is_not_this_boots_means_try_again() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let call = Call::new(&node, &pod, "c1").with(json!({"cniVersion": "1.1.0"}));
    assert!(call.fails("ADD", 11).contains("the node agent has not written it yet"));
    assert!(call.fails("STATUS", 50).contains("the node agent has not written it yet"));
    let mut table = node.table();
    table.boot_id = "00000000-0000-0000-0000-000000000000".into();
    table_file::store(&node.paths(), &table).unwrap();
    assert!(call.fails("ADD", 11).contains("is of another boot"));
    std::fs::write(node.paths().table(), "{").unwrap();
    assert!(call.fails("ADD", 11).contains("device table is damaged"));
    table_file::store(&node.paths(), &node.table()).unwrap();
    call.ok("ADD");
    assert_eq!(call.ok("STATUS"), Value::Null);
}

#[test]
fn a_device_id_that_is_none_of_this_nodes_is_refused_with_the_remedy() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let before = node.traces();
    for (id, named) in [
        (
            Value::Null,
            "deviceID is missing: the pod has no device for this network; give the NetworkAttachmentDefinition the annotation",
        ),
        (json!("storageMvp0"), "it has no resource storage (it has: dataplane)"),
        (json!("dataplaneMvp4"), "resource dataplane has no slot 4"),
        (json!("dataplaneMvp0; reboot"), "has slot \"0; reboot\""),
        (json!("$(reboot)Mvp0"), "resource name \"$(reboot)\""),
        (json!("../../etc/passwd"), "is not of the form <resourceName>Mvp<slot>; leave deviceID out"),
        (json!("dp1"), "is not of the form <resourceName>Mvp<slot>; leave deviceID out"),
    ] {
        let message = Call::new(&node, &pod, "c1").with(json!({"deviceID": id})).fails("ADD", 7);
        assert!(message.contains(named), "{message}");
        Call::new(&node, &pod, "c1").with(json!({"deviceID": id})).ok("DEL");
    }
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
    let message = Call::new(&node, &pod, "c1").with(json!({"mode": "vepa"})).fails("ADD", 7);
    assert!(message.contains("mode is vepa, but device dataplaneMvp0 is bridge"), "{message}");
}

/// A node whose agent is standalone, with a macvtap that somebody made by hand.
fn standalone_with_link(index: &str) -> Node {
    let node = Node::new();
    let mut table = node.table();
    table.standalone = true;
    table_file::store(&node.paths(), &table).unwrap();
    node.sh(&format!("ip link add link dp0 name mvt0 {index} address 02:00:00:00:00:11 type macvtap mode vepa; ip link set mvt0 up"));
    node
}

#[test]
fn a_macvtap_of_a_standalone_node_moves_into_the_pod_that_names_it() {
    if !is_root() {
        return;
    }
    let (node, pod) = (standalone_with_link(""), pod());
    let call =
        Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0", "mtu": 1300, "promiscMode": true}));
    let result = call.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:11");
    let moved = link(&pod);
    assert_eq!((&moved["mtu"], &moved["linkinfo"]["info_data"]["mode"]), (&json!(1300), &json!("vepa")));
    let flags = moved["flags"].to_string();
    assert!(flags.contains("\"UP\"") && flags.contains("PROMISC"), "{flags}");
    assert!(!node.traces().contains("mvt0"));
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    call.ok("DEL");
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn a_macvtap_that_cannot_be_used_stays_on_the_node_as_it_was() {
    if !is_root() {
        return;
    }
    let (node, pod) = (standalone_with_link(""), pod());
    let state = || node.sh("ip -d -o link show mvt0 | sed 's/qlen.*alias//'");
    let before = state();
    let call = Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0"}));
    let taken = node.sh("ip -o link show dp0").split("link/ether ").nth(1).unwrap()[..17].to_owned();
    let message = call.clone().with(json!({"mac": taken})).fails("ADD", 100);
    assert!(message.contains(&format!("MAC address {taken} is in use on lower link dp0")), "{message}");
    assert_eq!((state(), link(&pod)), (before.clone(), Value::Null));
    assert!(
        call.clone().with(json!({"mtu": 9000})).fails("ADD", 7).contains("above the 1500 of lower link dp0")
    );
    Node::ip(&pod, "link add net1 type veth peer name net1p");
    call.fails("ADD", 100);
    assert_eq!(state(), before);
}

#[test]
fn only_a_foreign_macvtap_is_moved_and_only_where_it_is_allowed() {
    if !is_root() {
        return;
    }
    let pod = pod();
    let node = standalone_with_link("");
    let call = |node: &Node, id: &str, code| {
        Call::new(node, &pod, "c1").with(json!({"deviceID": id})).fails("ADD", code)
    };
    assert!(call(&node, "dp1", 7).contains("no macvtap (veth)"));
    assert!(call(&node, "nosuch", 7).contains("neither a device of this node nor an interface on it"));
    assert!(call(&node, "storageMvp0", 7).contains("it has no resource storage"));
    let ours = standalone_with_link(&format!("index {}", support::first_ifindex()));
    assert!(call(&ours, "mvt0", 7).contains("is the link of a device of this node"));
    // Not standalone: only with the node's consent, which needs no table.
    table_file::store(&node.paths(), &node.table()).unwrap();
    assert!(call(&node, "mvt0", 7).contains("leave deviceID out"));
    std::fs::remove_file(node.paths().table()).unwrap();
    std::fs::write(node.paths().cni_settings(), "{\"moveHostLinks\": true}").unwrap();
    Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0"})).ok("ADD");
}

#[test]
fn the_namespace_of_the_node_is_no_pods() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    for path in ["/proc/self/ns/net", "/proc/self/ns/mnt", "/dev/null", "/no/such"] {
        let message = Call::new(&node, &pod, "c1").var("CNI_NETNS", path).fails("ADD", 4);
        assert!(message.contains("CNI_NETNS") && message.contains(path), "{message}");
    }
    assert_eq!(record(&node, 0), None);
}

#[test]
fn gc_removes_what_the_runtime_does_not_name_of_this_network_only() {
    if !is_root() {
        return;
    }
    let node = Node::with_table();
    let (kept, gone, other) = (pod(), pod(), pod());
    let call = |pod, container, slot| {
        Call::new(&node, pod, container).device(slot).with(json!({"cniVersion": "1.1.0"}))
    };
    call(&kept, "kept", 0).ok("ADD");
    call(&gone, "gone", 1).ok("ADD");
    call(&other, "other", 2).with(json!({"name": "another"})).ok("ADD");
    let valid = json!([{"containerID": "kept", "ifname": "net1"}]);
    call(&kept, "kept", 0).with(json!({"cni.dev/valid-attachments": valid})).ok("GC");
    let left = [0, 1, 2].map(|slot| record(&node, slot).is_some());
    assert_eq!(left, [true, false, true]);
    assert_eq!((link(&gone), &link(&other)["ifindex"]), (Value::Null, &json!(node.first_ifindex + 2)));
    call(&kept, "kept", 0).fails("GC", 7);
}

#[test]
fn errors_are_logged_with_command_container_and_interface() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let log = "/run/macvtap.log";
    std::fs::write(node.paths().cni_settings(), json!({"logFile": log}).to_string()).unwrap();
    let answer = Call::new(&node, &pod, "c1").device(9).run("ADD");
    let line = answer.stderr.lines().next().unwrap();
    assert!(line.starts_with("level=ERROR "), "{line}");
    assert!(line.ends_with("command=ADD container=c1 interface=net1"), "{line}");
    assert_eq!(node.sh(&format!("cat {log}")), answer.stderr);
    std::fs::write(node.paths().cni_settings(), "{\"logfile\": \"/a\"}").unwrap();
    assert!(Call::new(&node, &pod, "c1").fails("ADD", 7).contains("cni.json"));
    Call::new(&node, &pod, "c1").ok("DEL");
    Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "../sh"}})).ok("DEL");
}

#[test]
fn a_pod_in_passthru_mode_has_the_address_it_asks_for_and_gives_the_lower_link_its_own_back() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::new(), pod());
    let mut table = node.table();
    table.resources.values_mut().for_each(|resource| resource.links[0].mode = Mode::Passthru);
    table_file::store(&node.paths(), &table).unwrap();
    let lower = || node.sh("ip -br link show dev dp0 | awk '{print $3}'").trim().to_owned();
    let own = lower();
    let unasked = Call::new(&node, &pod, "c1");
    assert_eq!(unasked.ok("ADD")["interfaces"][0]["mac"], own);
    unasked.ok("DEL");
    let asked = unasked.with(json!({"mac": "02:00:00:00:00:07"}));
    let result = asked.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:07");
    assert_eq!((&link(&pod)["address"], lower()), (&json!("02:00:00:00:00:07"), "02:00:00:00:00:07".into()));
    asked.ok("ADD");
    asked.clone().with(json!({"prevResult": result})).ok("CHECK");
    asked.ok("DEL");
    assert_eq!(lower(), own);
}
