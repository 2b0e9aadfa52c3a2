//! In which order ADD does things: nothing is touched for a call that cannot succeed, and what fails is undone from the end.

use crate::ipam::script;
use crate::support::{Call, Holder, Node, link, node_and_pods, pod, record};
use serde_json::{Value, json};
use std::process::Command;

#[test]
fn a_repeated_add_without_its_ipam_plugin_costs_the_pod_nothing() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let before = (node.traces(), link(&pod));
    let message = call.clone().with(json!({"ipam": {"type": "nope"}})).fails("ADD", 101);
    assert!(message.contains("IPAM plugin nope"), "{message}");
    assert_eq!((node.traces(), link(&pod)), before);
}

#[test]
fn a_repeated_add_gives_the_lease_that_the_link_has_also_while_its_ipam_plugin_fails() {
    let Some((node, [pod])) = node_and_pods() else { return };
    script(
        &node,
        "some",
        "echo $CNI_COMMAND >>/run/calls; [ ! -e /run/broken ] || { echo '{\"code\": 11, \"msg\": \"range full\"}'; exit 1; }; \
         [ $CNI_COMMAND = DEL ] || echo '{\"interfaces\": [{\"mac\": \"02:00:00:00:00:99\"}], \"ips\": [{\"address\": \"10.9.0.2/24\"}], \
         \"routes\": [{\"dst\": \"10.77.0.0/16\"}], \"dns\": {\"nameservers\": [\"10.9.0.1\"]}}'",
    );
    let call =
        Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "some"}})).var("CNI_PATH", "/run/plugins");
    let first = call.ok("ADD");
    Node::ip(&pod, "link set net1 alias untouched");
    node.sh("touch /run/broken");
    assert_eq!(call.ok("ADD"), first);
    assert!(Node::ip(&pod, "link show net1").contains("untouched"), "the running link was replaced");
    assert_eq!(call.clone().with(json!({"prevResult": first})).ok("ADD"), first, "something is in it twice");
    assert_eq!(node.sh("cat /run/calls"), "ADD\n");
    // What the pod removed is given to it again.
    node.sh("rm /run/broken");
    Node::ip(&pod, "addr flush dev net1");
    assert_eq!(call.ok("ADD"), first);
    call.clone().with(json!({"prevResult": first})).ok("CHECK");
    assert!(Node::ip(&pod, "-4 -br addr show dev net1").contains("10.9.0.2/24"));
    // What is asked for in another way is leased again.
    let other = call.clone().with(json!({"ipam": {"type": "some", "range": "other"}}));
    other.ok("ADD");
    assert_eq!(node.sh("cat /run/calls"), "ADD\nDEL\nADD\nCHECK\nDEL\nADD\n");
    other.ok("DEL");
}

#[test]
fn a_failed_add_deletes_the_link_before_it_gives_the_lease_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let netns = pod.netns();
    let text = format!(
        "#!/bin/sh\ncat >/dev/null\ncase $CNI_COMMAND in\nADD) echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.9.0.2/24\"}}],\
         \"routes\":[{{\"dst\":\"10.77.0.0/16\",\"gw\":\"203.0.113.1\"}}]}}';;\n\
         DEL) nsenter --net={} ip -o -4 addr >/run/seen;;\nesac\n",
        netns.display()
    );
    node.sh(&format!(
        "mkdir -p /run/plugins; cat >/run/plugins/bad <<'END'\n{text}END\nchmod 755 /run/plugins/bad"
    ));
    let call =
        Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "bad"}})).var("CNI_PATH", "/run/plugins");
    call.fails("ADD", 100);
    let seen = node.sh("cat /run/seen");
    assert!(seen.contains("127.0.0.1") && !seen.contains("10.9.0.2"), "{seen}");
}

#[test]
fn a_macvlan_below_is_refused_before_anything_is_made() {
    for ipam in [Value::Null, json!({"type": "static", "addresses": [{"address": "10.9.0.2/24"}]})] {
        let Some((node, [pod])) = node_and_pods() else { return };
        node.sh("ip link add mv0 link dp0 type macvlan mode bridge; ip link set mv0 up");
        let index = node.ifindex("mv0");
        node.store_table(|table| {
            for resource in table.resources.values_mut() {
                resource.links_mut()[0].ifindex = index;
            }
        });
        let before = node.traces();
        let message = Call::new(&node, &pod, "c1").with(json!({"ipam": ipam})).fails("ADD", 7);
        assert!(
            message.contains("lower link mv0 is a macvlan") && message.contains("use the link below it"),
            "{message}"
        );
        assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
    }
}

