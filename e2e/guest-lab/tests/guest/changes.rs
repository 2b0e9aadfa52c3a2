//! What administrators do to links that pods use.

use crate::support::agent::{Agent, pool, report, table_links};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{Hardware, carrier, ip, ip_may_fail, link, mac, pci_address};
use crate::support::{Node, eventually, in_guest};
use serde_json::json;

#[test]
fn a_nic_with_a_pod_on_it_cannot_be_enslaved_and_one_without_leaves_with_its_devices() {
    if !in_guest() {
        return;
    }
    ip("link set eth1 up");
    ip("link add bond0 type bond mode active-backup miimon 50");
    ip("link add br0 type bridge");
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::with_pools(&[pool("dataplane", &json!({"names": ["eth1"]}), &json!({}))]);
    kubelet.await_healthy("dataplane", 4);
    kubelet.allocate("dataplane", &["dataplaneMvp0"]).unwrap();
    kubelet.add_pod("vm", "dataplaneMvp0");
    let pod = Pod::new("vm", "dataplaneMvp0");
    pod.ok("ADD");
    ip_may_fail("link set eth1 master br0").unwrap_err();
    ip("link set eth1 down");
    ip_may_fail("link set eth1 master bond0").unwrap_err();
    // Down means unhealthy, up means well; the pod's link goes along.
    kubelet.await_plugin("dataplane", |plugin| plugin.healthy() == Some(0));
    ip("link set eth1 up");
    kubelet.await_healthy("dataplane", 4);
    pod.ok("DEL");
    ip("link set eth1 down");
    ip("link set eth1 master bond0");
    ip("link set bond0 up");
    // The kubelet still counts the pod, and what it has is shown as broken, not as gone.
    let plugin = kubelet.await_plugin("dataplane", |plugin| plugin.healthy() == Some(0));
    let ids: Vec<_> = plugin.devices.unwrap().into_iter().map(|device| device.id).collect();
    assert!(ids.contains(&"dataplaneMvp0".to_owned()), "{ids:?}");
    assert_eq!(report("eth1")["shared"]["reason"], "EnslavedTo");
    agent.await_log("EnslavedTo");
    let late = Pod::new("late", "dataplaneMvp1");
    assert!(late.fails("ADD").contains("eth1"));
    ip("link set eth1 nomaster");
    ip("link set eth1 up");
    kubelet.await_healthy("dataplane", 4);
}

#[test]
fn a_renamed_nic_keeps_its_devices() {
    if !in_guest() {
        return;
    }
    ip("link set eth1 up");
    let kubelet = Kubelet::start(&Node);
    let pools = [pool("dataplane", &json!({"pciAddresses": [pci_address(1)]}), &json!({}))];
    let _agent = Agent::with_pools(&pools);
    kubelet.await_healthy("dataplane", 4);
    let before = kubelet.allocate("dataplane", &["dataplaneMvp1"]).unwrap();
    kubelet.add_pod("vm", "dataplaneMvp1");
    let pod = Pod::new("vm", "dataplaneMvp1");
    pod.ok("ADD");
    ip("link set eth1 down");
    ip("link set eth1 name lan1");
    ip("link set lan1 up");
    eventually("the table has the new name", || (table_links("dataplane") == ["lan1"]).then_some(()));
    kubelet.await_healthy("dataplane", 4);
    assert!(pod.link().is_some());
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp1"]).unwrap(), before);
    // Another NIC under the old name is another NIC.
    ip("link set eth2 down");
    ip("link set eth2 name eth1");
    ip("link set eth1 up");
    let second = Pod::new("second", "dataplaneMvp2");
    kubelet.allocate("dataplane", &["dataplaneMvp2"]).unwrap();
    second.ok("ADD");
    assert_eq!(second.link().unwrap()["link_index"], link("lan1").unwrap()["ifindex"]);
    for pod in [pod, second] {
        pod.ok("DEL");
    }
}

