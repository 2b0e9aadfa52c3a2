//! Whole NICs. A veth stands for the NIC, and a table that somebody wrote by hand gives it a PCI address. It differs from
//! a real one in how it is known, by its old name in its alias, and in that it ends with the pod's namespace; a real one
//! then falls back into the initial namespace, which tests in virtual machines show.

mod attach;
mod disturbed;
mod give_back;
mod hostile;
mod refused;

use crate::support::{Call, Holder, Node, is_root, pod, record};
use macvtap::record::Attachment;
use serde_json::{Value, json};

const PCI: &str = "0000:00:0a.0";

/// A node that gives `dp0` away as a whole. The NIC has another name and settings of its own.
fn node() -> Node {
    let node = Node::new();
    node.sh(
        "ip link property add dev dp0 altname enp0s10; ip link set dp0 mtu 1450 address 02:00:00:00:00:77",
    );
    node.store_table(|table| Node::make_nic(table, PCI));
    node
}

pub(super) fn ready_node() -> Option<(Node, Holder)> {
    is_root().then(|| (node(), pod()))
}

pub(super) fn call<'n>(node: &'n Node, pod: &Holder, container: &str) -> Call<'n> {
    Call::new(node, pod, container).with(json!({"deviceID": PCI}))
}

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
        "flags": [is("UP"), is("PROMISC"), is("ALLMULTI")], "arp": !is("NOARP"), "multicast": is("MULTICAST"),
        "queue": link["txqlen"], "group": link["group"], "mode": link["linkmode"],
    })
}

/// The NIC on the node, by any name; null when it is not there.
fn nic(node: &Node, name: &str) -> Value {
    let links: Value = serde_json::from_str(&node.sh("ip -d -j link")).unwrap();
    let found = links.as_array().unwrap().iter().find(|link| link["ifname"] == name);
    found.map(shape).unwrap_or_default()
}

fn state(node: &Node, pod: &Holder) -> (Value, String, String) {
    (nic(node, "dp0"), node.traces(), Node::ip(pod, "-br link"))
}

fn current(node: &Node) -> Attachment {
    record(node, 0).unwrap()
}
