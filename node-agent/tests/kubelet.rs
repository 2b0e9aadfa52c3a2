//! The agent and a kubelet: registration, lists, allocations, restarts.

#[cfg(test)]
mod support;

use macvtap_proto::deviceplugin::{AllocateRequest, ContainerAllocateRequest};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use support::kubelet::{Kubelet, await_true};
use support::{Node, eventually, eventually_in, is_root, metric, serving, signal_to};

const CONFIGURATION: &str = r#"[{"name":"dataplane","lowerDevice":"dp0","mode":"bridge","capacity":50}]"#;

fn node_with_link() -> Node {
    let node = Node::new();
    node.add_link("dp0");
    node
}

#[test]
fn a_resource_is_registered_with_its_devices_at_once() {
    if !is_root() {
        return;
    }
    let node = node_with_link();
    let kubelet = Kubelet::start(&node);
    let begun = Instant::now();
    let _agent = node.agent(CONFIGURATION);
    let plugin = kubelet.await_healthy("dataplane", 50);
    println!("exec to registration: {:?}", plugin.registered_at - begun);
    assert_eq!(plugin.lists, 1);
    assert!(plugin.options.get_preferred_allocation_available && plugin.options.pre_start_required);
    let devices = plugin.devices.unwrap();
    assert_eq!((devices[0].id.as_str(), devices[49].id.as_str()), ("dataplaneMvp0", "dataplaneMvp49"));
    assert_eq!(kubelet.registrations(), 1);
    await_true("it is ready", || node.agent_command().arg("probe").output().unwrap().stdout == b"ready\n");
}

#[test]
fn an_allocation_names_the_node_and_touches_no_link() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    let links = node.sh("ip -o link | wc -l");
    let devices = kubelet.allocate("dataplane", &["dataplaneMvp3", "dataplaneMvp7"]).unwrap();
    let expected = |slot: u32| {
        let ifindex = 0x0100_0000 + slot;
        (format!("/run/macvtap/dev/{ifindex}"), format!("/dev/tap{ifindex}"))
    };
    assert_eq!(devices, [expected(3), expected(7)]);
    assert_eq!(node.sh("ip -o link | wc -l"), links);
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp3"]).unwrap(), [expected(3)]);
}

#[test]
fn what_is_not_offered_is_refused_as_a_whole_and_ends_nothing() {
    let Some((_node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    for (ids, reason) in [
        (&["nonsense"][..], "not of the form"),
        (&[""], "not of the form"),
        (&["dataplaneMvp50"], "not offered"),
        (&["otherMvp1"], "not of resource"),
        (&["dataplaneMvp1", "dataplaneMvp99"], "dataplaneMvp99 is not offered"),
        (&["../../etc/passwdMvp0"], "resource name"),
    ] {
        let refused = kubelet.allocate("dataplane", ids).unwrap_err();
        assert!(refused.message().contains(reason), "{ids:?}: {}", refused.message());
    }
    let both = kubelet.allocate_pod("dataplane", &[&["dataplaneMvp1"], &["dataplaneMvp99"]]);
    assert!(both.is_err());
    assert_eq!(kubelet.prefer("dataplane", &["dataplaneMvp9", "dataplaneMvp4"], 1), ["dataplaneMvp4"]);
    assert!(kubelet.allocate("dataplane", &["dataplaneMvp1"]).is_ok());
    assert_eq!(kubelet.registrations(), 1, "the agent has lost its stream");
}

/// The most that a pool or an entry of the configuration can ask for.
const DEVICES: usize = 4096;

#[test]
fn the_most_devices_a_link_can_have_are_listed_preferred_and_allocated() {
    if !is_root() {
        return;
    }
    let node = node_with_link();
    let kubelet = Kubelet::start(&node);
    let name = "a".repeat(63);
    let _agent = node.agent(&format!(r#"[{{"name":"{name}","lowerDevice":"dp0","capacity":{DEVICES}}}]"#));
    let plugin = kubelet.await_healthy(&name, DEVICES);
    assert_eq!(plugin.lists, 1);
    let ids: Vec<String> = plugin.devices.unwrap().into_iter().map(|device| device.id).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert_eq!(ids.last(), Some(&format!("{name}Mvp4095").as_str()));
    assert_eq!(kubelet.prefer(&name, &ids, 3), ids[..3]);
    let all = kubelet.allocate(&name, &ids).unwrap();
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), DEVICES);
    // A link's end and return are two lists of them all.
    node.sh("ip link set dp0 down");
    kubelet.await_healthy(&name, 0);
    node.sh("ip link set dp0 up");
    kubelet.await_healthy(&name, DEVICES);
    assert_eq!(kubelet.registrations(), 1, "a list was too long for the kubelet");
}

#[test]
fn a_kubelet_that_starts_anew_is_served_at_once_every_time_and_no_descriptor_is_lost() {
    let Some((node, mut kubelet, agent)) = serving(CONFIGURATION) else { return };
    let worker = agent.worker().unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count();
    let mut gaps = Vec::new();
    let mut first = 0;
    for round in 0..50 {
        let begun = Instant::now();
        kubelet = kubelet.restart();
        let plugin = kubelet.await_healthy("dataplane", 50);
        gaps.push(plugin.registered_at.saturating_duration_since(begun));
        await_true("there is no other socket", || {
            node.agent_sockets() == [kubelet.plugin("dataplane").unwrap().endpoint]
        });
        if round == 4 {
            first = descriptors();
        }
    }
    await_true("descriptors are closed", || descriptors() <= first + 1);
    gaps.sort();
    println!("kubelet start to registration: p50 {:?}, max {:?}", gaps[25], gaps[49]);
    assert_eq!(agent.worker(), Some(worker), "the worker was replaced");
}

#[test]
fn a_stream_that_is_lost_unasked_leads_to_a_new_registration() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    let mut before = kubelet.await_healthy("dataplane", 50).endpoint;
    for _ in 0..3 {
        kubelet.drop_stream("dataplane");
        let endpoint = kubelet.await_healthy("dataplane", 50).endpoint;
        assert_ne!(endpoint, before, "the socket is not a new one");
        before = endpoint;
    }
    assert_eq!(node.agent_sockets(), [before]);
}

#[test]
fn a_socket_somebody_removed_is_made_anew() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    let before = kubelet.await_healthy("dataplane", 50).endpoint;
    std::fs::remove_file(node.plugins().join(&before)).unwrap();
    kubelet.await_plugin("dataplane", |plugin| plugin.endpoint != before && plugin.healthy() == Some(50));
}

