//! What is on the wire, and what reaches the guest: frames at the far end of the lower link's cable, and at the tap.

use crate::host_device;
use crate::support::{
    Call, Frame, Holder, Node, bare_node_and_pods, frames_until, link, node_and_pods, octets, pod, record,
};
use macvtap::kernel::Rtnl;
use macvtap::mode::Mode;
use macvtap::table::PLACEHOLDER_IFINDEX_FIRST;
use macvtap::{park, tap};
use macvtap_cni::packet::PacketSocket;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;

/// `ETH_P_ALL` of `linux/if_ether.h`.
const EVERY_TYPE: u16 = 3;

/// In front of a frame at a tap: `struct virtio_net_hdr`.
const TAP_HEADER: usize = 10;

const BROADCAST: [u8; 6] = [0xff; 6];
const LLDP_GROUP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
const FAR_END: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// The far end of the cable.
pub(crate) fn far_end(node: &Node) -> PacketSocket {
    let index = node.ifindex("dp1");
    node.inside(|| PacketSocket::open(index, Some(EVERY_TYPE)).unwrap())
}

/// The tap of a slot, opened as a guest does.
pub(crate) fn tap_of(node: &Node, slot: u32) -> OwnedFd {
    open(&node.paths().device_node(node.first_ifindex + slot))
}

fn open(path: &std::path::Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDWR | OFlags::NONBLOCK, rustix::fs::Mode::empty()).unwrap()
}

fn from(mac: [u8; 6]) -> impl Fn(&[u8]) -> bool {
    move |frame| frame.get(6..12) == Some(&mac[..])
}

/// A request of this host for its own IPv4 address.
fn is_gratuitous_arp(frame: &[u8], mac: [u8; 6], address: [u8; 4]) -> bool {
    from(mac)(frame)
        && frame.get(..6) == Some(&BROADCAST[..])
        && frame.get(12..14) == Some(&[8, 6])
        && frame.get(28..32) == Some(&address)
        && frame.get(38..42) == Some(&address)
}

/// An `ICMPv6` message of this kind from this host; the target of neighbour discovery is what follows its head.
fn is_icmp6(frame: &[u8], mac: [u8; 6], kind: u8) -> bool {
    from(mac)(frame)
        && frame.get(12..14) == Some(&[0x86, 0xdd])
        && frame.get(20) == Some(&58)
        && frame.get(54) == Some(&kind)
}

fn is_advertisement(frame: &[u8], mac: [u8; 6], address: std::net::Ipv6Addr) -> bool {
    const SOLICITED: u8 = 0x40;
    is_icmp6(frame, mac, 136)
        && frame.get(58).is_some_and(|flags| flags & SOLICITED == 0)
        && frame.get(62..78) == Some(&address.octets())
}

/// A call that gets fixed addresses.
fn with_addresses<'n>(node: &'n Node, pod: &Holder, slot: u32) -> Call<'n> {
    let addresses: Vec<Value> = [format!("10.5.0.1{slot}/24"), format!("fd05::1{slot}/64")]
        .into_iter()
        .map(|address| json!({"address": address}))
        .collect();
    let ipam = json!({"type": "static", "addresses": addresses});
    Call::new(node, pod, &format!("c{slot}")).device(slot).with(json!({"ipam": ipam}))
}

fn v4(slot: u8) -> [u8; 4] {
    [10, 5, 0, 10 + slot]
}

fn v6(slot: u32) -> std::net::Ipv6Addr {
    format!("fd05::1{slot}").parse().unwrap()
}

