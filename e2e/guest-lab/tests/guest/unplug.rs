//! NICs that leave the machine while pods use them, and come back.

use crate::support::agent::{Agent, pool, table_links};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{Hardware, bond, carrier, ip, link};
use crate::support::{Node, in_guest};
use serde_json::json;

#[test]
fn a_nic_that_is_unplugged_leaves_dead_devices_and_its_return_brings_them_back_for_new_pods() {
    if !in_guest() {
        return;
    }
    let mut hardware = Hardware::new();
    ip("link set eth1 up");
    let kubelet = Kubelet::start(&Node);
    let pools = [pool("dataplane", &json!({"names": ["eth1"]}), &json!({}))];
    let agent = Agent::with_pools(&pools);
    kubelet.await_healthy("dataplane", 4);
    let first = kubelet.allocate("dataplane", &["dataplaneMvp2"]).unwrap();
    kubelet.add_pod("old", "dataplaneMvp2");
    let old = Pod::new("old", "dataplaneMvp2");
    old.ok("ADD");
    let tap = std::fs::read_to_string("/run/macvtap/attachments/dataplaneMvp2").unwrap();

    hardware.unplug(1);
    kubelet.await_plugin("dataplane", |plugin| plugin.healthy() == Some(0));
    assert_eq!(old.link(), None, "the kernel takes what is built on a NIC along");
    agent.await_devices("dataplane", "dead", 1);
    let new = Pod::new("new", "dataplaneMvp3");
    assert!(new.fails("ADD").contains("eth1"), "an ADD says which link is missing");

    hardware.plug(1);
    ip("link set eth1 up");
    kubelet.await_healthy("dataplane", 4);
    assert_eq!(table_links("dataplane"), ["eth1"]);
    // The same devices as before: what the kubelet noted stays true.
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp2"]).unwrap(), first);
    kubelet.allocate("dataplane", &["dataplaneMvp3"]).unwrap();
    kubelet.add_pod("new", "dataplaneMvp3");
    new.ok("ADD");
    // The old container may still open the number its tap had: nobody else's tap has it.
    let number = |record: &str| {
        let record: serde_json::Value = serde_json::from_str(record).unwrap();
        record["tap"].clone()
    };
    let record = std::fs::read_to_string("/run/macvtap/attachments/dataplaneMvp3").unwrap();
    assert_ne!(number(&record), number(&tap));
    // Only a new pod cures the old one.
    agent.await_devices("dataplane", "dead", 1);
    old.ok("DEL");
    kubelet.remove_pod("old");
    agent.await_devices("dataplane", "dead", 0);
}

#[test]
fn a_bond_that_loses_a_member_from_the_machine_keeps_its_devices() {
    if !in_guest() {
        return;
    }
    let mut hardware = Hardware::new();
    bond("bond0", &["eth0", "eth1"]);
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::standalone(r#"[{"name":"dataplane","lowerDevice":"bond0","capacity":2}]"#);
    kubelet.await_healthy("dataplane", 2);
    kubelet.allocate("dataplane", &["dataplaneMvp0"]).unwrap();
    kubelet.add_pod("vm", "dataplaneMvp0");
    let pod = Pod::new("vm", "dataplaneMvp0");
    pod.ok("ADD");
    let lists = kubelet.plugin("dataplane").unwrap().lists;
    hardware.unplug(0);
    assert!(link("eth0").is_none() && carrier("bond0"));
    assert_eq!(pod.link().unwrap()["operstate"], "UP");
    hardware.plug(0);
    ip("link set eth0 master bond0");
    assert_eq!(kubelet.plugin("dataplane").unwrap().lists, lists, "{}", agent.log());
    agent.await_devices("dataplane", "dead", 0);
    pod.ok("DEL");
}
