//! IPv6 on the pod's interface: what was leased and nothing from the wire; and links that can have none.

use crate::host_device;
use crate::support::{Call, Holder, Node, bare_node_and_pods, link, node_and_pods, wait_until};
use macvtap_cni::packet::PacketSocket;
use serde_json::{Value, json};

const V4: &str = "10.9.0.2/24";
const V6: &str = "fd09::2/64";

fn lease(addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"address": address})).collect();
    json!({"ipam": {"type": "static", "addresses": addresses}})
}

/// A router advertisement (RFC 4861, 4.2) of `fe80::99` for `2001:db8:5::/64`, as a frame.
fn advertisement() -> Vec<u8> {
    let source: std::net::Ipv6Addr = "fe80::99".parse().unwrap();
    let group: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
    let prefix: std::net::Ipv6Addr = "2001:db8:5::".parse().unwrap();
    let mac = [0x02, 0, 0, 0, 0, 0x99];
    let mut message = [&[134, 0, 0, 0, 64, 0, 0x07, 0x08][..], &[0; 8], &[1, 1], &mac].concat();
    message.extend(
        [&[3, 4, 64, 0xc0][..], &86_400_u32.to_be_bytes(), &14_400_u32.to_be_bytes(), &[0; 4]].concat(),
    );
    message.extend(prefix.octets());
    let length = u16::try_from(message.len()).unwrap();
    let pseudo =
        [&source.octets()[..], &group.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, 58], &message]
            .concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[2..4].copy_from_slice(&u16::try_from(!sum & 0xffff).unwrap().to_be_bytes());
    let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255]].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd], &header, &source.octets(), &group.octets(), &message]
        .concat()
}

/// Sends advertisements from the far end of the cable until a macvlan next to the pod's link, which accepts them as any
/// host does, has an address by one: then the pod's link has received one too.
fn advertise(node: &Node) {
    node.sh("ip link add witness link dp0 type macvlan mode bridge; sysctl -qw net.ipv6.conf.witness.accept_ra=2; ip link set witness up");
    let index = node.ifindex("dp1");
    let socket = node.inside(|| PacketSocket::open(index, None).unwrap());
    wait_until("the witness takes the advertisement", || {
        socket.send(&advertisement()).unwrap();
        node.sh("ip -6 -o addr show dev witness scope global").contains("2001:db8:5:")
    });
}

/// Global addresses and default routes that nobody leased; and link-local addresses.
fn from_the_wire(pod: &Holder) -> [String; 3] {
    let global = Node::ip(pod, "-6 -o addr show dev net1 scope global");
    let global = global.lines().filter(|line| !line.contains("fd09::2/64")).collect();
    [
        global,
        Node::ip(pod, "-6 route show default dev net1"),
        Node::ip(pod, "-6 -o addr show dev net1 scope link"),
    ]
}

const NOTHING: [&str; 3] = [""; 3];

#[test]
fn a_router_on_the_wire_configures_no_macvtap_whatever_was_leased() {
    for keys in [json!({}), lease(&[V4]), lease(&[V6])] {
        let Some((node, [pod])) = node_and_pods() else { return };
        Call::new(&node, &pod, "c1").with(keys.clone()).ok("ADD");
        advertise(&node);
        let [global, route, local] = from_the_wire(&pod);
        assert_eq!([&*global, &*route], ["", ""], "{keys}");
        assert_eq!(local.is_empty(), keys != lease(&[V6]), "{keys}: {local}");
    }
}

#[test]
fn a_router_on_the_wire_configures_no_nic_and_no_moved_link() {
    for keys in [json!({}), lease(&[V4])] {
        let Some((node, pod)) = host_device::ready_node() else { return };
        host_device::call(&node, &pod, "c1").with(keys.clone()).ok("ADD");
        // The NIC is one end of the cable, so the pod's kernel itself shows when a frame has come.
        let index = node.ifindex("dp1");
        let socket = node.inside(|| PacketSocket::open(index, None).unwrap());
        let received = || Node::ip(&pod, "-s -j link show net1");
        let count = |text: &str| {
            let links: Value = serde_json::from_str(text).unwrap();
            links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
        };
        let before = count(&received());
        wait_until("the NIC takes the advertisement", || {
            socket.send(&advertisement()).unwrap();
            count(&received()) > before + 3
        });
        assert_eq!(from_the_wire(&pod), NOTHING, "{keys}");

        let Some((node, [pod])) = bare_node_and_pods() else { return };
        node.store_table(|table| table.standalone = true);
        node.sh("ip link add link dp0 name mvt0 type macvtap mode bridge; ip link set mvt0 up");
        Call::new(&node, &pod, "c1").with(json!({"deviceID": "mvt0"})).with(keys.clone()).ok("ADD");
        advertise(&node);
        assert_eq!(from_the_wire(&pod), NOTHING, "{keys}");
    }
}

