//! What the configuration says, and its edits.

use crate::support::kubelet::{Kubelet, await_true};
use crate::support::{Node, is_root};

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
    let table = node.table();
    assert_eq!(table["resources"]["a"]["links"][0]["mode"], "bridge", "{table}");
}
