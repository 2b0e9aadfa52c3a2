//! What the agent costs: time to registration, of an Allocate, from a link's event to the kubelet's list; and memory.
//!
//! Each figure stands beside a floor of the same run, where there is one: an empty call on the same socket for
//! Allocate, the kernel's event at a bare listener for lists. Results go to `target/bench/results.json`.
//!
//! Wants root and, in `MACVTAP_AGENT`, the agent as it is shipped (static release). With `MACVTAP_BESIDE_AGENT` each part
//! is also measured with that agent, of another release for example.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

#[path = "lean_client/mod.rs"]
mod lean_client;
mod results;
#[path = "../tests/support/mod.rs"]
mod support;

use macvtap::kernel::{Home, Kernel, NewLink, Place, Rtnl};
use macvtap::link::{By, Link, Veth};
use macvtap::netns::Netns;
use macvtap::paths::Paths;
use macvtap::table_file;
use macvtap_proto::deviceplugin::{AllocateRequest, ContainerAllocateRequest, Empty};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::kubelet::{Kubelet, Plugin};
use support::{Agent, Node, is_root, signal_to};

const STARTS: usize = 30;
const KILLS: usize = 30;
const CALLS: usize = 2000;
const LINKS: usize = 100;

/// `RTMGRP_LINK`
const LINK_GROUP: u32 = 1;

/// Length of `struct nlmsghdr`.
const NETLINK_HEADER: usize = 16;

fn configuration(capacity: u32) -> String {
    format!(r#"[{{"name":"dataplane","lowerDevice":"dp0","capacity":{capacity}}}]"#)
}

/// An agent's program, and what the names of its figures end with.
struct Measured {
    program: String,
    suffix: &'static str,
}

impl Measured {
    fn agent(&self, node: &Node, configuration: &str) -> Agent {
        let mut command = node.agent_of(Some(&self.program));
        command.env("DP_MACVTAP_CONF", configuration);
        Agent::start(command)
    }

    fn scene(&self, capacity: u32) -> (Agent, Kubelet, Node) {
        let node = Node::new();
        node.add_link("dp0");
        let kubelet = Kubelet::start(&node);
        let agent = self.agent(&node, &configuration(capacity));
        kubelet.await_healthy("dataplane", capacity as usize);
        (agent, kubelet, node)
    }

    fn of(&self, name: &str, series: Vec<Duration>, floor: Option<Vec<Duration>>) -> Value {
        results::of(&format!("{name}{}", self.suffix), series, floor)
    }
}

fn main() {
    if !is_root() {
        return;
    }
    let given = |name: &str, suffix| std::env::var(name).ok().map(|program| Measured { program, suffix });
    let measured = [given("MACVTAP_AGENT", ""), given("MACVTAP_BESIDE_AGENT", "_beside")];
    let measured: Vec<_> = measured.into_iter().flatten().collect();
    let mut results = Vec::new();
    // One after the other in each part, so that they see the same machine.
    results.extend(measured.iter().map(start));
    results.extend(measured.iter().map(kill));
    results.extend(measured.iter().flat_map(calls));
    results.extend(measured.iter().flat_map(links));
    for result in &results {
        println!("{result}");
    }
    results::merge(&results);
}

/// From exec to the kubelet's taking the registration.
fn start(measured: &Measured) -> Value {
    let node = Node::new();
    node.add_link("dp0");
    let kubelet = Kubelet::start(&node);
    let mut endpoint = String::new();
    let mut series = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut agent = measured.agent(&node, &configuration(100));
        let plugin = next(&kubelet, &mut endpoint);
        series.push(plugin.registered_at - begun);
        agent.terminate();
    }
    measured.of("agent_start_to_registration", series, None)
}

/// From the worker's death to the next one's registration.
fn kill(measured: &Measured) -> Value {
    let (agent, kubelet, _node) = measured.scene(100);
    let mut endpoint = kubelet.plugin("dataplane").unwrap().endpoint;
    let mut series = Vec::new();
    for _ in 0..KILLS {
        let begun = Instant::now();
        signal_to(agent.worker().unwrap(), Signal::KILL);
        let plugin = next(&kubelet, &mut endpoint);
        series.push(plugin.registered_at - begun);
        // A worker that dies again and again at once is started more slowly.
        std::thread::sleep(Duration::from_millis(300));
    }
    measured.of("agent_worker_killed_to_registration", series, None)
}

fn next(kubelet: &Kubelet, endpoint: &mut String) -> Plugin {
    let plugin = kubelet.await_plugin("dataplane", |plugin| {
        plugin.endpoint != *endpoint && plugin.healthy().is_some_and(|healthy| healthy > 0)
    });
    endpoint.clone_from(&plugin.endpoint);
    plugin
}

