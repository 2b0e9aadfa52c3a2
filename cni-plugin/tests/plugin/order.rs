//! In which order ADD does things: nothing is touched for a call that cannot succeed, and what fails is undone from the end.

use crate::support::{Call, link, node_and_pods};
use serde_json::{Value, json};

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
                resource.links[0].ifindex = index;
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
