//! What a pod with `NET_ADMIN` can do to a NIC that it has, and what the way back makes of it. A pod's links that pass for
//! the NIC are a matter of hardware, which the readers' own tests show.

use super::{call, current, ready_node, state};
use crate::support::{Holder, Node, record};
use macvtap::records;

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
    let names = format!(
        "for n in $(seq 490); do printf 'link property add dev net1 altname %0127d\\n' $n; done | nsenter --net={0} ip -batch -;
         nsenter --net={0} ip link property add dev net1 altname $(printf '\\377\\376')",
        pod.netns().display()
    );
    node.sh(&names);
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
    assert!(answer.success && answer.stderr.contains("not in all as it was"), "{answer:?}");
    assert_eq!(state(&node, &pod), before, "all that can be as before");
    assert_eq!(self::record(&node, 0), None);
}