/// Allocate, beside a call that does nothing; and the memory of an agent with 1,000 devices.
fn calls(measured: &Measured) -> Vec<Value> {
    let (agent, kubelet, _node) = measured.scene(1000);
    let mut client = kubelet.client("dataplane");
    let (mut empty, mut allocate) = (Vec::new(), Vec::new());
    kubelet.block_on(async {
        for call in 0..CALLS {
            let begun = Instant::now();
            client.get_device_plugin_options(Empty {}).await.unwrap();
            empty.push(begun.elapsed());
            let devices_ids = vec![format!("dataplaneMvp{}", call % 1000)];
            let container_requests = vec![ContainerAllocateRequest { devices_ids }];
            let begun = Instant::now();
            client.allocate(AllocateRequest { container_requests }).await.unwrap();
            allocate.push(begun.elapsed());
        }
    });
    let of = |name: &str, line: &str| {
        let value = agent.memory(line);
        let name = format!("{name}{}", measured.suffix);
        json!({"name": name, "unit": "KiB", "p50": value, "p99": value, "n": 1, "floor_p50": null, "ratio": null})
    };
    vec![
        measured.of("agent_allocate", allocate, Some(empty)),
        of("agent_anonymous_memory", "RssAnon"),
        of("agent_resident_memory", "VmRSS"),
    ]
}

/// From the request that makes or deletes a link to the kubelet's list, beside the kernel's event; and what storing the
/// table takes, which comes before a device is listed for the first time.
fn links(measured: &Measured) -> Vec<Value> {
    let node = Node::new();
    let kubelet = Kubelet::start_registrar(&node);
    let agent = measured.agent(&node, &configuration(100));
    let plugin = kubelet.await_plugin("dataplane", |_| true);
    let lists = lean_client::watch(&node.plugins().join(plugin.endpoint));
    let next = |devices: usize| loop {
        let list = lists.recv_timeout(support::DEADLINE).unwrap();
        if list.devices == devices {
            return list.at;
        }
    };
    next(0);
    let (work, done) = mpsc::channel();
    let netns = node.netns();
    // One thread asks the kernel, another hears of it.
    let (heard_sender, heard) = mpsc::channel();
    let listener = netns.clone();
    std::thread::spawn(move || Netns::open(&listener).unwrap().enter(move || listen(&heard_sender)));
    let (order_sender, orders) = mpsc::channel::<bool>();
    std::thread::spawn(move || {
        Netns::open(&netns).unwrap().enter(move || {
            let mut kernel = Rtnl::node().unwrap();
            for add in orders {
                let sent = Instant::now();
                change(&mut kernel, add);
                work.send(sent).unwrap();
            }
        })
    });
    let mut series = [const { (Vec::new(), Vec::new()) }; 2];
    for round in 0..2 * LINKS {
        let add = round % 2 == 0;
        while heard.try_recv().is_ok() {}
        order_sender.send(add).unwrap();
        let sent = done.recv().unwrap();
        let event = heard.recv_timeout(support::DEADLINE).unwrap();
        let listed = next(if add { 100 } else { 0 });
        let (list, floor) = &mut series[usize::from(add)];
        list.push(listed.saturating_duration_since(sent));
        floor.push(event.saturating_duration_since(sent));
        // The rest of this change's events.
        std::thread::sleep(Duration::from_millis(20));
    }
    let table = table_writes(&node);
    drop(agent);
    let [(deleted, deleted_floor), (added, added_floor)] = series;
    vec![
        measured.of("agent_link_added_to_list", added, Some(added_floor)),
        measured.of("agent_link_deleted_to_list", deleted, Some(deleted_floor)),
        measured.of("agent_table_write", table, None),
    ]
}

/// The agent's own table, stored again and again where it is.
fn table_writes(node: &Node) -> Vec<Duration> {
    let paths = Paths::new(node.path("/var/lib/macvtap"), node.path("/run/macvtap"));
    let table = table_file::load(&paths).unwrap().unwrap();
    let write = |_| {
        let begun = Instant::now();
        table_file::store(&paths, &table).unwrap();
        begun.elapsed()
    };
    (0..LINKS).map(write).collect()
}

fn change(kernel: &mut Rtnl, add: bool) {
    let (name, peer) = ("dp0".parse().unwrap(), "dp1".parse().unwrap());
    if add {
        kernel.create(Home::Node, NewLink::Veth(&Veth { name, peer })).unwrap();
    } else {
        let link = kernel.find(Place::Home(Home::Node), &By::Name(name)).unwrap().unwrap();
        kernel.delete(Place::Home(Home::Node), link.index).unwrap();
    }
}

/// Hears of `dp0` alone: the kernel makes a cable end by end, and tells of the other one while this one does not exist yet.
fn listen(heard: &mpsc::Sender<Instant>) {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind(&SocketAddr::new(0, LINK_GROUP)).unwrap();
    while let Ok((message, _)) = socket.recv_from_full() {
        let at = Instant::now();
        let link = Link::parse(message.get(NETLINK_HEADER..).unwrap_or_default());
        if link.is_ok_and(|link| link.name == "dp0") && heard.send(at).is_err() {
            return;
        }
    }
}
