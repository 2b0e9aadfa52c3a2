//! NICs whose carrier comes some time after they are up, as that of real ones does (the driver e1000 negotiates).

use crate::support::agent::{Agent, pool};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{carrier, ip, mac, pci_address};
use crate::support::{Node, eventually, in_guest};
use serde_json::{Value, json};

/// What the pod gets, which somebody else had before.
const ADDRESS: &str = "10.6.0.2";

/// What a neighbour knows of an address.
fn known_to_peer() -> Option<String> {
    let entries: Vec<Value> = serde_json::from_str(&ip("-n peer -j neighbour show dev eth2")).unwrap();
    let entry = entries.into_iter().find(|entry| entry["dst"] == ADDRESS)?;
    Some(entry["lladdr"].as_str()?.to_owned())
}

#[test]
fn a_whole_nics_address_is_announced_when_its_carrier_comes() {
    if !in_guest() {
        return;
    }
    ip("netns add peer");
    ip("link set eth2 netns peer");
    ip("-n peer link set eth2 up");
    ip("-n peer address add 10.6.0.9/24 dev eth2");
    ip(&format!("-n peer neighbour add {ADDRESS} lladdr 02:00:00:00:00:99 dev eth2 nud stale"));
    // An announcement is sent once: the neighbour's own NIC must be able to hear it.
    eventually("the neighbour has a carrier", || {
        let links: Vec<Value> = serde_json::from_str(&ip("-n peer -j link show dev eth2")).unwrap();
        (links[0]["operstate"] == "UP").then_some(())
    });
    let kubelet = Kubelet::start(&Node);
    let fields = json!({"type": "HostDevice", "capacity": {"perLink": 1}, "health": {
        "carrier": "Ignored", "downDelaySeconds": 0, "upDelaySeconds": 0}});
    let _agent = Agent::with_pools(&[pool("virt", &json!({"names": ["eth1"]}), &fields)]);
    kubelet.await_healthy("virt", 1);
    // On the node it is off, and so it has no carrier.
    assert!(!carrier("eth1"));
    let address = pci_address(1);
    kubelet.allocate_nics("virt", &[&address]).unwrap();
    kubelet.add_pod_of("pod", "virt", &address);
    let ipam = json!({"ipam": {"type": "host-local", "dataDir": "/run/ipam",
        "ranges": [[{"subnet": "10.6.0.0/24", "rangeStart": ADDRESS, "rangeEnd": ADDRESS}]]}});
    let pod = Pod::new("pod", &address).with(ipam);
    pod.ok("ADD");
    // Nothing in the pod sends: only an announcement tells.
    eventually("the neighbour knows who has the address now", || (known_to_peer()? == mac(1)).then_some(()));
    pod.ok("DEL");
}
