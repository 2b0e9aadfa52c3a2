//! A link of the node that has the index of a device. Kernels before 6.13 look for an index in the namespace of whoever
//! makes a link, too, and this one does.

use crate::support::agent::{Agent, pool};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::ip;
use crate::support::{Node, in_guest};
use serde_json::json;

/// The index of the first device.
const INDEX: &str = "16777216";

#[test]
fn a_link_of_the_node_with_a_devices_index_is_named_and_no_lower_link_is_blamed() {
    if !in_guest() {
        return;
    }
    ip("link set eth1 up");
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::with_pools(&[pool("taps", &json!({"names": ["eth1"]}), &json!({}))]);
    kubelet.await_healthy("taps", 4);
    ip(&format!("link add stranger index {INDEX} type dummy"));
    // The kubelet is told, and has asked for the device a moment before.
    kubelet.await_healthy("taps", 3);
    let pod = Pod::new("pod", "tapsMvp0");
    let message = pod.fails("ADD");
    assert!(message.contains(INDEX) && message.contains("stranger"), "{message}");
    assert_eq!(pod.link(), None);
    ip("link del stranger");
    kubelet.await_healthy("taps", 4);
    pod.ok("ADD");
    pod.ok("DEL");
}
