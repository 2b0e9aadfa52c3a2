//! What surrounds a call: the node's settings, the log file, standard output, the directories of `CNI_PATH`.

use crate::support::{Call, Node, has_plugins, link, node_and_pods, record, state};
use serde_json::{Value, json};

fn ipam(plugin: &str) -> Value {
    json!({"ipam": {"type": plugin, "dataDir": "/run/leases", "ranges": [[{"subnet": "10.9.0.0/24"}]]}})
}

/// Writes an IPAM plugin of the node.
fn script(node: &Node, path: &str, mode: &str) {
    let answer = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]});
    node.sh(&format!(
        "mkdir -p $(dirname {path}); printf '#!/bin/sh\\ncat >/dev/null\\necho %s\\n' '{answer}' | sed \"s/echo \\(.*\\)/echo '\\1'/\" >{path}; chmod {mode} {path}"
    ));
}

#[test]
fn an_add_whose_result_cannot_be_written_leaves_nothing() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1").with(ipam("host-local"));
    call.ok("ADD");
    call.ok("DEL");
    let before = state(&node, &pod);
    assert_eq!(call.run_into("ADD", "/dev/full"), 1);
    assert_eq!((state(&node, &pod), record(&node, 0)), (before, None));
    assert_eq!(node.sh("ls /run/leases/dataplane | grep -c ^10 || true").trim(), "0");
}

#[test]
fn a_log_file_that_is_a_pipe_holds_nothing_up() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh("mkfifo /run/log; mkdir -p /var/lib/macvtap");
    let settings = json!({"logFile": "/run/log", "logLevel": "debug"});
    std::fs::write(node.paths().cni_settings(), settings.to_string()).unwrap();
    let call = Call::new(&node, &pod, "c1");
    for command in ["ADD", "DEL"] {
        let answer = call.run(command);
        assert!(answer.success, "{answer:?}");
        assert!(answer.stderr.contains("log file of the node's settings could not be opened"), "{answer:?}");
    }
}

#[test]
fn settings_that_cannot_be_read_are_named_and_a_pod_can_go() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    for wrong in ["", "[]", "null", "7", "{\"logLevel\": \"debug\""] {
        call.ok("ADD");
        std::fs::write(node.paths().cni_settings(), wrong).unwrap();
        let message = call.fails("ADD", 7);
        assert!(message.contains("cni.json") && message.contains("correct or remove the file"), "{message}");
        call.ok("DEL");
        assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null));
        std::fs::remove_file(node.paths().cni_settings()).unwrap();
    }
}

#[test]
fn an_ipam_plugin_is_an_executable_file_in_any_directory_of_the_path() {
    let Some((node, [pod])) = node_and_pods() else { return };
    script(&node, "/run/none/give", "0644");
    let call = Call::new(&node, &pod, "c1").with(ipam("give")).var("CNI_PATH", "/run/none");
    let message = call.fails("ADD", 101);
    assert!(message.contains("/run/none/give is not an executable file"), "{message}");
    // Nothing was leased by it, so the pod can go.
    call.ok("DEL");
    // Nor by one that is executable and none for this machine, or whose interpreter is missing.
    for content in ["", "garbage", "\x7fELF\x02\x01\x01", "#!/run/no/such/interpreter\n"] {
        std::fs::write(format!("/proc/{}/root/run/none/give", node.holder.pid()), content).unwrap();
        node.sh("chmod 0755 /run/none/give");
        assert!(call.fails("ADD", 101).contains("start /run/none/give"), "{content:?}");
        call.ok("DEL");
    }
    node.sh("chmod 0644 /run/none/give");
    script(&node, "/run/good/give", "0755");
    // The second is taken; `cnitool` is used with a relative path.
    for path in ["/run/none:/run/good", ":/run/good", "run/../../../../../../../../../../run/good"] {
        let call = call.clone().var("CNI_PATH", path);
        let result = call.ok("ADD");
        assert_eq!(result["ips"][0]["address"], "10.9.0.2/24", "{path}: {result}");
        call.ok("DEL");
    }
}

#[test]
fn a_plugin_that_is_a_link_to_dhcp_or_listed_by_the_node_finds_the_link_up() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh(
        "mkdir -p /run/bin; printf '#!/bin/sh\\ncat >/dev/null\\n[ $CNI_COMMAND = DEL ] || nsenter --net=$CNI_NETNS ip link show $CNI_IFNAME | grep -q LOWER_UP || exit 9\\n\
         echo \"{\\\\\"ips\\\\\":[{\\\\\"address\\\\\":\\\\\"10.9.0.2/24\\\\\"}]}\"\\n' >/run/bin/dhcp; chmod 755 /run/bin/dhcp; ln -s dhcp /run/bin/site-dhcp; cp /run/bin/dhcp /run/bin/lease",
    );
    let call = Call::new(&node, &pod, "c1").var("CNI_PATH", "/run/bin");
    for plugin in ["dhcp", "site-dhcp"] {
        let call = call.clone().with(ipam(plugin));
        call.ok("ADD");
        call.ok("DEL");
    }
    let call = call.with(ipam("lease"));
    call.fails("ADD", 101);
    std::fs::write(node.paths().cni_settings(), "{\"ipamThroughLink\": [\"lease\"]}").unwrap();
    call.ok("ADD");
    call.ok("DEL");
}

#[test]
fn a_lease_needs_no_settings_of_the_kernel_that_cannot_be_written() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys");
    let addresses = json!([{"address": "10.9.0.2/24"}, {"address": "fd09::2/64"}]);
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "static", "addresses": addresses}}));
    let answer = call.run("ADD");
    assert!(answer.success, "{answer:?}");
    for setting in ["net/ipv4/conf/net1/arp_notify", "net/ipv6/conf/net1/accept_ra"] {
        assert!(answer.stderr.contains(setting), "{answer:?}");
    }
    call.clone().with(json!({"prevResult": answer.json})).ok("CHECK");
    call.ok("DEL");
}

#[test]
fn check_knows_a_namespace_by_another_path() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    let result = call.ok("ADD");
    let path = pod.netns().display().to_string();
    node.sh("mkdir /run/elsewhere; touch /run/elsewhere/x");
    let call = call.with(json!({"prevResult": result}));
    call.ok("CHECK");
    node.sh(&format!("mount --bind {path} /run/elsewhere/x; ln -s {path} /run/elsewhere/y"));
    call.clone().var("CNI_NETNS", "/run/elsewhere/y").ok("CHECK");
    call.ok("DEL");
}

#[test]
fn keys_are_read_in_upper_and_lower_case_alike() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let keys = json!({"MTU": 1300, "deviceID": null, "DeviceId": "dataplaneMvp1", "RuntimeConfig": {"MAC": "02:00:00:00:00:09"}});
    let call = Call::new(&node, &pod, "c1").with(keys);
    call.ok("ADD");
    let found = link(&pod);
    assert_eq!((&found["mtu"], &found["address"]), (&json!(1300), &json!("02:00:00:00:00:09")));
    assert_eq!(found["ifindex"], node.first_ifindex + 1);
    call.ok("DEL");
    let both = Call::new(&node, &pod, "c1").with(json!({"mtu": 1400, "MTU": 1300}));
    both.ok("ADD");
    assert_eq!(link(&pod)["mtu"], 1400);
    let wrong = both.with(json!({"IPAM": {"Type": "a/b"}})).fails("ADD", 7);
    assert!(wrong.contains("ipam.type"), "{wrong}");
}