#[test]
fn a_link_too_small_for_ipv6_is_attached_and_an_ipv6_lease_refused_in_words() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    for keys in [json!({"mtu": 1000}), json!({"mtu": 1279}), lease(&[V4])] {
        let call = call.clone().with(json!({"mtu": 1000})).with(keys);
        call.ok("ADD");
        assert!(link(&pod)["flags"].to_string().contains("\"UP\""));
        call.ok("DEL");
    }
    let before = node.traces();
    let message = call.clone().with(lease(&[V4, V6])).with(json!({"mtu": 1000})).fails("ADD", 100);
    assert!(
        message.contains("cannot have IPv6 address fd09::2/64: its MTU of 1000 is below 1280"),
        "{message}"
    );
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
    node.sh("ip link set dp0 mtu 1200");
    call.ok("ADD");
    call.ok("DEL");
    node.store_table(|table| table.standalone = true);
    node.sh("ip link add link dp0 name mvt0 type macvtap mode bridge");
    call.clone().with(json!({"deviceID": "mvt0"})).ok("ADD");
}

#[test]
fn duplicate_address_detection_is_a_key_of_its_own_and_leaves_the_pods_timers() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh("ip addr add fd09::2/64 dev dp1 nodad");
    let holder = node.sh("ip -o link show dp1").split("link/ether ").nth(1).unwrap()[..17].to_owned();
    let call = Call::new(&node, &pod, "c1").with(lease(&[V6]));
    for keys in [json!({}), json!({"dad": "Auto"}), json!({"announce": "Never", "dad": "Auto"})] {
        let message = call.clone().with(keys.clone()).fails("ADD", 100);
        let who = format!("address fd09::2/64 is in use by another host ({holder}) on the network of net1");
        assert!(message.contains(&who), "{keys}: {message}");
        assert_eq!(link(&pod), Value::Null);
    }
    for keys in [json!({"dad": "Never"}), json!({"announce": "Never"})] {
        call.clone().with(keys).ok("ADD");
        let timer = std::process::Command::new("nsenter")
            .args([
                &format!("--net={}", pod.netns().display()),
                "cat",
                "/proc/sys/net/ipv6/neigh/net1/retrans_time_ms",
            ])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&timer.stdout).trim(), "1000");
        call.ok("DEL");
    }
    assert!(call.with(json!({"dad": "Maybe"})).fails("ADD", 7).contains("dad"));
}

#[test]
fn two_routers_to_one_destination_are_found_again() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let routes = json!([{"dst": "::/0", "gw": "fe80::1"}, {"dst": "::/0", "gw": "fe80::2"}, {"dst": "10.8.0.0/24", "gw": "10.9.0.8"}, {"dst": "10.8.0.0/24", "gw": "10.9.0.9"}]);
    let addresses = json!([{"address": "fd09::2/64"}, {"address": "10.9.0.2/24"}]);
    let ipam = json!({"type": "static", "addresses": addresses, "routes": routes});
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": ipam}));
    let result = call.ok("ADD");
    Node::ip(&pod, "link set net1 alias kept");
    let checked = call.clone().with(json!({"prevResult": result}));
    checked.ok("CHECK");
    call.ok("ADD");
    assert_eq!(link(&pod)["ifalias"], "kept", "a repeated ADD leaves the link of a running pod alone");
    Node::ip(&pod, "-6 route del default via fe80::2 dev net1");
    assert!(checked.fails("CHECK", 102).contains("lost route ::/0 via fe80::2"));
}
