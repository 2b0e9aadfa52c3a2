//! Links that are lost, and pods that are gone.

use crate::fixtures::attach_in;
use crate::support::{Node, node_and_pods, pod};
use macvtap::detach::{self, Detached};
use macvtap::kernel::Rtnl;
use macvtap::netns::Netns;
use macvtap::record::{Attachment, Holder as RecordHolder};
use macvtap::{park, records};

#[test]
fn a_link_is_lost_although_one_of_its_index_and_number_is_in_another_namespace() {
    let Some((node, [pod, elsewhere])) = node_and_pods() else { return };
    attach_in(&node, 0, &pod, "pod").unwrap();
    attach_in(&node, 1, &elsewhere, "elsewhere").unwrap();
    let [ours, other] = [0, 1].map(|slot| {
        let device = format!("dataplaneMvp{slot}").parse().unwrap();
        records::read(&node.paths(), &device).unwrap().unwrap()
    });
    let is_lost = |record: &Attachment| node.inside(|| detach::is_lost(&mut Rtnl::node().unwrap(), record));
    assert_eq!([is_lost(&ours), is_lost(&other)], [false, false]);
    // What a second node on the same kernel does when it gives its pod the same index, and the kernel the freed number.
    let reused = Attachment { ifindex: other.ifindex, tap: other.tap, ..ours.clone() };
    assert!(is_lost(&reused));
    Node::ip(&pod, "link del net1");
    assert!(is_lost(&ours));
    // Of a namespace that cannot be told apart nothing is known.
    let RecordHolder::Pod { container_id, ifname, pod_uid, pod_namespace, pod_name, netns_inode, .. } =
        other.holder
    else {
        panic!("not a pod's")
    };
    let netns = "/nowhere".to_owned();
    let holder =
        RecordHolder::Pod { container_id, ifname, pod_uid, pod_namespace, pod_name, netns, netns_inode };
    assert!(!is_lost(&Attachment { holder, netns_id: None, ..other }));
}

#[test]
fn the_minor_of_a_lost_link_goes_to_nobody_until_its_record_is_gone() {
    let Some((node, [])) = node_and_pods() else { return };
    let detach = |record: &Attachment| {
        node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), record).unwrap())
    };
    let record = |slot: u32| {
        let device = format!("dataplaneMvp{slot}").parse().unwrap();
        records::read(&node.paths(), &device).unwrap().unwrap()
    };
    // Minors are the machine's: another test may get the lost one before our next link does.
    let parked = (0..200).any(|_| {
        let (lost, next) = (pod(), pod());
        attach_in(&node, 0, &lost, "lost").unwrap();
        let old = record(0).tap.unwrap();
        Node::ip(&lost, "link del net1");
        attach_in(&node, 1, &next, "next").unwrap();
        assert_ne!(record(1).tap.unwrap(), old, "the new pod got the tap that the old one may still open");
        detach(&record(1));
        let parked = node.sh("ip -br link").contains(&format!("mvtpark{}@", old.minor));
        if !parked {
            detach(&record(0));
        }
        parked
    });
    assert!(parked, "no placeholder was ever needed");
    let release = || node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
    assert_eq!((release().removed, release().kept), (0, 1));
    // The dead pod is collected: its number may be used again, and nothing of the guard remains.
    assert!(matches!(detach(&record(0)), Detached::Removed(_)));
    assert_eq!(release().removed, 1);
    assert!(!node.sh("ip -br link").contains("mvtpark"), "the cable stayed");
}

#[test]
fn what_is_left_of_a_pod_is_collected_by_number_when_its_namespace_has_no_path() {
    let Some((node, [pod])) = node_and_pods() else { return };
    attach_in(&node, 0, &pod, "c1").unwrap();
    let mut record = records::read(&node.paths(), &"dataplaneMvp0".parse().unwrap()).unwrap().unwrap();
    let RecordHolder::Pod { netns, .. } = &mut record.holder else { panic!("{record:?}") };
    *netns = "/run/netns/unmounted".into();
    records::write(&node.paths(), &record).unwrap();
    let collect =
        || node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), &record).unwrap());
    assert!(matches!(collect(), Detached::Removed(_)));
    assert!(!Node::ip(&pod, "-br link").contains("net1"));
    assert!(!node.traces().contains("macvtap/"), "{}", node.traces());
    assert_eq!(collect(), Detached::Absent);
}

#[test]
fn a_foreign_namespace_with_the_recorded_number_loses_nothing() {
    let Some((node, [mut dead, other])) = node_and_pods() else { return };
    attach_in(&node, 0, &dead, "dead").unwrap();
    let mut record = records::read(&node.paths(), &"dataplaneMvp0".parse().unwrap()).unwrap().unwrap();
    dead.end();
    // The kernel may give the number to another namespace, where the index may be anything.
    Node::ip(&other, &format!("link add x index {} type veth peer name y", record.ifindex));
    record.netns_id = node.inside(|| {
        let mut socket = macvtap::netlink::Socket::open().unwrap();
        Some(Netns::open(&other.netns()).unwrap().id(&mut socket).unwrap().0)
    });
    records::write(&node.paths(), &record).unwrap();
    let collected =
        node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), &record).unwrap());
    assert!(matches!(collected, Detached::Removed(_)));
    assert!(Node::ip(&other, "-br link").contains("x@"), "a stranger's link was deleted");
}
