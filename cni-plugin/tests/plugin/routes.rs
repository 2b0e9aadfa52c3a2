//! Routes of the lease beside those that other interfaces of the pod have: none of them is taken away.

use crate::support::{Answer, Call, Holder, Node, give_eth0, has_plugins, node_and_pods};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

/// A lease of both families with default routes, and one to a network of eth0.
fn with_routes<'n>(node: &'n Node, pod: &Holder, container: &str) -> Call<'n> {
    let addresses = json!([{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}, {"address": "fd09::2/64", "gateway": "fd09::1"}]);
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.0.0.0/24"}, {"dst": "10.0.0.0/24"}]);
    let ipam = json!({"type": "static", "addresses": addresses, "routes": routes});
    Call::new(node, pod, container).with(json!({"ipam": ipam}))
}

/// The pod's routes, without those of link-local addresses, which come when the kernel has checked these.
fn routes(pod: &Holder) -> [String; 2] {
    ["-4", "-6"].map(|family| {
        let all = Node::ip(pod, &format!("{family} route show table all type unicast"));
        all.lines().filter(|line| !line.starts_with("fe80::")).collect::<Vec<_>>().join("\n")
    })
}

/// Runs the distribution's `sbr` for `net1`.
fn sbr(node: &Node, pod: &Holder, command: &str, previous: &Value) -> Answer {
    let config = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "sbr", "prevResult": previous});
    let mut process = node.command("/usr/lib/cni/sbr");
    process.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "net1"),
        ("CNI_PATH", "/usr/lib/cni"),
    ]);
    process.env("CNI_NETNS", pod.netns());
    let mut child =
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    Answer::of(child)
}

#[test]
fn other_interfaces_keep_their_routes_whatever_the_lease_names() {
    let Some((node, [pod])) = node_and_pods() else { return };
    give_eth0(&pod);
    let before = routes(&pod);
    let call = with_routes(&node, &pod, "c1");
    let result = call.ok("ADD");
    for (now, before) in routes(&pod).iter().zip(&before) {
        for route in before.lines() {
            assert!(now.contains(route), "{route} in {now}");
        }
    }
    for destination in ["-4 route get 192.0.2.1", "-6 route get 2001:db8::1"] {
        assert!(Node::ip(&pod, destination).contains("dev net1"), "{destination}");
    }
    let checked = call.clone().with(json!({"prevResult": result}));
    checked.ok("CHECK");
    call.ok("ADD");
    checked.ok("CHECK");
    call.ok("DEL");
    assert_eq!(routes(&pod), before);
}

#[test]
fn no_route_of_a_lease_shares_its_traffic_with_another_interface() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    give_eth0(&pod);
    Node::ip(&pod, "-6 route flush default");
    Node::ip(&pod, "-6 route add default via fd0e::1 dev eth0 metric 1");
    let ipam = json!({"type": "static", "addresses": [{"address": "fd09::2/64", "gateway": "fd09::1"}], "routes": [{"dst": "::/0"}]});
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": ipam}));
    let result = call.ok("ADD");
    let routes = Node::ip(&pod, "-6 route show default");
    assert!(!routes.contains("nexthop") && routes.contains("dev net1 metric 2"), "{routes}");
    call.with(json!({"prevResult": result})).ok("CHECK");
}

#[test]
fn routes_of_others_are_as_before_when_their_interface_goes_first() {
    let Some((node, [pod])) = node_and_pods() else { return };
    give_eth0(&pod);
    let call = with_routes(&node, &pod, "c1");
    call.ok("ADD");
    Node::ip(&pod, "link del eth0");
    assert!(Node::ip(&pod, "-4 route show default").contains("dev net1"));
    call.ok("DEL");
    assert_eq!(routes(&pod), [String::new(), String::new()]);
}

#[test]
fn behind_sbr_the_pod_has_its_own_default_route_and_check_finds_the_moved_ones() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    give_eth0(&pod);
    let before = routes(&pod);
    let call = with_routes(&node, &pod, "c1");
    let result = call.ok("ADD");
    let answer = sbr(&node, &pod, "ADD", &result);
    assert!(answer.success, "{answer:?}");
    let main = Node::ip(&pod, "-4 route show default");
    assert_eq!(main.trim(), "default via 10.0.0.1 dev eth0 src 10.0.0.2 mtu 1400");
    assert!(Node::ip(&pod, "-4 route get 192.0.2.1 from 10.9.0.2").contains("dev net1"));
    call.clone().with(json!({"prevResult": answer.json})).ok("CHECK");
    assert!(sbr(&node, &pod, "DEL", &answer.json).success);
    call.ok("DEL");
    assert_eq!(routes(&pod), before);
}

#[test]
fn a_route_that_a_later_plugin_added_to_a_router_of_another_interface_is_found() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    give_eth0(&pod);
    let call = with_routes(&node, &pod, "c1");
    let mut result = call.ok("ADD");
    result["routes"].as_array_mut().unwrap().push(json!({"dst": "10.20.0.0/16", "gw": "10.0.0.1"}));
    let check = call.with(json!({"prevResult": result}));
    assert!(check.fails("CHECK", 102).contains("lost route 10.20.0.0/16 via 10.0.0.1"));
    Node::ip(&pod, "route add 10.20.0.0/16 via 10.0.0.1 dev eth0");
    check.ok("CHECK");
    Node::ip(&pod, "route del default dev net1");
    assert!(check.fails("CHECK", 102).contains("lost route 0.0.0.0/0 via 10.9.0.1"));
}

#[test]
fn two_thousand_routes_are_checked_in_one_list() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let routes: Vec<Value> = (0..2_000)
        .map(|n| json!({"dst": format!("10.{}.{}.0/24", 100 + n / 250, n % 250), "gw": "10.9.0.1"}))
        .collect();
    let ipam = json!({"type": "static", "addresses": [{"address": "10.9.0.2/24"}], "routes": routes});
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": ipam}));
    let result = call.ok("ADD");
    let checked = call.with(json!({"prevResult": result}));
    // One dump is some 60 datagrams; one for each route were 2,000 requests.
    let (answer, requests) = checked.counted("CHECK", "sendto");
    assert!(answer.success, "{answer:?}");
    assert!(requests < 20, "{requests} requests");
    Node::ip(&pod, "route del 10.105.7.0/24");
    assert!(checked.fails("CHECK", 102).contains("lost route 10.105.7.0/24 via 10.9.0.1"));
}