#[test]
fn a_worker_that_is_killed_is_back_at_once() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let mut endpoint = kubelet.await_healthy("dataplane", 50).endpoint;
    for _ in 0..3 {
        let worker = agent.worker().unwrap();
        let begun = Instant::now();
        signal_to(worker, Signal::KILL);
        let plugin = kubelet
            .await_plugin("dataplane", |plugin| plugin.endpoint != endpoint && plugin.healthy() == Some(50));
        println!("worker killed to registered again: {:?}", plugin.registered_at - begun);
        endpoint = plugin.endpoint;
    }
    assert_eq!(node.agent_sockets(), [endpoint], "sockets of dead workers stay behind");
}

#[test]
fn a_worker_that_is_killed_while_the_configuration_file_is_bad_is_back_with_the_last_good_one() {
    if !is_root() {
        return;
    }
    let node = node_with_link();
    let kubelet = Kubelet::start(&node);
    let agent = node.agent_with_file(CONFIGURATION);
    let before = kubelet.await_healthy("dataplane", 50).endpoint;
    node.write_configuration("[");
    await_true("the mistake is told", || agent.log().contains("not usable"));
    signal_to(agent.worker().unwrap(), Signal::KILL);
    kubelet.await_plugin("dataplane", |plugin| plugin.endpoint != before && plugin.healthy() == Some(50));
    node.write_configuration(&CONFIGURATION.replace("50", "30"));
    kubelet.await_healthy("dataplane", 30);
}

#[test]
fn the_worker_dies_with_its_parent() {
    let Some((_node, _kubelet, mut agent)) = serving(CONFIGURATION) else { return };
    let worker = agent.worker().unwrap();
    agent.signal(Signal::KILL);
    agent.wait();
    await_true("the worker is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ")
    });
}

#[test]
fn sigterm_ends_the_agent_soon_and_leaves_no_socket_whether_or_not_a_kubelet_listens() {
    let Some((node, mut kubelet, mut agent)) = serving(CONFIGURATION) else { return };
    let with = agent.terminate();
    assert_eq!(node.agent_sockets(), [""; 0]);
    kubelet.kill();
    let mut agent = node.agent(CONFIGURATION);
    eventually("the agent tries", || agent.log().contains("not registered").then_some(()));
    let without = agent.terminate();
    assert_eq!(node.agent_sockets(), [""; 0]);
    println!("SIGTERM to end: {with:?} with a kubelet, {without:?} without");
    assert!(node.sh("ls /run/macvtap").lines().all(|name| !name.starts_with("probe-")));
}

