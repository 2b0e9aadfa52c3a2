//! Pods that take the tap alone.

use crate::CONFIGURATION;
use crate::support::{eventually, eventually_in, metric, serving};
use macvtap::record::State;
use std::time::{Duration, Instant};

#[test]
fn a_pod_that_takes_the_tap_alone_gets_a_link_when_it_starts_and_the_next_one_another() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let devices = kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    let taps = || node.sh("ip -o link show type macvtap | wc -l");
    assert_eq!(taps(), "0\n");
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(taps(), "1\n");
    let stat = node.sh(&format!("stat -c '%F %u:%g' {}", devices[0].0));
    assert_eq!(stat, "character special file 107:107\n");
    // The container is started again: nothing is recreated.
    let before = node.sh("ip -o link show type macvtap");
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(node.sh("ip -o link show type macvtap"), before);
    // The pod ended without a word, and the next one gets the device.
    kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(taps(), "0\n", "{}", agent.log());
    let refused = kubelet.pre_start("dataplane", &["dataplaneMvp77"]).unwrap_err();
    assert!(refused.message().contains("not offered"));
}

#[test]
fn a_pod_that_takes_the_tap_alone_never_gets_that_of_a_network_before_it() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    // A networked pod ends, and its DEL has not come when the next one gets the device.
    node.attach("dataplaneMvp9", "former", State::Attached);
    kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    let refused = kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap_err();
    assert!(refused.message().contains("pod default/former"), "{}", refused.message());
    node.sh("ip netns del former");
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(node.sh("ip -o link show type macvtap | wc -l"), "1\n");
}

#[test]
fn a_tap_stays_its_pods_while_that_is_listed_and_goes_to_the_next_pod_then() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let ids = ["dataplaneMvp9"];
    let link = || node.sh("ip -o link show type macvtap");
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.add_pod("first", ids[0]);
    kubelet.pre_start("dataplane", &ids).unwrap();
    let before = link();
    // A kubelet that starts again hands out again what init containers had, although the pod runs.
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.pre_start("dataplane", &ids).unwrap();
    assert_eq!(link(), before, "{}", agent.log());
    // One that lost its checkpoint takes the device for free.
    kubelet.remove_pods();
    kubelet.add_pod_of("first", "other", "otherMvp0");
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.add_pod("next", ids[0]);
    let refused = kubelet.pre_start("dataplane", &ids).unwrap_err();
    assert!(refused.message().contains("pod default/first"), "{}", refused.message());
    assert_eq!(link(), before, "{}", agent.log());
    // It has ended by now.
    kubelet.remove_pod("first");
    kubelet.pre_start("dataplane", &ids).unwrap();
    assert_ne!(link(), before, "{}", agent.log());
}

#[test]
fn a_tap_of_a_pod_that_soon_ended_goes_to_the_next_one_although_others_run() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let ids = ["dataplaneMvp9"];
    let link = || node.sh("ip -o link show type macvtap");
    kubelet.add_pod_of("proxy", "other", "otherMvp0");
    let mut before = String::new();
    for name in ["first", "second", "third"] {
        kubelet.allocate("dataplane", &ids).unwrap();
        kubelet.add_pod(name, ids[0]);
        kubelet.pre_start("dataplane", &ids).unwrap();
        let noted = std::fs::read_to_string(node.path("/run/macvtap/tap-pods/dataplaneMvp9")).unwrap();
        assert!(noted.contains(name) && !noted.contains("proxy"), "{noted}");
        assert_ne!(link(), before, "{name} has the link of its predecessor: {}", agent.log());
        before = link();
        kubelet.remove_pod(name);
    }
}

#[test]
fn a_tap_is_neither_removed_nor_shared_while_the_kubelet_does_not_list_its_pods() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let ids = ["dataplaneMvp9"];
    let link = || node.sh("ip -o link show type macvtap");
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.add_pod("first", ids[0]);
    kubelet.pre_start("dataplane", &ids).unwrap();
    let before = link();
    // The kubelet lost its checkpoint, and answers nobody for a moment.
    kubelet.fail_lists(Some("rejected by rate limit"));
    kubelet.allocate("dataplane", &ids).unwrap();
    assert_eq!(link(), before, "{}", agent.log());
    let refused = kubelet.pre_start("dataplane", &ids).unwrap_err();
    assert!(refused.message().contains("rate limit"), "{}", refused.message());
    // It lists the device for nobody: an init container of another pod has it.
    kubelet.remove_pods();
    kubelet.add_pod_of("first", "other", "otherMvp0");
    kubelet.fail_lists(None);
    let refused = kubelet.pre_start("dataplane", &ids).unwrap_err();
    assert!(refused.message().contains("pod default/first"), "{}", refused.message());
    assert_eq!(link(), before, "{}", agent.log());
    kubelet.remove_pod("first");
    kubelet.add_pod_of("next", "other", "otherMvp0");
    kubelet.pre_start("dataplane", &ids).unwrap();
    assert_ne!(link(), before, "{}", agent.log());
}

