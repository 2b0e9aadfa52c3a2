//! What calls of the plugin cost: whole processes, from spawn to reaped.
//!
//! Each round also measures the floor, so that figures of one run can be compared whatever else the machine does: for
//! ADD the exec of a static program that does nothing plus the requests that make the link, on a socket that is open
//! already; for CHECK that exec alone; for DEL the request that deletes the link. It also measures the classic way to
//! give a pod a link. With `MACVTAP_BESIDE_PLUGIN` each round also measures that plugin, of another release for example;
//! the two take turns in being first. Results go to `target/bench/results.json`.
//!
//! Wants root and, in `MACVTAP_PLUGIN`, the plugin as it is shipped (profile `cni`, static).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

mod call;
mod many;
#[path = "../../../macvtap/tests/support/mod.rs"]
mod namespaces;
mod raw;

use call::{Network, call, crowd};
use e2e::layout::Checkout;
use e2e::results::{self, durations, figure};
use namespaces::{Holder, Node, is_root, pod};
use raw::{Raw, Way};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 300;
const WARM_UP: usize = 20;

/// With a lease: most of the time is duplicate address detection.
const LEASES: usize = 20;

/// How many calls begin at once, each for a pod of its own; and how often.
const CROWD: usize = 40;
const CROWDS: usize = 10;

/// Given to ourselves inside the node: where the pods are.
const INSIDE: &str = "MACVTAP_BENCH_PODS";

/// An IPAM plugin that knows one address.
const LEASE: &str =
    r##"fn main() { print!("{}", r#"{"cniVersion": "1.0.0", "ips": [{"address": "fd00::5/64"}]}"#); }"##;

/// The plugin of a release, and what its calls took.
struct Measured {
    program: PathBuf,
    suffix: &'static str,
    add: Vec<Duration>,
    check: Vec<Duration>,
    del: Vec<Duration>,
    lease: Vec<Duration>,
    crowd: Vec<Duration>,
}

impl Measured {
    fn new(program: PathBuf, suffix: &'static str) -> Self {
        let [add, check, del, lease, crowd] = [const { Vec::new() }; 5];
        Self { program, suffix, add, check, del, lease, crowd }
    }
}

#[derive(Default)]
struct Floor {
    exec: Vec<Duration>,
    /// The exec of a program that does nothing, and the kernel's own work.
    add: Vec<Duration>,
    delete: Vec<Duration>,
    crowd: Vec<Duration>,
    /// The exec of a program that does nothing, and the requests of the classic way.
    classic: [Vec<Duration>; Way::ALL.len()],
}

fn main() {
    if !is_root() {
        return;
    }
    match std::env::var(INSIDE) {
        Ok(pods) => measure(&pods.split(':').map(PathBuf::from).collect::<Vec<_>>()),
        Err(_) => enter_node(),
    }
}

/// Makes a node and runs this program inside it, so that no call pays for entering namespaces.
fn enter_node() {
    let plugin = std::env::var("MACVTAP_PLUGIN").expect("MACVTAP_PLUGIN names the plugin to measure");
    let node = Node::new();
    node.store_table(|table| {
        let devices = u32::try_from(many::DEVICES).unwrap();
        table.next_ifindex += devices;
        table.resources.values_mut().for_each(|resource| resource.links_mut()[0].ranges[0].count = devices);
    });
    let pods: Vec<Holder> = (0..CROWD).map(|_| pod()).collect();
    let pods: Vec<String> = pods.iter().map(|pod| pod.netns().display().to_string()).collect();
    let mut inside = node.command(std::env::current_exe().unwrap().to_str().unwrap());
    inside.env(INSIDE, pods.join(":")).env("MACVTAP_PLUGIN", fs::canonicalize(plugin).unwrap());
    if let Some(beside) = std::env::var_os("MACVTAP_BESIDE_PLUGIN") {
        inside.env("MACVTAP_BESIDE_PLUGIN", fs::canonicalize(beside).unwrap());
    }
    assert!(inside.status().unwrap().success());
}

