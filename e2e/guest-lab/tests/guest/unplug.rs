//! NICs that leave the machine while pods use them, and come back.

use crate::support::agent::{Agent, pool, table_links};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{Hardware, bond, carrier, ip, link, mac};
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

#[test]
fn another_nic_in_the_slot_and_under_the_name_of_the_old_one_gets_devices_of_its_own() {
    if !in_guest() {
        return;
    }
    let mut hardware = Hardware::new();
    ip("link set eth1 up");
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::with_pools(&[pool("dataplane", &json!({"names": ["eth1"]}), &json!({}))]);
    kubelet.await_healthy("dataplane", 4);
    let first = kubelet.allocate("dataplane", &["dataplaneMvp0"]).unwrap();
    kubelet.add_pod("old", "dataplaneMvp0");
    let old = Pod::new("old", "dataplaneMvp0");
    old.ok("ADD");
    hardware.unplug(1);
    agent.await_devices("dataplane", "dead", 1);
    hardware.plug_as(1, "52:54:00:00:00:99");
    ip("link set eth1 up");
    let plugin = kubelet.await_healthy("dataplane", 4);
    // The device of the pod that lost its NIC is none of the new NIC's.
    let healthy = plugin.devices.unwrap().into_iter().filter(|device| device.health == "Healthy");
    let ids: Vec<String> = healthy.map(|device| device.id).collect();
    assert!(!ids.contains(&"dataplaneMvp0".to_owned()), "{ids:?}");
    kubelet.allocate("dataplane", &["dataplaneMvp0"]).unwrap_err();
    let fresh = kubelet.allocate("dataplane", &[ids[0].as_str()]).unwrap();
    assert_ne!(fresh, first);
    kubelet.add_pod("new", &ids[0]);
    let new = Pod::new("new", &ids[0]);
    new.ok("ADD");
    assert_eq!(new.link().unwrap()["link_index"], link("eth1").unwrap()["ifindex"]);
    new.ok("DEL");
}

#[test]
fn what_happens_to_nics_while_the_agent_is_down_is_found_when_it_starts() {
    if !in_guest() {
        return;
    }
    let mut hardware = Hardware::new();
    for nic in ["eth1", "eth2"] {
        ip(&format!("link set {nic} up"));
    }
    let pools = [
        pool("one", &json!({"macAddresses": [mac(1)]}), &json!({})),
        pool("two", &json!({"macAddresses": [mac(2)]}), &json!({})),
    ];
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::with_pools(&pools);
    kubelet.await_healthy("one", 4);
    kubelet.await_healthy("two", 4);
    let first = [("one", "oneMvp3"), ("two", "twoMvp3")].map(|(resource, device)| {
        let paths = kubelet.allocate(resource, &[device]).unwrap();
        kubelet.add_pod(resource, device);
        paths
    });
    let (one, two) = (Pod::new("one", "oneMvp3"), Pod::new("two", "twoMvp3"));
    one.ok("ADD");
    two.ok("ADD");
    drop(agent);
    // One leaves and comes back as a link with another index, the other one gets another name.
    hardware.unplug(1);
    hardware.plug(1);
    ip("link set eth1 up");
    ip("link set eth2 down");
    ip("link set eth2 name lan2");
    ip("link set lan2 up");
    let agent = Agent::with_pools(&pools);
    kubelet.await_healthy("one", 4);
    kubelet.await_healthy("two", 4);
    assert_eq!((table_links("one"), table_links("two")), (vec!["eth1".into()], vec!["lan2".into()]));
    agent.await_devices("one", "dead", 1);
    agent.await_devices("two", "dead", 0);
    let again = [("one", "oneMvp3"), ("two", "twoMvp3")]
        .map(|(resource, device)| kubelet.allocate(resource, &[device]).unwrap());
    assert_eq!(again, first);
    assert!(one.link().is_none() && two.link().is_some());
}