#[test]
fn a_tap_of_an_init_container_is_its_pods_by_uid_whatever_pods_are_listed() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let ids = ["dataplaneMvp9"];
    let link = || node.sh("ip -o link show type macvtap");
    // The kubelet never lists the device of an init container, and two pods have just started.
    kubelet.add_pod_of("first", "other", "otherMvp0");
    kubelet.add_pod_of("second", "other", "otherMvp1");
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.remember("u1", ids[0]);
    kubelet.pre_start("dataplane", &ids).unwrap();
    let before = link();
    // A kubelet that lost its checkpoint gives the device to the init container of another pod.
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.remember("u2", ids[0]);
    let refused = kubelet.pre_start("dataplane", &ids).unwrap_err();
    assert!(refused.message().contains("pod default/"), "{}", refused.message());
    assert_eq!(link(), before, "{}", agent.log());
    kubelet.remember("u1", ids[0]);
    kubelet.pre_start("dataplane", &ids).unwrap();
    assert_eq!(link(), before, "the init container is started again: {}", agent.log());
}

#[test]
fn a_checkpoint_of_the_kubelet_that_is_behind_is_written_again_before_a_tap_is_removed() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let ids = ["dataplaneMvp9"];
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.remember("u1", ids[0]);
    kubelet.add_pod("vm", ids[0]);
    kubelet.pre_start("dataplane", &ids).unwrap();
    drop(agent);
    // An agent that knows of no allocation any more.
    let began = Instant::now();
    let agent = node.agent(CONFIGURATION);
    kubelet.await_plugin("dataplane", |plugin| plugin.registered_at > began && plugin.healthy() == Some(50));
    let lists = kubelet.plugin("dataplane").unwrap().lists;
    kubelet.remove_pod("vm");
    kubelet.forget("u1");
    let asked = || kubelet.plugin("dataplane").filter(|plugin| plugin.lists > lists);
    eventually("the kubelet writes its checkpoint for another list", asked);
    let is_removed = || node.sh("ip -o link show type macvtap | wc -l").starts_with('0').then_some(());
    eventually("the tap is removed", is_removed);
    let is_logged = || agent.log().contains("the kubelet has taken this tap back from its pod").then_some(());
    eventually("the reason is logged", is_logged);
}

#[test]
fn a_tap_of_an_earlier_release_no_longer_lets_routers_configure_the_node() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let ids = ["dataplaneMvp9"];
    kubelet.allocate("dataplane", &ids).unwrap();
    kubelet.add_pod("vm", ids[0]);
    kubelet.pre_start("dataplane", &ids).unwrap();
    drop(agent);
    let name = node.sh("ip -o link show type macvtap").split([':', '@']).nth(1).unwrap().trim().to_owned();
    let accepts = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    node.sh(&format!("echo 1 > {accepts}"));
    let _agent = node.agent(CONFIGURATION);
    eventually("routers are ignored", || node.sh(&format!("cat {accepts}")).starts_with('0').then_some(()));
}

#[test]
fn a_device_that_an_earlier_agent_allocated_for_an_init_container_is_in_use_while_the_checkpoint_names_it() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    kubelet.remember("u1", "dataplaneMvp9");
    // The image of the init container is still being pulled.
    drop(agent);
    let began = Instant::now();
    let agent = node.agent(CONFIGURATION);
    kubelet.await_plugin("dataplane", |plugin| plugin.registered_at > began && plugin.healthy() == Some(50));
    let worker = agent.worker().unwrap();
    let two_scans = Duration::from_secs(40);
    eventually_in(two_scans, "the kubelet is asked twice", || (kubelet.asked_by(worker) >= 2).then_some(()));
    let allocated = || metric(&node, r#"macvtap_devices{resource="dataplane",state="allocated"}"#);
    assert_eq!(allocated(), Some(1));
    // The pod is deleted before it has started, and the kubelet writes its checkpoint for another list.
    kubelet.forget("u1");
    node.sh("ip link set dp0 down");
    kubelet.await_healthy("dataplane", 0);
    eventually_in(two_scans, "the device is free", || (allocated()? == 0).then_some(()));
}