#[test]
fn new_addresses_are_announced_unless_the_network_says_never() {
    let Some((node, [quiet, loud])) = node_and_pods() else { return };
    let wire = far_end(&node);
    // Even where the node's own default is to announce.
    node.sh("sysctl -qw net.ipv4.conf.default.arp_notify=1 net.ipv6.conf.default.ndisc_notify=1");
    let result = with_addresses(&node, &quiet, 0).with(json!({"announce": "Never"})).ok("ADD");
    let quiet_mac = octets(&result["interfaces"][0]["mac"]);
    let result = with_addresses(&node, &loud, 1).ok("ADD");
    let loud_mac = octets(&result["interfaces"][0]["mac"]);
    let mut seen =
        frames_until(&wire, 0, "a gratuitous ARP", |frame| is_gratuitous_arp(frame, loud_mac, v4(1)));
    // ADD ends after it sent the advertisement.
    if !seen.iter().any(|frame| is_advertisement(frame, loud_mac, v6(1))) {
        seen.extend(frames_until(&wire, 0, "an advertisement", |frame| {
            is_advertisement(frame, loud_mac, v6(1))
        }));
    }
    let told = |frame: &Frame| {
        is_gratuitous_arp(frame, quiet_mac, v4(0))
            || is_icmp6(frame, quiet_mac, 136)
            || frame.get(28..32) == Some(&v4(0))
    };
    let of_quiet: Vec<_> = seen.iter().filter(|frame| told(frame)).collect();
    assert!(of_quiet.is_empty(), "{of_quiet:02x?}");
    for (pod, slot) in [(&quiet, 0), (&loud, 1)] {
        let addresses = Node::ip(pod, "-o addr show dev net1");
        let ours = addresses.lines().find(|line| line.contains(&v6(slot).to_string())).unwrap();
        assert!(!ours.contains("tentative"), "{ours}");
    }
}

#[test]
fn the_addresses_of_a_whole_nic_are_announced_also_if_its_carrier_came_late() {
    let Some((node, pod)) = host_device::ready_node() else { return };
    let wire = far_end(&node);
    let addresses = json!([{"address": "10.5.0.10/24"}, {"address": "fd05::10/64"}]);
    let ipam = json!({"ipam": {"type": "static", "addresses": addresses}});
    let result = host_device::call(&node, &pod, "c1").with(ipam).ok("ADD");
    let mac = octets(&result["interfaces"][0]["mac"]);
    // Sent after whatever ADD sent.
    far_end(&node).send(&[&BROADCAST[..], &FAR_END, &[0x88, 0xb5], &[0; 46]].concat()).unwrap();
    let seen = frames_until(&wire, 0, "the last frame", from(FAR_END));
    let told = seen.iter().filter(|frame| is_gratuitous_arp(frame, mac, v4(0))).count();
    // The kernel's comes when the link is up, ours when it can send: with a slow carrier the first one is lost.
    assert!((1..=2).contains(&told), "{seen:02x?}");
    // The kernel's comes once the address is found unique.
    let is_told = |frame: &[u8]| is_advertisement(frame, mac, v6(0));
    if !seen.iter().any(|frame| is_told(frame)) {
        frames_until(&wire, 0, "an advertisement", is_told);
    }
}

#[test]
fn an_address_that_its_former_holder_still_has_is_taken_over_quietly() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // As the source of a migration has it.
    node.sh("ip -6 addr add fd05::10/64 dev dp1 nodad");
    with_addresses(&node, &pod, 0).fails("ADD", 100);
    with_addresses(&node, &pod, 0).with(json!({"announce": "Never"})).ok("ADD");
    let addresses = Node::ip(&pod, "addr show dev net1");
    assert!(addresses.contains("fd05::10/64") && !addresses.contains("dadfailed"), "{addresses}");
}

