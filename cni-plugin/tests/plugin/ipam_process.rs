//! Processes of IPAM plugins: how they are started, and that none of them outlives the call that started it.

use crate::support::{Answer, Call, Holder, Node, has, link, node_and_pods, wait_until};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::process::Command;

/// What the plugins below answer.
pub(crate) const ANSWER: &str = r#"echo '{"ips": [{"address": "10.9.0.2/24"}]}'"#;

/// A network whose IPAM plugin is this shell script, which leases by writing a file.
pub(crate) fn with_plugin<'n>(node: &'n Node, pod: &Holder, text: &str) -> Call<'n> {
    node.sh(&format!(
        "mkdir -p /run/plugins; cat >/run/plugins/odd <<'END'\n#!/bin/sh\n{text}\nEND\nchmod 755 /run/plugins/odd"
    ));
    let config = json!({"ipam": {"type": "odd"}});
    Call::new(node, pod, "c1").with(config).var("CNI_PATH", "/run/plugins")
}

fn with_timeout(node: &Node, seconds: u32) {
    std::fs::write(node.paths().cni_settings(), format!("{{\"ipamTimeoutSeconds\": {seconds}}}")).unwrap();
}

/// Waits until no process of the node has this in its command line.
fn until_gone(node: &Node, words: &str) {
    wait_until(words, || {
        let found = node.sh(&format!(
            "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^{words} $' && echo $p; done; true"
        ));
        found.is_empty()
    });
}

#[test]
fn a_plugin_may_ignore_its_input() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // More than a pipe holds.
    let call = with_plugin(&node, &pod, ANSWER).with(json!({"padding": "x".repeat(1 << 20)}));
    call.ok("ADD");
    call.ok("DEL");
}

#[test]
fn an_address_is_given_back_whatever_the_arguments_of_a_del_are() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // As plugins made with the reference library do.
    let text = format!(
        "case \"$CNI_ARGS\" in *COLOUR*) echo '{{\"code\": 4, \"msg\": \"ARGS\"}}'; exit 1;; esac; cat >/dev/null; {ANSWER}"
    );
    let call = with_plugin(&node, &pod, &text);
    call.ok("ADD");
    let odd = with_plugin(&node, &pod, &text).var("CNI_ARGS", "COLOUR=red");
    odd.ok("DEL");
    // Nor without a record.
    odd.ok("DEL");
}

#[test]
fn a_plugin_may_write_more_than_a_pipe_holds_before_it_reads() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let text = format!("head -c 200000 /dev/zero | tr '\\0' 'x' >&2; cat >/dev/null; {ANSWER}");
    with_plugin(&node, &pod, &text).with(json!({"padding": "x".repeat(1 << 20)})).ok("ADD");
}

#[test]
fn a_plugin_that_is_being_installed_is_waited_for() {
    let Some((node, [pod])) = node_and_pods() else { return };
    node.sh("mkdir -p /run/plugins; cp /bin/true /run/plugins/odd");
    // The kernel refuses to execute what somebody may write to.
    let path = format!("/proc/{}/root/run/plugins/odd", node.holder.pid());
    let writer = OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(Command::new(&path).spawn().unwrap_err().kind(), ErrorKind::ExecutableFileBusy);
    let config = json!({"ipam": {"type": "odd"}});
    let call = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins");
    let child = call.start("ADD");
    drop(writer);
    let answer = Answer::of(child);
    // It was run: `true` answers nothing.
    assert!(answer.json["msg"].as_str().unwrap().contains("it answered nothing"), "{answer:?}");
}

#[test]
fn no_child_of_a_plugin_leases_after_the_deadline() {
    let Some((node, [pod])) = node_and_pods() else { return };
    with_timeout(&node, 1);
    let before = node.traces();
    let child = "sh -c 'sleep 61; echo l >/run/lease'";
    let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {{ {child}; {ANSWER}; }}"));
    let message = call.fails("ADD", 101);
    assert!(message.contains("did not end in time"), "{message}");
    until_gone(&node, "sleep 61");
    call.ok("DEL");
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
}

#[test]
fn nothing_of_a_plugin_outlives_an_add_that_is_killed() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    // A wrapper around a wrapper: only the innermost process leases.
    let child = "sh -c 'touch /run/begun; sleep 62; echo l >/run/lease'";
    let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {{ {child}; {ANSWER}; }}"));
    let mut add = call.start("ADD");
    wait_until("the plugin runs", || !node.sh("ls /run/begun 2>/dev/null; true").is_empty());
    add.kill().unwrap();
    add.wait().unwrap();
    until_gone(&node, "sleep 62");
    call.ok("DEL");
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
}

#[test]
fn no_process_of_a_plugin_escapes_into_a_session_of_its_own() {
    let Some((node, [pod])) = node_and_pods() else { return };
    with_timeout(&node, 1);
    let detached = "setsid sh -c 'sleep 64; echo l >/run/lease' >/dev/null 2>&1 &";
    for (rest, code) in [("sleep 65", 101), ("exit 1", 101)] {
        let text = format!("[ $CNI_COMMAND = DEL ] || {{ {detached} {rest}; {ANSWER}; }}");
        let call = with_plugin(&node, &pod, &text);
        call.fails("ADD", code);
        until_gone(&node, "sleep 64");
        call.ok("DEL");
        assert_eq!(link(&pod), Value::Null);
    }
}

