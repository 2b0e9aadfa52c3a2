//! What a pod with `NET_ADMIN` can do to a NIC that it has, and what the way back makes of it. A pod's links that pass for
//! the NIC are a matter of hardware, which the readers' own tests show.

use super::{call, current, nic, ready_node, state};
use crate::support::{Holder, Node, record};
use macvtap::records;

/// For a shell: bytes that are not text.
const NO_TEXT: &str = "$(printf '\\377\\376')";

/// Runs `ip` in the pod, with the words as a shell understands them.
fn in_pod(node: &Node, pod: &Holder, words: &str) {
    node.sh(&format!("nsenter --net={} ip {words}", pod.netns().display()));
}

/// Gives the NIC other names in the pod.
fn name(pod: &Holder, names: &[&str]) {
    for name in names {
        Node::ip(pod, &format!("link property add dev net1 altname {name}"));
    }
}

#[test]
fn other_names_from_a_pod_do_not_come_back_with_the_nic() {
    let Some((node, pod)) = ready_node() else { return };
    node.sh("ip link property add dev dp0 altname lan");
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    assert_eq!(current(&node).nic.unwrap().alt_names, ["enp0s10", "lan"]);
    name(&pod, &["pods-own", "lo0"]);
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_pod_that_gives_the_nic_its_old_name_as_another_one_does_not_keep_it() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    name(&pod, &["dp0"]);
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
    // The same when the namespace ended: the kernel puts the NIC on the node with all its names.
    call.ok("ADD");
    name(&pod, &["dp0", "pods-own"]);
    Node::ip(&pod, &format!("link set net1 netns {}", node.holder.pid()));
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn names_of_other_links_of_the_node_do_not_keep_the_nic_in_the_pod() {
    let Some((node, pod)) = ready_node() else { return };
    node.sh("ip link add eth0 type veth peer name other; ip link property add dev other altname lan");
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    name(&pod, &["eth0", "lan", "other"]);
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn more_names_than_fit_into_one_request_and_names_that_are_no_text_are_removed() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    let batch = "for n in $(seq 490); do printf 'link property add dev net1 altname %0127d\\n' $n; done";
    node.sh(&format!("{batch} | nsenter --net={} ip -batch -", pod.netns().display()));
    in_pod(&node, &pod, &format!("link property add dev net1 altname {NO_TEXT}"));
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_setting_that_the_driver_refuses_is_told_and_the_nic_is_back_none_the_less() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    Node::ip(&pod, "link set net1 promisc on address 02:00:00:00:00:05");
    // Less than an Ethernet link can have.
    let mut record = current(&node);
    record.nic.as_mut().unwrap().mtu = 10;
    records::write(&node.paths(), &record).unwrap();
    let answer = call.run("DEL");
    assert!(answer.success && answer.stderr.contains("was not fully restored"), "{answer:?}");
    assert_eq!(state(&node, &pod), before, "all that can be as before");
    assert_eq!(self::record(&node, 0), None);
}

#[test]
fn a_name_that_is_no_text_does_not_keep_the_nic_in_the_pod() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    in_pod(&node, &pod, &format!("link set net1 down name {NO_TEXT}"));
    in_pod(&node, &pod, &format!("link add {NO_TEXT}1 type veth peer name other"));
    call.ok("DEL");
    assert_eq!(nic(&node, "dp0"), before.0);
    Node::ip(&pod, "link del other");
    // The same when the namespace ended: the kernel puts the NIC on the node under the name it has.
    call.ok("ADD");
    in_pod(&node, &pod, &format!("link set net1 netns {} name {NO_TEXT}", node.holder.pid()));
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
    // Nor does such a link of the node disturb.
    node.sh(&format!("ip link add {NO_TEXT} type veth peer name other"));
    call.ok("ADD");
    call.ok("DEL");
    assert_eq!(nic(&node, "dp0"), before.0);
}

#[test]
fn what_a_pod_built_on_the_nic_does_not_stay_on_it() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    Node::ip(&pod, "link add link net1 name child type macvtap");
    Node::ip(&pod, "link add link child name grandchild type macvtap");
    Node::ip(&pod, "link add link net1 name greedy type macvtap mode private");
    Node::ip(&pod, "link set greedy up promisc on");
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before, "a pod that lives on hears nothing of the node's NIC");
}

#[test]
fn the_next_pod_gets_the_nic_without_the_former_ones_queue_group_and_mode() {
    let Some((node, pod)) = ready_node() else { return };
    node.sh("ip link set dp0 txqueuelen 500 group 4");
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    Node::ip(&pod, "link set net1 txqueuelen 7 mode dormant");
    Node::ip(&pod, "link set net1 group 9");
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_pod_cannot_leave_the_nic_without_arp_or_multicast() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    Node::ip(&pod, "link set net1 arp off multicast off");
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}
