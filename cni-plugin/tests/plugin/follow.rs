//! `migration: Follow`: the link has the guest's address only while the guest is behind it. A sibling of the same lower
//! link stands for the node's other pods, the far end of the cable for the other node.

use crate::support::{Call, Frame, Holder, Node, frames_until, link, node_and_pods, pod};
use crate::wire::{far_end, tap_of};
use macvtap_cni::packet::PacketSocket;
use serde_json::{Value, json};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// In front of a frame at a tap: `struct virtio_net_hdr`.
const TAP_HEADER: usize = 10;

pub(crate) const GUEST: [u8; 6] = [0x02, 0x23, 0x45, 0x67, 0x89, 0x0a];
pub(crate) const SIBLING: [u8; 6] = [0x02, 0x23, 0x45, 0x67, 0x89, 0x0b];
const STRANGER: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
pub(crate) const RARP: [u8; 2] = [0x80, 0x35];
const ANY: [u8; 2] = [0x88, 0xb6];

pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

pub(crate) fn frame(to: [u8; 6], from: [u8; 6], kind: [u8; 2], mark: u8) -> Frame {
    let mut frame = [&to[..], &from, &kind, &[mark]].concat();
    frame.resize(60, 0);
    frame
}

/// A guest's machine, a pod beside it, and the wire.
pub(crate) struct Scene<'n> {
    node: &'n Node,
    pub(crate) guest: OwnedFd,
    sibling: OwnedFd,
    pub(crate) wire: PacketSocket,
}

pub(crate) fn machine<'n>(node: &'n Node, pod: &Holder, migration: &str) -> Call<'n> {
    let mac = json!({"mac": text(GUEST)});
    Call::new(node, pod, "vm").with(json!({"migration": migration, "runtimeConfig": mac}))
}

impl<'n> Scene<'n> {
    /// The machine of this call, and its sibling in `beside`, are there.
    pub(crate) fn new(node: &'n Node, call: &Call<'_>, beside: &Holder) -> Self {
        let result = call.ok("ADD");
        assert_eq!(result["interfaces"][0]["mac"], text(GUEST));
        let mac = json!({"runtimeConfig": {"mac": text(SIBLING)}});
        Call::new(node, beside, "sibling").device(1).with(mac).ok("ADD");
        Self { node, guest: tap_of(node, 0), sibling: tap_of(node, 1), wire: far_end(node) }
    }

    pub(crate) fn send(tap: &OwnedFd, frame: &Frame) {
        let whole = [&[0; TAP_HEADER][..], frame].concat();
        assert_eq!(rustix::io::write(tap, &whole).unwrap(), whole.len());
    }

    /// Where a frame of the sibling to the guest's address comes out: at the guest, or on the wire.
    fn reaches_guest(&self, mark: u8) -> bool {
        Self::send(&self.sibling, &frame(GUEST, SIBLING, ANY, mark));
        // A broadcast behind it arrives at both places: what is not there by then does not come.
        Self::send(&self.sibling, &frame(BROADCAST, SIBLING, ANY, mark));
        let is_end = |frame: &[u8]| frame.starts_with(&BROADCAST) && frame.get(14) == Some(&mark);
        let is_ours = |frame: &Frame| frame.starts_with(&GUEST) && frame.get(14) == Some(&mark);
        let seen = |source: &dyn AsFd, skip| {
            frames_until(source.as_fd(), skip, "the broadcast", is_end).iter().any(is_ours)
        };
        let (at_guest, on_wire) = (seen(&self.guest, TAP_HEADER), seen(&self.wire, 0));
        assert_ne!(at_guest, on_wire, "a frame is delivered once");
        at_guest
    }

    /// Waits until frames to the guest arrive at that place.
    pub(crate) fn await_guest(&self, here: bool, pod: &Holder) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while (link(pod)["address"] == text(GUEST)) != here {
            assert!(Instant::now() < deadline, "the address did not follow: {}", link(pod));
        }
        assert_eq!(self.reaches_guest(9), here);
    }

    fn announce_elsewhere(&self) {
        self.wire.send(&frame(BROADCAST, GUEST, RARP, 0)).unwrap();
    }
}

