//! What is refused, and that nothing is touched then.

use super::{PCI, call, nic, ready_node, state};
use crate::support::{self, Call, Node, link};
use macvtap::table::DeviceTable;
use serde_json::json;

#[test]
fn a_nic_that_the_node_uses_by_now_stays_untouched() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    for (make, unmake, told) in [
        (
            "ip addr add 192.0.2.7/24 dev dp0",
            "ip addr flush dev dp0 scope global",
            "the node has an address on it",
        ),
        (
            "ip -6 addr add fd00::7/64 dev dp0 nodad",
            "ip addr flush dev dp0 scope global",
            "has an address on it",
        ),
        ("ip route add default dev dp0", "ip route del default", "a default route of the node uses it"),
        ("ip -6 route add default dev dp0", "ip -6 route del default", "a default route of the node uses it"),
        (
            "sysctl -qw net.ipv4.nexthop_compat_mode=0; ip nexthop add id 1 dev dp0; ip nexthop add id 2 group 1; \
             ip route add default nhid 2",
            "ip route del default",
            "a default route of the node uses it",
        ),
        (
            "ip nexthop add id 3 via fe80::9 dev dp0; ip -6 route add default nhid 3",
            "ip -6 route del default",
            "a default route of the node uses it",
        ),
        ("ip link add link dp0 name up0 type macvtap", "ip link del up0", "up0 is built on it"),
    ] {
        node.sh(make);
        let before = state(&node, &pod);
        let message = call.fails("ADD", 11);
        assert!(message.contains("NIC dp0") && message.contains(told), "{message}");
        assert_eq!(state(&node, &pod), before, "{make}");
        node.sh(unmake);
    }
    call.ok("ADD");
}

#[test]
fn a_nic_under_a_macvtap_in_a_pod_stays_on_the_node() {
    let Some((node, pod)) = ready_node() else { return };
    let first = node.first_ifindex;
    let as_macvtap = |table: &mut DeviceTable| {
        let resource = table.resources.values().next().unwrap().clone();
        Node::make_nic(table, PCI);
        let mut shared = resource;
        shared.links_mut()[0].ranges[0].first_ifindex = first + 10;
        table.resources.insert("shared".parse().unwrap(), shared);
    };
    node.store_table(as_macvtap);
    Call::new(&node, &pod, "c1").with(json!({"deviceID": "sharedMvp1"})).ok("ADD");
    let other = support::pod();
    let message = call(&node, &other, "c2").fails("ADD", 11);
    assert!(message.contains("device sharedMvp1 is built on it"), "{message}");
    assert_eq!(link(&pod)["ifname"], "net1");
}

#[test]
fn what_is_no_nic_of_the_table_or_has_no_meaning_is_refused_with_what_to_do() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    let ehost = json!({"type": "ehost-device"});
    for (keys, told) in [
        (json!({"deviceID": "0000:00:0b.0"}), "it gives: 0000:00:0a.0"),
        (json!({"deviceID": "dataplaneMvp0"}), "its PCI address, 0000:00:0a.0"),
        (json!({"mode": "bridge"}), "neither a macvtap mode nor a device node"),
        (json!({"owner": 107}), "owner is 107"),
        (json!({"device": "dp0"}), "a resource of type HostDevice"),
        (json!({"mtu": 65535, "mac": "02:00:00:00:00:01", "ipam": {"type": "ehost-device"}}), "ipam.type"),
    ] {
        let message = call.clone().with(keys.clone()).fails("ADD", 7);
        assert!(message.contains(told), "{keys}: {message}");
    }
    for key in ["device", "hwaddr", "kernelpath"] {
        let old = call.clone().with(ehost.clone()).with(json!({"deviceID": null, key: "dp0"}));
        let message = old.fails("ADD", 7);
        assert!(message.contains(key) && message.contains("a resource of type HostDevice"), "{message}");
    }
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_name_that_is_taken_in_the_pod_is_told_before_the_nic_is_touched() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    Node::ip(&pod, "link add net1 type veth peer name other");
    let before = state(&node, &pod);
    assert!(call.fails("ADD", 100).contains("interface net1 of the pod's network namespace"));
    assert_eq!(state(&node, &pod), before);
    let other = call.clone().var("CNI_IFNAME", "net2");
    Node::ip(&pod, "link property add dev other altname enp0s10");
    assert!(other.fails("ADD", 100).contains("has the name enp0s10"));
    let own = call.var("CNI_IFNAME", "enp0s10");
    assert!(own.fails("ADD", 100).contains("one of its other names"));
    assert_eq!(nic(&node, "dp0"), before.0);
    Node::ip(&pod, "link property del dev other altname enp0s10");
    // The pod has a link that is called as the NIC is on the node.
    Node::ip(&pod, "link set other name dp0");
    other.ok("ADD");
    other.ok("DEL");
    assert_eq!(nic(&node, "dp0"), before.0);
}
