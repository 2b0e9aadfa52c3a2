//! Two guests, the links between them, and the ways there are to connect them.

use crate::frames::Mac;
use crate::support::port::Port;
use crate::support::queue::Queue;
use crate::support::vhost::Vhost;
use crate::support::{Call, Holder, Node, octets, pod};
use macvtap::netns::Netns;
use serde_json::json;
use std::path::PathBuf;

/// Every link's MTU: smaller frames pass all the same.
const MTU: u32 = 9000;

/// Who moves a guest's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// This program, by `read` and `write`.
    User,
    /// The kernel's vhost-net.
    Vhost,
}

/// What a guest's tap is.
enum Device {
    /// A macvtap with this device node.
    Macvtap(PathBuf),
    /// `tap0` of this namespace.
    Tap(PathBuf),
}

/// A guest.
pub(crate) struct Guest {
    pub(crate) mac: Mac,
    device: Device,
}

impl Guest {
    /// Opens its tap so many times.
    pub(crate) fn open(&self, end: End, queues: usize, segments: bool) -> Vec<Box<dyn Port>> {
        let one = || -> Box<dyn Port> {
            let queue = match &self.device {
                Device::Macvtap(path) => Queue::of_macvtap(path).unwrap(),
                Device::Tap(netns) => {
                    Netns::open(netns).unwrap().enter(|| Queue::of_tap("tap0")).unwrap().unwrap()
                }
            };
            queue.take_segments(segments).unwrap();
            match end {
                End::User => Box::new(queue),
                End::Vhost => Box::new(Vhost::new(queue).unwrap()),
            }
        };
        (0..queues).map(|_| one()).collect()
    }
}

/// Two guests that reach each other.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) guests: [Guest; 2],
    _nodes: Vec<Node>,
    _namespaces: Vec<Holder>,
}

impl Scene {
    /// Every scene that is measured.
    pub(crate) fn all() -> Vec<Self> {
        vec![Self::macvtap_same(), Self::macvtap_other(), Self::bridge_same(), Self::bridge_other()]
    }

    /// Two macvtaps of one lower link in bridge mode.
    fn macvtap_same() -> Self {
        let node = node();
        node.store_table(|_| ());
        let pods = [pod(), pod()];
        let guests = [(0, &pods[0]), (1, &pods[1])].map(|(slot, pod)| attach(&node, pod, slot));
        Self { name: "macvtap_same_node", guests, _nodes: vec![node], _namespaces: pods.into() }
    }

    /// A macvtap at each end of a cable between two nodes.
    fn macvtap_other() -> Self {
        let [near, far] = [node(), node()];
        far.sh("ip link del dp0");
        near.sh(&format!("ip link set dp1 netns {}", far.holder.pid()));
        far.sh(&format!("ip link set dp1 name dp0 mtu {MTU} up"));
        let nodes = [near, far];
        for node in &nodes {
            node.store_table(|_| ());
        }
        let pods = [pod(), pod()];
        let guests = [0, 1].map(|side: usize| attach(&nodes[side], &pods[side], 0));
        Self { name: "macvtap_other_node", guests, _nodes: nodes.into(), _namespaces: pods.into() }
    }

    /// A tap in a bridge of each pod, which a cable connects with the node's bridge.
    fn bridge_same() -> Self {
        let node = bridge_node();
        let pods = [pod(), pod()];
        let guests = [(1, &pods[0]), (2, &pods[1])].map(|(number, pod)| attach_bridge(&node, pod, number));
        Self {
            name: "bridge_same_node",
            guests,
            _nodes: Vec::new(),
            _namespaces: pods.into_iter().chain([node]).collect(),
        }
    }

    /// The same, with a cable between the bridges of two nodes.
    fn bridge_other() -> Self {
        let nodes = [bridge_node(), bridge_node()];
        Node::ip(&nodes[0], &format!("link add up0 type veth peer name up0 netns {}", nodes[1].pid()));
        for node in &nodes {
            Node::ip(node, &format!("link set up0 master br0 mtu {MTU} up"));
        }
        let pods = [pod(), pod()];
        let guests = [0, 1].map(|side: usize| attach_bridge(&nodes[side], &pods[side], side + 1));
        Self {
            name: "bridge_other_node",
            guests,
            _nodes: Vec::new(),
            _namespaces: pods.into_iter().chain(nodes).collect(),
        }
    }
}

fn node() -> Node {
    let node = Node::new();
    node.sh(&format!("ip link set dp0 mtu {MTU}; ip link set dp1 mtu {MTU}"));
    node
}

/// By the plugin's own ADD.
fn attach(node: &Node, pod: &Holder, slot: u32) -> Guest {
    let call = Call::new(node, pod, &format!("guest{slot}-{}", pod.pid())).device(slot);
    let result = call.with(json!({"mtu": MTU})).ok("ADD");
    let path = node.paths().device_node(node.first_ifindex + slot);
    Guest { mac: octets(&result["interfaces"][0]["mac"]), device: Device::Macvtap(path) }
}

fn bridge_node() -> Holder {
    let node = pod();
    Node::ip(&node, &format!("link add br0 mtu {MTU} type bridge"));
    Node::ip(&node, "link set br0 up");
    node
}

/// As KubeVirt's bridge binding does behind the bridge plugin.
fn attach_bridge(node: &Holder, pod: &Holder, number: usize) -> Guest {
    Node::ip(node, &format!("link add veth{number} type veth peer name net1 netns {}", pod.pid()));
    Node::ip(node, &format!("link set veth{number} master br0 mtu {MTU} up"));
    for command in ["link add br1 type bridge", "tuntap add tap0 mode tap vnet_hdr multi_queue"] {
        Node::ip(pod, command);
    }
    for link in ["net1", "tap0"] {
        Node::ip(pod, &format!("link set {link} master br1 mtu {MTU} up"));
    }
    Node::ip(pod, &format!("link set br1 mtu {MTU} up"));
    Guest { mac: [2, 0, 0, 0, 9, u8::try_from(number).unwrap()], device: Device::Tap(pod.netns()) }
}