#[test]
fn a_second_agent_waits_as_standby_and_takes_over() {
    let Some((node, kubelet, mut first)) = serving(CONFIGURATION) else { return };
    let endpoint = kubelet.await_healthy("dataplane", 50).endpoint;
    let second = node.agent(CONFIGURATION);
    eventually("the second stands by", || second.log().contains("standing by").then_some(()));
    assert_eq!(kubelet.registrations(), 1);
    first.terminate();
    let plugin = kubelet
        .await_plugin("dataplane", |plugin| plugin.endpoint != endpoint && plugin.healthy() == Some(50));
    assert_eq!(node.agent_sockets(), [plugin.endpoint]);
}

#[test]
fn a_hand_over_to_an_agent_that_stands_by_leaves_no_gap() {
    if !is_root() {
        return;
    }
    let node = node_with_link();
    let kubelet = Kubelet::start(&node);
    // Much later than a new agent needs to register.
    kubelet.notice_ends_after(Duration::from_millis(100));
    let mut serving = node.agent(CONFIGURATION);
    let mut endpoint = kubelet.await_healthy("dataplane", 50).endpoint;
    for _ in 0..3 {
        let mut next = node.agent(CONFIGURATION);
        eventually("the next stands by", || next.log().contains("standing by").then_some(()));
        serving.signal(Signal::TERM);
        // Pods come all the while.
        let plugin = eventually("the next has registered", || {
            kubelet.allocate("dataplane", &["dataplaneMvp1"]).unwrap();
            kubelet
                .plugin("dataplane")
                .filter(|plugin| plugin.endpoint != endpoint && plugin.healthy() == Some(50))
        });
        endpoint = plugin.endpoint;
        serving.wait();
        kubelet.allocate("dataplane", &["dataplaneMvp2"]).unwrap();
        std::mem::swap(&mut serving, &mut next);
        assert_eq!(kubelet.losses(), 0, "devices were unhealthy for a moment: {}", next.log());
        assert_eq!(node.agent_sockets(), [endpoint.clone()]);
        // Both live for some seconds, and there is one address.
        assert!(!serving.log().contains("metrics not served"), "{}", serving.log());
    }
}

#[test]
fn an_agent_that_has_handed_over_answers_the_kubelet_and_looks_after_nothing() {
    let Some((node, kubelet, mut former)) = serving(CONFIGURATION) else { return };
    let endpoint = kubelet.await_healthy("dataplane", 50).endpoint;
    let mut client = kubelet.client("dataplane");
    let worker = former.worker().unwrap();
    await_true("it looks after devices", || kubelet.asked_by(worker) > 0);
    let next = node.agent(CONFIGURATION);
    eventually("the next stands by", || next.log().contains("standing by").then_some(()));
    former.signal(Signal::TERM);
    kubelet.await_plugin("dataplane", |plugin| plugin.endpoint != endpoint && plugin.healthy() == Some(50));
    let asked = kubelet.asked_by(worker);
    // The kubelet still had the former one's socket. Who looks after devices looks a second later.
    let container = ContainerAllocateRequest { devices_ids: vec!["dataplaneMvp1".to_owned()] };
    let request = AllocateRequest { container_requests: vec![container] };
    kubelet.block_on(client.allocate(request)).unwrap();
    former.wait();
    assert_eq!(kubelet.asked_by(worker), asked);
}

#[test]
fn everything_that_happens_is_counted() {
    let Some((node, kubelet, _agent)) = serving(CONFIGURATION) else { return };
    kubelet.allocate("dataplane", &["dataplaneMvp1"]).unwrap();
    kubelet.allocate("dataplane", &["dataplaneMvp77"]).unwrap_err();
    let of = |name: &str, labels: &str| {
        metric(&node, &format!("macvtap_{name}{{resource=\"dataplane\"{labels}}}"))
    };
    let is = |name: &str, labels: &str, count: u64| {
        await_true(&format!("{name}{labels} is {count}"), || of(name, labels) == Some(count));
    };
    is("devices", ",state=\"healthy\"", 50);
    is("devices", ",state=\"allocated\"", 1);
    is("devices", ",state=\"dead\"", 0);
    is("allocations_total", ",result=\"granted\"", 1);
    is("allocations_total", ",result=\"refused\"", 1);
    is("registrations_total", "", 1);
    assert_eq!(metric(&node, "macvtap_allocate_seconds_count"), Some(1));
    assert_eq!(metric(&node, "macvtap_table_writes_total"), Some(1));
    assert!(metric(&node, "macvtap_link_resyncs_total") >= Some(1));
    let events = || metric(&node, "macvtap_link_events_total").unwrap();
    let before = events();
    node.sh("ip link set dp0 mtu 1400");
    await_true("the event is counted", || events() > before);
    node.sh("ip link set dp0 down");
    is("devices", ",state=\"unhealthy\"", 50);
    node.sh("ip link set dp0 up");
    kubelet.drop_stream("dataplane");
    is("registrations_total", "", 2);
}