#[test]
fn the_pods_kernel_says_nothing_on_the_wire_when_the_network_has_no_ipam() {
    let Some((node, [pod, control])) = node_and_pods() else { return };
    let wire = far_end(&node);
    let result = Call::new(&node, &pod, "c1").ok("ADD");
    let mac = octets(&result["interfaces"][0]["mac"]);
    // The same link as the kernel makes it. Made later, and so done later with what kernels say about a new link: a
    // neighbour solicitation, a router solicitation, reports of its multicast groups.
    let index = node.first_ifindex + 60;
    let net = control.netns().display().to_string();
    node.sh(&format!(
        "ip link add link dp0 name ctl0 index {index} netns {} type macvtap mode bridge",
        pid_of(&net)
    ));
    Node::ip(&control, "link set ctl0 up");
    let links: Value = serde_json::from_str(&Node::ip(&control, "-j link show dev ctl0")).unwrap();
    let control_mac = octets(&links[0]["address"]);
    let seen = frames_until(&wire, 0, "a router solicitation", |frame| is_icmp6(frame, control_mac, 133));
    assert!(
        seen.iter().any(|frame| is_icmp6(frame, control_mac, 135)),
        "the control says less than expected"
    );
    let ours: Vec<_> = seen.iter().filter(|frame| from(mac)(frame)).collect();
    assert!(ours.is_empty(), "{ours:02x?}");
    assert!(!Node::ip(&pod, "addr show dev net1").contains("inet"));
}

/// The process in `/proc/<pid>/ns/net`, by which iproute2 names a namespace.
fn pid_of(netns: &str) -> &str {
    netns.split('/').nth(2).unwrap()
}

/// A frame of the far end; `number` is in its last byte.
fn frame(to: [u8; 6], ethertype: [u8; 2], number: u8) -> Frame {
    let mut frame = [&to[..], &FAR_END, &ethertype, &[0; 45]].concat();
    frame.push(number);
    frame
}

/// A solicitation for an address whose group nobody in the pod joined, LLDP, a frame for a stranger, and one that every
/// link takes, in this order.
fn send_all(wire: &PacketSocket) -> [Frame; 4] {
    let frames = [
        frame([0x33, 0x33, 0xff, 0x12, 0x34, 0x56], [0x86, 0xdd], 1),
        frame(LLDP_GROUP, [0x88, 0xcc], 2),
        frame([0x02, 0, 0, 0, 0, 0x77], [0x08, 0], 3),
        frame(BROADCAST, [0x08, 0], 4),
    ];
    for frame in &frames {
        wire.send(frame).unwrap();
    }
    frames
}

/// Which of the four frames reach the tap of a slot.
fn heard(node: &Node, slot: u32) -> [bool; 4] {
    let (wire, guest) = (far_end(node), tap_of(node, slot));
    let sent = send_all(&wire);
    let got = frames_until(&guest, TAP_HEADER, "the broadcast", |frame| frame == sent[3].as_slice());
    sent.map(|frame| got.contains(&frame))
}

/// So many groups that nobody joined.
const GROUPS: u8 = 64;

/// How many groups' frames reach the tap of a slot. Of those that nobody joined some do: macvlan knows joined groups by 8 bits
/// of a hash with a key that each network namespace draws (`mc_hash` in drivers/net/macvlan.c).
fn groups_received(node: &Node, slot: u32) -> u8 {
    let (wire, guest) = (far_end(node), tap_of(node, slot));
    for group in 0..GROUPS {
        wire.send(&frame([0x33, 0x33, 0xff, 0x12, 0x34, group], [0x86, 0xdd], group)).unwrap();
    }
    let last = frame(BROADCAST, [0x08, 0], GROUPS);
    wire.send(&last).unwrap();
    let got = frames_until(&guest, TAP_HEADER, "the broadcast", |frame| frame == last.as_slice());
    let is_of_group = |frame: &&Frame| frame.starts_with(&[0x33, 0x33, 0xff, 0x12, 0x34]);
    u8::try_from(got.iter().filter(is_of_group).count()).unwrap()
}

#[test]
fn a_guest_hears_solicitations_and_lldp_because_its_link_takes_all_multicast() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1");
    call.ok("ADD");
    assert_eq!(heard(&node, 0), [true, true, false, true]);
    assert_eq!(groups_received(&node, 0), GROUPS);
    call.ok("DEL");
    // A pool may turn it off; then the guest gets only what the pod's kernel joined.
    node.store_table(|table| {
        table.resources.values_mut().for_each(|resource| resource.all_multicast = false);
    });
    call.ok("ADD");
    assert_eq!(link(&pod)["allmulti"], 0);
    let got = groups_received(&node, 0);
    assert!(got < GROUPS / 2, "{got} of {GROUPS} groups");
}

