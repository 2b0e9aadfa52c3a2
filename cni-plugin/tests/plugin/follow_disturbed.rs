//! `migration: Follow` where the address is not free, and where calls meet on one follower.

use crate::follow::{BROADCAST, GUEST, RARP, Scene, await_no_follower, followers, frame, machine, text};
use crate::support::{Answer, Call, Node, frames_until, link, node_and_pods, wait_until};
use crate::wire::{far_end, tap_of};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LOG: &str = "/run/macvtap.log";

fn log_to_file(node: &Node) {
    std::fs::write(node.paths().cni_settings(), json!({"logFile": LOG}).to_string()).unwrap();
}

/// The lines of the node's log with this text.
fn logged(node: &Node, what: &str) -> Vec<String> {
    let log = node.sh(&format!("cat {LOG} 2>/dev/null; true"));
    log.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
}

#[test]
fn the_lower_links_own_address_is_refused_as_it_is_without_the_key() {
    let Some((node, [vm])) = node_and_pods() else { return };
    let mac = json!({"mac": node.sh("ip -o link show dp0 | sed 's|.*link/ether ||; s| .*||'").trim()});
    for migration in ["Fixed", "Follow"] {
        let call = machine(&node, &vm, migration).with(json!({"runtimeConfig": mac}));
        let message = call.fails("ADD", 100);
        assert!(message.contains("is in use on lower link dp0"), "{migration}: {message}");
        assert_eq!(link(&vm), Value::Null);
    }
    assert_eq!(followers(&node), "");
}

#[test]
fn an_address_that_a_sibling_has_is_claimed_rarely_and_taken_when_it_is_free() {
    let Some((node, [vm, twin])) = node_and_pods() else { return };
    log_to_file(&node);
    let twins =
        Call::new(&node, &twin, "twin").device(1).with(json!({"runtimeConfig": {"mac": text(GUEST)}}));
    twins.ok("ADD");
    machine(&node, &vm, "Follow").ok("ADD");
    let (guest, wire) = (tap_of(&node, 0), far_end(&node));
    for mark in 1..=40 {
        Scene::send(&guest, &frame(BROADCAST, GUEST, [0x88, 0xb6], mark));
        frames_until(&wire, 0, "the guest's frame", |frame| frame.get(14) == Some(&mark));
    }
    let refused = || logged(&node, "cannot follow its guest");
    wait_until("the follower's report", || !refused().is_empty());
    let lines = refused();
    println!("{}", lines[0]);
    // Eight claims take a minute and a half.
    assert!(lines.len() <= 8, "{lines:#?}");
    assert!(lines[0].contains(&text(GUEST)) && lines[0].ends_with("command=FOLLOW device=dataplaneMvp0"));
    twins.ok("DEL");
    // Without another frame of the guest; the next claim comes half a minute later at most.
    let deadline = Instant::now() + Duration::from_mins(1);
    while link(&vm)["address"] != text(GUEST) {
        assert!(Instant::now() < deadline, "the address was not claimed again: {}", link(&vm));
    }
}

/// Ends the other threads also when an assertion fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn calls_that_look_after_followers_do_not_disturb_one_that_starts() {
    let Some((node, [vm, one, two])) = node_and_pods() else { return };
    let stop = AtomicBool::new(false);
    let call = machine(&node, &vm, "Follow");
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for (slot, pod) in [(1, &one), (2, &two)] {
            let beside = Call::new(&node, pod, &format!("beside{slot}")).device(slot);
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    beside.run("ADD");
                    beside.run("DEL");
                }
            });
        }
        for _ in 0..12 {
            call.ok("ADD");
            call.ok("DEL");
        }
        call.ok("ADD");
    });
    wait_until("one follower", || followers(&node).lines().count() == 1);
    // Two calls find at once that it has ended.
    for _ in 0..2 {
        node.sh(&format!("kill -9 {}", followers(&node).trim()));
        await_no_follower(&node);
        let others = [(1, &one), (2, &two)];
        let calls = others.map(|(slot, pod)| Call::new(&node, pod, &format!("beside{slot}")).device(slot));
        let running = calls.each_ref().map(|call| call.start("ADD"));
        assert!(running.map(Answer::of).iter().all(|answer| answer.success));
        assert_eq!(followers(&node).lines().count(), 1);
        for call in &calls {
            call.ok("DEL");
        }
    }
}

#[test]
fn a_follower_is_not_forgotten_because_its_namespace_cannot_be_read() {
    let Some((node, [vm, beside])) = node_and_pods() else { return };
    machine(&node, &vm, "Follow").ok("ADD");
    node.sh(&format!("kill -9 {}", followers(&node).trim()));
    await_no_follower(&node);
    // An error that says nothing of the namespace: as many files open as a process may, a loop of links.
    let netns = vm.netns().display().to_string();
    let file = "/run/macvtap/follow/dataplaneMvp0";
    node.sh(&format!("ln -s loop /run/loop; sed -i 's|{netns}|/run/loop|' {file}; grep -q /run/loop {file}"));
    let call = Call::new(&node, &beside, "beside").device(1);
    let answer = call.run("ADD");
    assert!(answer.success && answer.stderr.contains("is not followed"), "{answer:?}");
    node.sh(&format!("sed -i 's|/run/loop|{netns}|' {file}"));
    call.ok("DEL");
    assert_eq!(followers(&node).lines().count(), 1);
    Scene::send(&tap_of(&node, 0), &frame(BROADCAST, GUEST, RARP, 1));
    wait_until("the link to have its guest's address", || link(&vm)["address"] == text(GUEST));
}

#[test]
fn an_attachment_without_a_follower_fails_and_says_why() {
    let Some((node, [vm])) = node_and_pods() else { return };
    log_to_file(&node);
    // Something that is not a file has the place of the follower's.
    node.sh("mkdir -p /run/macvtap/follow/dataplaneMvp0/x");
    let message = machine(&node, &vm, "Follow").fails("ADD", 100);
    assert!(
        message.contains("/run/macvtap/follow/dataplaneMvp0: it is a directory with content"),
        "{message}"
    );
    assert_eq!(link(&vm), Value::Null);
    assert!(logged(&node, "WARN").iter().all(|line| line.contains("a directory with content")));
}