#[test]
fn names_that_mean_more_than_one_link_are_refused_as_names() {
    let Some((node, [pod])) = node_and_pods() else { return };
    for name in ["all", "default", "net%d", "a%b"] {
        let message = Call::new(&node, &pod, "c1").var("CNI_IFNAME", name).fails("ADD", 4);
        assert!(message.contains("CNI_IFNAME"), "{message}");
        Call::new(&node, &pod, "c1").var("CNI_IFNAME", name).ok("DEL");
    }
}

#[test]
fn the_next_sandbox_of_a_pod_gets_its_devices_in_any_order() {
    let Some((node, [old])) = node_and_pods() else { return };
    let call = |pod, container, ifname, slot| {
        Call::new(&node, pod, container)
            .var("CNI_IFNAME", ifname)
            .var("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_UID=u1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns")
            .device(slot)
    };
    call(&old, "c1", "net1", 0).ok("ADD");
    call(&old, "c1", "net2", 1).ok("ADD");
    assert!(call(&old, "c1", "net3", 0).fails("ADD", 7).contains("already interface net1 of this pod"));
    // The old namespace lives on.
    let new = pod();
    call(&new, "c2", "net1", 1).ok("ADD");
    call(&new, "c2", "net2", 0).ok("ADD");
    assert!(!Node::ip(&old, "-br link").contains("net"));
    call(&old, "c1", "net1", 0).ok("DEL");
    assert!(Node::ip(&new, "-br link").contains("net2"), "a late DEL");
}

#[test]
fn a_repeated_add_gives_back_the_mtu_that_a_smaller_lower_link_took() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    let index = link(&pod)["ifindex"].clone();
    // With the second one the link loses its IPv6 settings, and gets new ones.
    for mtu in [1300, 1200] {
        node.sh(&format!("ip link set dp0 mtu {mtu}; ip link set dp0 mtu 1500"));
        assert_eq!(link(&pod)["mtu"], mtu);
        let result = call.clone().with(json!({"cniVersion": "1.1.0"})).ok("ADD");
        assert_eq!(result["interfaces"][0]["mtu"], 1500);
        let now = link(&pod);
        assert_eq!((&now["mtu"], &now["ifindex"]), (&json!(1500), &index));
        assert_eq!(now["inet6_addr_gen_mode"], "none");
        assert_eq!(Node::ip(&pod, "-6 addr show dev net1"), "");
        assert_eq!(accepts_routers(&pod), "0\n");
    }
}

#[test]
fn a_repeated_add_turns_off_what_a_pod_turned_on_by_a_small_mtu() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    Node::ip(&pod, "link set net1 mtu 1000");
    Node::ip(&pod, "link set net1 mtu 1500");
    assert_eq!(accepts_routers(&pod), "1\n", "the kernel's default");
    call.ok("ADD");
    assert_eq!(
        (link(&pod)["inet6_addr_gen_mode"].as_str(), accepts_routers(&pod).as_str()),
        (Some("none"), "0\n")
    );
}

fn accepts_routers(pod: &Holder) -> String {
    let net = format!("--net={}", pod.netns().display());
    let switch = ["cat", "/proc/sys/net/ipv6/conf/net1/accept_ra"];
    String::from_utf8(Command::new("nsenter").arg(net).args(switch).output().unwrap().stdout).unwrap()
}

#[test]
fn a_repeated_add_keeps_the_routes_of_a_link_whose_mtu_grows_to_one_that_ipv6_needs() {
    let Some((node, [pod])) = node_and_pods() else { return };
    script(
        &node,
        "some",
        "echo '{\"ips\": [{\"address\": \"10.9.0.2/24\"}], \"routes\": [{\"dst\": \"10.77.0.0/16\", \"gw\": \"10.9.0.1\"}]}'",
    );
    let call =
        Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": "some"}})).var("CNI_PATH", "/run/plugins");
    node.sh("ip link set dp0 mtu 1200");
    call.ok("ADD");
    node.sh("ip link set dp0 mtu 1500");
    call.ok("ADD");
    assert_eq!(link(&pod)["mtu"], 1500);
    assert!(Node::ip(&pod, "-4 route show dev net1").contains("10.77.0.0/16 via 10.9.0.1"));
    call.ok("DEL");
}

#[test]
fn a_record_names_the_namespace_by_a_path_without_links() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh(&format!("touch /run/netns/x; mount --bind {} /run/netns/x", pod.netns().display()));
    let call = Call::new(&node, &pod, "c1").var("CNI_NETNS", "/var/run/netns/x");
    let result = call.ok("ADD");
    let recorded = serde_json::to_value(record(&node, 0).unwrap().holder).unwrap();
    assert_eq!(recorded["netns"], "/run/netns/x");
    assert_eq!(result["interfaces"][0]["sandbox"], "/var/run/netns/x");
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    call.ok("ADD");
    call.ok("DEL");
    assert_eq!(record(&node, 0), None);
}