fn measure(pods: &[PathBuf]) {
    let directory = Checkout::here().path("target/bench");
    fs::create_dir_all(&directory).unwrap();
    let nothing = build(&directory, "nothing", "fn main() {}");
    build(&directory, "lease", LEASE);
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut measured = vec![Measured::new(given("MACVTAP_PLUGIN").unwrap(), "")];
    measured.extend(given("MACVTAP_BESIDE_PLUGIN").map(|program| Measured::new(program, "_beside")));
    let mut floor = Floor::default();
    one_by_one(&nothing, &pods[0], &mut floor, &mut measured);
    for _ in 0..LEASES {
        for one in &mut measured {
            let network = Network { ipam: Some(&directory), ..Network::default() };
            one.lease.push(call(&one.program, "ADD", &pods[0], &network));
            call(&one.program, "DEL", &pods[0], &network);
        }
    }
    for _ in 0..CROWDS {
        floor.crowd.push(crowd(&nothing, "ADD", pods, 0));
        for one in &mut measured {
            one.crowd.push(crowd(&one.program, "ADD", pods, 0));
            crowd(&one.program, "DEL", pods, 0);
        }
    }
    let programs: Vec<_> = measured.iter().map(|one| (one.program.clone(), one.suffix)).collect();
    record(&report(&measured, &floor));
    record(&many::at_once(&nothing, &programs, pods));
    record(&many::among(&programs, pods));
}

fn one_by_one(nothing: &Path, pod: &Path, floor: &mut Floor, measured: &mut [Measured]) {
    let mut raw = Raw::new(pod, many::DEVICES - 1);
    for round in 0..WARM_UP + ROUNDS {
        let counts = round >= WARM_UP;
        let note = |series: &mut Vec<Duration>, took| {
            if counts {
                series.push(took);
            }
        };
        let exec = call(nothing, "ADD", pod, &Network::default());
        note(&mut floor.exec, exec);
        note(&mut floor.add, exec + timed(|| raw.create()));
        note(&mut floor.delete, timed(|| raw.delete()));
        for (way, series) in Way::ALL.into_iter().zip(&mut floor.classic) {
            note(series, exec + timed(|| raw.classic(way)));
            raw.delete();
        }
        // Neither is always the one that follows the kernel's own work of the floor.
        measured.rotate_left(1);
        for one in &mut *measured {
            let add = call(&one.program, "ADD", pod, &Network::default());
            note(&mut one.add, add);
            let previous = Network { previous: Some(pod), ..Network::default() };
            note(&mut one.check, call(&one.program, "CHECK", pod, &previous));
            note(&mut one.del, call(&one.program, "DEL", pod, &Network::default()));
        }
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(measured: &[Measured], floor: &Floor) -> Vec<Value> {
    let mut results = vec![durations("cni_exec", &floor.exec, None)];
    for one in measured {
        let size = fs::metadata(&one.program).unwrap().len();
        let name = |call: &str| format!("cni_{call}{}", one.suffix);
        results.extend([
            durations(&name("add"), &one.add, Some(&floor.add)),
            durations(&name("check"), &one.check, Some(&floor.exec)),
            durations(&name("del"), &one.del, Some(&floor.delete)),
            durations(&name("add_ipv6_lease"), &one.lease, Some(&floor.add)),
            durations(&name("40_adds_at_once"), &one.crowd, Some(&floor.crowd)),
            figure(&name("size"), "bytes", size),
        ]);
    }
    let ours = measured.iter().find(|one| one.suffix.is_empty()).unwrap();
    // How many times the plugin's ADD.
    let ways = Way::ALL.into_iter().zip(&floor.classic);
    results.extend(ways.map(|(way, series)| durations(way.name(), series, Some(&ours.add))));
    results
}

fn record(results: &[Value]) {
    for result in results {
        println!("{result}");
    }
    results::merge(Checkout::here().root(), results).unwrap();
}

/// Compiles a static program.
fn build(directory: &Path, name: &str, text: &str) -> PathBuf {
    let (source, program) = (directory.join(format!("{name}.rs")), directory.join(name));
    fs::write(&source, text).unwrap();
    let arguments =
        ["-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols", "-o"];
    let status = Command::new("rustc").args(arguments).arg(&program).arg(&source).status().unwrap();
    assert!(status.success());
    program
}