pub(crate) fn followers(node: &Node) -> String {
    node.sh(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '[f]ollow dataplaneMvp' && \
             [ $(stat -Lc %i $p/ns/mnt) = $(stat -Lc %i /proc/self/ns/mnt) ] && echo ${p#/proc/}; done; true",
    )
}

pub(crate) fn await_no_follower(node: &Node) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !followers(node).is_empty() {
        assert!(Instant::now() < deadline, "the follower did not end");
    }
}

/// The fault that the key is for: the kernel delivers to the link that has the address, and that nobody reads.
#[test]
fn without_the_key_a_migrations_target_takes_what_is_for_the_machine() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let scene = Scene::new(&node, &machine(&node, &vm, "Fixed"), &beside);
    assert!(scene.reaches_guest(1), "though the guest has not sent anything, and may be elsewhere");
    scene.announce_elsewhere();
    assert!(scene.reaches_guest(2), "though the guest has been announced elsewhere");
    assert_eq!(followers(&node), "");
}

#[test]
fn the_address_comes_with_the_guests_first_frame_and_goes_with_its_announcement_elsewhere() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let call = machine(&node, &vm, "Follow");
    let scene = Scene::new(&node, &call, &beside);
    assert!(!scene.reaches_guest(1), "the guest is still elsewhere");
    // What the machine sends from its old place, also arrives at the new one.
    scene.wire.send(&frame(BROADCAST, GUEST, ANY, 2)).unwrap();
    assert!(!scene.reaches_guest(3));
    Scene::send(&scene.guest, &frame(BROADCAST, GUEST, RARP, 4));
    scene.await_guest(true, &vm);
    scene.announce_elsewhere();
    scene.await_guest(false, &vm);
    let followed = call.clone().with(json!({"prevResult": {"cniVersion": "1.0.0", "interfaces": [
        {"name": "net1", "mac": text(GUEST), "sandbox": vm.netns().display().to_string()}]}}));
    followed.ok("CHECK");
    let before = followers(&node);
    assert_eq!(before.lines().count(), 1, "{before}");
    let memory = node.sh(&format!("grep -E 'VmRSS|RssAnon' /proc/{}/status", before.trim()));
    println!("a follower's memory: {}", memory.split_whitespace().collect::<Vec<_>>().join(" "));
    call.ok("DEL");
    await_no_follower(&node);
    Call::new(&node, &beside, "sibling").device(1).ok("DEL");
    assert!(!node.traces().contains("follow"), "{}", node.traces());
}

#[test]
fn a_repeated_add_keeps_the_link_of_a_machine_that_runs() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let call = machine(&node, &vm, "Follow");
    let scene = Scene::new(&node, &call, &beside);
    Scene::send(&scene.guest, &frame(BROADCAST, GUEST, RARP, 1));
    scene.await_guest(true, &vm);
    let (before, follower) = (link(&vm), followers(&node));
    let result = call.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], text(GUEST));
    let after = link(&vm);
    assert_eq!((&after["ifindex"], &after["address"]), (&before["ifindex"], &before["address"]));
    assert_eq!(followers(&node), follower);
    scene.announce_elsewhere();
    scene.await_guest(false, &vm);
}

#[test]
fn a_guest_that_waits_to_be_spoken_to_hears_the_question_where_it_is() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let scene = Scene::new(&node, &machine(&node, &vm, "Follow"), &beside);
    let question = frame(BROADCAST, SIBLING, [8, 6], 7);
    Scene::send(&scene.sibling, &question);
    frames_until(&scene.guest, TAP_HEADER, "the question", |frame| frame == question);
    Scene::send(&scene.guest, &frame(SIBLING, GUEST, [8, 6], 8));
    scene.await_guest(true, &vm);
}

