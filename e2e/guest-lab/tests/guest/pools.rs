//! Which links become devices: the discovery of `[]`, and every field of a selector.

use crate::support::agent::{Agent, pool, table_links};
use crate::support::kubelet::Kubelet;
use crate::support::machine::{bond, ip, mac, pci_address};
use crate::support::{Node, in_guest};
use serde_json::json;

/// The resources that are offered, without prefix, in order.
fn offered(kubelet: &Kubelet) -> Vec<String> {
    let names = kubelet.resources().into_iter().filter_map(|name| {
        let name = name.strip_prefix("macvtap.network.kubevirt.io/")?.to_owned();
        kubelet.plugin(&name)?.connected.then_some(name)
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn an_empty_list_offers_every_nic_and_bond_and_nothing_else() {
    if !in_guest() {
        return;
    }
    bond("bond0", &["eth0", "eth1"]);
    ip("link set eth2 up");
    ip("link set eth3 up");
    ip("link add link bond0 name bond0.100 type vlan id 100");
    ip("link add br0 type bridge");
    ip("link add dum0 type dummy");
    ip("link add veth0 type veth peer name veth1");
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::standalone("[]");
    for resource in ["bond0", "eth2", "eth3"] {
        kubelet.await_healthy(resource, 100);
    }
    assert_eq!(offered(&kubelet), ["bond0", "eth2", "eth3"]);
    // Out of the bond a NIC is one like any other.
    ip("link set eth1 nomaster");
    ip("link set eth1 up");
    kubelet.await_healthy("eth1", 100);
    // And a member of a bond has nothing to offer.
    ip("link set eth3 down");
    ip("link set eth3 master bond0");
    kubelet.await_plugin("eth3", |plugin| plugin.devices.as_ref().is_some_and(Vec::is_empty));
}

#[test]
fn each_field_of_a_selector_finds_its_nic() {
    if !in_guest() {
        return;
    }
    for nic in 0..4 {
        ip(&format!("link set eth{nic} up"));
    }
    let pools = [
        pool("address", &json!({"pciAddresses": [pci_address(0)]}), &json!({})),
        pool("fast", &json!({"minSpeedMbps": 25_000}), &json!({})),
        pool("far", &json!({"numaNodes": [1]}), &json!({})),
        pool("other-vendor", &json!({"vendors": ["8086"], "drivers": ["virtio_net"]}), &json!({})),
        // What is left over.
        pool("virtio", &json!({"vendors": ["1af4"], "drivers": ["virtio_net"]}), &json!({})),
    ];
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::with_pools(&pools);
    for (resource, link) in [("address", "eth0"), ("fast", "eth2"), ("far", "eth3"), ("virtio", "eth1")] {
        kubelet.await_healthy(resource, 4);
        assert_eq!(table_links(resource), [link], "{resource}");
    }
    assert_eq!(kubelet.await_healthy("other-vendor", 0).devices.unwrap().len(), 0);
    // The scheduler's hint comes with the devices.
    let device = kubelet.plugin("far").unwrap().devices.unwrap()[0].clone();
    let nodes: Vec<i64> = device.topology.unwrap().nodes.iter().map(|node| node.id).collect();
    assert_eq!(nodes, [1]);
    assert!(kubelet.plugin("fast").unwrap().devices.unwrap()[0].topology.is_none());
}

#[test]
fn a_mac_selector_means_the_address_a_nic_was_made_with() {
    if !in_guest() {
        return;
    }
    // Both members answer by the bond's address now, which is eth0's.
    bond("bond0", &["eth0", "eth1"]);
    ip("link set eth2 up");
    ip("link set eth2 address 52:54:00:aa:aa:aa");
    let pools = [
        pool("by-own", &json!({"macAddresses": [mac(2)]}), &json!({})),
        pool("by-now", &json!({"macAddresses": ["52:54:00:aa:aa:aa"]}), &json!({})),
        pool("bond", &json!({"kinds": ["Bond"], "macAddresses": [mac(0)]}), &json!({})),
    ];
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::with_pools(&pools);
    kubelet.await_healthy("by-own", 4);
    kubelet.await_healthy("bond", 4);
    assert_eq!(table_links("by-own"), ["eth2"]);
    assert_eq!(table_links("bond"), ["bond0"]);
    kubelet.await_healthy("by-now", 0);
}
