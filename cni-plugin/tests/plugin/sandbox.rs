//! Whose a device is: sandboxes that are made again, pods that died, DELs that come late or know little, GC.

use crate::support::{Call, Node, link, node_and_pods, record, state};
use macvtap::record::{Holder, UNKNOWN};
use macvtap::records;
use serde_json::{Value, json};

#[test]
fn a_sandbox_made_again_takes_its_device_and_address_along_and_a_late_del_of_the_old_one_does_nothing() {
    let Some((node, [old, new])) = node_and_pods() else { return };
    let uid = "K8S_POD_NAMESPACE=tenant-a;K8S_POD_NAME=web-0;K8S_POD_UID=6f1c";
    let first = Call::new(&node, &old, "c1").var("CNI_ARGS", uid);
    let second = Call::new(&node, &new, "c2").var("CNI_ARGS", uid);
    let mac = first.ok("ADD")["interfaces"][0]["mac"].clone();
    assert_eq!(second.ok("ADD")["interfaces"][0]["mac"], mac);
    assert_eq!(link(&old), Value::Null, "the old sandbox kept its link");
    assert_eq!(link(&new)["ifindex"], node.first_ifindex);
    let before = node.traces();
    first.ok("DEL");
    // Also when the runtime used the path again.
    Call::new(&node, &new, "c1").ok("DEL");
    assert_eq!(link(&new)["ifindex"], node.first_ifindex);
    assert_eq!(node.traces(), before);
    second.ok("DEL");
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_del_after_the_namespace_is_gone_removes_record_and_node() {
    let Some((node, [mut pod])) = node_and_pods() else { return };
    let before = node.traces();
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    pod.end();
    call.ok("DEL");
    assert_eq!(node.traces(), before);
    call.var("CNI_NETNS", "").ok("DEL");
}

#[test]
fn a_del_finds_its_device_without_a_device_id_or_a_table() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    std::fs::remove_file(node.paths().table()).unwrap();
    call.with(json!({"deviceID": null})).var("CNI_NETNS", "").ok("DEL");
    assert_eq!(node.traces(), before);
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn a_record_that_the_agent_wrote_anew_is_its_pods_and_nobody_elses() {
    let Some((node, [pod, other])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let mut adopted = record(&node, 0).unwrap();
    let Holder::Pod { container_id, pod_uid, .. } = &mut adopted.holder else { panic!("{adopted:?}") };
    (*container_id, *pod_uid) = (UNKNOWN.into(), UNKNOWN.into());
    adopted.network = None;
    records::write(&node.paths(), &adopted).unwrap();
    Call::new(&node, &other, "c2").ok("DEL");
    assert_eq!(record(&node, 0), Some(adopted), "another pod's DEL removed it");
    assert_eq!(call.ok("DEL"), Value::Null);
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn the_device_of_a_dead_pod_is_taken_over_and_that_of_a_living_one_is_not() {
    let Some((node, [mut dead, next])) = node_and_pods() else { return };
    Call::new(&node, &dead, "dead").ok("ADD");
    let call = Call::new(&node, &next, "next");
    let before = node.traces();
    let message = call.fails("ADD", 11);
    assert_eq!(message, "device dataplaneMvp0 is in use by pod tenant-a/dead (net1)");
    assert_eq!(link(&dead)["ifindex"], node.first_ifindex, "somebody else's ADD touched it");
    assert_eq!((node.traces(), link(&next)), (before, Value::Null));
    // A DEL of the refused container is not a way to it either.
    call.ok("DEL");
    assert_eq!(link(&dead)["ifindex"], node.first_ifindex);
    dead.end();
    call.ok("ADD");
    assert_eq!(link(&next)["ifindex"], node.first_ifindex);
}

#[test]
fn gc_removes_what_the_runtime_does_not_name_of_this_network_only() {
    let Some((node, [kept, gone, other])) = node_and_pods() else { return };
    let call = |pod, container, slot| {
        Call::new(&node, pod, container).device(slot).with(json!({"cniVersion": "1.1.0"}))
    };
    call(&kept, "kept", 0).ok("ADD");
    call(&gone, "gone", 1).ok("ADD");
    call(&other, "other", 2).with(json!({"name": "another"})).ok("ADD");
    let valid = json!([{"containerID": "kept", "ifname": "net1"}]);
    call(&kept, "kept", 0).with(json!({"cni.dev/valid-attachments": valid})).ok("GC");
    let left = [0, 1, 2].map(|slot| record(&node, slot).is_some());
    assert_eq!(left, [true, false, true]);
    assert_eq!((link(&gone), &link(&other)["ifindex"]), (Value::Null, &json!(node.first_ifindex + 2)));
}

#[test]
fn a_gc_tells_its_first_error() {
    let Some((node, [gone])) = node_and_pods() else { return };
    let call = Call::new(&node, &gone, "gone").with(json!({"cniVersion": "1.1.0"}));
    call.ok("ADD");
    let path = format!("/run/macvtap/dev/{}", node.first_ifindex);
    node.sh(&format!("mount --bind /dev/null {path}"));
    let broken = call.clone().with(json!({"ipam": {"type": "nosuch"}, "cni.dev/valid-attachments": []}));
    assert!(broken.fails("GC", 103).contains(&format!("remove {path}")));
    node.sh(&format!("umount {path}"));
    assert!(broken.fails("GC", 101).contains("IPAM plugin nosuch"));
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_pod_that_lost_its_link_never_meets_the_next_pod_on_its_tap() {
    let Some((node, [lost, next])) = node_and_pods() else { return };
    Call::new(&node, &lost, "lost").ok("ADD");
    let old = record(&node, 0).unwrap().tap.unwrap();
    for _ in 0..5 {
        if link(&lost) != Value::Null {
            Node::ip(&lost, "link del net1");
        }
        let call = Call::new(&node, &next, "next").device(1);
        call.ok("ADD");
        assert_ne!(record(&node, 1).unwrap().tap.unwrap(), old);
        call.ok("DEL");
    }
    // Its own DEL still works, and gives the number free.
    Call::new(&node, &lost, "lost").ok("DEL");
    assert_eq!(record(&node, 0), None);
}

#[test]
fn a_pod_that_took_an_index_in_its_namespace_hurts_only_itself() {
    let Some((node, [squatter, other])) = node_and_pods() else { return };
    let index = node.first_ifindex;
    Node::ip(&squatter, &format!("link add squat index {index} type veth peer name squat2"));
    let before = node.traces();
    let message = Call::new(&node, &squatter, "c1").fails("ADD", 100);
    assert!(message.contains(&index.to_string()) && message.contains("squat"), "{message}");
    assert_eq!(node.traces(), before);
    Call::new(&node, &other, "c2").ok("ADD");
}

#[test]
fn a_name_that_is_no_text_does_not_keep_a_link_in_its_pod() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let netns = pod.netns();
    node.sh(&format!("nsenter --net={} ip link set net1 down name $(printf '\\377')", netns.display()));
    call.ok("DEL");
    assert_eq!(state(&node, &pod), before);
}

#[test]
fn a_configuration_that_means_nothing_keeps_no_pod() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let before = state(&node, &pod);
    for (keys, code) in [
        (json!({"cniVersion": "9.9.9"}), 1),
        (json!({"cniVersion": 1}), 7),
        (json!({"name": "../x"}), 7),
        (json!({"name": "x".repeat(70_000)}), 7),
    ] {
        let broken = call.clone().with(keys);
        broken.fails("ADD", code);
        broken.ok("DEL");
        // Also when it meant something before.
        call.ok("ADD");
        broken.ok("DEL");
        assert_eq!(state(&node, &pod), before);
    }
    let unnameable = call.var("CNI_IFNAME", "net\u{1}");
    unnameable.fails("ADD", 4);
    unnameable.ok("DEL");
}

#[test]
fn a_device_that_only_a_configuration_knows_gets_no_lock() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({"deviceID": "elsewhereMvp7"}));
    call.fails("ADD", 7);
    call.ok("DEL");
    assert_eq!(node.sh("ls /run/macvtap/locks 2>/dev/null; true"), "");
}

