//! What a call of the plugin costs: whole process, from spawn to reaped, without IPAM.
//!
//! Each round also measures the floor, so that figures of one run can be compared whatever else the machine does: for
//! ADD the exec of a static program that does nothing plus the requests that make the link, on a socket that is open
//! already; for DEL the request that deletes the link. Results go to `target/bench/results.json`.
//!
//! Wants root and, in `MACVTAP_PLUGIN`, the plugin as it is shipped (profile `cni`, static).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

#[path = "../../macvtap/tests/support/mod.rs"]
mod namespaces;

use macvtap::kernel::{Home, Kernel, NewLink, Place, Rtnl};
use macvtap::link::{Change, Macvtap};
use macvtap::mode::Mode;
use macvtap::netns::Netns;
use macvtap::paths::Paths;
use macvtap::table_file;
use namespaces::{Node, is_root, pod};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 300;
const WARM_UP: usize = 20;

/// Given to ourselves inside the node: where the pod is.
const INSIDE: &str = "MACVTAP_BENCH_POD";

#[derive(Default)]
struct Series {
    exec: Vec<Duration>,
    raw_create: Vec<Duration>,
    raw_delete: Vec<Duration>,
    add: Vec<Duration>,
    del: Vec<Duration>,
}

fn main() {
    if !is_root() {
        return;
    }
    match std::env::var_os(INSIDE) {
        Some(pod) => measure(Path::new(&pod)),
        None => enter_node(),
    }
}

/// Makes a node and runs this program inside it, so that no call pays for entering namespaces.
fn enter_node() {
    let plugin = std::env::var("MACVTAP_PLUGIN").expect("MACVTAP_PLUGIN names the plugin to measure");
    let (node, pod) = (Node::with_table(), pod());
    let status = node
        .command(std::env::current_exe().unwrap().to_str().unwrap())
        .env(INSIDE, pod.netns())
        .env("MACVTAP_PLUGIN", fs::canonicalize(plugin).unwrap())
        .env("MACVTAP_BENCH_DIR", results_directory())
        .status()
        .unwrap();
    assert!(status.success());
}

fn measure(pod: &Path) {
    let plugin = PathBuf::from(std::env::var_os("MACVTAP_PLUGIN").unwrap());
    let directory = PathBuf::from(std::env::var_os("MACVTAP_BENCH_DIR").unwrap());
    let nothing = build_nothing(&directory);
    let mut kernel = Rtnl::with_pod(Netns::open(pod).unwrap()).unwrap();
    let raw = raw_link();
    let mut series = Series::default();
    for round in 0..WARM_UP + ROUNDS {
        let exec = call(&nothing, "ADD", pod);
        let create = timed(|| raw_create(&mut kernel, &raw));
        let delete = timed(|| kernel.delete(Place::Home(Home::Target), raw.index).unwrap());
        let add = call(&plugin, "ADD", pod);
        let del = call(&plugin, "DEL", pod);
        if round >= WARM_UP {
            series.exec.push(exec);
            series.raw_create.push(create);
            series.raw_delete.push(delete);
            series.add.push(add);
            series.del.push(del);
        }
    }
    report(&directory, &plugin, series);
}

/// What ADD makes, but of another device.
fn raw_link() -> Macvtap {
    let table = table_file::load_current(&Paths::default()).unwrap();
    let device = table.device(&"dataplaneMvp1".parse().unwrap()).unwrap();
    Macvtap {
        lower: device.link.ifindex,
        index: device.ifindex,
        name: "raw1".parse().unwrap(),
        mode: Mode::Bridge,
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        mtu: Some(1400),
        promiscuous: false,
        all_multicast: true,
    }
}

fn raw_create(kernel: &mut Rtnl, link: &Macvtap) {
    kernel.create(Home::Target, NewLink::Macvtap(link)).unwrap();
    kernel.change(link.index, Change::NoAutoconfiguration).unwrap();
    kernel.change(link.index, Change::Up).unwrap();
}

/// From spawn to reaped.
fn call(program: &Path, command: &str, pod: &Path) -> Duration {
    let config = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": "dataplaneMvp0", "mtu": 1400}).to_string();
    let start = Instant::now();
    let mut child = Command::new(program)
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "bench"), ("CNI_IFNAME", "net1")])
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=bench;K8S_POD_UID=bench")
        .env("CNI_NETNS", pod)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does nothing does not read.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    let output = child.wait_with_output().unwrap();
    let took = start.elapsed();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
    took
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(directory: &Path, plugin: &Path, series: Series) {
    let Series { exec, raw_create, raw_delete, add, del } = series;
    let floor_add: Vec<_> = exec.iter().zip(&raw_create).map(|(exec, create)| *exec + *create).collect();
    let size = fs::metadata(plugin).unwrap().len();
    let results = vec![
        result("cni_add", add, floor_add),
        result("cni_del", del, raw_delete),
        result("cni_exec", exec.clone(), exec),
        json!({"name": "cni_size", "unit": "bytes", "p50": size, "p99": size, "n": 1, "floor_p50": null, "ratio": null}),
    ];
    for result in &results {
        println!("{result}");
    }
    merge(directory, results);
}

fn result(name: &str, series: Vec<Duration>, floor: Vec<Duration>) -> Value {
    let n = series.len();
    let milliseconds = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let series = sorted(series);
    let floor = milliseconds(percentile(&sorted(floor), 50));
    let p50 = milliseconds(percentile(&series, 50));
    let ratio = (p50 / floor * 1e3).round() / 1e3;
    json!({"name": name, "unit": "ms", "p50": p50, "p99": milliseconds(percentile(&series, 99)), "n": n, "floor_p50": floor, "ratio": ratio})
}

fn sorted(mut series: Vec<Duration>) -> Vec<Duration> {
    series.sort_unstable();
    series
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Puts these results in place of those of the same name from an earlier run.
fn merge(directory: &Path, results: Vec<Value>) {
    let path = directory.join("results.json");
    let earlier = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Vec<Value>>(&text).ok());
    let replaced = |old: &Value| results.iter().any(|new| new["name"] == old["name"]);
    let mut all: Vec<_> = earlier.unwrap_or_default().into_iter().filter(|old| !replaced(old)).collect();
    all.extend(results);
    fs::write(&path, serde_json::to_vec_pretty(&all).unwrap()).unwrap();
}

/// `target/bench` of the workspace.
fn results_directory() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&directory).unwrap();
    fs::canonicalize(directory).unwrap()
}

/// A static program that does nothing.
fn build_nothing(directory: &Path) -> PathBuf {
    let (source, program) = (directory.join("nothing.rs"), directory.join("nothing"));
    fs::write(&source, "fn main() {}\n").unwrap();
    let arguments =
        ["-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols", "-o"];
    let status = Command::new("rustc").args(arguments).arg(&program).arg(&source).status().unwrap();
    assert!(status.success());
    program
}
