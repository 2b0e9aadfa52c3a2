//! Attaching: each step fails once; taps without a network.

use crate::fixtures::{Faulty, attach, attach_in, request};
use crate::support::{Node, node_and_pods, state};
use macvtap::attach::{self, AttachError};
use macvtap::kernel::Rtnl;
use macvtap::netns::Netns;

#[test]
fn a_failure_of_any_step_leaves_nothing() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let mut succeeded_after = None;
    for fail_at in 1..50 {
        let request = request(&node, 0, Some((&pod, "c1")));
        let attached = node.inside(|| {
            let kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
            attach(&node, request, &mut Faulty { kernel, calls: 0, fail_at })
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
            attach(&node, request, &mut Faulty { kernel, calls: 0, fail_at })
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
        node.inside(|| attach::tap_only(&paths, &mut Rtnl::node().unwrap(), request))
    };
    let made = prepare().unwrap().expect("a link");
    assert!(made.link.up && made.link.all_multicast);
    assert!(
        !node.sh(&format!("ip -6 addr show dev {}", made.link.name)).contains("inet6"),
        "it has an address"
    );
    assert_eq!(prepare().unwrap(), None, "a second start of the container made another link");
    node.sh(&format!("ip link del {}", made.link.name));
    assert!(matches!(prepare(), Err(AttachError::LinkLost { .. })));
}
