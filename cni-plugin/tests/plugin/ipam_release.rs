//! Addresses are given back: by the DEL that follows, by the next one, or by a GC.

use crate::ipam::{host_local, leases, script};
use crate::ipam_process::{ANSWER, with_plugin};
use crate::support::{Answer, Call, Holder, Node, has_plugins, link, node_and_pods, record, wait_until};
use serde_json::{Value, json};

#[test]
fn what_a_plugin_leased_before_it_was_killed_is_given_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    std::fs::write(node.paths().cni_settings(), "{\"ipamTimeoutSeconds\": 1}").unwrap();
    script(&node, "slow", "echo $CNI_COMMAND >>/run/calls; [ $CNI_COMMAND = DEL ] || exec sleep 600");
    let config = json!({"ipam": {"type": "slow"}});
    let message = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins").fails("ADD", 101);
    assert!(message.contains("did not end in time"), "{message}");
    assert_eq!(node.sh("cat /run/calls"), "ADD\nDEL\n");
}

#[test]
fn what_a_plugin_leased_that_failed_all_the_same_is_given_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    script(
        &node,
        "torn",
        &format!("echo $CNI_COMMAND >>/run/calls; [ $CNI_COMMAND = DEL ] || {{ {ANSWER}; exit 1; }}"),
    );
    let config = json!({"ipam": {"type": "torn"}});
    Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins").fails("ADD", 101);
    assert_eq!((node.sh("cat /run/calls"), node.traces()), ("ADD\nDEL\n".to_owned(), before));
}

#[test]
fn a_network_whose_ipam_plugin_never_answered_can_be_corrected_under_a_pod_that_ends() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    std::fs::write(node.paths().cni_settings(), "{\"ipamTimeoutSeconds\": 1}").unwrap();
    script(&node, "wrong", "exec sleep 600");
    script(&node, "right", "echo $CNI_COMMAND >>/run/calls; [ $CNI_COMMAND = DEL ] || exit 1");
    let of = |plugin: &str| {
        let call = Call::new(&node, &pod, "c1").with(json!({"ipam": {"type": plugin}}));
        call.var("CNI_PATH", "/run/plugins")
    };
    of("wrong").fails("ADD", 101);
    of("wrong").fails("DEL", 101);
    of("right").ok("DEL");
    assert_eq!(node.sh("cat /run/calls"), "DEL\n");
    of("right").ok("DEL");
    // It may have leased something nevertheless: a GC asks it again.
    assert_ne!(node.traces(), before);
    script(&node, "wrong", "echo $CNI_COMMAND >>/run/released");
    let gc = json!({"cniVersion": "1.1.0", "ipam": null, "cni.dev/valid-attachments": []});
    of("right").with(gc).ok("GC");
    assert_eq!((node.sh("cat /run/released"), node.traces()), ("DEL\n".to_owned(), before));
}

#[test]
fn a_lease_whose_plugin_is_missing_in_a_del_is_given_back_when_it_is_back() {
    let Some((node, [pod, next])) = has_plugins().then(node_and_pods).flatten() else { return };
    let before = node.traces();
    node.sh("mkdir -p /run/plugins; cp /usr/lib/cni/host-local /run/plugins/");
    let call = |pod, container| {
        let call = Call::new(&node, pod, container).with(json!({"ipam": host_local(false)}));
        call.var("CNI_PATH", "/run/plugins")
    };
    call(&pod, "c1").ok("ADD");
    node.sh("mv /run/plugins/host-local /run/kept");
    for _ in 0..3 {
        let message = call(&pod, "c1").fails("DEL", 101);
        assert!(message.contains("IPAM plugin host-local is in none of the directories"), "{message}");
        assert_eq!(link(&pod), Value::Null, "the link goes all the same");
    }
    assert_eq!(record(&node, 0), None, "the device is free");
    node.sh("mv /run/kept /run/plugins/host-local");
    call(&pod, "c1").ok("DEL");
    assert_eq!((leases(&node), node.traces()), (String::new(), before.clone()));
    // The device itself is free meanwhile.
    call(&pod, "c1").ok("ADD");
    node.sh("mv /run/plugins/host-local /run/kept");
    call(&pod, "c1").fails("DEL", 101);
    let other = call(&next, "c2").with(json!({"ipam": {}}));
    other.ok("ADD");
    let gc = json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []});
    // The link goes, what the missing plugin leased stays noted.
    other.clone().with(gc).fails("GC", 101);
    assert_eq!(record(&node, 0), None);
    other.ok("ADD");
    call(&pod, "c1").fails("DEL", 101);
    node.sh("mv /run/kept /run/plugins/host-local");
    other.ok("DEL");
    call(&pod, "c1").ok("DEL");
    assert_eq!((leases(&node), node.traces()), (String::new(), before));
}

