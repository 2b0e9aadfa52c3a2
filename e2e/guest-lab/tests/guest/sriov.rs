//! Virtual functions of a NIC, whose driver (igbvf) takes the address that was set last for the permanent one.

use crate::support::agent::{Agent, pool};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{ip, link, pci_address};
use crate::support::{Node, eventually, in_guest};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// The link of a PCI function.
fn link_of(function: &str) -> Option<String> {
    let links = fs::read_dir(format!("/sys/bus/pci/devices/{function}/net")).ok()?;
    links.flatten().next()?.file_name().into_string().ok()
}

/// Makes one virtual function of the first NIC; gives its PCI address and its link.
fn virtual_function() -> (String, String) {
    let parent = PathBuf::from("/sys/bus/pci/devices").join(pci_address(0));
    // Without it they have no carrier.
    ip(&format!("link set {} up", link_of(&pci_address(0)).unwrap()));
    fs::write(parent.join("sriov_numvfs"), "1").unwrap();
    let target = eventually("a virtual function", || fs::read_link(parent.join("virtfn0")).ok());
    let function = target.file_name().unwrap().to_str().unwrap().to_owned();
    let name = eventually("its link", || link_of(&function));
    (function, name)
}

#[test]
fn a_virtual_function_comes_back_with_its_name_and_address_whatever_its_driver_calls_permanent() {
    if !in_guest() {
        return;
    }
    let (function, name) = virtual_function();
    // The address that the administrator gave it.
    ip(&format!("link set {name} address 02:00:00:00:00:07"));
    let kubelet = Kubelet::start(&Node);
    let fields = json!({"type": "HostDevice", "capacity": {"perLink": 1}});
    let agent = Agent::with_pools(&[pool("virt", &json!({"drivers": ["igbvf"]}), &fields)]);
    let offered = kubelet.await_healthy("virt", 1).devices.unwrap();
    let before = link(&name).unwrap()["address"].clone();
    for round in ["removed", "vanished"] {
        kubelet.allocate_nics("virt", &[&function]).unwrap();
        kubelet.add_pod_of(round, "virt", &function);
        let pod = Pod::new(round, &function).with(json!({"mac": "02:00:00:00:00:11"}));
        pod.ok("ADD");
        agent.await_devices("virt", "allocated", 1);
        kubelet.await_listed();
        // The driver resets the function, and with that forgets what was permanent.
        ip(&format!("-n {round} link set net1 down"));
        ip(&format!("-n {round} link set net1 up"));
        assert_eq!(pod.link().unwrap()["address"], "02:00:00:00:00:11");
        if round == "removed" {
            pod.ok("DEL");
        }
        ip(&format!("netns del {round}"));
        kubelet.remove_pod(round);
        eventually("it is back under its name with its address", || {
            (link(&name)?["address"] == before).then_some(())
        });
        agent.await_devices("virt", "allocated", 0);
        let now = kubelet.await_healthy("virt", 1).devices.unwrap();
        assert_eq!(now, offered, "the kubelet has another device");
    }
}
