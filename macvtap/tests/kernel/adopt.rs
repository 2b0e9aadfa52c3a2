//! Records that were lost or damaged.

use crate::fixtures::{attach_in, request};
use crate::support::{Holder, Node, node_and_pods};
use macvtap::adopt::{self, Unrecorded};
use macvtap::detach::{self, Detached};
use macvtap::kernel::Rtnl;
use macvtap::record::{Attachment, Holder as RecordHolder};
use macvtap::tap_pods::{self, PodName, TapPods};
use macvtap::{attach, lock, records};
use std::time::Duration;

/// Looks for a device's link in the node's namespace and in these pods'.
fn adopt(node: &Node, slot: u32, pods: &[&Holder]) -> Option<Attachment> {
    let names = tempfile::tempdir().unwrap();
    std::fs::write(names.path().join("no-namespace"), "").unwrap();
    for (number, pod) in pods.iter().enumerate() {
        std::os::unix::fs::symlink(pod.netns(), names.path().join(number.to_string())).unwrap();
    }
    let table = node.table();
    let id: macvtap::device_id::DeviceId = format!("dataplaneMvp{slot}").parse().unwrap();
    let device = table.macvtap(&id).unwrap();
    let lost = Unrecorded {
        ifindex: device.ifindex,
        lower_ifindex: device.link.ifindex,
        owner: device.resource.owner,
        pod_namespace: "tenant-a".into(),
        pod_name: "vm".into(),
        device: id,
    };
    node.inside(|| adopt::adopt(&node.paths(), &mut Rtnl::node().unwrap(), &lost, names.path()).unwrap())
}

#[test]
fn a_device_whose_record_was_lost_is_adopted_with_its_link_and_can_be_detached() {
    let Some((node, [other, pod])) = node_and_pods() else { return };
    let before = node.traces();
    attach_in(&node, 0, &pod, "c1").unwrap();
    let id = "dataplaneMvp0".parse().unwrap();
    let lost = records::read(&node.paths(), &id).unwrap().unwrap();
    for damage in [
        "rm -r macvtap/attachments macvtap/taps",
        "echo '{' > macvtap/attachments/dataplaneMvp0",
        "rm -r macvtap",
    ] {
        node.sh(&format!("cd /run; {damage}"));
        let record = adopt(&node, 0, &[&other, &pod]).expect(damage);
        assert_eq!(records::read(&node.paths(), &id).unwrap().as_ref(), Some(&record), "{damage}");
        assert_eq!((record.tap, record.mac, record.ifindex), (lost.tap, lost.mac, lost.ifindex), "{damage}");
        assert!(node.paths().device_node(record.ifindex).exists(), "{damage}");
        assert_eq!(records::with_tap(&node.paths(), lost.tap.unwrap()).unwrap(), Some(record), "{damage}");
        assert_eq!(adopt(&node, 0, &[&pod]), None, "a record that is there was replaced");
    }
    let detached = node.inside(|| {
        detach::detach(&node.paths(), &mut Rtnl::node().unwrap(), &id, |record| {
            record.holder.is_adopted("net1", Some(&pod.netns()))
        })
    });
    assert!(matches!(detached.unwrap(), Detached::Removed(_)));
    assert_eq!(node.traces(), before);
    assert!(!Node::ip(&pod, "-br link").contains("net1"));
}

#[test]
fn a_tap_number_is_noted_under_the_lock_of_the_node() {
    let Some((node, [pod])) = node_and_pods() else { return };
    attach_in(&node, 0, &pod, "c1").unwrap();
    node.sh("rm -r /run/macvtap/attachments /run/macvtap/taps");
    let held = lock::node(&node.paths()).unwrap();
    std::thread::scope(|scope| {
        let adopting = scope.spawn(|| adopt(&node, 0, &[&pod]));
        // It waits for the lock, so nothing is noted however long this takes.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(node.sh("ls /run/macvtap/taps 2>/dev/null; true"), "");
        drop(held);
        assert!(adopting.join().unwrap().is_some());
    });
    assert_ne!(node.sh("ls /run/macvtap/taps"), "");
}

#[test]
fn only_a_record_that_cannot_be_read_is_discarded() {
    let Some((node, [pod])) = node_and_pods() else { return };
    attach_in(&node, 0, &pod, "c1").unwrap();
    let id = "dataplaneMvp0".parse().unwrap();
    let discard = || {
        let index = node.first_ifindex;
        node.inside(|| adopt::discard(&node.paths(), &mut Rtnl::node().unwrap(), &id, index).unwrap())
    };
    assert!(!discard(), "a good record");
    node.sh("echo '{' > /run/macvtap/attachments/dataplaneMvp0");
    let stale = TapPods::Owner(PodName { namespace: "tenant-a".into(), name: "former".into() });
    tap_pods::write(&node.paths(), &id, &stale.into()).unwrap();
    assert!(discard());
    assert_eq!(tap_pods::read(&node.paths(), &id), None, "its pods are still noted");
    assert!(records::read(&node.paths(), &id).unwrap().is_none());
    assert!(!node.paths().device_node(node.first_ifindex).exists());
    assert!(!discard(), "there is none any more");
}

#[test]
fn a_tap_without_network_is_adopted_too() {
    let Some((node, [])) = node_and_pods() else { return };
    let request = request(&node, 2, None);
    node.inside(|| attach::tap_only(&node.paths(), &mut Rtnl::node().unwrap(), request, None)).unwrap();
    node.sh("rm -r /run/macvtap/attachments");
    let record = adopt(&node, 2, &[]).unwrap();
    assert_eq!((record.holder, record.netns_id), (RecordHolder::Host, None));
}

#[test]
fn a_link_that_is_not_the_devices_is_never_adopted() {
    let Some((node, [pod, thief])) = node_and_pods() else { return };
    let index = |slot: u32| node.first_ifindex + slot;
    // The same index on a link of another kind, on another lower link, and on none of ours in the node's namespace.
    Node::ip(&pod, &format!("link add x index {} type veth peer name y", index(0)));
    Node::ip(&pod, &format!("link add link y name z index {} type macvtap", index(1)));
    node.sh(&format!("ip link add link dp0 name foreign index {} type macvtap", index(2)));
    for slot in 0..3 {
        assert_eq!(adopt(&node, slot, &[&pod]), None, "slot {slot}");
    }
    // A pod that gave its own device's link the index of another device.
    attach_in(&node, 0, &thief, "thief").unwrap();
    let renumbered = format!("link set net1 netns {} index {}", pod.pid(), index(3));
    Node::ip(&thief, &renumbered);
    assert!(Node::ip(&pod, "-o link show net1").starts_with(&index(3).to_string()));
    assert_eq!(adopt(&node, 3, &[&pod, &thief]), None);
}
