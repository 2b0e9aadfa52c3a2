//! ADD, DEL and CHECK of one device, and what is refused.

use crate::support::{Call, Node, bare_node_and_pods, link, node_and_pods, record, state, tap_in};
use macvtap::mode::Mode;
use macvtap::record::State;
use macvtap::table::Owner;
use macvtap::tap::{self, Node as DeviceNode};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;

#[test]
fn a_pod_gets_the_link_the_table_describes_and_nothing_of_it_stays() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1").with(json!({"mtu": 1400, "mac": "02:00:00:00:00:07"}));
    let result = call.ok("ADD");
    assert_eq!(result["cniVersion"], "1.0.0");
    let sandbox = pod.netns().display().to_string();
    assert_eq!(
        result["interfaces"],
        json!([{"name": "net1", "mac": "02:00:00:00:00:07", "sandbox": sandbox}])
    );
    assert_eq!(result.get("ips"), None);
    let link = link(&pod);
    assert_eq!(link["ifindex"], node.first_ifindex);
    assert_eq!((&link["mtu"], &link["address"]), (&json!(1400), &json!("02:00:00:00:00:07")));
    assert_eq!(link["linkinfo"]["info_kind"], "macvtap");
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
    assert_eq!(link["inet6_addr_gen_mode"], "none");
    let flags = link["flags"].to_string();
    assert!(flags.contains("\"UP\"") && link["allmulti"] == 1, "{link}");
    assert!(!Node::ip(&pod, "addr show dev net1").contains("inet"), "the pod's kernel took an address");
    let record = record(&node, 0).unwrap();
    assert_eq!(record.state, State::Attached);
    let path = node.paths().device_node(node.first_ifindex);
    let number = record.tap.unwrap();
    let owner = macvtap::table::Owner { uid: 107, gid: 107 };
    assert_eq!(tap::node_at(&path), Some(DeviceNode { number, owner }));
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(tap_in(&pod), number.to_string());
    assert_eq!(call.ok("DEL"), Value::Null);
    assert_eq!(state(&node, &pod), before);
    assert_eq!(call.ok("DEL"), Value::Null, "a second DEL");
}

#[test]
fn the_node_is_the_links_own_though_another_namespace_has_a_tap_of_the_same_index() {
    let Some((node, [pod, other])) = node_and_pods() else { return };
    let index = node.first_ifindex;
    // Made first, so it is the one that devtmpfs shows as /dev/tap<index>.
    Node::ip(&other, "link add low type veth peer name low2");
    Node::ip(&other, &format!("link add link low name net1 index {index} type macvtap"));
    Call::new(&node, &pod, "c1").ok("ADD");
    let foreign = tap_in(&other);
    let ours = record(&node, 0).unwrap().tap.unwrap();
    assert_ne!(foreign, ours.to_string());
    assert_eq!(tap::node_at(&node.paths().device_node(index)).unwrap().number, ours);
    assert_eq!(tap_in(&pod), ours.to_string());
}

#[test]
fn a_repeated_add_gives_the_same_device_untouched() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let first = call.ok("ADD");
    let tap = record(&node, 0).unwrap().tap;
    Node::ip(&pod, "link set net1 alias kept");
    assert_eq!(call.ok("ADD"), first);
    assert_eq!(link(&pod)["ifalias"], "kept", "the link was recreated");
    assert_eq!(record(&node, 0).unwrap().tap, tap);
    // Asked for something else, it is recreated.
    let changed = call.with(json!({"mtu": 1300}));
    changed.ok("ADD");
    assert_eq!(link(&pod)["mtu"], 1300);
}

#[test]
fn a_network_may_name_the_owner_of_the_device_node() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({"owner": 4711, "group": 4712}));
    let checked = call.clone().with(json!({"prevResult": call.ok("ADD")}));
    let path = node.paths().device_node(node.first_ifindex);
    assert_eq!(tap::node_at(&path).unwrap().owner, Owner { uid: 4711, gid: 4712 });
    checked.ok("CHECK");
    std::os::unix::fs::lchown(path, Some(107), None).unwrap();
    assert!(checked.fails("CHECK", 102).contains("owner 4711:4712"));
}

#[test]
fn one_device_does_not_serve_two_networks_of_a_pod() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let message = call.clone().var("CNI_IFNAME", "net2").fails("ADD", 7);
    assert!(message.contains("one device cannot serve two networks"), "{message}");
    call.clone().var("CNI_IFNAME", "net2").device(1).ok("ADD");
    assert_eq!(record(&node, 1).unwrap().ifindex, node.first_ifindex + 1);
}

