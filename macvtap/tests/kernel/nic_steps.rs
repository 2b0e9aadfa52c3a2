//! A whole NIC, here a veth: each step of giving it away and of bringing it back fails once.

use crate::fixtures::{Faulty, request};
use crate::support::{Holder, Node, node_and_pods};
use macvtap::attach::{AttachError, Begun, Pending as _, Repeat};
use macvtap::detach::{self, DetachError, Detached};
use macvtap::device_id::DeviceId;
use macvtap::host_device::{self, TakeRequest};
use macvtap::kernel::{Kernel, Rtnl};
use macvtap::link::Link;
use macvtap::netns::Netns;
use macvtap::table::LinkIdentity;

/// Gives `dp0` to the pod, with another address, as ADD does.
fn take(node: &Node, pod: &Holder, kernel: &mut impl Kernel) -> Result<Link, AttachError> {
    let base = request(node, 0, Some((pod, "c1")));
    let request = TakeRequest {
        device: base.device,
        holder: base.holder,
        network: "dataplane".into(),
        netns_id: base.netns_id,
        pci: "0000:00:0a.0".parse().unwrap(),
        identity: LinkIdentity::Name { kind: "veth".into(), name: "dp0".into() },
        nic_name: "dp0".into(),
        ifname: "net1".parse().unwrap(),
        mac: Some("02:00:00:00:00:42".parse().unwrap()),
        mtu: Some(1400),
        promiscuous: true,
        all_multicast: true,
        repeat: Repeat::Keep,
    };
    let paths = node.paths();
    match host_device::begin(&paths, kernel, request)? {
        Begun::Present(link) => Ok(link),
        Begun::New(mut taking) => {
            taking.place()?;
            taking.no_autoconfiguration()?;
            taking.up()?;
            taking.finish()
        }
    }
}

fn give_back(node: &Node, kernel: &mut impl Kernel) -> Result<Detached, DetachError> {
    let device: DeviceId = "dataplaneMvp0".parse().unwrap();
    detach::detach(&node.paths(), kernel, &device, |_| true)
}

fn with_pod(pod: &Holder) -> Rtnl {
    Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap()
}

/// A node whose NIC has settings of its own, and what they are.
fn ready() -> Option<(Node, Holder, String)> {
    let (node, [pod]) = node_and_pods()?;
    node.sh(
        "ip link property add dev dp0 altname enp0s10; ip link set dp0 mtu 1450 address 02:00:00:00:00:77",
    );
    let shape = shape(&node);
    Some((node, pod, shape))
}

/// Index, names, flags, MTU and address of the NIC on the node; empty when it is not there.
fn shape(node: &Node) -> String {
    node.sh("ip -o link show dp0 2>/dev/null | sed 's/ qdisc.*group/ group/; s/ state [A-Z]*//; s/,LOWER_UP//; s/NO-CARRIER,//'")
}

#[test]
fn a_failure_of_any_step_of_giving_a_nic_away_leaves_it_on_the_node() {
    let Some((node, pod, before)) = ready() else { return };
    let mut calls = 0;
    for fail_at in 1..100 {
        let (taken, counted) = node.inside(|| {
            let mut kernel = Faulty::new(with_pod(&pod), fail_at);
            (take(&node, &pod, &mut kernel), kernel.calls())
        });
        calls = counted;
        if taken.is_ok() {
            break;
        }
        assert_eq!(
            (shape(&node), node.traces().contains("dataplane")),
            (before.clone(), false),
            "call {fail_at}"
        );
    }
    assert!(calls >= 12, "{calls} calls: the steps were not all tried");
    node.inside(|| give_back(&node, &mut Rtnl::node().unwrap())).unwrap();
    assert_eq!(shape(&node), before);
}

#[test]
fn a_failure_of_any_step_of_bringing_a_nic_back_is_mended_by_the_next_try() {
    let Some((node, pod, before)) = ready() else { return };
    let mut failures = 0;
    for fail_at in 1..100 {
        node.inside(|| take(&node, &pod, &mut with_pod(&pod))).unwrap();
        let (returned, calls) = node.inside(|| {
            let mut kernel = Faulty::new(Rtnl::node().unwrap(), fail_at);
            (give_back(&node, &mut kernel), kernel.calls())
        });
        if returned.is_err() {
            failures += 1;
            node.inside(|| give_back(&node, &mut Rtnl::node().unwrap())).unwrap();
            assert_eq!(shape(&node), before, "call {fail_at}");
        }
        // Settings that a driver refuses are not worth the NIC: it is back without them, under its name.
        assert_ne!(shape(&node), "", "call {fail_at}");
        assert_eq!(Node::ip(&pod, "-br link show").lines().count(), 1, "call {fail_at}");
        if calls < fail_at {
            break;
        }
        node.sh("ip link set dp0 down; ip link set dp0 mtu 1450 address 02:00:00:00:00:77 promisc off allmulticast off alias '' up");
    }
    assert!(failures > 4, "{failures}: the steps were not all tried");
}