#[test]
fn a_plugin_that_fails_in_a_del_is_asked_again_by_the_next() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let answer = "{\"ips\": [{\"address\": \"10.9.0.2/24\"}]}";
    script(&node, "odd", &format!("[ $CNI_COMMAND = ADD ] && echo '{answer}' || test -e /run/daemon"));
    let config = json!({"ipam": {"type": "odd"}});
    let call = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins");
    call.ok("ADD");
    call.fails("DEL", 101);
    assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null));
    call.fails("DEL", 101);
    node.sh("touch /run/daemon");
    call.ok("DEL");
    call.ok("DEL");
    assert_eq!(node.traces(), before);
}

#[test]
fn an_add_waits_for_the_del_that_gives_its_containers_addresses_back() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let answer = "{\"ips\": [{\"address\": \"10.9.0.2/24\"}]}";
    let text = format!(
        "echo begin $CNI_COMMAND >>/run/calls\n[ $CNI_COMMAND = ADD ] && echo '{answer}' || read _ </run/gate\necho end $CNI_COMMAND >>/run/calls"
    );
    script(&node, "slow", &text);
    node.sh("mkfifo /run/gate");
    let config = json!({"ipam": {"type": "slow"}});
    let call = Call::new(&node, &pod, "c1").with(config).var("CNI_PATH", "/run/plugins");
    call.ok("ADD");
    let del = call.start("DEL");
    wait_until("the DEL is asking", || node.sh("cat /run/calls").ends_with("begin DEL\n"));
    let add = call.start("ADD");
    // As the kernel shows who waits for a lock (proc_locks(5)).
    let waits = format!(" {} ", add.id());
    wait_until("the ADD waits", || {
        std::fs::read_to_string("/proc/locks")
            .unwrap()
            .lines()
            .any(|line| line.contains("->") && line.contains(&waits))
    });
    node.sh("echo >/run/gate");
    assert!(Answer::of(del).success && Answer::of(add).success);
    assert_eq!(node.sh("cat /run/calls"), "begin ADD\nend ADD\nbegin DEL\nend DEL\nbegin ADD\nend ADD\n");
    assert!(Node::ip(&pod, "addr show dev net1").contains("inet 10.9.0.2/24"));
}

#[test]
fn a_garbage_collection_gives_back_what_no_del_gave_back() {
    let Some((node, pods)) = node_and_pods::<3>() else { return };
    let before = node.traces();
    // As plugins that are older than GC do.
    let lease = format!(
        "mkdir -p /run/l; echo $CNI_ARGS >/run/l/$CNI_CONTAINERID; [ ! -e /run/slow ] || exec sleep 71; {ANSWER}"
    );
    let text = format!(
        "case $CNI_COMMAND in ADD) {lease};; DEL) rm -f /run/l/$CNI_CONTAINERID;; *) echo '{{\"code\": 4}}'; exit 1;; esac"
    );
    let call = |index: usize, container: &str| {
        let call = with_plugin(&node, &pods[index], &text).with(json!({"cniVersion": "1.1.0"}));
        call.device(u32::try_from(index).unwrap()).var("CNI_CONTAINERID", container)
    };
    call(0, "kept").ok("ADD");
    call(1, "gone").ok("ADD");
    node.sh("touch /run/slow");
    let mut killed = call(2, "killed").start("ADD");
    wait_until("it leases", || node.sh("ls /run/l").contains("killed"));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let gc = |valid: Value| {
        let gc = with_plugin(&node, &pods[0], &text).with(json!({"cniVersion": "1.1.0"}));
        let gc = gc.with(json!({"cni.dev/valid-attachments": valid}));
        ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"]
            .into_iter()
            .fold(gc, Call::without)
            .ok("GC");
    };
    gc(json!([{"containerID": "kept", "ifname": "net1"}]));
    assert_eq!(node.sh("ls /run/l").trim(), "kept");
    gc(json!([]));
    assert_eq!(node.sh("ls /run/l"), "");
    assert_eq!(node.traces(), before);
}

