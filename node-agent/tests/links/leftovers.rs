//! What pods left behind, with the rights that the agent's container has.

use crate::CONFIGURATION;
use crate::support::attachments::lost;
use crate::support::kubelet::{Kubelet, await_true};
use crate::support::{Node, eventually_in, is_root, metric, serving};
use macvtap::record::{Attachment, State};
use std::time::{Duration, Instant};

fn nothing_is_recorded(node: &Node) -> bool {
    std::fs::read_dir(node.paths().attachments()).unwrap().count() == 0
}

#[test]
fn what_pods_left_behind_is_removed() {
    let Some((node, _kubelet, _agent)) = serving(CONFIGURATION) else { return };
    // A record of a pod whose sandbox is long gone, and one whose maker was killed.
    node.record(&lost("dataplaneMvp1", "gone"));
    node.record(&Attachment { state: State::Creating, ..lost("dataplaneMvp2", "gone") });
    let begun = Instant::now();
    // Two looks of the collector, ten seconds apart, and then some.
    eventually_in(Duration::from_mins(1), "nothing is left", || nothing_is_recorded(&node).then_some(()));
    println!("orphans removed after {:?}", begun.elapsed());
    await_true("they are counted", || metric(&node, "macvtap_orphans_removed_total") == Some(2));
}

#[test]
fn the_capabilities_of_its_container_are_enough_for_taps_and_for_links_in_other_namespaces() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    // A pod's ADD was killed after it had made the link.
    node.attach("dataplaneMvp40", "pod1", State::Creating);
    let kubelet = Kubelet::start(&node);
    let agent = node.confined_agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.worker().unwrap())).unwrap();
    // CHOWN is 0, NET_ADMIN 12, MKNOD 27.
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap(), 1 | 1 << 12 | 1 << 27);
    await_true("the link in the pod's namespace is gone", || !node.sh("ip -n pod1 -o link").contains("net1"));
    await_true("its record is gone", || nothing_is_recorded(&node));
    let devices = kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(node.sh(&format!("stat -c '%F %u' {}", devices[0].0)), "character special file 107\n");
    assert!(node.sh("ip -o link show type macvtap").contains("dp0"), "{}", agent.log());
}

/// Two looks of the collector, and then some.
const TWO_LOOKS: Duration = Duration::from_secs(25);

#[test]
fn a_pod_keeps_what_it_has_wherever_its_runtime_keeps_the_namespace_until_that_has_ended() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    // As runtimes write them. The agent sees the third only, and its own processes at the fourth.
    let paths = [
        "/run/containerd/io.containerd.grpc.v1.cri/netns/cni-0",
        "/var/run/crio/ns/5f0c/net",
        "/run/netns/pod2",
        "/proc/1/ns/net",
    ];
    for (slot, path) in paths.into_iter().enumerate() {
        let (device, pod) = (format!("dataplaneMvp{slot}"), format!("pod{slot}"));
        node.attach(&device, &pod, State::Attached);
        node.move_record(&device, &pod, path);
    }
    // One pod has lost its link: its containers may still open the tap's number.
    node.sh("ip -n pod0 link del net1");
    let agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    // A kubelet that lost its checkpoint lists a pod without its devices; one that has not heard from the API server
    // lists no pod. Either is all that this agent hears.
    kubelet.add_pod_of("pod1", "other", "otherMvp0");
    std::thread::sleep(TWO_LOOKS);
    assert_eq!(std::fs::read_dir(node.paths().attachments()).unwrap().count(), 4, "{}", agent.log());
    for slot in 1..4 {
        assert!(node.sh(&format!("ip -n pod{slot} -o link")).contains("net1"), "{}", agent.log());
    }
    // The kubelet takes their devices for free; it is told to give others first.
    await_true("they are counted", || metric(&node, "macvtap_unlisted_devices") == Some(4));
    let ids: Vec<String> = (0..6).map(|slot| format!("dataplaneMvp{slot}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert_eq!(kubelet.prefer("dataplane", &ids, 2), ids[4..]);
    assert_eq!(kubelet.prefer("dataplane", &ids, 3), ids[..3], "there are not enough others");
    kubelet.remove_pods();
    node.sh("for slot in 0 1 2 3; do ip netns del pod$slot; done");
    eventually_in(Duration::from_mins(1), "nothing is left", || nothing_is_recorded(&node).then_some(()));
}
