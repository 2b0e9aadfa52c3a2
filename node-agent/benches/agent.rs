//! What the agent costs: time to registration, of an Allocate, from a link's event to the kubelet's list; and memory.
//!
//! Each figure stands beside a floor of the same run, where there is one: an empty call on the same socket for
//! Allocate, the kernel's event at a bare listener for lists. Results go to `target/bench/results.json`.
//!
//! Wants root and, in `MACVTAP_AGENT`, the agent as it is shipped (static release). With `MACVTAP_BESIDE_AGENT` each part
//! is also measured with that agent, of another release for example, in the same rounds.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

#[path = "lean_client/mod.rs"]
mod lean_client;
#[path = "../tests/support/mod.rs"]
mod support;

use e2e::{layout::Checkout, results};
use macvtap::kernel::{Home, Kernel, NewLink, Place, Rtnl};
use macvtap::link::{By, Link, Veth};
use macvtap::netns::Netns;
use macvtap::paths::Paths;
use macvtap::table_file;
use macvtap_proto::deviceplugin::{AllocateRequest, ContainerAllocateRequest, Empty};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::process::Signal;
use serde_json::Value;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use support::kubelet::{Kubelet, Plugin};
use support::{Agent, Node, is_root, signal_to};

const STARTS: usize = 30;
const KILLS: usize = 30;
const CALLS: usize = 2000;
const LINKS: usize = 100;

/// Figures of memory, and the kernel's names for them.
const MEMORY: [(&str, &str); 2] = [("agent_anonymous_memory", "RssAnon"), ("agent_resident_memory", "VmRSS")];

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

    fn of(&self, name: &str, series: &[Duration], floor: Option<&[Duration]>) -> Value {
        results::durations(&format!("{name}{}", self.suffix), series, floor)
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
    results.extend(start(&measured));
    results.extend(kill(&measured));
    results.extend(calls(&measured));
    results.extend(links(&measured));
    results.extend(memory(&measured));
    for result in &results {
        println!("{result}");
    }
    results::merge(Checkout::here().root(), &results).unwrap();
}

/// From exec to the kubelet's taking the registration. Agents take turns.
fn start(measured: &[Measured]) -> Vec<Value> {
    let scene = |one| {
        let node = Node::new();
        node.add_link("dp0");
        let kubelet = Kubelet::start(&node);
        (one, node, kubelet, String::new(), Vec::new())
    };
    let mut scenes: Vec<(&Measured, _, _, _, _)> = measured.iter().map(scene).collect();
    for _ in 0..STARTS {
        for (one, node, kubelet, endpoint, series) in &mut scenes {
            let begun = Instant::now();
            let mut agent = one.agent(node, &configuration(100));
            let plugin = next(kubelet, endpoint);
            series.push(plugin.registered_at - begun);
            agent.terminate();
        }
    }
    scenes.into_iter().map(|(one, .., series)| one.of("agent_start_to_registration", &series, None)).collect()
}

