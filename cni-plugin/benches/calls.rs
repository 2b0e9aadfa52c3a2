//! What calls of the plugin cost: whole processes, from spawn to reaped.
//!
//! Each round also measures the floor, so that figures of one run can be compared whatever else the machine does: for
//! ADD the exec of a static program that does nothing plus the requests that make the link, on a socket that is open
//! already; for CHECK that exec alone; for DEL the request that deletes the link. With `MACVTAP_BESIDE_PLUGIN` each
//! round also measures that plugin, of another release for example; the two take turns in being first. Results go to `target/bench/results.json`.
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
use namespaces::{Holder, Node, is_root, pod};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
    create: Vec<Duration>,
    delete: Vec<Duration>,
    crowd: Vec<Duration>,
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
        let devices = u32::try_from(CROWD).unwrap() + 1;
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
    assert!(inside.env("MACVTAP_BENCH_DIR", results_directory()).status().unwrap().success());
}

fn measure(pods: &[PathBuf]) {
    let directory = PathBuf::from(std::env::var_os("MACVTAP_BENCH_DIR").unwrap());
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
        floor.crowd.push(crowd(&nothing, "ADD", pods));
        for one in &mut measured {
            one.crowd.push(crowd(&one.program, "ADD", pods));
            crowd(&one.program, "DEL", pods);
        }
    }
    report(&directory, measured, &floor);
}

fn one_by_one(nothing: &Path, pod: &Path, floor: &mut Floor, measured: &mut [Measured]) {
    let mut kernel = Rtnl::with_pod(Netns::open(pod).unwrap()).unwrap();
    let raw = raw_link();
    for round in 0..WARM_UP + ROUNDS {
        let counts = round >= WARM_UP;
        let note = |series: &mut Vec<Duration>, took| {
            if counts {
                series.push(took);
            }
        };
        note(&mut floor.exec, call(nothing, "ADD", pod, &Network::default()));
        note(&mut floor.create, timed(|| raw_create(&mut kernel, &raw)));
        note(&mut floor.delete, timed(|| kernel.delete(Place::Home(Home::Target), raw.index).unwrap()));
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

/// What ADD makes, but of the last device.
fn raw_link() -> Macvtap {
    let table = table_file::load_current(&Paths::default()).unwrap();
    let device = table.macvtap(&format!("dataplaneMvp{CROWD}").parse().unwrap()).unwrap();
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
    kernel.no_autoconfiguration(link.index, link.name.as_str()).unwrap();
    kernel.change(link.index, Change::up(true)).unwrap();
}

/// The network that a call is about.
#[derive(Clone, Copy, Default)]
struct Network<'a> {
    /// Which device and container.
    number: usize,
    /// Where the IPAM plugin `lease` is, if the network has one.
    ipam: Option<&'a Path>,
    /// In which pod ADD made the link that CHECK looks at.
    previous: Option<&'a Path>,
}

impl Network<'_> {
    fn config(&self) -> Value {
        let device = format!("dataplaneMvp{}", self.number);
        let mut config = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": device, "mtu": 1400});
        if self.ipam.is_some() {
            config["ipam"] = json!({"type": "lease"});
        }
        if let Some(pod) = self.previous {
            let interface = json!({"name": "net1", "sandbox": pod});
            config["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [interface], "ips": []});
        }
        config
    }
}

/// From spawn to reaped.
fn call(program: &Path, command: &str, pod: &Path, network: &Network) -> Duration {
    let config = network.config().to_string();
    let start = Instant::now();
    end(spawn(program, command, pod, network, &config), command);
    start.elapsed()
}

/// From the first spawn until all are reaped.
fn crowd(program: &Path, command: &str, pods: &[PathBuf]) -> Duration {
    let networks: Vec<_> = (0..pods.len()).map(|number| Network { number, ..Network::default() }).collect();
    let configs: Vec<String> = networks.iter().map(|network| network.config().to_string()).collect();
    let start = Instant::now();
    let calls = pods.iter().zip(networks.iter().zip(&configs));
    let calls: Vec<Child> =
        calls.map(|(pod, (network, config))| spawn(program, command, pod, network, config)).collect();
    for call in calls {
        end(call, command);
    }
    start.elapsed()
}

fn spawn(program: &Path, command: &str, pod: &Path, network: &Network, config: &str) -> Child {
    // MAC addresses are derived from it.
    let name = format!("bench{}", network.number);
    let mut child = Command::new(program)
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_IFNAME", "net1")])
        .env("CNI_CONTAINERID", &name)
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name};K8S_POD_UID={name}"),
        )
        .env("CNI_PATH", network.ipam.unwrap_or(Path::new("/nonexistent")))
        .env("CNI_NETNS", pod)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does nothing does not read.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    child
}

fn end(child: Child, command: &str) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(directory: &Path, measured: Vec<Measured>, floor: &Floor) {
    let floor_add: Vec<_> =
        floor.exec.iter().zip(&floor.create).map(|(exec, create)| *exec + *create).collect();
    let mut results = vec![result("cni_exec", floor.exec.clone(), &floor.exec)];
    for one in measured {
        let size = fs::metadata(&one.program).unwrap().len();
        let name = |call: &str| format!("cni_{call}{}", one.suffix);
        results.extend([
            result(&name("add"), one.add, &floor_add),
            result(&name("check"), one.check, &floor.exec),
            result(&name("del"), one.del, &floor.delete),
            result(&name("add_ipv6_lease"), one.lease, &floor_add),
            result(&name("40_adds_at_once"), one.crowd, &floor.crowd),
            json!({"name": name("size"), "unit": "bytes", "p50": size, "p99": size, "n": 1, "floor_p50": null, "ratio": null}),
        ]);
    }
    for result in &results {
        println!("{result}");
    }
    merge(directory, results);
}

fn result(name: &str, series: Vec<Duration>, floor: &[Duration]) -> Value {
    let n = series.len();
    let milliseconds = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let series = sorted(series);
    let floor = milliseconds(percentile(&sorted(floor.to_vec()), 50));
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