#[test]
fn a_name_that_is_taken_is_refused_and_its_owner_left_alone() {
    let Some((node, [pod])) = node_and_pods() else { return };
    Node::ip(&pod, "link add net1 type veth peer name net1p");
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1");
    let message = call.fails("ADD", 100);
    assert_eq!(message, "interface net1 already exists in the pod's network namespace");
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before, "DEL deleted a link that is not ours");
}

#[test]
fn an_mtu_above_the_lower_links_is_refused_before_anything_exists() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let message = Call::new(&node, &pod, "c1").with(json!({"mtu": 9000})).fails("ADD", 7);
    assert!(message.starts_with("mtu 9000 is above the 1500 of lower link dp0;"), "{message}");
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
}

#[test]
fn a_mac_that_is_taken_is_told_with_the_lower_link_and_a_derived_one_is_exchanged() {
    let Some((node, [one, two])) = node_and_pods() else { return };
    let first = Call::new(&node, &one, "one").ok("ADD")["interfaces"][0]["mac"].clone();
    let before = node.traces();
    let call = Call::new(&node, &two, "two").device(1);
    let message = call.clone().with(json!({"mac": first})).fails("ADD", 100);
    assert!(
        message.starts_with(&format!("MAC address {} is in use on lower link dp0:", first.as_str().unwrap()))
    );
    assert_eq!((node.traces(), link(&two)), (before, Value::Null));
    // The same UID gives the same address first.
    let twin = call.var("CNI_ARGS", "K8S_POD_UID=uid-of-one");
    let second = twin.ok("ADD")["interfaces"][0]["mac"].clone();
    assert_ne!(second, first);
    assert_eq!(link(&two)["address"], second);
    assert_eq!(json!(record(&node, 1).unwrap().mac), second);
}

#[test]
fn a_lower_link_that_is_gone_is_told() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh("ip link del dp0");
    let message = Call::new(&node, &pod, "c1").fails("ADD", 11);
    assert!(message.starts_with("lower link dp0 (index "), "{message}");
    assert_eq!(record(&node, 0), None);
}

#[test]
fn check_finds_what_was_changed() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let checked = call.clone().with(json!({"prevResult": call.ok("ADD")}));
    assert_eq!(checked.ok("CHECK"), Value::Null);
    let told = |change: &str, undo: &str, problem: &str| {
        Node::ip(&pod, change);
        let message = checked.fails("CHECK", 102);
        assert!(message.contains(problem), "{change}: {message}");
        Node::ip(&pod, undo);
        checked.ok("CHECK");
    };
    let mac = link(&pod)["address"].as_str().unwrap().to_owned();
    told("link set net1 down", "link set net1 up", "is down");
    told(
        "link set net1 address 02:00:00:00:00:99",
        &format!("link set net1 address {mac}"),
        "has MAC address",
    );
    told(
        "link set net1 type macvtap mode vepa",
        "link set net1 type macvtap mode bridge",
        "the pod changed it",
    );
    told("link set net1 name other", "link set other name net1", "is gone");
    let path = node.paths().device_node(node.first_ifindex);
    std::fs::remove_file(&path).unwrap();
    assert!(checked.fails("CHECK", 102).contains("owner 107:107"));
    assert!(call.fails("CHECK", 7).contains("prevResult is missing"));
}

#[test]
fn check_compares_with_what_the_link_was_made_with_whatever_pool_and_network_say_now() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let pool = |mtu, uid| {
        node.store_table(|table| {
            let resource = table.resources.values_mut().next().unwrap();
            (resource.mtu, resource.owner) = (mtu, Owner { uid, gid: 107 });
        });
    };
    pool(Some(1400), 107);
    let call = Call::new(&node, &pod, "c1");
    let checked = call.clone().with(json!({"prevResult": call.ok("ADD")}));
    for (mtu, uid) in [(Some(1300), 107), (Some(1400), 200), (None, 0)] {
        pool(mtu, uid);
        checked.ok("CHECK");
        checked.clone().with(json!({"mtu": 1200, "owner": 5})).ok("CHECK");
    }
    Node::ip(&pod, "link set net1 mtu 1300");
    assert!(checked.fails("CHECK", 102).contains("has MTU 1300, it was made with 1400"));
    // A repeated ADD sets what they say now.
    pool(Some(1300), 200);
    let checked = call.clone().with(json!({"prevResult": call.ok("ADD")}));
    pool(Some(1400), 107);
    checked.ok("CHECK");
    std::os::unix::fs::lchown(node.paths().device_node(node.first_ifindex), Some(107), None).unwrap();
    assert!(checked.fails("CHECK", 102).contains("owner 200:107"));
}

