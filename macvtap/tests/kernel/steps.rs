//! Attaching: each step fails once; taps without a network.

use crate::fixtures::{Faulty, attach, attach_in, request};
use crate::support::{Node, node_and_pods, state};
use macvtap::attach::{self, AttachError};
use macvtap::detach;
use macvtap::kernel::Rtnl;
use macvtap::netns::Netns;
use macvtap::record::{Attachment, Holder as RecordHolder};
use macvtap::records;
use macvtap::tap_pods::{self, PodName, TapNote, TapPods};

fn pod_name(name: &str) -> PodName {
    PodName { namespace: "tenant-a".to_owned(), name: name.to_owned() }
}

#[test]
fn a_failure_of_any_step_leaves_nothing() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let mut succeeded_after = None;
    for fail_at in 1..50 {
        let request = request(&node, 0, Some((&pod, "c1")));
        let attached = node.inside(|| {
            let kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
            attach(&node, request, &mut Faulty::new(kernel, fail_at))
        });
        if attached.is_ok() {
            succeeded_after = Some(fail_at);
            break;
        }
        assert_eq!(state(&node, &pod), before, "call {fail_at}");
    }
    assert!(succeeded_after.is_some_and(|n| n > 6), "{succeeded_after:?}: the steps were not all tried");
}

#[test]
fn a_failure_of_any_step_of_the_minor_guard_leaves_no_link_of_the_device() {
    let Some((node, [lost, next])) = node_and_pods() else { return };
    attach_in(&node, 0, &lost, "lost").unwrap();
    Node::ip(&lost, "link del net1");
    let before = Node::ip(&next, "-br link");
    let mut done = false;
    for fail_at in 1..60 {
        let request = request(&node, 1, Some((&next, "next")));
        let attached = node.inside(|| {
            let kernel = Rtnl::with_pod(Netns::open(&next.netns()).unwrap()).unwrap();
            attach(&node, request, &mut Faulty::new(kernel, fail_at))
        });
        if attached.is_ok() {
            done = true;
            break;
        }
        assert_eq!(Node::ip(&next, "-br link"), before, "call {fail_at}");
        assert!(!node.traces().contains("dataplaneMvp1"), "call {fail_at}: {}", node.traces());
    }
    assert!(done);
}

#[test]
fn a_pod_that_only_has_the_tap_gets_its_link_once_and_never_a_lost_one() {
    let Some((node, [])) = node_and_pods() else { return };
    let paths = node.paths();
    let prepare = || {
        let request = request(&node, 2, None);
        node.inside(|| attach::tap_only(&paths, &mut Rtnl::node().unwrap(), request, None))
    };
    let made = prepare().unwrap().expect("a link");
    assert!(made.up && made.all_multicast);
    assert!(!node.sh(&format!("ip -6 addr show dev {}", made.name)).contains("inet6"), "it has an address");
    let accepted = node.sh(&format!("cat /proc/sys/net/ipv6/conf/{}/accept_ra", made.name));
    assert_eq!(accepted.trim(), "0", "a router on the wire configures the node");
    let flags = || node.sh(&format!("ip link show dev {}", made.name));
    assert!(flags().contains("NOARP"), "it answers for the node's addresses");
    // As release 0.1.0 made it.
    node.sh(&format!("ip link set {} arp on", made.name));
    let record = records::read(&paths, &"dataplaneMvp2".parse().unwrap()).unwrap().unwrap();
    node.inside(|| attach::ignore_routers(&mut Rtnl::node().unwrap(), &record)).unwrap();
    assert!(flags().contains("NOARP"), "one of an earlier release answers for the node's addresses");
    assert_eq!(prepare().unwrap(), None, "a second start of the container made another link");
    node.sh(&format!("ip link del {}", made.name));
    assert!(matches!(prepare(), Err(AttachError::LinkLost { .. })));
}

#[test]
fn the_pods_of_a_tap_are_noted_with_its_link_and_forgotten_with_its_record() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let (paths, device) = (node.paths(), "dataplaneMvp2".parse().unwrap());
    let noted = || tap_pods::read(&paths, &device);
    let start = |note: Option<&TapNote>| {
        let request = request(&node, 2, None);
        node.inside(|| attach::tap_only(&paths, &mut Rtnl::node().unwrap(), request, note)).unwrap();
        noted()
    };
    let former = TapNote::from(TapPods::Owner(pod_name("former")));
    tap_pods::write(&paths, &device, &former).unwrap();
    assert_eq!(start(None), None, "whoever was noted held an earlier link");
    let candidates = TapNote::from(TapPods::Candidates([pod_name("vm"), pod_name("other")].into()));
    assert_eq!(start(Some(&candidates)), Some(candidates.clone()));
    let guess = TapNote::from(TapPods::Candidates([pod_name("other")].into()));
    assert_eq!(start(Some(&guess)), Some(candidates.clone()), "a guess replaced what was noted");
    let with_uid = |note: &TapNote| TapNote { pod_uid: Some("u".into()), ..note.clone() };
    assert_eq!(start(Some(&with_uid(&guess))), Some(with_uid(&candidates)), "its UID is known now");
    assert_eq!(start(Some(&guess)), Some(candidates), "it may be an earlier pod's");
    let owner = TapNote::from(TapPods::Owner(pod_name("vm")));
    assert_eq!(start(Some(&owner)), Some(owner.clone()));
    let detach = || {
        let mut kernel = Rtnl::node().unwrap();
        detach::detach(&paths, &mut kernel, &device, |record| record.holder == RecordHolder::Host).unwrap();
    };
    node.inside(detach);
    assert_eq!(noted(), None);
    assert_eq!(start(Some(&owner)), Some(owner));
    attach_in(&node, 2, &pod, "vm").unwrap();
    assert_eq!(noted(), None, "the device is a network's by now");
}