#[test]
fn a_device_of_a_pod_that_soon_ended_is_free_once_the_kubelet_has_listed_the_pod_and_forgotten_it() {
    let Some((node, kubelet, agent)) = serving(CONFIGURATION) else { return };
    let asked = || kubelet.asked_by(agent.worker().unwrap());
    let ask_after = |before: usize| move || asked() > before;
    await_true("the kubelet is asked at the start", ask_after(0));
    kubelet.allocate("dataplane", &["dataplaneMvp1"]).unwrap();
    await_true("the kubelet is asked after the allocation", ask_after(asked()));
    let allocated = || metric(&node, r#"macvtap_devices{resource="dataplane",state="allocated"}"#);
    await_true("the device is in use", || allocated() == Some(1));
    // It did not list the pod yet, and lists it for a few seconds only.
    kubelet.add_pod("vm", "dataplaneMvp1");
    let is_asked = ask_after(asked());
    let lives = Duration::from_secs(7);
    eventually_in(lives, "the kubelet is asked while the pod lives", || is_asked().then_some(()));
    kubelet.remove_pod("vm");
    // What the kubelet never listed counts for a minute after the allocation.
    eventually_in(Duration::from_secs(40), "the device is free", || (allocated()? == 0).then_some(()));
}

#[test]
fn an_agent_is_ready_when_everything_is_registered_or_another_one_serves_and_says_what_is_missing() {
    if !is_root() {
        return;
    }
    let node = node_with_link();
    let first = node.agent(CONFIGURATION);
    let probe = |question: &str| node.agent_command().args(["probe", question]).output().unwrap();
    let says = |question: &str, part: &str| {
        await_true(&format!("{question} says {part}"), || {
            let output = probe(question);
            let said = if output.status.success() { output.stdout } else { output.stderr };
            String::from_utf8_lossy(&said).contains(part)
        });
    };
    says("ready", "not ready: resource dataplane: reach the kubelet");
    says("live", "live\n");
    let mut kubelet = Kubelet::start(&node);
    says("ready", "ready\n");
    // The second agent is in a container of its own.
    let mut container = node.command("unshare");
    container.args(["--pid", "--fork", "--kill-child"]).arg(node.agent_command().get_args().last().unwrap());
    container.env("DP_MACVTAP_CONF", CONFIGURATION);
    let second = support::Agent::start(container);
    await_true("it stands by", || second.log().contains("standing by"));
    let inside = second.worker().unwrap().to_string();
    let program = node.agent_command();
    let asked = node
        .command("nsenter")
        .args(["--target", &inside, "--pid"])
        .arg(program.get_args().last().unwrap())
        .arg("probe")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout), "standby\n", "{asked:?} {}", second.log());
    kubelet.kill();
    std::fs::remove_file(node.plugins().join("kubelet.sock")).unwrap();
    says("ready", "not ready: resource dataplane");
    drop(first);
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody_and_its_lost_lines_are_counted() {
    if !is_root() {
        return;
    }
    let node = node_with_link();
    let kubelet = Kubelet::start(&node);
    let mut command = node.agent_command();
    command.env("DP_MACVTAP_CONF", CONFIGURATION).args(["--log-level", "trace"]);
    let mut agent = support::Agent::start_unread(command);
    kubelet.await_healthy("dataplane", 50);
    await_true("lines are lost", || {
        kubelet.prefer("dataplane", &["dataplaneMvp0", "dataplaneMvp1"], 1);
        metric(&node, "macvtap_log_lines_lost_total").is_some_and(|lost| lost > 0)
    });
    assert_eq!(kubelet.allocate("dataplane", &["dataplaneMvp7"]).unwrap().len(), 1);
    node.sh("ip link set dp0 down");
    kubelet.await_healthy("dataplane", 0);
    let probe = node.agent_command().arg("probe").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&probe.stdout), "ready\n");
    agent.terminate();
}
