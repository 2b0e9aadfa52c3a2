//! Addresses by IPAM plugins: the distribution's host-local and static, and ones that misbehave.

use crate::support::{Call, Daemon, Node, has, has_plugins, link, node_and_pods, record, wait_until};
use serde_json::{Value, json};

pub(crate) fn host_local(gateway: bool) -> Value {
    let subnet = |net: &str| json!([{"subnet": net}]);
    let routes = if gateway {
        json!([{"dst": "0.0.0.0/0"}, {"dst": "10.77.0.0/16", "gw": "10.9.0.200"}])
    } else {
        json!([])
    };
    json!({"type": "host-local", "dataDir": "/run/leases", "ranges": [subnet("10.9.0.0/24"), subnet("fd09::/64")], "routes": routes})
}

pub(crate) fn leases(node: &Node) -> String {
    node.sh("cd /run; find leases -type f -name '[1-9f]*' 2>/dev/null | sort; true")
}

/// A plugin of ours in a directory of the node.
pub(crate) fn script(node: &Node, name: &str, text: &str) {
    node.sh(&format!("mkdir -p /run/plugins; cat >/run/plugins/{name} <<'END'\n#!/bin/sh\n{text}\nEND\nchmod 755 /run/plugins/{name}"));
}

#[test]
fn addresses_and_routes_are_the_plugins_and_are_given_back() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let before = node.traces();
    let call = Call::new(&node, &pod, "c1")
        .with(json!({"ipam": host_local(true), "dns": {"nameservers": ["10.9.0.53"]}}));
    let result = call.ok("ADD");
    assert_eq!(result["ips"][0], json!({"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}));
    assert_eq!(result["ips"][1]["address"], "fd09::2/64");
    assert_eq!(result["dns"]["nameservers"], json!(["10.9.0.53"]));
    let addresses = Node::ip(&pod, "addr show dev net1");
    assert!(
        addresses.contains("inet 10.9.0.2/24 brd 10.9.0.255") && addresses.contains("inet6 fd09::2/64"),
        "{addresses}"
    );
    let routes = Node::ip(&pod, "route");
    assert!(routes.contains("default via 10.9.0.1 dev net1"), "{routes}");
    assert!(routes.contains("10.77.0.0/16 via 10.9.0.200 dev net1"), "{routes}");
    let checked = call.clone().with(json!({"prevResult": result}));
    checked.ok("CHECK");
    Node::ip(&pod, "addr del 10.9.0.2/24 dev net1");
    assert!(checked.fails("CHECK", 102).contains("lost address 10.9.0.2/24"));
    assert_ne!(leases(&node), "");
    call.ok("DEL");
    assert_eq!((leases(&node), node.traces(), link(&pod)), (String::new(), before, Value::Null));
}

#[test]
fn an_ipam_plugin_that_knows_no_newer_version_can_check() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let ipam = json!({"type": "static", "addresses": [{"address": "10.9.0.2/24"}]});
    let call = Call::new(&node, &pod, "c1").with(json!({"cniVersion": "1.1.0", "ipam": ipam}));
    let result = call.ok("ADD");
    call.with(json!({"prevResult": result})).ok("CHECK");
}

#[test]
fn a_gateway_alone_makes_no_default_route() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let result = Call::new(&node, &pod, "c1").with(json!({"ipam": host_local(false)})).ok("ADD");
    assert_eq!(result["ips"][0]["gateway"], "10.9.0.1");
    assert!(!Node::ip(&pod, "route").contains("default"));
}

#[test]
fn a_fixed_address_comes_through_the_runtime() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let config = json!({"ipam": {"type": "static"}, "capabilities": {"ips": true}, "runtimeConfig": {"ips": ["10.8.0.9/24"]}});
    let result = Call::new(&node, &pod, "c1").with(config).ok("ADD");
    assert_eq!(result["ips"][0]["address"], "10.8.0.9/24");
    assert!(Node::ip(&pod, "addr show dev net1").contains("inet 10.8.0.9/24"));
}

#[test]
fn an_ipv6_address_that_another_host_has_fails_the_add_and_is_given_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // The far end of the lower link's cable is the other host.
    node.sh("ip -6 addr add fd09::2/64 dev dp1 nodad");
    let before = node.traces();
    let answer = "{\"ips\": [{\"address\": \"fd09::2/64\"}]}";
    script(&node, "fixed", &format!("echo $CNI_COMMAND >>/run/calls; echo '{answer}'"));
    let config = json!({"ipam": {"type": "fixed"}});
    let call = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins");
    let message = call.fails("ADD", 100);
    assert!(message.starts_with("address fd09::2/64 is in use by another host"), "{message}");
    assert_eq!(node.sh("cat /run/calls"), "ADD\nDEL\n");
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
}

