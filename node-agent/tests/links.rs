//! The agent and the kernel's links, on the real kernel.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

#[cfg(test)]
mod support;

use macvtap::paths::Paths;
use macvtap_node_agent::kubelet::{Ledger, Shared};
use macvtap_node_agent::metrics::Metrics;
use macvtap_node_agent::netlink::{self, News};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::kubelet::{Kubelet, await_true};
use support::{DEADLINE, Node, is_root, metric};
use tokio::sync::{mpsc, watch};

const CONFIGURATION: &str = r#"[{"name":"dataplane","lowerDevice":"dp0","capacity":50}]"#;

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
    let table = std::fs::read_to_string(node.path("/var/lib/macvtap/devices.json")).unwrap();
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    assert!(table["resources"].get("a").is_none(), "{table}");
    assert_eq!(table["nextIfindex"], 0x0100_0000 + 5, "{table}");
}

#[test]
fn a_renamed_link_keeps_its_devices_in_use_and_a_resource_by_name_loses_the_rest() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let before = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    node.sh("ip link set dp0 down && ip link set dp0 name other && ip link set other up");
    kubelet.await_plugin("dataplane", |plugin| plugin.devices.as_ref().is_some_and(|d| d.len() == 1));
    node.sh("ip link property add dev other altname dp0");
    kubelet.await_healthy("dataplane", 50);
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap(), before);
}

#[test]
fn a_loss_of_carrier_makes_devices_unhealthy_after_its_delay() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
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
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    node.sh("ip link add br0 type bridge && ip link set dp0 master br0");
    kubelet.await_healthy("dataplane", 0);
    node.sh("ip link set dp0 nomaster");
    kubelet.await_healthy("dataplane", 50);
}

#[test]
fn two_resources_on_one_link_have_devices_of_their_own() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(
        r#"[{"name":"a","lowerDevice":"dp0","capacity":2},{"name":"b","lowerDevice":"dp0","mode":"private","capacity":3}]"#,
    );
    kubelet.await_healthy("a", 2);
    kubelet.await_healthy("b", 3);
    let (a, b) = (kubelet.allocate("a", &["aMvp0"]).unwrap(), kubelet.allocate("b", &["bMvp0"]).unwrap());
    assert_ne!(a, b);
}

#[test]
fn a_pod_that_takes_the_tap_alone_gets_a_link_when_it_starts_and_the_next_one_another() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let devices = kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    let taps = || node.sh("ip -o link show type macvtap | wc -l");
    assert_eq!(taps(), "0\n");
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(taps(), "1\n");
    let stat = node.sh(&format!("stat -c '%F %u:%g' {}", devices[0].0));
    assert_eq!(stat, "character special file 107:107\n");
    // The container is started again: nothing is made anew.
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
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    // A networked pod ends, and its DEL has not come when the next one gets the device.
    let ifindex = 0x0100_0000 + 9;
    node.sh(&format!(
        "ip netns add pod1 && ip link add link dp0 name net1 index {ifindex} netns pod1 type macvtap mode bridge"
    ));
    let inode = node.sh("stat -L -c %i /run/netns/pod1");
    let lower = node.sh("cat /sys/class/net/dp0/ifindex");
    let record = format!(
        r#"{{"version":1,"device":"dataplaneMvp9","holder":{{"kind":"pod","containerId":"c","ifname":"net1","podUid":"u","podNamespace":"default","podName":"former","netns":"/run/netns/pod1","netnsInode":{}}},"state":"Attached","ifindex":{ifindex},"lowerIfindex":{}}}"#,
        inode.trim(),
        lower.trim()
    );
    std::fs::create_dir_all(node.path("/run/macvtap/attachments")).unwrap();
    std::fs::write(node.path("/run/macvtap/attachments/dataplaneMvp9"), record).unwrap();
    kubelet.allocate("dataplane", &["dataplaneMvp9"]).unwrap();
    let refused = kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap_err();
    assert!(refused.message().contains("pod default/former"), "{}", refused.message());
    node.sh("ip netns del pod1");
    kubelet.pre_start("dataplane", &["dataplaneMvp9"]).unwrap();
    assert_eq!(node.sh("ip -o link show type macvtap | wc -l"), "1\n");
}

