//! What a pod gets, and who gets a NIC that more than one asks for.

use super::{PCI, call, current, leases, nic, ready_node, shape, state};
use crate::support::{self, Answer, Call, Node, has_plugins, link, pod};
use macvtap::record::State;
use serde_json::{Value, json};

#[test]
fn a_pod_gets_the_nic_and_the_node_gets_it_back_as_it_was() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1").with(json!({"type": "ehost-device", "cniVersion": "1.1.0"}));
    let result = call.ok("ADD");
    let found = link(&pod);
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:77");
    assert_eq!(result["interfaces"][0]["mtu"], 1450);
    assert_eq!(result["interfaces"][0]["sandbox"], pod.netns().to_str().unwrap());
    assert_eq!((&found["ifalias"], &found["altnames"]), (&json!("dp0"), &json!(["enp0s10"])));
    assert_eq!(shape(&found)["flags"], json!([true, false, true]), "up, and as its resource says");
    assert_eq!(nic(&node, "dp0"), Value::Null);
    let record = current(&node);
    assert_eq!(
        (record.state, u64::from(record.ifindex)),
        (State::Attached, found["ifindex"].as_u64().unwrap())
    );
    assert_eq!(record.nic.unwrap().name, "dp0");
    call.with(json!({"prevResult": result})).ok("CHECK");
    // Whatever the configuration has become since.
    Call::new(&node, &pod, "c1").with(json!({"deviceID": null})).ok("DEL");
    assert_eq!(state(&node, &pod), before);
    Call::new(&node, &pod, "c1").with(json!({"deviceID": PCI})).ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_nic_that_was_down_and_had_an_alias_comes_back_so() {
    let Some((node, pod)) = ready_node() else { return };
    node.sh("ip link set dp0 down alias uplink promisc on");
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    assert_eq!(shape(&link(&pod))["flags"], json!([true, false, true]));
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn what_the_network_asks_for_is_set_in_the_pod_and_undone_on_the_node() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let wishes = json!({"mac": "02:00:00:00:00:01", "mtu": 1400, "promiscMode": true, "runtimeConfig": {"mac": "02:00:00:00:00:02"}});
    let call = call(&node, &pod, "c1").with(wishes);
    let result = call.ok("ADD");
    let found = shape(&link(&pod));
    assert_eq!((&found["mac"], &found["mtu"]), (&json!("02:00:00:00:00:02"), &json!(1400)));
    assert_eq!(found["flags"], json!([true, true, true]));
    let check = call.clone().with(json!({"prevResult": result}));
    check.ok("CHECK");
    Node::ip(&pod, "link set net1 address 02:00:00:00:00:09");
    assert!(check.fails("CHECK", 102).contains("MAC address"));
    Node::ip(&pod, "link set net1 address 02:00:00:00:00:02 down");
    assert!(check.fails("CHECK", 102).contains("is down"));
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn addresses_are_leased_set_and_given_back() {
    let Some((node, pod)) = has_plugins().then(ready_node).flatten() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1").with(json!({"ipam": leases("/run/leases")}));
    let result = call.ok("ADD");
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
    let addresses = Node::ip(&pod, "-br addr show net1");
    assert!(addresses.contains("10.9.0.2/24") && addresses.contains("fd09::2/64"), "{addresses}");
    assert!(Node::ip(&pod, "route").contains("default via 10.9.0.1 dev net1"));
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    // Again, as when the answer was lost: the same, done again.
    assert_eq!(call.ok("ADD")["interfaces"], result["interfaces"]);
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
    assert!(!node.sh("ip addr show dp0").contains("10.9.0"), "addresses went back with the NIC");
    assert_eq!(node.sh("find /run/leases -name '1*'"), "");
    // Refused when the NIC is in the pod with its address: nobody there knows this router.
    let mut lost = leases("/run/leases");
    lost["routes"] = json!([{"dst": "10.8.0.0/24", "gw": "10.99.0.1"}]);
    let message = call.clone().with(json!({"ipam": lost})).fails("ADD", 100);
    assert!(message.contains("route") && message.contains("unreachable"), "{message}");
    assert_eq!(state(&node, &pod), before);
    assert_eq!(node.sh("find /run/leases -name '1*'"), "");
    // No address, no NIC.
    let bad = call.with(json!({"ipam": {"type": "host-local", "dataDir": "/run/leases", "ranges": []}}));
    bad.fails("ADD", 101);
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn the_same_add_changes_nothing_and_others_are_refused() {
    let Some((node, pod)) = ready_node() else { return };
    let other = support::pod();
    let call = call(&node, &pod, "c1");
    let result = call.ok("ADD");
    let listed = Node::ip(&pod, "-d link show net1");
    assert_eq!(call.ok("ADD"), result);
    assert_eq!(Node::ip(&pod, "-d link show net1"), listed);
    let message = self::call(&node, &other, "c2").fails("ADD", 11);
    assert!(message.contains("in use by pod tenant-a/c1 (net1)"), "{message}");
    let second = call.clone().var("CNI_IFNAME", "net2").fails("ADD", 7);
    assert!(second.contains("one device cannot serve two networks"), "{second}");
    assert_eq!(Node::ip(&pod, "-d link show net1"), listed);
}

#[test]
fn a_new_sandbox_takes_the_nic_over_and_the_late_del_of_the_old_one_leaves_it_there() {
    let Some((node, old)) = ready_node() else { return };
    let new = pod();
    let before = state(&node, &old);
    let first = call(&node, &old, "c1");
    let args = "K8S_POD_NAMESPACE=tenant-a;K8S_POD_NAME=c1;K8S_POD_UID=uid-of-c1";
    let second = call(&node, &new, "c2").var("CNI_ARGS", args);
    first.clone().with(json!({"mtu": 1400})).ok("ADD");
    second.ok("ADD");
    assert_eq!(link(&old), Value::Null);
    assert_eq!(link(&new)["mtu"], 1450, "what the old sandbox changed is undone");
    first.ok("DEL");
    assert_eq!(link(&new)["ifname"], "net1");
    second.ok("DEL");
    assert_eq!(state(&node, &old), before);
}

#[test]
fn of_two_adds_at_once_one_gets_the_nic() {
    let Some((node, pod)) = ready_node() else { return };
    let other = support::pod();
    let before = state(&node, &pod);
    for _ in 0..5 {
        let calls = [call(&node, &pod, "c1"), call(&node, &other, "c2")];
        let running = calls.each_ref().map(|call| call.start("ADD"));
        let answers = running.map(Answer::of);
        assert_eq!(answers.iter().filter(|answer| answer.success).count(), 1, "{answers:?}");
        let refused = answers.iter().find(|answer| !answer.success).unwrap();
        assert_eq!(refused.json["code"], 11, "{refused:?}");
        for call in calls {
            call.ok("DEL");
        }
        assert_eq!(state(&node, &pod), before);
    }
}

#[test]
fn an_index_that_is_taken_changes_and_comes_back() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let index = node.ifindex("dp0");
    Node::ip(&pod, &format!("link add own index {index} type veth peer name other"));
    let call = call(&node, &pod, "c1");
    let result = call.ok("ADD");
    let there = link(&pod)["ifindex"].as_u64().unwrap();
    assert_ne!(there, u64::from(index));
    assert_eq!(u64::from(current(&node).ifindex), there);
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    call.ok("DEL");
    assert_eq!(nic(&node, "dp0"), before.0, "with its old index");
}