#[test]
fn each_version_has_its_form() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    for (version, family, mtu) in [
        ("0.3.0", json!("4"), Value::Null),
        ("0.3.1", json!("4"), Value::Null),
        ("0.4.0", json!("4"), Value::Null),
        ("1.0.0", Value::Null, Value::Null),
        ("1.1.0", Value::Null, json!(1500)),
    ] {
        let call =
            Call::new(&node, &pod, "c1").with(json!({"ipam": host_local(false), "cniVersion": version}));
        let result = call.ok("ADD");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(
            (&result["ips"][0]["version"], &result["interfaces"][0]["mtu"]),
            (&family, &mtu),
            "{version}"
        );
        call.ok("DEL");
    }
}

#[test]
fn a_failure_after_the_lease_gives_it_back_and_a_repeated_add_replaces_it() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let before = node.traces();
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": host_local(true)}));
    // Taken: the link cannot be made after the addresses were leased.
    Node::ip(&pod, "link add net1 type veth peer name net1p");
    call.fails("ADD", 100);
    assert_eq!((leases(&node), node.traces()), (String::new(), before));
    Node::ip(&pod, "link del net1");
    call.ok("ADD");
    let once = leases(&node);
    call.ok("ADD");
    assert_eq!(leases(&node).lines().count(), once.lines().count(), "a lease of the first ADD was kept");
    assert_eq!(Node::ip(&pod, "-4 -br addr show dev net1").matches('/').count(), 1);
}

#[test]
fn a_plugin_that_fails_is_quoted_and_nothing_is_made() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let call = |text: &str| {
        script(&node, "odd", text);
        let config = json!({"ipam": {"type": "odd"}});
        Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins")
    };
    for (text, code, told) in [
        (
            "echo '{\"code\": 101, \"msg\": \"no address left\", \"details\": \"subnet full\"}'; exit 1",
            101,
            "no address left: subnet full",
        ),
        ("echo '{\"code\": 11, \"msg\": \"daemon away\"}'; exit 1", 11, "daemon away"),
        ("echo lost >&2; exit 3", 101, "lost"),
        ("exit 0", 101, "it answered nothing"),
        ("echo done", 101, "its answer is not a CNI result: \"done\" is not a JSON object"),
        ("[ $CNI_COMMAND = DEL ] || yes x | head -c 2000000", 101, "is longer than 1048576 bytes"),
        (
            "echo '{\"interfaces\": [{\"mac\": \"01:00:5e:00:00:01\"}], \"ips\": [{\"address\": \"10.0.0.2/24\"}]}'",
            101,
            "it gave the MAC address \"01:00:5e:00:00:01\", which is not a unicast address",
        ),
        ("echo '{\"ips\": []}'", 101, "its answer has no ips"),
        ("echo '{\"code\": 7, \"msg\": \"no such pool\"}'", 101, "no such pool"),
        (
            "echo '{\"ips\": [{\"address\": \"0.0.0.0/0\"}]}'",
            101,
            "it gave 0.0.0.0/0, which no host can have",
        ),
        (
            "echo '{\"ips\": [{\"address\": \"224.0.0.5/24\"}]}'",
            101,
            "it gave 224.0.0.5/24, which no host can have",
        ),
        (
            "echo '{\"ips\": [{\"address\": \"nonsense\"}]}'",
            101,
            "\"nonsense\" is not an address with prefix length",
        ),
        (
            "echo '{\"ips\": [{\"address\": \"10.0.0.2/24\"}], \"routes\": [{}]}'",
            101,
            "neither destination nor router",
        ),
    ] {
        let message = call(text).fails("ADD", code);
        assert!(message.contains(told), "{text}: {message}");
        assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null), "{text}");
    }
    let missing = Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "absent"}})).fails("ADD", 101);
    assert!(
        missing.contains("IPAM plugin absent is in none of the directories of CNI_PATH (/usr/lib/cni)"),
        "{missing}"
    );
    // The pod must go: who did not find the plugin leased nothing by it.
    Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "absent"}})).ok("DEL");
    let leased = call("[ $CNI_COMMAND = ADD ] && echo '{\"ips\": [{\"address\": \"10.0.0.2/24\"}]}'; exit 0");
    leased.ok("ADD");
    node.sh("mv /run/plugins/odd /run/plugins/gone");
    assert!(leased.fails("DEL", 101).contains("IPAM plugin odd is in none"), "a lease was forgotten");
    assert_eq!(link(&pod), Value::Null);
    node.sh("mv /run/plugins/gone /run/plugins/odd");
    leased.ok("DEL");
    assert_eq!(node.traces(), before);
}

