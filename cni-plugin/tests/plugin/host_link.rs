//! Macvtaps that somebody made on the node, which move into the pod that names them.

use crate::support::{Call, Holder, Node, bare_node_and_pods, first_ifindex, link};
use macvtap::table::Owner;
use macvtap::tap;
use serde_json::{Value, json};

/// A pod on a node whose agent is standalone, with a macvtap that somebody made by hand.
fn standalone_with_link(index: &str) -> Option<(Node, Holder)> {
    let (node, [pod]) = bare_node_and_pods()?;
    node.store_table(|table| table.standalone = true);
    node.sh(&format!("ip link add link dp0 name mvt0 {index} address 02:00:00:00:00:11 type macvtap mode vepa; ip link set mvt0 up"));
    Some((node, pod))
}

#[test]
fn a_macvtap_of_a_standalone_node_moves_into_the_pod_that_names_it() {
    let Some((node, pod)) = standalone_with_link("") else { return };
    let call =
        Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0", "mtu": 1300, "promiscMode": true}));
    let result = call.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:11");
    let moved = link(&pod);
    assert_eq!((&moved["mtu"], &moved["linkinfo"]["info_data"]["mode"]), (&json!(1300), &json!("vepa")));
    let flags = moved["flags"].to_string();
    assert!(flags.contains("\"UP\"") && flags.contains("PROMISC"), "{flags}");
    assert!(!node.traces().contains("mvt0"));
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    call.ok("DEL");
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn a_macvtap_that_cannot_be_used_stays_on_the_node_as_it_was() {
    let Some((node, pod)) = standalone_with_link("") else { return };
    let state = || node.sh("ip -d -o link show mvt0 | sed 's/qlen.*alias//'");
    let before = state();
    let call = Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0"}));
    let taken = node.sh("ip -o link show dp0").split("link/ether ").nth(1).unwrap()[..17].to_owned();
    let message = call.clone().with(json!({"mac": taken})).fails("ADD", 100);
    assert!(message.contains(&format!("MAC address {taken} is in use on lower link dp0")), "{message}");
    assert_eq!((state(), link(&pod)), (before.clone(), Value::Null));
    assert!(
        call.clone().with(json!({"mtu": 9000})).fails("ADD", 7).contains("above the 1500 of lower link dp0")
    );
    Node::ip(&pod, "link add net1 type veth peer name net1p");
    call.fails("ADD", 100);
    assert_eq!(state(), before);
}

#[test]
fn only_a_foreign_macvtap_is_moved_and_only_where_it_is_allowed() {
    let Some((node, pod)) = standalone_with_link("") else { return };
    let call = |node: &Node, id: &str, code| {
        Call::new(node, &pod, "c1").with(json!({"deviceID": id})).fails("ADD", code)
    };
    assert!(call(&node, "dp1", 7).contains("not a macvtap (veth)"));
    assert!(call(&node, "nosuch", 7).contains("neither a device of this node nor an interface on it"));
    assert!(call(&node, "storageMvp0", 7).contains("it has no resource storage"));
    let Some((ours, _)) = standalone_with_link(&format!("index {}", first_ifindex())) else { return };
    assert!(call(&ours, "mvt0", 7).contains("is the link of a device of this node"));
    // Not standalone: only with the node's consent, which needs no table.
    node.store_table(|_| ());
    assert!(call(&node, "mvt0", 7).contains("leave deviceID out"));
    std::fs::remove_file(node.paths().table()).unwrap();
    std::fs::write(node.paths().cni_settings(), "{\"moveHostLinks\": true}").unwrap();
    Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0"})).ok("ADD");
}

#[test]
fn the_tap_of_a_moved_link_becomes_its_pods() {
    let Some((node, [pod])) = bare_node_and_pods() else { return };
    node.store_table(|table| table.standalone = true);
    // An index that no other test has, and below those that are never moved.
    let index = 0x00ff_0000 + std::process::id() % 0x1_0000;
    node.sh(&format!("ip link add link dp0 name mvt0 index {index} type macvtap; ip link set mvt0 up"));
    let path = std::path::PathBuf::from(format!("/dev/tap{index}"));
    let call = Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0", "owner": 4711, "group": 4712}));
    call.ok("ADD");
    assert_eq!(link(&pod)["ifindex"], index);
    let made = tap::node_at(&path).expect("the kernel's node");
    assert_eq!(made.owner, Owner { uid: 4711, gid: 4712 });
    call.ok("DEL");
    // What is there by another's doing stays as it is.
    node.sh(&format!("ip link add link dp0 name mvt0 index {index} type macvtap"));
    node.sh(&format!("mount --bind /run /dev; mknod /dev/tap{index} c 1 3"));
    let answer = call.run("ADD");
    assert!(answer.success && answer.stderr.contains("its owner was not set"), "{answer:?}");
    assert_eq!(node.sh(&format!("stat -c %u /dev/tap{index}")), "0\n");
}
