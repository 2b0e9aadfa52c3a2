//! What else can be in place of the plugin's files, and what it inherits from its caller.

use crate::support::{Call, Node, link, node_and_pods};
use serde_json::{Value, json};

/// An IPAM plugin that answers with an address, after this.
fn ipam(node: &Node, first: &str) -> Value {
    let script = format!(
        "#!/bin/sh\ncat >/dev/null\n{first}\n[ $CNI_COMMAND != ADD ] || echo '{}'\n",
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]})
    );
    node.sh("mkdir -p /run/bin; touch /run/bin/give; chmod 0755 /run/bin/give");
    std::fs::write(format!("/proc/{}/root/run/bin/give", node.holder.pid()), script).unwrap();
    json!({"ipam": {"type": "give"}})
}

#[test]
fn what_is_in_place_of_a_file_of_ours_makes_way_in_add_and_del() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(ipam(&node, ":")).var("CNI_PATH", "/run/bin");
    call.ok("ADD");
    call.ok("DEL");
    let device = format!("dev/{}", node.first_ifindex);
    let files =
        ["attachments/dataplaneMvp0", &device, "locks/dataplaneMvp0", "locks/node", "unreturned/c1:net1"];
    for make in ["mkdir", "mkfifo", "ln -s /run/elsewhere"] {
        for file in files {
            let put = || node.sh(&format!("cd /run/macvtap; rm -rf {file}; {make} {file}"));
            put();
            call.ok("ADD");
            assert_eq!(link(&pod)["ifindex"], node.first_ifindex, "{make} {file}");
            put();
            call.ok("DEL");
            assert_eq!(link(&pod), Value::Null, "{make} {file}");
        }
    }
    node.sh("test ! -e /run/elsewhere");
    for directory in ["attachments", "dev", "locks", "taps", "unreturned"] {
        for make in ["touch", "mkfifo", "ln -s /run/nowhere"] {
            let put = || node.sh(&format!("cd /run/macvtap; rm -rf {directory}; {make} {directory}"));
            put();
            call.ok("ADD");
            put();
            call.ok("DEL");
            assert_eq!(link(&pod), Value::Null, "{make} {directory}");
        }
    }
    // Nobody makes a directory with content; the pod can go, and the next one is refused in words.
    call.ok("ADD");
    node.sh(&format!("cd /run/macvtap; rm {device}; mkdir -p {device}/x"));
    call.ok("DEL");
    let message = call.fails("ADD", 100);
    assert!(message.contains("it is a directory with content, not a file; remove it"), "{message}");
}

#[test]
fn a_pipe_in_place_of_the_device_table_or_of_the_settings_holds_nothing_up() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    for (file, code) in [("devices.json", 11), ("cni.json", 7)] {
        call.ok("ADD");
        node.sh(&format!("cd /var/lib/macvtap; rm -f {file}; mkfifo {file}"));
        let message = call.fails("ADD", code);
        assert!(message.contains("it is a pipe, not a file; remove it") || code == 7, "{message}");
        call.ok("DEL");
        assert_eq!(link(&pod), Value::Null);
        node.sh(&format!("rm /var/lib/macvtap/{file}"));
        node.store_table(|_| ());
    }
}

#[test]
fn files_have_their_modes_and_an_ipam_plugin_has_its_callers_mask() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let config = ipam(&node, "umask >/run/mask");
    let call = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/bin");
    for mask in ["0777", "0077", "0000"] {
        let answer = call.run_after("ADD", &format!("umask {mask}"));
        assert!(answer.success, "{mask}: {answer:?}");
        let index = node.first_ifindex;
        let modes = node.sh(&format!(
            "cd /run/macvtap; stat -c %a . attachments dev locks taps unreturned attachments/dataplaneMvp0 dev/{index} locks/node"
        ));
        let wanted = ["755"; 6].into_iter().chain(["600"; 3]).collect::<Vec<_>>();
        assert_eq!(modes.split_whitespace().collect::<Vec<_>>(), wanted, "{mask}");
        assert_eq!(node.sh("cat /run/mask").trim(), mask);
        // A node that was restricted meanwhile is for its owner again.
        node.sh(&format!("chmod 0000 /run/macvtap/dev/{index}"));
        call.ok("ADD");
        assert_eq!(node.sh(&format!("stat -c %a /run/macvtap/dev/{index}")).trim(), "600");
        call.run_after("DEL", &format!("umask {mask}"));
        node.sh("chmod 0700 /run/mask; rm -rf /run/macvtap");
    }
}

#[test]
fn a_caller_may_ignore_the_end_of_its_children() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(ipam(&node, ":")).var("CNI_PATH", "/run/bin");
    for command in ["ADD", "DEL"] {
        let answer = call.run_after(command, "trap '' CHLD");
        assert!(answer.success, "{command}: {answer:?}");
    }
    // Its exit status is read, too.
    let fails = call.with(ipam(&node, "exit 3"));
    let answer = fails.run_after("ADD", "trap '' CHLD");
    assert!(
        answer.json["msg"].as_str().is_some_and(|message| message.contains("exit status: 3")),
        "{answer:?}"
    );
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn another_link_with_the_index_of_the_lower_link_gets_no_device() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let index = node.ifindex("dp0");
    node.sh(
        "ip link set dp0 down; ip link set dp0 name uplink; ip link set uplink up address 02:00:00:00:00:77",
    );
    call.ok("ADD");
    call.ok("DEL");
    node.sh(&format!(
        "ip link del uplink; ip link add other index {index} type bridge; ip link set other up"
    ));
    let message = call.fails("ADD", 11);
    let wanted = format!(
        "lower link dp0 (index {index}) of device dataplaneMvp0 does not exist any more: link other (bridge) has its index"
    );
    assert!(message.contains(&wanted), "{message}");
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn what_tuning_changed_is_set_again_without_another_link() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let mac = call.ok("ADD")["interfaces"][0]["mac"].clone();
    // An alias goes with its link.
    Node::ip(&pod, "link set net1 alias same");
    Node::ip(&pod, "link set net1 promisc on allmulticast off address 02:00:00:00:00:42");
    let again = call.ok("ADD");
    assert_eq!(again["interfaces"][0]["mac"], mac);
    let found = link(&pod);
    assert_eq!((&found["ifalias"], &found["address"]), (&json!("same"), &mac));
    let flags = found["flags"].to_string();
    assert!(!flags.contains("PROMISC") && flags.contains("ALLMULTI"), "{flags}");
    call.clone().with(json!({"prevResult": again})).ok("CHECK");
    // An address that another device has leaves the link as it is.
    let taken = Call::new(&node, &pod, "c1").device(1).var("CNI_IFNAME", "net2");
    taken.with(json!({"runtimeConfig": {"mac": "02:00:00:00:00:43"}})).ok("ADD");
    call.with(json!({"runtimeConfig": {"mac": "02:00:00:00:00:43"}})).fails("ADD", 100);
    assert_eq!((&link(&pod)["ifalias"], &link(&pod)["address"]), (&json!("same"), &mac));
}

#[test]
fn a_pod_can_go_whose_names_name_nothing() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(ipam(&node, ":")).var("CNI_PATH", "/run/bin");
    for netns in ["/proc/self/ns/mnt", "/proc/self/ns/net", "/dev/null", "/run/netns", "/run/netns/none"] {
        call.clone().var("CNI_NETNS", netns).ok("DEL");
    }
    // Longer than a file name can be.
    call.var("CNI_CONTAINERID", &"c".repeat(300)).ok("DEL");
}
