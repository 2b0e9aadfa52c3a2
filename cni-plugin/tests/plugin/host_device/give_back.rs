//! The way back to the node, from whatever became of NIC, pod and node.

use super::{PCI, call, current, nic, ready_node, state};
use crate::support::{self, Node, link, record, wait_until};
use macvtap::adopt::{self, UnrecordedNic};
use macvtap::detach::{self, Detached};
use macvtap::kernel::Rtnl;
use macvtap::record::Holder;
use macvtap::records;
use serde_json::{Value, json};
use std::path::PathBuf;

#[test]
fn a_nic_comes_back_whatever_the_pod_made_of_it() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    // As KubeVirt's bridge binding does, and more.
    for change in [
        "link set net1 down",
        "link set net1 name net1-nic address 02:00:00:00:00:05",
        "link add net1 type veth peer name other",
        "link set net1-nic mtu 1300 promisc on up",
        "link add link net1-nic name child type macvtap",
        "addr add 192.0.2.9/24 dev net1-nic",
        "link property add dev net1-nic altname pods-own",
    ] {
        Node::ip(&pod, change);
    }
    call.ok("DEL");
    assert_eq!(nic(&node, "dp0"), before.0);
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_nic_whose_record_was_lost_comes_back_under_its_name() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    let without = json!({"deviceID": null});
    for (damage, keys) in [("rm", json!({})), ("truncate -s 9", json!({})), ("truncate -s 9", without)] {
        call.ok("ADD");
        let path = "/run/macvtap/attachments/dataplaneMvp0";
        node.sh(&format!("{damage} {path}"));
        // Another container's, and another interface of this one.
        call.clone().var("CNI_IFNAME", "net2").with(keys.clone()).run("DEL");
        call.clone()
            .var("CNI_NETNS", "/run/netns/none")
            .var("CNI_CONTAINERID", "c2")
            .with(keys.clone())
            .run("DEL");
        assert_eq!(link(&pod)["ifname"], "net1");
        call.clone().with(keys).ok("DEL");
        let now = state(&node, &pod);
        assert_eq!((&now.1, &now.2), (&before.1, &before.2));
        for part in ["index", "name", "names", "mtu", "alias"] {
            assert_eq!(now.0[part], before.0[part], "{part}");
        }
        assert_eq!(now.0["flags"], json!([false, false, false]), "off: nobody knows what it was");
    }
}

#[test]
fn a_repeated_add_keeps_a_nic_whose_record_was_lost() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    let result = call.ok("ADD");
    let index = link(&pod)["ifindex"].clone();
    node.sh("rm /run/macvtap/attachments/dataplaneMvp0");
    assert_eq!((call.ok("ADD"), &link(&pod)["ifindex"]), (result.clone(), &index));
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    call.ok("DEL");
    assert_eq!(nic(&node, "dp0")["name"], "dp0");
}

#[test]
fn the_agent_records_a_nic_again_that_is_in_a_pod_and_no_other() {
    let Some((node, pod)) = ready_node() else { return };
    let before = nic(&node, "dp0");
    let path = pod.netns().display().to_string();
    node.sh(&format!("touch /run/netns/x; mount --bind {path} /run/netns/x"));
    let namespaces = PathBuf::from(format!("/proc/{}/root/run/netns", node.holder.pid()));
    let mut table = node.table();
    Node::make_nic(&mut table, PCI);
    let (device, found) = table.nics().next().unwrap();
    let adopt = || {
        let lost = UnrecordedNic { device: &device, nic: found.nic };
        let vm = ("default", "vm");
        node.inside(|| adopt::adopt_nic(&node.paths(), &mut Rtnl::node().unwrap(), lost, vm, &namespaces))
            .unwrap()
    };
    assert_eq!(adopt(), None, "it is on the node");
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    assert_eq!(adopt(), None, "it has a record");
    node.sh("rm /run/macvtap/attachments/dataplaneMvp0");
    let record = adopt().unwrap();
    assert_eq!((&record, record.nic.as_ref().unwrap().name.as_str()), (&current(&node), "dp0"));
    assert_eq!(serde_json::to_value(&record.holder).unwrap()["podName"], "vm");
    call.ok("DEL");
    let back = nic(&node, "dp0");
    assert_eq!(
        [&back["name"], &back["names"], &back["alias"]],
        [&before["name"], &before["names"], &before["alias"]]
    );
}

#[test]
fn names_that_are_taken_on_the_node_by_now_stay_where_they_are() {
    let Some((node, pod)) = ready_node() else { return };
    let index = node.ifindex("dp0");
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    node.sh("ip link add dp0 type veth peer name other; ip link property add dev other altname enp0s10");
    let answer = call.run("DEL");
    assert!(answer.success && answer.stderr.contains("taken"), "{answer:?}");
    let back = nic(&node, &format!("dev{index}"));
    assert_eq!((&back["mac"], &back["names"]), (&json!("02:00:00:00:00:77"), &Value::Null));
    assert_eq!(back["flags"], json!([true, false, false]));
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_nic_that_fell_back_to_the_node_gets_its_name_back() {
    let Some((node, mut pod)) = ready_node() else { return };
    let before = state(&node, &pod).0;
    let call = call(&node, &pod, "c1");
    for name in ["net1", "dev9"] {
        call.clone().with(json!({"mtu": 1400})).ok("ADD");
        // What the kernel does when the namespace of a real NIC ends.
        Node::ip(&pod, &format!("link set net1 netns {} name {name}", node.holder.pid()));
        assert_eq!(nic(&node, name)["alias"], "dp0");
        call.ok("DEL");
        assert_eq!(nic(&node, "dp0"), before, "from {name}");
    }
    // Again, with a pod that is gone, and the agent instead of a DEL.
    call.ok("ADD");
    Node::ip(&pod, &format!("link set net1 netns {}", node.holder.pid()));
    pod.end();
    let record = current(&node);
    let collected = node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), &record));
    assert_eq!(collected.unwrap(), Detached::Removed(record));
    assert_eq!(nic(&node, "dp0"), before);
}

#[test]
fn del_succeeds_when_the_namespace_is_gone_with_the_link() {
    let Some((node, mut pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    pod.end();
    // The kernel ends namespaces in the background; the other end of the cable goes along.
    wait_until("the namespace ends", || !node.sh("ip -br link").contains("dp1"));
    call.ok("DEL");
    assert_eq!(record(&node, 0), None);
    let message = self::call(&node, &support::pod(), "c2").fails("ADD", 11);
    assert!(message.contains("is not on the node any more"), "{message}");
}

#[test]
fn a_nic_in_a_namespace_without_a_path_is_waited_for() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    // Somebody still holds the namespace, and the path leads elsewhere.
    let mut record = current(&node);
    if let Holder::Pod { netns, .. } = &mut record.holder {
        *netns = "/run/netns/gone".into();
    }
    records::write(&node.paths(), &record).unwrap();
    let message = call.fails("DEL", 103);
    assert!(message.contains("no path any more"), "{message}");
    assert_eq!(current(&node), record, "the record by which it will be found");
}

#[test]
fn gc_brings_back_what_the_runtime_does_not_know() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1").with(json!({"cniVersion": "1.1.0"}));
    call.ok("ADD");
    let valid = |container: &str| json!({"cni.dev/valid-attachments": [{"containerID": container, "ifname": "net1"}]});
    call.clone().with(valid("c1")).ok("GC");
    assert_eq!(link(&pod)["ifname"], "net1");
    call.with(valid("c2")).ok("GC");
    assert_eq!(state(&node, &pod), before);
}
