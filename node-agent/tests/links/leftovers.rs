//! What pods left behind, with the rights that the agent's container has.

use crate::CONFIGURATION;
use crate::support::kubelet::{Kubelet, await_true};
use crate::support::{Node, is_root, metric};
use std::time::{Duration, Instant};

#[test]
fn what_pods_left_behind_is_removed() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    // A record of a pod whose sandbox is long gone, and one whose maker was killed.
    let record = |device: &str, state: &str, ifindex: u32| {
        format!(
            r#"{{"version":1,"device":"{device}","holder":{{"kind":"pod","containerId":"c","ifname":"net1","podUid":"u","podNamespace":"default","podName":"gone","netns":"/run/netns/none","netnsInode":1}},"state":"{state}","ifindex":{ifindex},"lowerIfindex":2,"tap":{{"major":4095,"minor":1}}}}"#
        )
    };
    let attachments = node.path("/run/macvtap/attachments");
    std::fs::create_dir_all(&attachments).unwrap();
    std::fs::write(attachments.join("dataplaneMvp1"), record("dataplaneMvp1", "Attached", 0x0100_0001))
        .unwrap();
    std::fs::write(attachments.join("dataplaneMvp2"), record("dataplaneMvp2", "Creating", 0x0100_0002))
        .unwrap();
    let left = || std::fs::read_dir(&attachments).unwrap().count();
    let begun = Instant::now();
    let deadline = Duration::from_mins(1);
    while left() > 0 {
        assert!(begun.elapsed() < deadline, "left behind: {}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("leftovers removed after {:?}", begun.elapsed());
    await_true("they are counted", || metric(&node, "macvtap_leftovers_removed_total") == Some(2));
}

#[test]
fn the_capabilities_of_its_container_are_enough_for_taps_and_for_links_in_other_namespaces() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    // A pod's ADD was killed after it had made the link.
    let ifindex = 0x0100_0000 + 40;
    node.sh(&format!(
        "ip netns add pod1 && ip link add link dp0 name net1 index {ifindex} netns pod1 type macvtap mode bridge"
    ));
    let inode = node.sh("stat -L -c %i /run/netns/pod1");
    let lower = node.sh("cat /sys/class/net/dp0/ifindex");
    let record = format!(
        r#"{{"version":1,"device":"dataplaneMvp40","holder":{{"kind":"pod","containerId":"c","ifname":"net1","podUid":"u","podNamespace":"default","podName":"p","netns":"/run/netns/pod1","netnsInode":{}}},"state":"Creating","ifindex":{ifindex},"lowerIfindex":{}}}"#,
        inode.trim(),
        lower.trim()
    );
    let attachments = node.path("/run/macvtap/attachments");
    std::fs::create_dir_all(&attachments).unwrap();
    std::fs::write(attachments.join("dataplaneMvp40"), record).unwrap();
    let kubelet = Kubelet::start(&node);
    let agent = node.confined_agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.worker().unwrap())).unwrap();
    // CHOWN is 0, NET_ADMIN 12, MKNOD 27.
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(u64::from_str_radix(effective, 16).unwrap(), 1 | 1 << 12 | 1 << 27);
    await_true("the link in the pod's namespace is gone", || !node.sh("ip -n pod1 -o link").contains("net1"));
    await_true("its record is gone", || std::fs::read_dir(&attachments).unwrap().count() == 0);
    let devices = kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(node.sh(&format!("stat -c '%F %u' {}", devices[0].0)), "character special file 107\n");
    assert!(node.sh("ip -o link show type macvtap").contains("dp0"), "{}", agent.log());
}