#[test]
fn who_only_says_that_it_has_the_address_gets_it_until_the_guests_next_frame_and_not_twice() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let scene = Scene::new(&node, &machine(&node, &vm, "Follow"), &beside);
    Scene::send(&scene.guest, &frame(BROADCAST, GUEST, RARP, 1));
    scene.await_guest(true, &vm);
    // Frames from the address that announce nothing mean nothing.
    scene.wire.send(&frame(BROADCAST, GUEST, ANY, 2)).unwrap();
    scene.wire.send(&frame(SIBLING, GUEST, ANY, 3)).unwrap();
    assert!(scene.reaches_guest(4));
    scene.announce_elsewhere();
    scene.await_guest(false, &vm);
    Scene::send(&scene.guest, &frame(SIBLING, GUEST, ANY, 5));
    scene.await_guest(true, &vm);
    for mark in 10..20 {
        scene.announce_elsewhere();
        // Behind the announcement, in the same queue: the follower has had it by the time this is answered.
        scene.wire.send(&frame(SIBLING, STRANGER, ANY, mark)).unwrap();
        frames_until(&scene.sibling, TAP_HEADER, "the stranger's frame", |frame| {
            frame.get(14) == Some(&mark)
        });
        assert!(scene.reaches_guest(mark), "announcement {mark} was believed");
    }
}

#[test]
fn a_follower_that_was_killed_is_started_by_the_next_call() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let scene = Scene::new(&node, &machine(&node, &vm, "Follow"), &beside);
    let other = pod();
    for here in [false, true] {
        node.sh(&format!("kill -9 {}", followers(&node).trim()));
        await_no_follower(&node);
        // What it had arranged stays.
        assert_eq!(scene.reaches_guest(1), here);
        Call::new(&node, &other, &format!("other{here}")).device(2).ok("ADD");
        assert_eq!(followers(&node).lines().count(), 1);
        Call::new(&node, &other, &format!("other{here}")).device(2).ok("DEL");
        Scene::send(&scene.guest, &frame(BROADCAST, GUEST, RARP, 1));
        scene.await_guest(true, &vm);
    }
    scene.announce_elsewhere();
    scene.await_guest(false, &vm);
    assert_eq!(scene.node.ifindex("dp0"), node.ifindex("dp0"));
}

#[test]
fn a_pod_that_ends_without_a_del_takes_its_follower_along() {
    let Some((node, [mut vm, beside])) = node_and_pods() else { return };
    let scene = Scene::new(&node, &machine(&node, &vm, "Follow"), &beside);
    drop(scene);
    vm.end();
    await_no_follower(&node);
    assert!(!node.sh("ls /run/macvtap/follow").contains("dataplaneMvp0"));
}

#[test]
fn links_up_and_down_do_not_end_it() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    let mut scene = Scene::new(&node, &machine(&node, &vm, "Follow"), &beside);
    let flap = || {
        node.sh("for link in dp0 dp1; do ip link set $link down; ip link set $link up; done");
        // The old socket only says that its link was down.
        far_end(&node)
    };
    scene.wire = flap();
    Node::ip(&vm, "link set net1 down");
    Node::ip(&vm, "link set net1 up");
    Scene::send(&scene.guest, &frame(BROADCAST, GUEST, RARP, 1));
    scene.await_guest(true, &vm);
    scene.wire = flap();
    scene.announce_elsewhere();
    scene.await_guest(false, &vm);
}

#[test]
fn the_key_is_refused_where_it_cannot_work_and_does_nothing_where_there_is_nothing_to_follow() {
    let Some((node, [vm])) = node_and_pods() else { return };
    let call = machine(&node, &vm, "Follow");
    let ipam = json!({"type": "static", "addresses": [{"address": "10.5.0.1/24"}]});
    assert!(call.clone().with(json!({"ipam": ipam})).fails("ADD", 7).contains("migration"));
    assert!(machine(&node, &vm, "follow").fails("ADD", 7).contains("Follow"));
    let call = call.with(json!({"runtimeConfig": Value::Null}));
    let result = call.ok("ADD");
    assert_eq!(result["interfaces"][0]["mac"], link(&vm)["address"]);
    assert_eq!(followers(&node), "", "no address was given that a guest could have");
}