#[test]
fn a_spare_device_keeps_the_number_that_its_container_knows_also_when_a_step_fails() {
    let Some((node, [before, pod])) = node_and_pods() else { return };
    let (paths, device) = (node.paths(), "dataplaneMvp2".parse().unwrap());
    // Its minor is below the spare's, and free when that gets its network.
    attach_in(&node, 0, &before, "before").unwrap();
    let spare = request(&node, 2, None);
    let of_vm = TapNote::from(TapPods::Owner(pod_name("vm")));
    let tap_only = || attach::tap_only(&paths, &mut Rtnl::node().unwrap(), spare, Some(&of_vm));
    node.inside(tap_only).unwrap().unwrap();
    let tap = || records::read(&paths, &device).unwrap().unwrap().tap.unwrap();
    let number = tap();
    node.inside(|| {
        let of_before = |record: &Attachment| record.holder != RecordHolder::Host;
        let device = "dataplaneMvp0".parse().unwrap();
        detach::detach(&paths, &mut Rtnl::node().unwrap(), &device, of_before).unwrap();
    });
    for fail_at in 1..200 {
        let request = request(&node, 2, Some((&pod, "vm")));
        let attached = node.inside(|| {
            let kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
            attach(&node, request, &mut Faulty::new(kernel, fail_at))
        });
        if attached.is_ok() {
            assert!(fail_at > 8, "{fail_at}: the steps were not all tried");
            assert_eq!(tap(), number, "a container has the node of another number");
            assert_eq!(tap_pods::read(&paths, &device), None);
            return;
        }
        let record = records::with_tap(&paths, number).unwrap().expect("the number is anybody's");
        assert_eq!((record.device, record.tap), (device.clone(), Some(number)), "call {fail_at}");
        if record.holder == RecordHolder::Host {
            assert_eq!(tap_pods::read(&paths, &device), Some(of_vm.clone()), "call {fail_at}");
        }
    }
    panic!("it never succeeded");
}

#[test]
fn a_spare_device_goes_to_a_network_of_its_pod_and_is_named_when_another_is_asked_for() {
    let Some((node, [pod, other])) = node_and_pods() else { return };
    let paths = node.paths();
    let request = |slot, pod| request(&node, slot, pod);
    let tap_only = |request| attach::tap_only(&paths, &mut Rtnl::node().unwrap(), request, None);
    node.inside(|| tap_only(request(2, None))).unwrap().unwrap();
    let device = "dataplaneMvp2".parse().unwrap();
    let noted = |pods: &[&str]| {
        let pods = pods.iter().map(|name| pod_name(name)).collect();
        tap_pods::write(&paths, &device, &TapPods::Candidates(pods).into()).unwrap();
    };
    attach_in(&node, 0, &pod, "vm").unwrap();
    noted(&["vm"]);
    assert!(matches!(attach_in(&node, 2, &other, "stranger"), Err(AttachError::Claim(_))));
    noted(&["vm", "stranger"]);
    assert!(
        matches!(attach_in(&node, 2, &other, "stranger"), Err(AttachError::Claim(_))),
        "it may be the other's"
    );
    noted(&["vm"]);
    let mut second = request(0, Some((&pod, "vm")));
    second.link.name = "net2".parse().unwrap();
    if let RecordHolder::Pod { ifname, .. } = &mut second.holder {
        "net2".clone_into(ifname);
    }
    let refused = node.inside(|| {
        let mut kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
        attach(&node, second, &mut kernel).unwrap_err().to_string()
    });
    assert!(refused.contains("the pod holds dataplaneMvp2 without a network"), "{refused}");
    Node::ip(&pod, "link set net1 down");
    Node::ip(&pod, "link set net1 name net0");
    attach_in(&node, 2, &pod, "vm").unwrap();
    assert!(Node::ip(&pod, "-br link").contains("net1"));
    assert!(!node.sh("ip -br link").contains("mvt01"), "the link without a network is gone");
}