#[test]
fn a_vlan_that_is_deleted_and_made_again_has_its_devices_again() {
    if !in_guest() {
        return;
    }
    let make = || {
        ip("link add link eth1 name eth1.7 type vlan id 7");
        ip("link set eth1.7 up");
    };
    ip("link set eth1 up");
    make();
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::with_pools(&[pool("tagged", &json!({"names": ["eth1.7"]}), &json!({}))]);
    kubelet.await_healthy("tagged", 4);
    let first = kubelet.allocate("tagged", &["taggedMvp0"]).unwrap();
    kubelet.add_pod("vm", "taggedMvp0");
    let pod = Pod::new("vm", "taggedMvp0");
    pod.ok("ADD");
    ip("link del eth1.7");
    kubelet.await_plugin("tagged", |plugin| plugin.healthy() == Some(0));
    agent.await_devices("tagged", "dead", 1);
    assert_eq!(pod.link(), None);
    make();
    kubelet.await_healthy("tagged", 4);
    assert_eq!(kubelet.allocate("tagged", &["taggedMvp0"]).unwrap(), first);
    let fresh = Pod::new("fresh", "taggedMvp1");
    kubelet.allocate("tagged", &["taggedMvp1"]).unwrap();
    kubelet.add_pod("fresh", "taggedMvp1");
    fresh.ok("ADD");
    assert!(fresh.link().is_some());
    agent.await_devices("tagged", "dead", 1);
    pod.ok("DEL");
    kubelet.remove_pod("vm");
    agent.await_devices("tagged", "dead", 0);
}

#[test]
fn a_nic_in_passthru_mode_is_the_pods_alone_until_del() {
    if !in_guest() {
        return;
    }
    for nic in ["eth1", "eth2"] {
        ip(&format!("link set {nic} up"));
    }
    ip("addr add 192.0.2.2/24 dev eth2");
    let configuration = r#"[{"name":"alone","lowerDevice":"eth1","mode":"passthru"},
                            {"name":"host","lowerDevice":"eth2","mode":"passthru"},
                            {"name":"others","lowerDevice":"eth1","capacity":2}]"#;
    let kubelet = Kubelet::start(&Node);
    let agent = Agent::standalone(configuration);
    kubelet.await_healthy("alone", 1);
    // Taken as a whole, it is nobody else's; and the host's own is nobody's.
    kubelet.await_healthy("others", 0);
    kubelet.await_healthy("host", 0);
    agent.await_log("HostAddress");
    kubelet.allocate("alone", &["aloneMvp0"]).unwrap();
    kubelet.add_pod("vm", "aloneMvp0");
    let pod = Pod::new("vm", "aloneMvp0").with(json!({"mac": "52:54:00:bb:bb:bb"}));
    let result = pod.ok("ADD");
    assert_eq!(pod.link().unwrap()["linkinfo"]["info_data"]["mode"], "passthru");
    let lower = link("eth1").unwrap();
    assert_eq!((&lower["promiscuity"], &lower["address"]), (&json!(1), &json!("52:54:00:bb:bb:bb")));
    // The address changed, the NIC did not.
    kubelet.await_healthy("alone", 1);
    assert_eq!(report("eth1")["mac"], mac(1));
    pod.with_previous(&result).ok("CHECK");
    pod.ok("DEL");
    let lower = link("eth1").unwrap();
    assert_eq!((&lower["promiscuity"], &lower["address"]), (&json!(0), &json!(mac(1))));
    kubelet.await_healthy("alone", 1);
}

#[test]
fn a_cable_that_flaps_disturbs_nobody_and_one_that_stays_out_is_told() {
    if !in_guest() {
        return;
    }
    let mut hardware = Hardware::new();
    ip("link set eth1 up");
    let health = json!({"health": {"carrier": "Required", "downDelaySeconds": 3, "upDelaySeconds": 0}});
    let ignored = json!({"health": {"carrier": "Ignored"}, "overlap": "Shared"});
    ip("link set eth2 up");
    let pools = [
        pool("steady", &json!({"names": ["eth1"]}), &health),
        pool("ignoring", &json!({"names": ["eth2"]}), &ignored),
    ];
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::with_pools(&pools);
    kubelet.await_healthy("steady", 4);
    kubelet.await_healthy("ignoring", 4);
    let lists = kubelet.plugin("steady").unwrap().lists;
    for plugged in [false, true].repeat(20) {
        hardware.cable(1, plugged);
    }
    eventually("the cable is in", || carrier("eth1").then_some(()));
    assert_eq!(kubelet.plugin("steady").unwrap().lists, lists);
    hardware.cable(2, false);
    hardware.cable(1, false);
    kubelet.await_plugin("steady", |plugin| plugin.healthy() == Some(0));
    assert_eq!(kubelet.plugin("ignoring").unwrap().healthy(), Some(4));
    hardware.cable(1, true);
    kubelet.await_healthy("steady", 4);
}
