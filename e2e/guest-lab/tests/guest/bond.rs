//! Pods on a bond, and on a VLAN of a bond.

use crate::support::agent::Agent;
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{Hardware, active_member, bond, ip, ip_may_fail};
use crate::support::{Node, eventually, in_guest};
use serde_json::json;

/// Somebody at the other end of the cable.
const OUTSIDE: &str = "10.5.0.1";

/// Puts a NIC behind the cable: all NICs share one.
fn outside(nic: &str, vlan: Option<u16>) {
    ip("netns add outside");
    ip(&format!("link set {nic} netns outside"));
    ip(&format!("-n outside link set {nic} up"));
    let link = match vlan {
        None => nic.to_owned(),
        Some(id) => {
            ip(&format!("-n outside link add link {nic} name tagged type vlan id {id}"));
            ip("-n outside link set tagged up");
            "tagged".to_owned()
        }
    };
    ip(&format!("-n outside addr add {OUTSIDE}/24 dev {link}"));
}

/// One question, one second.
fn answered(pod: &str) -> bool {
    ip_may_fail(&format!("netns exec {pod} /bin/busybox ping -c 1 -W 1 {OUTSIDE}")).is_ok()
}

fn addresses() -> serde_json::Value {
    json!({"ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.10"}]]}})
}

#[test]
fn a_pod_on_a_bond_keeps_its_network_when_the_active_member_fails() {
    if !in_guest() {
        return;
    }
    let mut hardware = Hardware::new();
    bond("bond0", &["eth0", "eth1"]);
    outside("eth3", None);
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::standalone(r#"[{"name":"dataplane","lowerDevice":"bond0","capacity":3}]"#);
    kubelet.await_healthy("dataplane", 3);
    kubelet.allocate("dataplane", &["dataplaneMvp1"]).unwrap();
    let pod = Pod::new("vm", "dataplaneMvp1").with(addresses());
    let result = pod.ok("ADD");
    assert_eq!(result["ips"][0]["address"], "10.5.0.10/24");
    eventually("the pod reaches the outside", || answered("vm").then_some(()));

    assert_eq!(active_member("bond0"), "eth0");
    let lists = kubelet.plugin("dataplane").unwrap().lists;
    hardware.cable(0, false);
    eventually("the other member takes over", || (active_member("bond0") == "eth1").then_some(()));
    eventually("the pod still reaches the outside", || answered("vm").then_some(()));
    pod.with_previous(&result).ok("CHECK");
    // Nobody was told anything: the devices never stopped working.
    assert_eq!(kubelet.plugin("dataplane").unwrap().lists, lists);
    kubelet.await_healthy("dataplane", 3);

    hardware.cable(1, false);
    kubelet.await_plugin("dataplane", |plugin| plugin.healthy() == Some(0));
    assert_eq!(kubelet.plugin("dataplane").unwrap().devices.unwrap().len(), 3);
    hardware.cable(1, true);
    kubelet.await_healthy("dataplane", 3);
    eventually("the pod reaches the outside again", || answered("vm").then_some(()));
    pod.ok("DEL");
    assert_eq!(pod.link(), None);
}

#[test]
fn a_pod_on_a_vlan_of_a_bond_speaks_tagged_and_leaves_nothing_behind() {
    if !in_guest() {
        return;
    }
    bond("bond0", &["eth0", "eth1"]);
    ip("link add link bond0 name bond0.100 type vlan id 100");
    ip("link set bond0.100 up");
    outside("eth3", Some(100));
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::standalone(r#"[{"name":"tagged","lowerDevice":"bond0.100","capacity":2}]"#);
    kubelet.await_healthy("tagged", 2);
    kubelet.allocate("tagged", &["taggedMvp0"]).unwrap();
    let before = ip("-br link");
    let pod = Pod::new("vm", "taggedMvp0").with(addresses());
    let result = pod.ok("ADD");
    eventually("the pod reaches the outside", || answered("vm").then_some(()));
    assert_eq!(pod.link().unwrap()["linkinfo"]["info_kind"], "macvtap");
    pod.with_previous(&result).ok("CHECK");
    pod.ok("DEL");
    assert_eq!((pod.link(), ip("-br link")), (None, before));
    assert!(!std::path::Path::new("/run/macvtap/attachments/taggedMvp0").exists());
}