#[test]
fn an_address_is_given_back_to_the_plugin_that_leased_it_whatever_the_configuration_says_now() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    // Its leases are those of a network and a directory.
    let lease =
        "cat >/run/in; lease=/run/$(tr -d '\\n' </run/in | sed 's/.*\"name\":\"\\([a-z]*\\)\".*/\\1/')-lease";
    let text =
        format!("{lease}; case $CNI_COMMAND in ADD) touch $lease; {ANSWER};; DEL) rm -f $lease;; esac");
    let call = with_plugin(&node, &pod, &text);
    node.sh("ln -s /bin/true /run/plugins/another");
    let renamed = r#"{"cniVersion": "1.0.0", "name": "renamed", "type": "macvtap", "ipam": {"type": "odd"}}"#;
    for now in
        ["garbage", r#"{"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap"}"#, ANOTHER, renamed]
    {
        call.ok("ADD");
        assert_ne!(node.sh("ls /run/*-lease"), "");
        let answer = call.with_input("DEL", now.as_bytes());
        assert!(answer.success, "{now}: {answer:?}");
        assert_eq!(node.sh("ls /run/*-lease 2>/dev/null; true"), "", "{now}");
        assert_eq!(node.traces(), before, "{now}");
    }
    // Nor does a GC need the plugin's configuration.
    call.ok("ADD");
    let gc = call.clone().with(json!({"cniVersion": "1.1.0", "ipam": null, "cni.dev/valid-attachments": []}));
    gc.ok("GC");
    assert_eq!((node.sh("ls /run/*-lease 2>/dev/null; true").as_str(), node.traces()), ("", before));
}

/// The network of the plugin with another IPAM plugin.
const ANOTHER: &str =
    r#"{"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "ipam": {"type": "another"}}"#;

#[test]
fn addresses_are_released_as_they_were_leased_whatever_the_network_says_by_now() {
    let Some((node, [pod])) = has_plugins().then(node_and_pods).flatten() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({"ipam": host_local(false)}));
    for edited in [json!({"args": "x"}), json!({"runtimeConfig": 5}), json!({"args": {"cni": {"ips": "x"}}})]
    {
        call.ok("ADD");
        call.clone().with(edited.clone()).ok("DEL");
        assert_eq!((link(&pod), leases(&node)), (Value::Null, String::new()), "{edited}");
    }
}

#[test]
fn what_is_attached_while_a_gc_runs_keeps_its_addresses() {
    for through_link in [json!([]), json!(["slow"])] {
        let Some((node, [pod])) = node_and_pods() else { return };
        let settings = json!({"ipamThroughLink": through_link}).to_string();
        std::fs::write(node.paths().cni_settings(), settings).unwrap();
        attach_while_a_gc_runs(&node, &pod);
    }
}

fn attach_while_a_gc_runs(node: &Node, pod: &Holder) {
    node.sh("mkfifo /run/go");
    let answer = format!(
        "echo $CNI_COMMAND >>/run/calls; [ $CNI_COMMAND != ADD ] || {{ read go </run/go; {ANSWER}; }}"
    );
    script(node, "slow", &answer);
    let call = Call::new(node, pod, "c1").with(json!({"ipam": {"type": "slow"}}));
    let call = call.var("CNI_PATH", "/run/plugins");
    let add = call.start("ADD");
    wait_until("the IPAM plugin is asked", || node.sh("cat /run/calls 2>/dev/null; true") == "ADD\n");
    let gc = call.clone().with(json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []})).start("GC");
    let waits = format!(" {} ", gc.id());
    let is_waiting = |line: &str| line.contains("-> FLOCK") && line.contains(&waits);
    let locks = || std::fs::read_to_string("/proc/locks").unwrap();
    wait_until("the GC waits for the device", || locks().lines().any(is_waiting));
    node.sh("timeout 10 sh -c 'echo >/run/go'");
    for call in [add, gc] {
        let answer = Answer::of(call);
        assert!(answer.success, "{answer:?}");
    }
    assert_eq!(link(pod)["ifname"], "net1");
    // GC is also asked of the plugin itself, which knows what it leased by the list.
    assert!(!node.sh("cat /run/calls").contains("DEL"));
    call.ok("DEL");
}
