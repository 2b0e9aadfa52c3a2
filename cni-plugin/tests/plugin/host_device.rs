//! Whole NICs. A veth stands for the NIC, and a table that somebody wrote by hand gives it a PCI address. It differs from
//! a real one in how it is known, by its old name in its alias, and in that it ends with the pod's namespace; a real one
//! then falls back into the initial namespace, which tests in virtual machines show.

use super::disturbed::{CALLS, disturb_each, ready};
use crate::support::{Call, Holder, Node, has, is_root, link, pod, record, wait_until};
use macvtap::detach::{self, Detached};
use macvtap::kernel::Rtnl;
use macvtap::record::{Attachment, State};
use macvtap::records;
use macvtap::table::DeviceType;
use serde_json::{Value, json};

const PCI: &str = "0000:00:0a.0";

/// A node that gives `dp0` away as a whole. The NIC has another name and settings of its own.
fn node() -> Node {
    let node = Node::new();
    node.sh(
        "ip link property add dev dp0 altname enp0s10; ip link set dp0 mtu 1450 address 02:00:00:00:00:77",
    );
    node.store_table(|table| {
        for resource in table.resources.values_mut() {
            resource.device_type = DeviceType::HostDevice;
            resource.links[0].pci = Some(PCI.parse().unwrap());
            resource.links[0].ranges[0].count = 1;
        }
    });
    node
}

pub(super) fn ready_node() -> Option<(Node, Holder)> {
    is_root().then(|| (node(), pod()))
}

pub(super) fn call<'n>(node: &'n Node, pod: &Holder, container: &str) -> Call<'n> {
    Call::new(node, pod, container).with(json!({"deviceID": PCI}))
}

/// The calls after which something is another than before: who is killed elsewhere is killed before or after one of them.
const CHANGES: [&str; 11] = [
    "sendto",
    "recvfrom",
    "openat",
    "write",
    "?rename",
    "renameat",
    "renameat2",
    "?unlink",
    "unlinkat",
    "flock",
    "setns",
];

fn leases(directory: &str) -> Value {
    let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]);
    let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}]);
    json!({"type": "host-local", "dataDir": directory, "ranges": ranges, "routes": routes})
}