#[test]
fn a_table_that_is_not_this_boots_means_try_again() {
    let Some((node, [pod])) = bare_node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({"cniVersion": "1.1.0"}));
    assert!(call.fails("ADD", 11).contains("the node agent has not written it yet"));
    assert!(call.fails("STATUS", 50).contains("the node agent has not written it yet"));
    node.store_table(|table| {
        table.boot_id = "00000000-0000-0000-0000-000000000000".into();
    });
    assert!(call.fails("ADD", 11).contains("is of another boot"));
    std::fs::write(node.paths().table(), "{").unwrap();
    assert!(call.fails("ADD", 11).contains("device table is damaged"));
    node.store_table(|_| ());
    call.ok("ADD");
    assert_eq!(call.ok("STATUS"), Value::Null);
}

#[test]
fn a_device_id_that_is_none_of_this_nodes_is_refused_with_the_remedy() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    for (id, named) in [
        (
            Value::Null,
            "deviceID is missing: the pod has no device for this network; give the NetworkAttachmentDefinition the annotation",
        ),
        (json!("storageMvp0"), "it has no resource storage (it has: dataplane)"),
        (json!("dataplaneMvp4"), "resource dataplane has no slot 4"),
        (json!("dataplaneMvp0; reboot"), "has slot \"0; reboot\""),
        (json!("$(reboot)Mvp0"), "resource name \"$(reboot)\""),
        (json!("../../etc/passwd"), "is not of the form <resourceName>Mvp<slot>; leave deviceID out"),
        (json!("dp1"), "is not of the form <resourceName>Mvp<slot>; leave deviceID out"),
    ] {
        let message = Call::new(&node, &pod, "c1").with(json!({"deviceID": id})).fails("ADD", 7);
        assert!(message.contains(named), "{message}");
        Call::new(&node, &pod, "c1").with(json!({"deviceID": id})).ok("DEL");
    }
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
    let message = Call::new(&node, &pod, "c1").with(json!({"mode": "vepa"})).fails("ADD", 7);
    assert!(message.contains("mode is vepa, but device dataplaneMvp0 is bridge"), "{message}");
}

#[test]
fn the_namespace_of_the_node_is_no_pods() {
    let Some((node, [pod])) = node_and_pods() else { return };
    for path in ["/proc/self/ns/net", "/proc/self/ns/mnt", "/dev/null", "/no/such"] {
        let message = Call::new(&node, &pod, "c1").var("CNI_NETNS", path).fails("ADD", 4);
        assert!(message.contains("CNI_NETNS") && message.contains(path), "{message}");
    }
    assert_eq!(record(&node, 0), None);
}

#[test]
fn errors_are_logged_with_command_container_and_interface() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let log = "/run/macvtap.log";
    std::fs::write(node.paths().cni_settings(), json!({"logFile": log}).to_string()).unwrap();
    let answer = Call::new(&node, &pod, "c1").device(9).run("ADD");
    let line = answer.stderr.lines().next().unwrap();
    assert!(line.starts_with("level=ERROR "), "{line}");
    assert!(line.ends_with("command=ADD container=c1 interface=net1"), "{line}");
    assert_eq!(node.sh(&format!("cat {log}")), answer.stderr);
    std::fs::write(node.paths().cni_settings(), "{\"logfile\": \"/a\"}").unwrap();
    assert!(Call::new(&node, &pod, "c1").fails("ADD", 7).contains("cni.json"));
    Call::new(&node, &pod, "c1").ok("DEL");
    Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "../sh"}})).ok("DEL");
}

#[test]
fn a_pod_in_passthru_mode_has_the_address_it_asks_for_and_gives_the_lower_link_its_own_back() {
    let Some((node, [pod])) = bare_node_and_pods() else { return };
    node.store_table(|table| {
        table.resources.values_mut().for_each(|resource| resource.links_mut()[0].mode = Mode::Passthru);
    });
    let lower = || node.sh("ip -br link show dev dp0 | awk '{print $3}'").trim().to_owned();
    let own = lower();
    let unasked = Call::new(&node, &pod, "c1");
    assert_eq!(unasked.ok("ADD")["interfaces"][0]["mac"], own);
    unasked.ok("DEL");
    let asked = unasked.with(json!({"mac": "02:00:00:00:00:07"}));
    let result = asked.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:07");
    assert_eq!((&link(&pod)["address"], lower()), (&json!("02:00:00:00:00:07"), "02:00:00:00:00:07".into()));
    asked.ok("ADD");
    asked.clone().with(json!({"prevResult": result})).ok("CHECK");
    asked.ok("DEL");
    assert_eq!(lower(), own);
}
