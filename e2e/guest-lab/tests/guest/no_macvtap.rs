//! A machine whose kernel has no macvtap: its package of further modules is missing, for example.

use crate::support::agent::{Agent, pool, report};
use crate::support::kubelet::Kubelet;
use crate::support::machine::{ip, ip_may_fail};
use crate::support::{Node, eventually, in_guest};
use serde_json::json;

#[test]
fn links_are_not_offered_and_the_reason_is_reported() {
    if !in_guest() {
        return;
    }
    ip("link set eth1 up");
    ip_may_fail("link add link eth1 type macvtap").expect_err("this kernel has macvtap");
    let kubelet = Kubelet::start(&Node);
    let pools = [
        pool("taps", &json!({"names": ["eth1"]}), &json!({})),
        pool("nics", &json!({"names": ["eth2"]}), &json!({"type": "HostDevice", "capacity": {"perLink": 1}})),
    ];
    let agent = Agent::with_pools(&pools);
    // A whole NIC needs none.
    kubelet.await_healthy("nics", 1);
    eventually("the log gives the reason", || {
        let log = agent.log();
        log.lines().any(|line| line.contains("taps") && line.contains("macvtap")).then_some(())
    });
    let healthy = |resource: &str| {
        let devices = kubelet.plugin(resource).and_then(|plugin| plugin.devices).unwrap_or_default();
        devices.into_iter().filter(|device| device.health == "Healthy").count()
    };
    assert_eq!(healthy("taps"), 0);
    let reported = report("eth1").to_string();
    assert!(reported.contains("kernel"), "{reported}");
}
