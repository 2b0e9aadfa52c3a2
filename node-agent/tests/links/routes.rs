//! Routing tables as large as the Internet's.

use crate::support::kubelet::Kubelet;
use crate::support::{Node, is_root};

/// So many routes, each of one address.
const ROUTES: u32 = 200_000;

/// What parent and worker may have had at any time, in KiB: a few times what they have on a node without routes, and a
/// fraction of what so many routes take.
const MEMORY: u64 = 64 << 10;

/// A pool that takes a link whole, which it does not get while the link has a default route.
fn passthru(name: &str, link: &str) -> String {
    format!(r#"{{"name":"{name}","lowerDevice":"{link}","mode":"passthru"}}"#)
}

/// A node with these links.
fn node(links: &[&str]) -> Node {
    let node = Node::new();
    for link in links {
        node.add_link(link);
    }
    node
}

#[test]
fn a_default_route_is_found_behind_any_number_of_others_and_they_cost_no_memory() {
    if !is_root() {
        return;
    }
    let node = node(&["dp0", "dp1"]);
    node.sh(&format!(
        "awk 'BEGIN {{ for (i = 0; i < {ROUTES}; i++) \
         printf \"route add 10.%d.%d.%d/32 dev dp1\\n\", i / 65536, i / 256 % 256, i % 256 }}' | ip -batch - && \
         ip route add default dev dp0 table 77"
    ));
    let kubelet = Kubelet::start(&node);
    let agent = node.agent(&format!("[{},{}]", passthru("uplink", "dp0"), passthru("other", "dp1")));
    kubelet.await_healthy("other", 1);
    kubelet.await_healthy("uplink", 0);
    let memory = agent.memory("VmHWM");
    assert!(memory < MEMORY, "{memory} KiB");
}

#[test]
fn a_default_route_that_names_a_nexthop_object_only_is_found() {
    if !is_root() {
        return;
    }
    let node = node(&["dp0", "dp1", "dp2"]);
    node.sh(
        "sysctl -qw net.ipv4.nexthop_compat_mode=0; ip nexthop add id 1 dev dp0; ip nexthop add id 2 group 1; \
         ip route add default nhid 2; ip nexthop add id 3 via fe80::9 dev dp2; ip -6 route add default nhid 3",
    );
    let kubelet = Kubelet::start(&node);
    let pools = [passthru("uplink", "dp0"), passthru("other", "dp1"), passthru("uplink6", "dp2")];
    let _agent = node.agent(&format!("[{}]", pools.join(",")));
    kubelet.await_healthy("other", 1);
    kubelet.await_healthy("uplink", 0);
    kubelet.await_healthy("uplink6", 0);
}

#[test]
fn a_default_route_that_goes_another_way_because_its_nexthop_object_was_replaced_is_noticed() {
    if !is_root() {
        return;
    }
    let node = node(&["dp0", "dp1"]);
    node.sh(
        "sysctl -qw net.ipv4.nexthop_compat_mode=0; ip nexthop add id 1 dev dp0; ip nexthop add id 2 group 1; \
         ip route add default nhid 2",
    );
    let kubelet = Kubelet::start(&node);
    let _agent = node.agent(&format!("[{},{}]", passthru("first", "dp0"), passthru("second", "dp1")));
    kubelet.await_healthy("first", 0);
    kubelet.await_healthy("second", 1);
    // Of the route itself nothing is reported.
    node.sh("ip nexthop replace id 1 dev dp1");
    kubelet.await_healthy("second", 0);
    kubelet.await_healthy("first", 1);
}
