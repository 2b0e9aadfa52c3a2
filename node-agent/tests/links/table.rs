//! The device table: restarts, reboots, a full disk, damage.

use crate::CONFIGURATION;
use crate::support::kubelet::{Kubelet, await_true};
use crate::support::{Node, is_root, metric, serving};

#[test]
fn the_table_survives_the_agent_and_so_do_indexes() {
    let Some((node, kubelet, mut agent)) = serving(CONFIGURATION) else { return };
    let before = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    agent.terminate();
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_plugin("dataplane", |plugin| plugin.connected && plugin.healthy() == Some(50));
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap(), before);
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
    await_true("it is not ready", || {
        let output = ready();
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("devices.json")
    });
    assert_eq!(kubelet.plugin("a").unwrap().healthy(), Some(5));
    assert_eq!(kubelet.plugin("b").unwrap().healthy(), Some(0));
    assert!(kubelet.allocate("a", &["aMvp1"]).is_ok());
    await_true("it is counted", || metric(&node, "macvtap_table_write_failures_total") > Some(0));
    node.sh("rm /var/lib/macvtap/filler");
    kubelet.await_healthy("b", 100);
    await_true("it is ready again", || ready().status.success());
}

#[test]
fn an_agent_that_starts_with_a_full_disk_serves_the_devices_that_are_on_it() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    node.add_link("dp0");
    node.sh("mkdir -p /var/lib/macvtap && mount -t tmpfs -o size=64k tmpfs /var/lib/macvtap");
    let kubelet = Kubelet::start(&node);
    let resource =
        |name, capacity| format!(r#"{{"name":"{name}","lowerDevice":"dp0","capacity":{capacity}}}"#);
    let mut former = node.agent(&format!("[{}]", resource("a", 5)));
    kubelet.await_healthy("a", 5);
    let before = kubelet.allocate("a", &["aMvp1"]).unwrap();
    former.terminate();
    node.sh("dd if=/dev/zero of=/var/lib/macvtap/filler bs=1k count=1000 2>/dev/null || true");
    let _agent = node.agent(&format!("[{},{}]", resource("a", 8), resource("b", 3)));
    kubelet.await_healthy("a", 5);
    kubelet.await_healthy("b", 0);
    assert_eq!(kubelet.allocate("a", &["aMvp1"]).unwrap(), before);
    kubelet.allocate("a", &["aMvp7"]).unwrap_err();
    node.sh("rm /var/lib/macvtap/filler");
    kubelet.await_healthy("a", 8);
    kubelet.await_healthy("b", 3);
}

#[test]
fn a_table_of_another_boot_is_written_anew_before_its_devices_are_advertised() {
    let Some((node, mut kubelet, mut agent)) = serving(CONFIGURATION) else { return };
    let before = kubelet.allocate("dataplane", &["dataplaneMvp5"]).unwrap();
    agent.terminate();
    // As after a reboot: another boot, links with other indexes, nothing below /run, a new kubelet.
    let mut earlier = node.table();
    let boot = earlier["bootId"].take();
    earlier["bootId"] = "another".into();
    std::fs::write(node.path("/var/lib/macvtap/devices.json"), earlier.to_string()).unwrap();
    node.sh("ip link del dp0; rm -r /run/macvtap");
    node.add_link("dp0");
    kubelet = kubelet.restart();
    let _agent = node.agent(CONFIGURATION);
    kubelet.await_healthy("dataplane", 50);
    let now = node.table();
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
    await_true("it is told", || agent.log().contains("rebuilding it from what"));
    assert_eq!(node.path("/var/lib/macvtap/devices.json.damaged").exists(), !lost);
    // The pod's container starts again and finds its tap.
    kubelet.pre_start("dataplane", &["dataplaneMvp7"]).unwrap();
    assert!(node.path(&device[0].0).exists());
    // An index that may still be in somebody's hands is not given to anybody else.
    assert_ne!(kubelet.allocate("dataplane", &["dataplaneMvp8"]).unwrap(), other);
}