/// The kernel gives a promiscuous macvtap every group's frames, and those for strangers only to one in passthru mode.
#[test]
fn a_promiscuous_guest_hears_every_group_and_strangers_frames_in_passthru_mode() {
    for (mode, strangers) in [(Mode::Bridge, false), (Mode::Passthru, true)] {
        let Some((node, [pod])) = bare_node_and_pods() else { return };
        node.store_table(|table| {
            for resource in table.resources.values_mut() {
                resource.all_multicast = false;
                resource.links_mut()[0].mode = mode;
            }
        });
        Call::new(&node, &pod, "c1").with(json!({"promiscMode": true})).ok("ADD");
        assert_eq!(heard(&node, 0), [true, true, strangers, true], "{mode}");
    }
}

#[test]
fn a_guests_frames_leave_by_the_lower_link_and_siblings_meet_as_the_mode_says() {
    for mode in [Mode::Bridge, Mode::Private] {
        let Some((node, [one, two])) = bare_node_and_pods() else { return };
        node.store_table(|table| {
            table.resources.values_mut().for_each(|resource| resource.links_mut()[0].mode = mode);
        });
        Call::new(&node, &one, "one").ok("ADD");
        Call::new(&node, &two, "two").device(1).ok("ADD");
        assert!(record(&node, 1).is_some());
        let (first, second) = (tap_of(&node, 0), tap_of(&node, 1));
        let wire = far_end(&node);
        let sent = frame(BROADCAST, [0x08, 0], 9);
        rustix::io::write(&first, &[&[0; TAP_HEADER][..], &sent].concat()).unwrap();
        frames_until(&wire, 0, "the guest's frame", |frame| frame == sent.as_slice());
        // What comes from outside reaches both; it comes after whatever the sibling sent.
        let last = frame(BROADCAST, [0x08, 0], 10);
        wire.send(&last).unwrap();
        let got = frames_until(&second, TAP_HEADER, "the last frame", |frame| frame == last.as_slice());
        assert_eq!(got.contains(&sent), mode == Mode::Bridge, "{mode}");
    }
}

#[test]
fn a_container_that_kept_the_number_of_a_lost_tap_never_hears_the_next_pod() {
    let Some((node, [])) = node_and_pods() else { return };
    // Minors are the machine's: another test may get the lost one before our next link does.
    let shown = (0..50).any(|_| {
        let (lost, next) = (pod(), pod());
        Call::new(&node, &lost, "lost").ok("ADD");
        let old = record(&node, 0).unwrap().tap.unwrap();
        Node::ip(&lost, "link del net1");
        let result = Call::new(&node, &next, "next").device(1).ok("ADD");
        let mac = octets(&result["interfaces"][0]["mac"]);
        // Only then is it not the tap of another test, from which opening it would take frames.
        let is_placeholder = tap::link_with(old).is_some_and(|index| index >= PLACEHOLDER_IFINDEX_FIRST);
        if is_placeholder {
            node.sh(&format!("rm -f /run/old; mknod /run/old c {} {}", old.major, old.minor));
            let kept = open(&node.paths().run().with_file_name("old"));
            let (wire, guest) = (far_end(&node), tap_of(&node, 1));
            let sent = frame(mac, [0x08, 0], 11);
            wire.send(&sent).unwrap();
            frames_until(&guest, TAP_HEADER, "the next pod's frame", |frame| frame == sent.as_slice());
            assert_eq!(
                rustix::io::read(&kept, &mut [0; 100]),
                Err(Errno::AGAIN),
                "the old container heard it"
            );
        }
        for (pod, container, slot) in [(&lost, "lost", 0), (&next, "next", 1)] {
            Call::new(&node, pod, container).device(slot).ok("DEL");
        }
        node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
        is_placeholder
    });
    assert!(shown, "the lost minor always went to another test");
}