/// What must be as before when a NIC comes back.
fn shape(link: &Value) -> Value {
    let flags: Vec<_> = link["flags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let is = |flag: &str| flags.contains(&flag);
    json!({
        "index": link["ifindex"], "name": link["ifname"], "names": link["altnames"], "mac": link["address"],
        "mtu": link["mtu"], "alias": link["ifalias"],
        "flags": [is("UP"), is("PROMISC"), is("ALLMULTI")],
    })
}

/// The NIC on the node, by any name; null when it is not there.
fn nic(node: &Node, name: &str) -> Value {
    let links: Value = serde_json::from_str(&node.sh("ip -d -j link")).unwrap();
    let found = links.as_array().unwrap().iter().find(|link| link["ifname"] == name);
    found.map(shape).unwrap_or_default()
}

pub(super) fn state(node: &Node, pod: &Holder) -> (Value, String, String) {
    (nic(node, "dp0"), node.traces(), Node::ip(pod, "-br link"))
}

pub(super) fn current(node: &Node) -> Attachment {
    record(node, 0).unwrap()
}

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
fn addresses_are_leased_set_announced_and_given_back() {
    if !has("/usr/lib/cni/host-local", "containernetworking-plugins") {
        return;
    }
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1").with(json!({"ipam": leases("/run/leases")}));
    let result = call.ok("ADD");
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
    let addresses = Node::ip(&pod, "-br addr show net1");
    assert!(addresses.contains("10.9.0.2/24") && addresses.contains("fd09::2/64"), "{addresses}");
    assert!(Node::ip(&pod, "route").contains("default via 10.9.0.1 dev net1"));
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    // Again, as when the answer was lost: the same, done anew.
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
    let other = crate::support::pod();
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
    let other = crate::support::pod();
    let before = state(&node, &pod);
    for _ in 0..5 {
        let calls = [call(&node, &pod, "c1"), call(&node, &other, "c2")];
        let running = calls.each_ref().map(|call| call.start("ADD"));
        let answers = running.map(crate::support::Answer::of);
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
fn a_nic_that_the_node_uses_by_now_stays_untouched() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    for (make, unmake, told) in [
        (
            "ip addr add 192.0.2.7/24 dev dp0",
            "ip addr flush dev dp0 scope global",
            "the node has an address on it",
        ),
        (
            "ip -6 addr add fd00::7/64 dev dp0 nodad",
            "ip addr flush dev dp0 scope global",
            "has an address on it",
        ),
        ("ip route add default dev dp0", "ip route del default", "a default route of the node uses it"),
        ("ip -6 route add default dev dp0", "ip -6 route del default", "a default route of the node uses it"),
        ("ip link add link dp0 name up0 type macvtap", "ip link del up0", "up0 is built on it"),
    ] {
        node.sh(make);
        let before = state(&node, &pod);
        let message = call.fails("ADD", 11);
        assert!(message.contains("NIC dp0") && message.contains(told), "{message}");
        assert_eq!(state(&node, &pod), before, "{make}");
        node.sh(unmake);
    }
    call.ok("ADD");
}

#[test]
fn a_nic_under_a_macvtap_in_a_pod_stays_on_the_node() {
    let Some((node, pod)) = ready_node() else { return };
    let first = node.first_ifindex;
    let as_macvtap = |table: &mut macvtap::table::DeviceTable| {
        let resource = table.resources.values().next().unwrap().clone();
        let nic = table.resources.values_mut().next().unwrap();
        nic.device_type = DeviceType::HostDevice;
        nic.links[0].pci = Some(PCI.parse().unwrap());
        nic.links[0].ranges[0].count = 1;
        let mut shared = resource;
        shared.links[0].ranges[0].first_ifindex = first + 10;
        table.resources.insert("shared".parse().unwrap(), shared);
    };
    node.store_table(as_macvtap);
    Call::new(&node, &pod, "c1").with(json!({"deviceID": "sharedMvp1"})).ok("ADD");
    let other = crate::support::pod();
    let message = call(&node, &other, "c2").fails("ADD", 11);
    assert!(message.contains("device sharedMvp1 is built on it"), "{message}");
    assert_eq!(link(&pod)["ifname"], "net1");
}

#[test]
fn what_is_no_nic_of_the_table_or_has_no_meaning_is_refused_with_what_to_do() {
    let Some((node, pod)) = ready_node() else { return };
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    let ehost = json!({"type": "ehost-device"});
    for (keys, told) in [
        (json!({"deviceID": "0000:00:0b.0"}), "it gives: 0000:00:0a.0"),
        (json!({"deviceID": "dataplaneMvp0"}), "its PCI address, 0000:00:0a.0"),
        (json!({"mode": "bridge"}), "neither a macvtap mode nor a device node"),
        (json!({"owner": 107}), "owner is 107"),
        (json!({"device": "dp0"}), "a resource of type HostDevice"),
        (json!({"mtu": 65535, "mac": "02:00:00:00:00:01", "ipam": {"type": "ehost-device"}}), "ipam.type"),
    ] {
        let message = call.clone().with(keys.clone()).fails("ADD", 7);
        assert!(message.contains(told), "{keys}: {message}");
    }
    for key in ["device", "hwaddr", "kernelpath"] {
        let old = call.clone().with(ehost.clone()).with(json!({"deviceID": null, key: "dp0"}));
        let message = old.fails("ADD", 7);
        assert!(message.contains(key) && message.contains("a resource of type HostDevice"), "{message}");
    }
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_name_that_is_taken_in_the_pod_is_told_before_the_nic_is_touched() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    Node::ip(&pod, "link add net1 type veth peer name other");
    let before = state(&node, &pod);
    assert!(call.fails("ADD", 100).contains("interface net1 of the pod's network namespace"));
    assert_eq!(state(&node, &pod), before);
    let other = call.clone().var("CNI_IFNAME", "net2");
    Node::ip(&pod, "link property add dev other altname enp0s10");
    assert!(other.fails("ADD", 100).contains("has the name enp0s10"));
    let own = call.var("CNI_IFNAME", "enp0s10");
    assert!(own.fails("ADD", 100).contains("one of its other names"));
    assert_eq!(nic(&node, "dp0"), before.0);
    Node::ip(&pod, "link property del dev other altname enp0s10");
    // The pod has a link that is called as the NIC is on the node.
    Node::ip(&pod, "link set other name dp0");
    other.ok("ADD");
    other.ok("DEL");
    assert_eq!(nic(&node, "dp0"), before.0);
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
    let message = self::call(&node, &crate::support::pod(), "c2").fails("ADD", 11);
    assert!(message.contains("is not on the node any more"), "{message}");
}

#[test]
fn a_nic_in_a_namespace_without_a_path_is_waited_for() {
    let Some((node, pod)) = ready_node() else { return };
    let call = call(&node, &pod, "c1");
    call.ok("ADD");
    // Somebody still holds the namespace, and the path leads elsewhere.
    let mut record = current(&node);
    if let macvtap::record::Holder::Pod { netns, .. } = &mut record.holder {
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

#[test]
fn the_agent_brings_back_a_nic_whose_add_was_killed_in_between() {
    if !ready() {
        return;
    }
    let (node, pod) = (node(), pod());
    let before = state(&node, &pod);
    let call = call(&node, &pod, "c1");
    let mut seen = 0;
    for number in 1.. {
        let Some(_) = call.disturbed("ADD", "sendto", "signal=KILL", number) else { break };
        if let Some(record) = record(&node, 0) {
            assert_eq!(record.state, State::Creating);
            seen += 1;
            let kernel = || Rtnl::node().unwrap();
            node.inside(|| detach::collect(&node.paths(), &mut kernel(), &record)).unwrap();
        }
        assert_eq!(state(&node, &pod), before, "call {number}");
    }
    call.ok("DEL");
    assert!(seen > 5, "only {seen} were killed with a record");
}

#[test]
fn an_add_of_a_nic_in_which_any_one_system_call_fails_either_succeeds_or_leaves_it_as_it_was() {
    if !ready() || !has("/usr/lib/cni/host-local", "containernetworking-plugins") {
        return;
    }
    let (node, pod) = (node(), pod());
    for (kinds, keys) in [
        (&CALLS[..], json!({"mtu": 1400})),
        (&["sendto", "setns", "pidfd_open", "pipe2"][..], json!({"ipam": leases("/run/leases")})),
    ] {
        let call = call(&node, &pod, "c1").with(keys);
        call.ok("ADD");
        call.ok("DEL");
        let all = || (state(&node, &pod), node.sh("find /run/leases -type f -name '1*' 2>/dev/null; true"));
        let before = all();
        disturb_each(&call, "ADD", "error=EIO", kinds, |number, answer| {
            if !answer.success && answer.json["code"].is_u64() {
                assert_eq!(all(), before, "call {number}: {answer:?}");
            }
            call.ok("DEL");
            assert_eq!(all(), before, "after the DEL, call {number}: {answer:?}");
        });
    }
}

#[test]
fn an_add_of_a_nic_that_is_killed_at_any_system_call_is_undone_by_del_or_by_the_next_add() {
    if !ready() {
        return;
    }
    let (node, pod) = (node(), pod());
    let call = call(&node, &pod, "c1").with(json!({"mac": "02:00:00:00:00:03"}));
    let before = state(&node, &pod);
    let mut add_first = false;
    disturb_each(&call, "ADD", "signal=KILL", &CHANGES, |number, answer| {
        assert!(!answer.success, "call {number}");
        add_first = !add_first;
        if add_first {
            call.ok("ADD");
            assert_eq!(shape(&link(&pod))["mac"], "02:00:00:00:00:03", "call {number}");
        }
        call.ok("DEL");
        assert_eq!(state(&node, &pod), before, "call {number}");
    });
}

#[test]
fn a_del_of_a_nic_in_which_any_one_system_call_fails_is_completed_by_the_next() {
    if !ready() {
        return;
    }
    let (node, pod) = (node(), pod());
    let call = call(&node, &pod, "c1").with(json!({"mtu": 1400}));
    let before = state(&node, &pod);
    for (how, kinds) in [("error=EIO", &CALLS[..]), ("signal=KILL", &CHANGES[..])] {
        call.ok("ADD");
        disturb_each(&call, "DEL", how, kinds, |number, answer| {
            if answer.success {
                assert_eq!(state(&node, &pod), before, "call {number} hid that something stayed");
            }
            call.ok("DEL");
            assert_eq!(state(&node, &pod), before, "call {number}: {answer:?}");
            call.ok("ADD");
        });
    }
}