/// From the worker's death to the next one's registration. Agents take turns.
fn kill(measured: &[Measured]) -> Vec<Value> {
    let scene = |one: &Measured| {
        let (agent, kubelet, node) = one.scene(100);
        let endpoint = kubelet.plugin("dataplane").unwrap().endpoint;
        (agent, kubelet, node, endpoint, Vec::new())
    };
    let mut scenes: Vec<_> = measured.iter().map(scene).collect();
    for _ in 0..KILLS {
        for (agent, kubelet, _node, endpoint, series) in &mut scenes {
            let begun = Instant::now();
            signal_to(agent.worker().unwrap(), Signal::KILL);
            let plugin = next(kubelet, endpoint);
            series.push(plugin.registered_at - begun);
            // A worker that dies again and again at once is started more slowly.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    let series = scenes.into_iter().map(|(.., series)| series);
    let result =
        |(one, series): (&Measured, Vec<_>)| one.of("agent_worker_killed_to_registration", &series, None);
    measured.iter().zip(series).map(result).collect()
}

fn next(kubelet: &Kubelet, endpoint: &mut String) -> Plugin {
    let plugin = kubelet.await_plugin("dataplane", |plugin| {
        plugin.endpoint != *endpoint && plugin.healthy().is_some_and(|healthy| healthy > 0)
    });
    endpoint.clone_from(&plugin.endpoint);
    plugin
}

/// Allocate, beside a call that does nothing; and the memory of an agent with 1,000 devices. Agents take turns.
fn calls(measured: &[Measured]) -> Vec<Value> {
    let scene = |one: &Measured| {
        let (agent, kubelet, node) = one.scene(1000);
        let client = kubelet.client("dataplane");
        (agent, kubelet, node, client, (Vec::new(), Vec::new()))
    };
    let mut scenes: Vec<_> = measured.iter().map(scene).collect();
    for call in 0..CALLS {
        for (_agent, kubelet, _node, client, (empty, allocate)) in &mut scenes {
            kubelet.block_on(async {
                let begun = Instant::now();
                client.get_device_plugin_options(Empty {}).await.unwrap();
                empty.push(begun.elapsed());
                let devices_ids = vec![format!("dataplaneMvp{}", call % 1000)];
                let container_requests = vec![ContainerAllocateRequest { devices_ids }];
                let begun = Instant::now();
                client.allocate(AllocateRequest { container_requests }).await.unwrap();
                allocate.push(begun.elapsed());
            });
        }
    }
    let mut results = Vec::new();
    for (one, (agent, .., (empty, allocate))) in measured.iter().zip(scenes) {
        results.push(one.of("agent_allocate", &allocate, Some(&empty)));
        for (name, line) in MEMORY {
            results.push(results::figure(&format!("{name}{}", one.suffix), "KiB", agent.memory(line)));
        }
    }
    results
}

/// Memory of agents with more and more devices on one link, and with more and more links beside it.
fn memory(measured: &[Measured]) -> Vec<Value> {
    let mut results = Vec::new();
    for (devices, links) in [(100, 1), (4_000, 1), (1_000, 64), (1_000, 512)] {
        for one in measured {
            let node = Node::new();
            node.add_link("dp0");
            let other = |link| format!("link add other{link} type veth peer name peer{link}\n");
            let script: String = (1..links).map(other).collect();
            node.sh(&format!("ip -batch - <<'END'\n{script}END"));
            let kubelet = Kubelet::start(&node);
            let agent = one.agent(&node, &configuration(devices));
            kubelet.await_healthy("dataplane", devices as usize);
            for (name, line) in MEMORY {
                let name = format!("{name}_{devices}_devices_{links}_links{}", one.suffix);
                results.push(results::figure(&name, "KiB", agent.memory(line)));
            }
        }
    }
    results
}

/// From the request that makes or deletes a link to the kubelet's list, beside the kernel's event; and what storing the
/// table takes, which comes before a device is listed for the first time.
fn links(measured: &[Measured]) -> Vec<Value> {
    let mut series: Vec<LinkSeries> = measured.iter().map(|_| LinkSeries::default()).collect();
    // There and back, so that no agent always has the later half.
    for place in (0..measured.len()).chain((0..measured.len()).rev()) {
        changes(&measured[place], &mut series[place]);
    }
    let results = |(one, series): (&Measured, LinkSeries)| {
        let [(deleted, deleted_floor), (added, added_floor)] = series.changes;
        [
            one.of("agent_link_added_to_list", &added, Some(&added_floor)),
            one.of("agent_link_deleted_to_list", &deleted, Some(&deleted_floor)),
            one.of("agent_table_write", &series.table, None),
        ]
    };
    measured.iter().zip(series).flat_map(results).collect()
}

/// Times to the kubelet's list and to the kernel's event, of deletions and additions; and table writes.
#[derive(Default)]
struct LinkSeries {
    changes: [(Vec<Duration>, Vec<Duration>); 2],
    table: Vec<Duration>,
}

fn changes(measured: &Measured, series: &mut LinkSeries) {
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
    for round in 0..LINKS {
        let add = round % 2 == 0;
        while heard.try_recv().is_ok() {}
        order_sender.send(add).unwrap();
        let sent = done.recv().unwrap();
        let event = heard.recv_timeout(support::DEADLINE).unwrap();
        let listed = next(if add { 100 } else { 0 });
        let (list, floor) = &mut series.changes[usize::from(add)];
        list.push(listed.saturating_duration_since(sent));
        floor.push(event.saturating_duration_since(sent));
        // The rest of this change's events.
        std::thread::sleep(Duration::from_millis(20));
    }
    series.table.extend(table_writes(&node));
    drop(agent);
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
    (0..LINKS / 2).map(write).collect()
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