#[test]
fn a_configuration_file_is_followed_and_a_bad_edit_changes_nothing() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let agent = node.agent_with_file(r#"[{"name":"a","lowerDevice":"dp0","capacity":5}]"#);
    kubelet.await_healthy("a", 5);
    node.write_configuration(
        r#"[{"name":"a","lowerDevice":"dp0","capacity":7},{"name":"b","lowerDevice":"dp0"}]"#,
    );
    kubelet.await_healthy("a", 7);
    kubelet.await_healthy("b", 100);
    node.write_configuration(r#"[{"name":"a","lowerDevice":"dp0","capacity":-7}]"#);
    await_true("the mistake is told", || agent.log().contains("capacity is -7"));
    assert_eq!(kubelet.plugin("a").unwrap().healthy(), Some(7));
    node.write_configuration(r#"[{"name":"a","lowerDevice":"dp0","capacity":3}]"#);
    kubelet.await_healthy("a", 3);
    // An Allocate that was under way when the list got shorter is honoured.
    assert!(kubelet.allocate("a", &["aMvp6"]).is_ok());
    assert!(kubelet.allocate("a", &["aMvp7"]).is_err());
    // What nobody asks for any more drains: first an empty list.
    kubelet.await_healthy("b", 0);
}

#[test]
fn a_device_allocated_a_moment_ago_keeps_its_mode() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent_with_file(r#"[{"name":"a","lowerDevice":"dp0","capacity":5}]"#);
    kubelet.await_healthy("a", 5);
    kubelet.allocate("a", &["aMvp3"]).unwrap();
    node.write_configuration(r#"[{"name":"a","lowerDevice":"dp0","capacity":7,"mode":"private"}]"#);
    kubelet.await_healthy("a", 7);
    let table = std::fs::read_to_string(node.path("/var/lib/macvtap/devices.json")).unwrap();
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    assert_eq!(table["resources"]["a"]["links"][0]["mode"], "bridge", "{table}");
}

#[test]
fn the_table_survives_the_agent_and_so_do_indexes() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let mut agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let before = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    agent.terminate();
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_plugin("dataplane", |plugin| plugin.connected && plugin.healthy() == Some(50));
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap(), before);
}

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

#[test]
fn events_the_kernel_could_not_deliver_are_made_up_for() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let worker = agent.worker().unwrap();
    // While nobody reads, more events than the buffer holds, the last of them among those that are lost.
    support::signal_to(worker, rustix::process::Signal::STOP);
    node.sh("for i in $(seq 3000); do echo link set dp0p mtu $((1400 + i % 50)); done | ip -batch -; ip link del dp0");
    support::signal_to(worker, rustix::process::Signal::CONT);
    kubelet.await_healthy("dataplane", 0);
    let overflows = || metric(&node, "macvtap_link_event_overflows_total");
    await_true("the overflow is counted", || overflows().is_some_and(|count| count > 0));
    assert_eq!(agent.worker(), Some(worker), "{}", agent.log());
}

/// Hears of a node's links as the agent does, only slowly, and not at all while its test does something else: its
/// socket is read in its own calls alone.
struct Listener {
    news: mpsc::Receiver<News>,
    shared: Arc<Shared>,
    links: BTreeMap<u32, String>,
    runtime: tokio::runtime::Runtime,
}

impl Listener {
    fn new(node: &Node) -> Self {
        let shared = Arc::new(Shared {
            paths: Paths::new("/nonexistent", "/nonexistent"),
            ledger: Ledger::default(),
            metrics: Metrics::default(),
            allocated: tokio::sync::Notify::new(),
            lost: watch::Sender::default(),
            nics: watch::Sender::default(),
        });
        let netns = std::fs::File::open(node.netns()).unwrap();
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sender, news) = mpsc::channel(4);
        runtime.spawn(netlink::follow(sender, Arc::clone(&shared)));
        Self { news, shared, links: BTreeMap::new(), runtime }
    }

    /// Reads the socket until it is so, and takes no news.
    fn read_until(&self, what: &str, so: impl Fn(&Metrics) -> bool) {
        let looking = async {
            while !so(&self.shared.metrics) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let looked = async { tokio::time::timeout(DEADLINE, looking).await };
        assert!(self.runtime.block_on(looked).is_ok(), "not in {DEADLINE:?}: {what}");
    }

    /// Takes news one by one, each after a while, until it is so.
    fn take_until(&mut self, what: &str, so: impl Fn(&BTreeMap<u32, String>, &Metrics) -> bool) {
        let taking = async {
            while !so(&self.links, &self.shared.metrics) {
                tokio::time::sleep(Duration::from_millis(2)).await;
                match self.news.try_recv() {
                    Ok(News::All(links)) => {
                        self.links = links.into_iter().map(|link| (link.ifindex, link.name)).collect();
                    }
                    Ok(News::Changed(link)) => drop(self.links.insert(link.ifindex, link.name)),
                    Ok(News::Gone(ifindex)) => drop(self.links.remove(&ifindex)),
                    Ok(News::Ties { .. }) | Err(_) => {}
                }
            }
        };
        let taken = async { tokio::time::timeout(DEADLINE, taking).await };
        assert!(self.runtime.block_on(taken).is_ok(), "not in {DEADLINE:?}: {what}: {:?}", self.links);
    }

    fn await_link(&mut self, name: &str) {
        self.take_until(name, |links, _| links.values().any(|link| link == name));
    }

    fn knows(&self, name: &str) -> bool {
        self.links.values().any(|link| link == name)
    }
}