#[test]
fn a_plugin_sees_the_attachment_but_not_the_device_and_its_mac_and_name_resolution_win() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let answer = "{\"interfaces\": [{\"mac\": \"02:00:00:00:00:aa\"}], \"ips\": [{\"address\": \"10.0.0.2/24\", \"interface\": 0}], \"dns\": {\"domain\": \"leased\"}}";
    script(
        &node,
        "watch",
        &format!(
            "cat >/run/seen-$CNI_COMMAND; env | grep ^CNI_ | sort >/run/env-$CNI_COMMAND\necho '{answer}'"
        ),
    );
    let config = json!({"ipam": {"type": "watch"}, "dns": {"domain": "configured"}, "runtimeConfig": {"mac": "02:00:00:00:00:bb", "deviceID": "dataplaneMvp0"}});
    let call = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/no/such:/run/plugins");
    let result = call.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:aa");
    assert_eq!((&result["ips"][0]["interface"], &result["dns"]["domain"]), (&json!(0), &json!("leased")));
    assert_eq!(link(&pod)["address"], "02:00:00:00:00:aa");
    assert_eq!(record(&node, 0).unwrap().mac.unwrap().to_string(), "02:00:00:00:00:aa");
    let seen = node.sh("cat /run/seen-ADD");
    assert!(seen.contains("\"cniVersion\":\"1.0.0\"") && !seen.contains("dataplaneMvp0"), "{seen}");
    let variables = node.sh("cat /run/env-ADD");
    assert!(
        variables.contains("CNI_CONTAINERID=c1\n") && variables.contains("K8S_POD_UID=uid-of-c1"),
        "{variables}"
    );
    call.ok("DEL");
    assert!(node.sh("cat /run/env-DEL").contains("CNI_COMMAND=DEL"));
}

#[test]
fn gc_and_status_reach_a_plugin_that_knows_them_and_one_that_does_not_is_no_hindrance() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}],
    }));
    // The distribution's set is older than these commands.
    let old = call.clone().with(json!({"ipam": host_local(false)}));
    old.ok("ADD");
    old.ok("GC");
    old.ok("STATUS");
    assert_eq!(leases(&node).lines().count(), 2);
    old.ok("DEL");
    let with = |text: &str| {
        script(&node, "new", &format!("cat >/run/stdin-$CNI_COMMAND\n{text}"));
        call.clone().with(json!({"ipam": {"type": "new"}})).var("CNI_PATH", "/run/plugins")
    };
    with("exit 0").ok("GC");
    let stdin: Value = serde_json::from_str(&node.sh("cat /run/stdin-GC")).unwrap();
    assert_eq!(
        stdin["cni.dev/valid-attachments"],
        json!([{"containerID": "c1", "ifname": "net1"}]),
        "the plugin must learn what to keep"
    );
    assert_eq!(stdin["cni.dev/attachments"], stdin["cni.dev/valid-attachments"], "whichever name it knows");
    with("exit 0").ok("STATUS");
    let full = with("echo '{\"code\": 51, \"msg\": \"pool nearly empty\"}'; exit 1");
    assert!(full.fails("STATUS", 51).contains("pool nearly empty"));
    assert!(with("echo '{\"code\": 100, \"msg\": \"stuck\"}'; exit 1").fails("GC", 101).contains("stuck"));
    // Runtimes of earlier versions do not ask, nor do we.
    with("exit 1").with(json!({"cniVersion": "1.0.0"})).ok("GC");
}

#[test]
fn an_address_by_dhcp_is_asked_for_through_the_link_and_released_through_it() {
    let Some((node, [pod])) =
        (has_plugins() && has("/usr/sbin/dnsmasq", "dnsmasq-base")).then(node_and_pods).flatten()
    else {
        return;
    };
    node.sh("ip addr add 10.6.0.1/24 dev dp1");
    let before = node.traces();
    // A server at the far end of the cable.
    let _server = Daemon::start(node.command("/usr/sbin/dnsmasq").args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--port=0",
        "--interface=dp1",
        "--bind-interfaces",
        "--no-ping",
        "--dhcp-range=10.6.0.50,10.6.0.60,255.255.255.0",
        "--dhcp-authoritative",
        "--dhcp-leasefile=/run/leases",
        "--pid-file=/run/dnsmasq.pid",
        "--user=root",
    ]));
    let plugin = Daemon::start(node.command("/usr/lib/cni/dhcp").arg("daemon"));
    let run = node.paths().run().parent().unwrap().to_owned();
    wait_until("server and daemon", || {
        run.join("dnsmasq.pid").exists() && run.join("cni/dhcp.sock").exists()
    });
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "dhcp"}}));
    let result = call.ok("ADD");
    let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.6.0.5") || address.starts_with("10.6.0.60"), "{address}");
    assert!(Node::ip(&pod, "addr show dev net1").contains(&format!("inet {address}")));
    assert!(Node::ip(&pod, "route").contains("default via 10.6.0.1 dev net1"));
    let leased = || std::fs::read_to_string(run.join("leases")).unwrap_or_default();
    assert!(leased().contains(result["interfaces"][0]["mac"].as_str().unwrap()), "{}", leased());
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    call.ok("DEL");
    wait_until("the release of the address", || leased().is_empty());
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
    // Nobody answers: nothing stays, the link neither.
    drop(plugin);
    let message = call.fails("ADD", 101);
    assert!(message.contains("IPAM plugin dhcp: ADD:"), "{message}");
    assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null));
}
