//! A kubelet that has lost its device checkpoint does not know any more who has which NIC. A pod that runs keeps its own.

use crate::support::agent::{Agent, pool};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::{link, mac, pci_address};
use crate::support::{Node, eventually, in_guest};
use serde_json::json;
use std::time::{Duration, Instant};

/// An agent that takes what it believes to be left over has done so by then: it believes a kubelet a minute after that
/// one's start, and looks twice, ten seconds apart.
const JUDGED: Duration = Duration::from_secs(85);

#[test]
fn a_pod_that_runs_keeps_its_nic_whatever_the_kubelet_says() {
    if !in_guest() {
        return;
    }
    let kubelet = Kubelet::start(&Node);
    let fields = json!({"type": "HostDevice", "capacity": {"perLink": 1}});
    let agent = Agent::with_pools(&[pool("virt", &json!({"names": ["eth1"]}), &fields)]);
    kubelet.await_healthy("virt", 1);
    let address = pci_address(1);
    kubelet.allocate_nics("virt", &[&address]).unwrap();
    kubelet.add_pod_of("pod", "virt", &address);
    let pod = Pod::new("pod", &address);
    pod.ok("ADD");
    agent.await_devices("virt", "allocated", 1);
    kubelet.remove_pod("pod");
    let kubelet = kubelet.restart();
    let begun = Instant::now();
    while begun.elapsed() < JUDGED {
        let inside = pod.link().map(|link| link["address"].clone());
        assert_eq!(inside, Some(json!(mac(1))), "after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    kubelet.await_healthy("virt", 1);
    pod.ok("DEL");
    eventually("it is back", || link("eth1"));
}