#[test]
fn no_detached_process_of_a_plugin_outlives_an_add_that_is_killed() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let child = "setsid sh -c 'touch /run/begun; sleep 66; echo l >/run/lease' & wait";
    let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {{ {child}; {ANSWER}; }}"));
    let mut add = call.start("ADD");
    wait_until("the plugin runs", || !node.sh("ls /run/begun 2>/dev/null; true").is_empty());
    add.kill().unwrap();
    add.wait().unwrap();
    until_gone(&node, "sleep 66");
    call.ok("DEL");
    assert_eq!(link(&pod), Value::Null);
}

#[test]
fn a_whole_answer_does_not_wait_for_what_the_plugin_left_behind() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // It holds the plugin's output for longer than the default deadline.
    let text = format!("sleep 63 & echo $! >/run/left; [ $CNI_COMMAND = DEL ] || {ANSWER}");
    let call = with_plugin(&node, &pod, &text);
    assert_eq!(call.ok("ADD")["ips"][0]["address"], "10.9.0.2/24");
    node.sh("kill $(cat /run/left)");
    // A DEL has no answer at all.
    call.ok("DEL");
    node.sh("kill $(cat /run/left)");
}

#[test]
fn a_plugin_that_a_signal_ended_is_told_as_such() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let text = "[ $CNI_COMMAND = DEL ] && exec rm -f /run/lease; echo l >/run/lease; kill -SEGV $$";
    let message = with_plugin(&node, &pod, text).fails("ADD", 101);
    assert!(message.contains("signal: 11"), "{message}");
    // It had leased by then.
    assert_eq!((node.traces(), node.sh("ls /run/lease 2>/dev/null; true").as_str()), (before, ""));
}

#[test]
fn an_add_that_cannot_start_a_process_fails_in_words_and_leaves_nothing() {
    let Some((node, [pod])) = has("/usr/bin/strace", "strace").then(node_and_pods).flatten() else { return };
    let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {ANSWER}"));
    let before = node.traces();
    for kinds in ["clone,clone3,?vfork,?fork", "pidfd_open", "pipe2"] {
        for number in 1..9 {
            let Some(answer) = call.disturbed("ADD", kinds, "error=EAGAIN", number) else { break };
            assert!(answer.json["code"].is_u64() || answer.success, "{kinds} {number}: {answer:?}");
            if !answer.success {
                assert!(
                    [11, 101].contains(&answer.json["code"].as_u64().unwrap()),
                    "{kinds} {number}: {answer:?}"
                );
                assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null), "{kinds} {number}");
            }
            call.ok("DEL");
        }
        call.ok("DEL");
    }
}

#[test]
fn a_worker_that_a_successful_plugin_left_behind_leases_nothing_after_the_del() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    // The second one in an environment of its own, without our mark.
    for environment in ["", "env -i PATH=$PATH "] {
        let worker =
            format!("{environment}setsid sh -c 'sleep 67; echo l >/run/lease' >/dev/null 2>&1 </dev/null &");
        let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {{ {worker} {ANSWER}; }}"));
        call.ok("ADD");
        call.ok("DEL");
        until_gone(&node, "sleep 67");
        assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null), "{environment}");
    }
}

#[test]
fn what_a_left_worker_leased_before_it_was_ended_is_given_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    // It leases as soon as the plugin's DEL has run.
    let worker = "setsid sh -c 'until [ -e /run/del ]; do sleep 0.01; done; echo l >/run/lease; sleep 68' >/dev/null 2>&1 &";
    let del = "rm -f /run/lease; [ -e /run/del ] || { touch /run/del; until [ -e /run/lease ]; do sleep 0.01; done; }";
    let call = with_plugin(
        &node,
        &pod,
        &format!("[ $CNI_COMMAND = DEL ] && {{ {del}; }} || {{ {worker} {ANSWER}; }}"),
    );
    call.ok("ADD");
    call.ok("DEL");
    until_gone(&node, "sleep 68");
    assert_eq!(node.sh("ls /run/lease 2>/dev/null; true"), "");
}

#[test]
fn a_daemon_that_others_use_outlives_a_call_that_fails_and_its_del() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let daemon = "setsid perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => \"/run/d\", Listen => 1) or die; sleep 69'";
    let start = format!(
        "{daemon} >/dev/null 2>&1 </dev/null & echo $! >/run/daemon; until [ -S /run/d ]; do sleep 0.01; done"
    );
    for end in ["exit 1", ANSWER] {
        let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {{ {start}; {end}; }}"));
        assert_eq!(call.run("ADD").success, end == ANSWER);
        call.ok("DEL");
        // Fails if it has ended.
        node.sh("kill $(cat /run/daemon); rm /run/d");
    }
}

#[test]
fn nothing_leases_after_the_plugin_and_its_supervisor_were_killed_at_once() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let child = "setsid sh -c 'echo $0 >/run/supervisor; sleep 70; echo l >/run/lease' $PPID & wait";
    let call = with_plugin(&node, &pod, &format!("[ $CNI_COMMAND = DEL ] || {{ {child}; {ANSWER}; }}"));
    for signals in [["STOP"].as_slice(), &["STOP", "KILL"]] {
        let mut add = call.start("ADD");
        wait_until("the plugin runs", || !node.sh("cat /run/supervisor 2>/dev/null; true").is_empty());
        // Stopped, it does not notice the end of the call.
        node.sh(&format!("kill -{} $(cat /run/supervisor)", signals[0]));
        add.kill().unwrap();
        add.wait().unwrap();
        for signal in &signals[1..] {
            node.sh(&format!("kill -{signal} $(cat /run/supervisor)"));
        }
        call.ok("DEL");
        until_gone(&node, "sleep 70");
        node.sh("rm /run/supervisor");
        assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null));
    }
}