#[test]
fn a_link_whose_end_the_kernel_could_not_tell_stays_gone_although_older_events_of_it_wait() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let mut listener = Listener::new(&node);
    listener.await_link("dp0");
    node.sh("for i in $(seq 3000); do echo link set dp0 mtu $((1400 + i % 50)); done | ip -batch -; ip link del dp0");
    listener.take_until("a list after the overflow", |_, metrics| {
        metrics.overflows.get() > 0 && metrics.resyncs.get() > 1
    });
    // Heard after everything that waited.
    node.add_link("dp1");
    listener.await_link("dp1");
    assert!(!listener.knows("dp0"));
}

#[test]
fn events_that_a_busy_listener_does_not_take_are_made_up_for_by_a_full_list() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let mut listener = Listener::new(&node);
    listener.await_link("dp0");
    let heard = listener.shared.metrics.link_events.get();
    node.sh("for i in $(seq 20); do ip link set dp0 mtu $((1400 + i)); done; ip link del dp0");
    node.add_link("last");
    listener.read_until("the socket is read although nobody listens", |metrics| {
        metrics.link_events.get() > heard + 20
    });
    listener.take_until("what is there", |links, _| {
        let has = |name| links.values().any(|link| link == name);
        has("last") && !has("dp0")
    });
}

#[test]
fn a_full_disk_leaves_the_old_list_in_force_and_is_told() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    node.sh("mkdir -p /var/lib/macvtap && mount -t tmpfs -o size=64k tmpfs /var/lib/macvtap");
    let kubelet = Kubelet::start(&node);
    let agent =
        node.agent(r#"[{"name":"a","lowerDevice":"dp0","capacity":5},{"name":"b","lowerDevice":"dp5"}]"#);
    kubelet.await_healthy("a", 5);
    kubelet.await_healthy("b", 0);
    node.sh("dd if=/dev/zero of=/var/lib/macvtap/filler bs=1k count=1000 2>/dev/null || true");
    node.add_link("dp5");
    await_true("it is told", || agent.log().contains("device table not written"));
    let ready = || node.agent_command().arg("probe").output().unwrap();
    assert!(!ready().status.success());
    assert!(String::from_utf8_lossy(&ready().stderr).contains("devices.json"), "{:?}", ready());
    assert_eq!(kubelet.plugin("a").unwrap().healthy(), Some(5));
    assert_eq!(kubelet.plugin("b").unwrap().healthy(), Some(0));
    assert!(kubelet.allocate("a", &["aMvp1"]).is_ok());
    assert!(metric(&node, "macvtap_table_write_failures_total") > Some(0));
    node.sh("rm /var/lib/macvtap/filler");
    kubelet.await_healthy("b", 100);
    await_true("it is ready again", || ready().status.success());
}

#[test]
fn a_table_of_another_boot_is_written_anew_before_its_devices_are_advertised() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    let mut kubelet = Kubelet::start(&node);
    let mut agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let before = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    agent.terminate();
    let path = node.path("/var/lib/macvtap/devices.json");
    let table = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap() };
    // As after a reboot: another boot, links with other indexes, nothing below /run, a new kubelet.
    let (mut earlier, boot) = (table(), table()["bootId"].clone());
    earlier["bootId"] = "another".into();
    std::fs::write(&path, earlier.to_string()).unwrap();
    node.sh("ip link del dp0; rm -r /run/macvtap");
    node.add_link("dp0");
    kubelet = kubelet.restart();
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let now = table();
    assert_eq!(now["bootId"], boot);
    let lower = &now["resources"]["dataplane"]["links"][0]["ifindex"];
    assert_eq!(lower.to_string(), node.sh("cat /sys/class/net/dp0/ifindex").trim());
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap(), before, "a device was moved");
}

#[test]
fn a_damaged_or_lost_table_is_rebuilt_and_recorded_devices_keep_their_indexes() {
    if !is_root() {
        return;
    }
    for lost in [false, true] {
        rebuild(lost);
    }
}

fn rebuild(lost: bool) {
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let mut agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let device = kubelet.allocate("dataplane", &["dataplaneMvp7"]).unwrap();
    kubelet.pre_start("dataplane", &["dataplaneMvp7"]).unwrap();
    let other = kubelet.allocate("dataplane", &["dataplaneMvp8"]).unwrap();
    agent.terminate();
    let table = node.path("/var/lib/macvtap/devices.json");
    if lost {
        std::fs::remove_file(&table).unwrap();
    } else {
        let half = std::fs::read(&table).unwrap();
        std::fs::write(&table, &half[..half.len() / 2]).unwrap();
    }
    let agent = node.agent(CONFIGURATION);
    kubelet.await_plugin("dataplane", |plugin| plugin.connected && plugin.healthy() == Some(50));
    assert!(agent.log().contains("rebuilding it from what"), "{}", agent.log());
    assert_eq!(node.path("/var/lib/macvtap/devices.json.damaged").exists(), !lost);
    // The pod's container starts again and finds its tap.
    kubelet.pre_start("dataplane", &["dataplaneMvp7"]).unwrap();
    assert!(node.path(&device[0].0).exists());
    // An index that may still be in somebody's hands is not given to anybody else.
    assert_ne!(kubelet.allocate("dataplane", &["dataplaneMvp8"]).unwrap(), other);
}
