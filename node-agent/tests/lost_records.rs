//! Records that were lost and indexes that strangers have, on the real kernel.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

#[cfg(test)]
mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::kubelet::{Kubelet, await_true};
use support::{Agent, Node, eventually_in, is_root, metric};

const CONFIGURATION: &str = r#"[{"name":"dataplane","lowerDevice":"dp0","capacity":50}]"#;

/// Two looks of the collector, ten seconds apart, and then some.
const DEADLINE: Duration = Duration::from_mins(1);

/// A node whose devices have indexes that no other test's have: which tap is whose is told by the index alone once the
/// record is lost, and taps are the machine's.
struct Scene {
    agent: Agent,
    kubelet: Kubelet,
    node: Node,
    first: u32,
}

impl Scene {
    fn new() -> Self {
        let node = Node::new();
        node.add_link("dp0");
        let first = 0x0200_0000 + std::process::id() % 0x10_0000 * 64;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let table = json!({
            "version": 1, "bootId": boot.trim(), "nextIfindex": first, "standalone": true, "resources": {},
        });
        std::fs::create_dir_all(node.path("/var/lib/macvtap")).unwrap();
        std::fs::write(node.path("/var/lib/macvtap/devices.json"), table.to_string()).unwrap();
        let kubelet = Kubelet::start(&node);
        let agent = node.agent(CONFIGURATION);
        kubelet.await_healthy("dataplane", 50);
        Self { agent, kubelet, node, first }
    }

    /// What ADD makes, without its record.
    fn attach(&self, netns: &str, slot: u32) {
        self.node.make_link_of_pod(netns, self.first + slot);
    }

    fn record(&self, slot: u32) -> Option<Value> {
        let path = self.node.path(&format!("/run/macvtap/attachments/dataplaneMvp{slot}"));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    fn await_record(&self, slot: u32) -> Value {
        eventually_in(DEADLINE, "there is a record", || self.record(slot))
    }
}

#[test]
fn a_device_whose_record_was_lost_is_adopted_when_its_pod_has_the_link_and_strangers_are_left_alone() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let Scene { node, kubelet, agent, first } = &scene;
    scene.attach("pod5", 5);
    // The same index in a namespace of this node, not made on our link: harmless.
    node.sh(&format!("ip netns add pod6; ip -n pod6 link add x index {} type veth peer name y", first + 6));
    // No pod has device 7, so its link is nobody's: left to whoever made it.
    scene.attach("pod7", 7);
    for (pod, slot) in [("vm", 5), ("other", 6)] {
        kubelet.add_pod(pod, &format!("dataplaneMvp{slot}"));
    }
    let record = scene.await_record(5);
    let inode: u64 = node.sh("stat -L -c %i /run/netns/pod5").trim().parse().unwrap();
    assert_eq!(
        record["holder"],
        json!({
            "kind": "pod", "containerId": "", "ifname": "net1", "podUid": "", "podNamespace": "default",
            "podName": "vm", "netns": "/run/netns/pod5", "netnsInode": inode,
        })
    );
    let number = node.sh(&format!("ip netns exec pod5 cat /sys/class/net/net1/tap{}/dev", first + 5));
    let number = number.trim();
    let tap = &record["tap"];
    assert_eq!(format!("{}:{}", tap["major"], tap["minor"]), number);
    assert_eq!(node.sh(&format!("readlink /run/macvtap/taps/{number}")), "dataplaneMvp5\n");
    let device = node.sh(&format!("stat -c '%F %Hr:%Lr %u:%g' /run/macvtap/dev/{}", first + 5));
    assert_eq!(device, format!("character special file {number} 107:107\n"));
    assert_eq!((scene.record(6), scene.record(7)), (None, None), "{}", agent.log());
    assert_eq!(kubelet.plugin("dataplane").unwrap().healthy(), Some(50));
    await_true("it is counted", || metric(node, "macvtap_records_adopted_total") == Some(1));
    await_true("the rewritten record is logged", || agent.log().contains("lost record rewritten"));
    // The pod ends without a DEL: as after any other, nothing stays.
    kubelet.remove_pods();
    node.sh("ip netns del pod5");
    eventually_in(DEADLINE, "the record is gone", || scene.record(5).is_none().then_some(()));
    assert!(!node.path(&format!("/run/macvtap/dev/{}", first + 5)).exists());
}

#[test]
fn a_device_whose_index_a_stranger_has_on_the_node_is_unhealthy_until_that_goes() {
    if !is_root() {
        return;
    }
    let Scene { node, kubelet, agent, first } = Scene::new();
    node.sh(&format!("ip link add stranger index {} type veth peer name strangerp", first + 4));
    let plugin = kubelet.await_plugin("dataplane", |plugin| plugin.healthy() == Some(49));
    let devices = plugin.devices.unwrap();
    let sick: Vec<_> =
        devices.iter().filter(|device| device.health == "Unhealthy").map(|d| d.id.as_str()).collect();
    assert_eq!((devices.len(), sick), (50, vec!["dataplaneMvp4"]));
    await_true("it is told", || agent.log().contains("IndexTaken"));
    // A tap-only pod's link is one of ours, and in the same namespace.
    kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    node.sh("ip link del stranger");
    kubelet.await_healthy("dataplane", 50);
    assert_eq!(kubelet.registrations(), 1);
}