#[test]
fn a_pod_goes_whatever_is_on_standard_input() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1");
    let deep = format!("{{\"note\": {}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let long = vec![b' '; 5 << 20];
    let inputs: [&[u8]; 8] = [
        b"",
        b"{",
        b"[]",
        b"not JSON",
        b"\xff\xfe",
        b"{\"cniVersion\": \"1.0.0\", \"name\": \"dataplane\", \"note\": \"\\ud800\"}",
        deep.as_bytes(),
        long.as_slice(),
    ];
    for input in inputs {
        call.ok("ADD");
        let shown = String::from_utf8_lossy(&input[..input.len().min(60)]).into_owned();
        let answer = call.with_input("DEL", input);
        assert!(answer.success, "{shown}: {answer:?}");
        assert_eq!(state(&node, &pod), before, "{shown}");
    }
}

#[test]
fn what_gos_decoder_accepts_is_accepted_by_every_verb() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = state(&node, &pod);
    let call = Call::new(&node, &pod, "c1");
    let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
    for note in [deep.as_bytes(), br#""\ud800""#, b"\"caf\xe9\"", b"1e999"] {
        let head = br#"{"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": "dataplaneMvp0", "note": "#;
        let input = [head, note, b"}"].concat();
        let answer = call.with_input("ADD", &input);
        assert!(answer.success, "{answer:?}");
        assert!(call.with_input("DEL", &input).success);
        assert_eq!(state(&node, &pod), before);
    }
}

#[test]
fn a_del_spares_a_link_whose_record_cannot_be_read() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // The path of the former container's namespace is the next one's by now.
    Call::new(&node, &pod, "next").ok("ADD");
    let before = link(&pod);
    node.sh("echo '{' >/run/macvtap/attachments/dataplaneMvp0");
    for keys in [json!({"deviceID": null}), json!({"deviceID": "dataplaneMvp1"})] {
        Call::new(&node, &pod, "former").with(keys).ok("DEL");
        assert_eq!(link(&pod), before);
    }
    // It can be no other device's.
    Call::new(&node, &pod, "c2").var("CNI_IFNAME", "net2").device(2).ok("ADD");
    node.sh("rm /run/macvtap/attachments/dataplaneMvp2");
    Call::new(&node, &pod, "c2").var("CNI_IFNAME", "net2").device(2).ok("DEL");
    assert!(!Node::ip(&pod, "-br link").contains("net2"));
}

#[test]
fn an_interface_that_the_previous_result_has_already_is_reported_once() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let sandbox = pod.netns().display().to_string();
    let known = json!({"interfaces": [
        {"name": "net1", "sandbox": "/run/netns/another"},
        {"name": "net1", "sandbox": sandbox, "mac": "02:00:00:00:00:01"},
    ]});
    let result = call.clone().with(json!({"prevResult": known})).ok("ADD");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 2, "{result}");
    assert_eq!(result["interfaces"][1]["mac"], link(&pod)["address"]);
    call.with(json!({"prevResult": result})).ok("CHECK");
}
