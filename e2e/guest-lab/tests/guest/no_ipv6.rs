//! A machine that was booted with `ipv6.disable=1`, as hardened ones are.

use crate::support::agent::{Agent, pool};
use crate::support::cni::Pod;
use crate::support::kubelet::Kubelet;
use crate::support::machine::ip;
use crate::support::{Node, in_guest};
use serde_json::{Value, json};

/// The agent, with macvtaps on `eth1`.
fn serve(kubelet: &Kubelet) -> Agent {
    ip("link set eth1 up");
    let agent = Agent::with_pools(&[pool("taps", &json!({"names": ["eth1"]}), &json!({}))]);
    kubelet.await_healthy("taps", 4);
    agent
}

fn leases(subnet: &str) -> Value {
    json!({"ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": subnet}]]}})
}

#[test]
fn pods_have_networks_without_addresses_and_with_ipv4_ones() {
    if !in_guest() {
        return;
    }
    assert!(!std::path::Path::new("/proc/sys/net/ipv6").exists(), "this kernel has IPv6");
    let kubelet = Kubelet::start(&Node);
    let agent = serve(&kubelet);
    for (device, name, keys) in
        [("tapsMvp0", "plain", json!({})), ("tapsMvp1", "addressed", leases("10.6.0.0/24"))]
    {
        let pod = Pod::new(name, device).with(keys);
        let answer = pod.ok("ADD");
        assert!(pod.link().unwrap()["flags"].as_array().unwrap().contains(&json!("UP")));
        pod.with_previous(&answer).ok("CHECK");
        pod.ok("DEL");
        assert_eq!(pod.link(), None);
    }
    // What it asks of IPv6 addresses and routes finds none, and that is all.
    let log = agent.log();
    assert!(!log.contains("not supported"), "{log}");
}

#[test]
fn an_ipv6_address_is_refused_with_the_reason_and_nothing_is_left() {
    if !in_guest() {
        return;
    }
    let kubelet = Kubelet::start(&Node);
    let _agent = serve(&kubelet);
    let pod = Pod::new("addressed", "tapsMvp0").with(leases("fd00:6::/64"));
    let message = pod.fails("ADD");
    assert!(message.contains("IPv6"), "{message}");
    assert_eq!(pod.link(), None);
    let leased = std::fs::read_dir("/run/ipam/dataplane").unwrap();
    let addresses = leased.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("fd00"));
    assert_eq!(addresses.count(), 0, "a lease is left");
}
