//! What an agent costs that has nothing to do with what happens: a node with 512 links, on which pods come and go.
//!
//! Prints processor time and memory of the agent in `MACVTAP_AGENT`, and of another one in `MACVTAP_BESIDE`, if that is
//! set: both as they are shipped, one after the other, on a node each. `MACVTAP_SECONDS` is for how long, 20 when absent.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::time::{Duration, Instant};
use support::kubelet::Kubelet;
use support::{Agent, Node, is_root};

/// Links of the node, each with another end.
const LINKS: usize = 512;

/// So many of them are lower links of a resource each.
const RESOURCES: usize = 16;

/// Pods that are there at a time, each with a cable of the default network.
const PODS: usize = 110;

/// In this time each of them has gone and another one has come.
const ROUND: Duration = Duration::from_secs(10);

/// What the kernel counts processor time in, for user space: hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// How long the node has been idle before anything is measured.
const SETTLED: Duration = Duration::from_secs(5);

fn main() {
    if !is_root() {
        return;
    }
    let seconds = std::env::var("MACVTAP_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let ours = std::env::var("MACVTAP_AGENT").ok();
    let beside = std::env::var("MACVTAP_BESIDE").ok();
    println!(
        "{LINKS} links, {PODS} pods, {seconds} s at rest and {seconds} s with a new pod every {} ms",
        pace().as_millis()
    );
    measure("this one", ours.as_deref(), Duration::from_secs(seconds));
    if beside.is_some() {
        measure("beside it", beside.as_deref(), Duration::from_secs(seconds));
    }
}

fn pace() -> Duration {
    ROUND / u32::try_from(PODS).unwrap()
}

fn measure(name: &str, program: Option<&str>, time: Duration) {
    let node = Node::new();
    let mut script = String::new();
    for link in 0..LINKS {
        writeln!(
            script,
            "link add dp{link} type veth peer name p{link}\nlink set p{link} up\nlink set dp{link} up"
        )
        .unwrap();
    }
    for pod in 0..PODS {
        writeln!(script, "link add veth{pod} type veth peer name pod{pod}").unwrap();
    }
    node.sh(&format!("ip -batch - <<'END'\n{script}END"));
    let kubelet = Kubelet::start(&node);
    let entries = (0..RESOURCES)
        .map(|number| format!(r#"{{"name":"r{number}","lowerDevice":"dp{number}","capacity":10}}"#));
    let configuration = format!("[{}]", entries.collect::<Vec<_>>().join(","));
    let mut command = node.agent_of(program);
    command.env("DP_MACVTAP_CONF", configuration);
    let agent = Agent::start(command);
    for number in 0..RESOURCES {
        kubelet.await_healthy(&format!("r{number}"), 10);
    }
    std::thread::sleep(SETTLED);
    let rest = spent(&agent, || std::thread::sleep(time));
    let busy = spent(&agent, || churn(&node, time));
    let memory = ["RssAnon", "VmRSS"].map(|line| agent.memory(line));
    println!(
        "{name}: at rest {:.3} % of a processor, with pods {:.3} %; {} KiB of its own, {} KiB resident",
        percent(rest, time),
        percent(busy, time),
        memory[0],
        memory[1]
    );
}

/// Pods that come and go for so long.
fn churn(node: &Node, time: Duration) {
    let begun = Instant::now();
    let mut next = 0_u32;
    while begun.elapsed() < time {
        let pod = next as usize % PODS;
        node.sh(&format!("ip link del veth{pod} && ip link add veth{pod} type veth peer name pod{pod} && ip link set veth{pod} up && ip link set pod{pod} up"));
        next += 1;
        std::thread::sleep((pace() * next).saturating_sub(begun.elapsed()));
    }
}

fn percent(spent: Duration, time: Duration) -> f64 {
    100.0 * spent.as_secs_f64() / time.as_secs_f64()
}

/// Processor time of parent and worker meanwhile.
fn spent(agent: &Agent, during: impl FnOnce()) -> Duration {
    let before = processor_time(agent);
    during();
    processor_time(agent).saturating_sub(before)
}

fn processor_time(agent: &Agent) -> Duration {
    let ticks = |pid: u32| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name in parentheses may have blanks; then come state and ten others.
        let fields = stat.rsplit_once(')').unwrap().1;
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    };
    let all = ticks(agent.pid()) + ticks(agent.worker().unwrap());
    TICK * u32::try_from(all).unwrap()
}
