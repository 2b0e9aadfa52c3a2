//! Links that come, go, change their name or their carrier, or may not be taken.

use crate::CONFIGURATION;
use crate::support::kubelet::Kubelet;
use crate::support::{Node, is_root, serving};
use std::time::{Duration, Instant};

#[test]
fn a_link_that_appears_goes_and_comes_again_is_offered_accordingly() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let kubelet = Kubelet::start(&node);
    let agent = node.agent(CONFIGURATION);
    let empty = kubelet.await_healthy("dataplane", 0);
    assert_eq!(empty.lists, 1, "the first list comes at once, though it is empty");
    node.add_link("dp0");
    kubelet.await_healthy("dataplane", 50);
    let first = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    node.sh("ip link del dp0");
    // Device 5 was allocated a moment ago, so it stays in the list.
    kubelet.await_plugin("dataplane", |plugin| {
        plugin.devices.as_ref().is_some_and(|d| d.len() == 1 && d[0].health == "Unhealthy")
    });
    let refused = kubelet.allocate("dataplane", &["dataplaneMvp6"]).unwrap_err();
    assert!(refused.message().contains("link dp0"), "{}", refused.message());
    node.add_link("dp0");
    kubelet.await_healthy("dataplane", 50);
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap(), first);
    assert_eq!(kubelet.registrations(), 1, "{}", agent.log());
}

#[test]
fn an_uplink_is_not_taken_for_the_moment_before_its_routes_are_known() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("up0");
    node.add_link("dp0");
    node.sh("ip addr add 192.0.2.1/24 dev up0 && ip route add default via 192.0.2.2");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(
        r#"[{"name":"a","lowerDevice":"up0","mode":"passthru"},{"name":"b","lowerDevice":"dp0","capacity":5}]"#,
    );
    kubelet.await_healthy("b", 5);
    kubelet.await_healthy("a", 0);
    let table = node.table();
    assert!(table["resources"].get("a").is_none(), "{table}");
    assert_eq!(table["nextIfindex"], 0x0100_0000 + 5, "{table}");
}

#[test]
fn a_renamed_link_keeps_its_devices_in_use_and_a_resource_by_name_loses_the_rest() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    let before = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    node.sh("ip link set dp0 down && ip link set dp0 name other && ip link set other up");
    kubelet.await_plugin("dataplane", |plugin| plugin.devices.as_ref().is_some_and(|d| d.len() == 1));
    node.sh("ip link property add dev other altname dp0");
    kubelet.await_healthy("dataplane", 50);
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap(), before);
}

#[test]
fn a_loss_of_carrier_makes_devices_unhealthy_after_its_delay() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    let begun = Instant::now();
    node.sh("ip link set dp0p down");
    let plugin = kubelet.await_plugin("dataplane", |plugin| plugin.healthy() == Some(0));
    assert_eq!(plugin.devices.unwrap().len(), 50, "unhealthy devices stay in the list");
    assert!(begun.elapsed() >= Duration::from_secs(3), "the delay of 3 s was not kept");
    node.sh("ip link set dp0p up");
    kubelet.await_healthy("dataplane", 50);
    assert!(begun.elapsed() >= Duration::from_secs(8), "the delay of 5 s was not kept");
}

#[test]
fn a_link_that_joins_a_bridge_is_no_longer_offered_and_comes_back() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    node.sh("ip link add br0 type bridge && ip link set dp0 master br0");
    kubelet.await_healthy("dataplane", 0);
    node.sh("ip link set dp0 nomaster");
    kubelet.await_healthy("dataplane", 50);
}
