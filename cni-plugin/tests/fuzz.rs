//! Hostile input: whatever a tenant, an IPAM plugin, a damaged file or a kernel of the future writes, no reader panics, hangs,
//! or gives a value that contradicts itself.
//!
//! Inputs grow from valid ones, by changes to their JSON and to their bytes. Each run has another seed, which it prints;
//! `MACVTAP_FUZZ_SEED` repeats a run, `MACVTAP_FUZZ_INPUTS` says how many inputs in sum. `make fuzz` tries ten million.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

use macvtap::device_id::DeviceId;
use macvtap::link::Link;
use macvtap::record::Attachment;
use macvtap::table::DeviceTable;
use macvtap_cni::config::Document;
use macvtap_cni::ipam;
use macvtap_cni::protocol::environment::Args;
use macvtap_cni::protocol::error::Code;
use macvtap_cni::protocol::result::CniResult;
use macvtap_cni::protocol::version::Version;
use macvtap_cni::settings::Settings;
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// In a test without optimization this is most of a minute of one processor.
const INPUTS: u64 = 400_000;

const WORKERS: u64 = 2;

/// An input takes microseconds.
const HANG: Duration = Duration::from_secs(30);

/// One reader, valid inputs for it, and what must be true of what it reads.
struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    read: fn(&[u8]),
}

/// Numbers that depend on nothing but the seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Words with a meaning to one of the readers, and some that only look like it.
const WORDS: [&str; 44] = [
    "",
    "1.0.0",
    "1.1.0",
    "0.3.1",
    "9.9.9",
    "macvtap",
    "kube-ovn",
    "dhcp",
    "static",
    "../sh",
    "multus",
    "p4p1.default",
    "a.ovn",
    "/run/openvswitch/a.sock",
    "/run/openvswitch/../a",
    "dataplaneMvp0",
    "dataplaneMvp999999",
    "Mvp",
    "02:00:00:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    "02-00-00-00-00-01",
    "10.0.0.2/24",
    "10.0.0.0/33",
    "fd00::2/64",
    "::/0",
    "0.0.0.0/0",
    "10.0.0.1",
    "fd00::1",
    "::ffff:10.0.0.1",
    "bridge",
    "passthru",
    "Auto",
    "Never",
    "net1",
    "\u{0}",
    "\u{202e}",
    "\u{1f4a9}",
    "null",
    "MAC=",
    "IgnoreUnknown=1",
    "246:5",
    "Attached",
    "Pod",
    "Macvtap",
];

fn odd_value(numbers: &mut Numbers) -> Value {
    match numbers.below(12) {
        0 => Value::Null,
        1 => Value::Bool(numbers.below(2) == 0),
        2 => json!(numbers.next()),
        3 => json!(i64::MIN),
        4 => json!(*numbers.pick(&[0_i64, 1, -1, 67, 68, 65_535, 65_536, 1 << 24, (1 << 31) - 1, 1 << 32])),
        5 => json!(1.5e300),
        6 => json!([]),
        7 => json!({}),
        8 => json!([numbers.pick(&WORDS)]),
        9 => json!({*numbers.pick(&WORDS): numbers.pick(&WORDS)}),
        10 if numbers.below(100) == 0 => json!("x".repeat(numbers.below(70_000))),
        10 => json!("x".repeat(numbers.below(300))),
        _ => json!(numbers.pick(&WORDS)),
    }
}

/// Changes one value somewhere below, the deeper the likelier.
fn change(value: &mut Value, numbers: &mut Numbers) {
    match value {
        Value::Object(map) if !map.is_empty() && numbers.below(8) > 0 => change_object(map, numbers),
        Value::Array(list) if !list.is_empty() && numbers.below(8) > 0 => {
            let at = numbers.below(list.len());
            match numbers.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => change(&mut list[at], numbers),
            }
        }
        other => *other = odd_value(numbers),
    }
}

fn change_object(map: &mut Map<String, Value>, numbers: &mut Numbers) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = numbers.pick(&keys).clone();
    match numbers.below(10) {
        0 => drop(map.remove(&key)),
        1 => drop(map.insert((*numbers.pick(&WORDS)).to_owned(), odd_value(numbers))),
        2 => {
            let from = map[numbers.pick(&keys)].clone();
            map.insert(key, from);
        }
        3 => {
            let inner = map[&key].clone();
            map.insert(key, json!([inner]));
        }
        _ => change(map.get_mut(&key).unwrap(), numbers),
    }
}

fn damage(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    if bytes.is_empty() {
        return;
    }
    let at = numbers.below(bytes.len());
    match numbers.below(6) {
        0 => bytes.truncate(at),
        1 => bytes[at] = numbers.next().to_le_bytes()[0],
        2 => bytes[at] ^= 1 << numbers.below(8),
        3 => drop(bytes.splice(at..at, numbers.pick(&WORDS).bytes())),
        4 => drop(bytes.splice(at..at, vec![*numbers.pick(b"[{\"\\\xff0"); numbers.below(300)])),
        _ => {
            let end = at + numbers.below(bytes.len() - at);
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

fn input(target: &Target, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = numbers.pick(&target.seeds).clone();
    if let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) {
        for _ in 0..numbers.below(4) {
            change(&mut json, numbers);
        }
        bytes = serde_json::to_vec(&json).unwrap();
    }
    // Most stay JSON, so that the judges behind the reader get something to do.
    if numbers.below(3) == 0 {
        for _ in 0..=numbers.below(4) {
            damage(&mut bytes, numbers);
        }
    }
    bytes
}

fn known(code: u32, codes: &[Code]) {
    assert!(codes.iter().any(|known| *known as u32 == code), "code {code}");
}

fn configuration(bytes: &[u8]) {
    let document = match Document::parse(bytes) {
        Ok(document) => document,
        Err(error) => return known(error.code, &[Code::IncompatibleVersion, Code::Decode, Code::Config]),
    };
    let settings = Settings::default();
    let args = Args { mac: Some("02:00:00:00:00:02".to_owned()), ..Args::default() };
    match document.network(&args, &settings) {
        Ok(network) => {
            assert!(network.mac.is_some());
            assert!(network.mtu.is_none_or(|mtu| (68..=65_535).contains(&mtu)));
            if let Some(ipam) = &network.ipam {
                assert!(!ipam.plugin.contains('/') && ipam.plugin != "macvtap");
                assert_eq!(ipam.kube_ovn.is_some(), ipam.plugin == "kube-ovn");
                let below = |socket: &std::path::Path| socket.starts_with("/run/openvswitch");
                assert!(ipam.kube_ovn.as_ref().is_none_or(|kube_ovn| below(&kube_ovn.socket)));
            }
        }
        Err(error) => known(error.code, &[Code::Config]),
    }
    let _ = (document.device_id(), document.valid_attachments());
    let sent = document.for_ipam(Version::V1_0_0);
    assert!(sent.get("deviceID").is_none() && sent["cniVersion"] == "1.0.0");
}

fn arguments(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Args::parse(text) {
        Ok(args) => assert!(args.mac.is_none_or(|mac| !mac.is_empty())),
        Err(error) => known(error.code, &[Code::Environment]),
    }
    if let Ok(id) = text.parse::<DeviceId>() {
        assert_eq!(id.to_string(), text);
    }
}

fn result(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    let Ok(result) = CniResult::parse(json, "it", Code::Config) else { return };
    for version in Version::ALL {
        let written = result.to_json(version);
        let again = CniResult::parse(written, "it", Code::Config).unwrap();
        assert_eq!(again.ips.len(), result.ips.len());
        if version == Version::NEWEST {
            assert_eq!(again, result);
        }
    }
}

fn answer(bytes: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return };
    for plugin in ["host-local", "kube-ovn"] {
        match ipam::understand(json.clone(), plugin) {
            Ok(lease) => {
                assert!(!lease.ips.is_empty());
                assert!(lease.routes.iter().all(|route| route.dst.is_some()));
            }
            Err(error) => known(error.code, &[Code::Ipam]),
        }
    }
}

fn table(bytes: &[u8]) {
    let Ok(table) = DeviceTable::parse(bytes) else { return };
    let mut seen = HashSet::new();
    for name in table.resources.keys() {
        for slot in (0..8).chain([999_999]) {
            if let Some(device) = table.device(&DeviceId::new(name.clone(), slot)) {
                assert!(seen.insert(device.ifindex), "two devices have index {}", device.ifindex);
                assert!((0x0100_0000..=0x7fef_ffff).contains(&device.ifindex));
            }
        }
    }
}

fn record(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Attachment>(bytes) else { return };
    let again: Attachment = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(again, record);
}

fn settings(bytes: &[u8]) {
    let Ok(settings) = serde_json::from_slice::<Settings>(bytes) else { return };
    // What waits until a point in time adds this to the present.
    let _ = (Instant::now() + settings.ipam_timeout(), Instant::now() + settings.ipam_retry());
}

fn link(bytes: &[u8]) {
    if let Ok(link) = Link::parse(bytes) {
        assert!(!link.name.is_empty());
    }
}

fn targets() -> Vec<Target> {
    let texts = |all: &[Value]| all.iter().map(|json| serde_json::to_vec(json).unwrap()).collect();
    let results = [
        json!({"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/x", "socketPath": "/a"}],
               "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::2/64", "interface": 0}],
               "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "priority": 5, "scope": 253, "table": 1000, "advmss": 1300}, {"gw": "fd00::9"}],
               "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]}}),
        json!({"ips": [{"address": "172.31.0.41/24", "interface": 0}], "interfaces": null, "dns": {}}),
    ];
    let configurations = [
        json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": "dataplaneMvp0", "mac": "02:00:00:00:00:01", "mtu": 1500,
               "mode": "bridge", "promiscMode": true, "owner": 107, "group": 107, "announce": "Never", "dns": {"nameservers": ["10.0.0.1"]},
               "runtimeConfig": {"mac": "02:00:00:00:00:03", "ips": ["10.0.0.2/24"], "deviceID": "dataplaneMvp0"},
               "args": {"cni": {"mac": "02:00:00:00:00:04"}}, "ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}, "prevResult": results[0]}),
        json!({"cniVersion": "1.1.0", "name": "p4p1", "type": "macvtap", "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}],
               "ipam": {"type": "kube-ovn", "server_socket": "/run/openvswitch/kube-ovn-daemon.sock", "provider": "p4p1.default", "routes": [{"gw": "10.0.0.1"}]}}),
    ];
    let resource = json!({"prefix": "macvtap.network.kubevirt.io", "type": "Macvtap", "mtu": 9000, "promiscuous": false, "allMulticast": true,
        "owner": {"uid": 107, "gid": 107}, "tapOnly": "Forbidden",
        "links": [{"ifindex": 3, "name": "dp0", "identity": {"by": "name", "kind": "veth", "name": "dp0"}, "mode": "bridge",
                   "ranges": [{"firstSlot": 0, "count": 4, "firstIfindex": 16_777_216}, {"firstSlot": 4, "count": 4, "firstIfindex": 16_777_300}]}]});
    let record_seed = json!({"version": 1, "device": "dataplaneMvp0", "state": "Attached", "ifindex": 16_777_216, "lowerIfindex": 3, "mac": "02:00:00:00:00:01",
        "tap": {"major": 246, "minor": 5}, "netnsId": 4, "network": "dataplane",
        "holder": {"kind": "pod", "containerId": "c1", "ifname": "net1", "podUid": "u", "podNamespace": "a", "podName": "b", "netns": "/run/netns/x", "netnsInode": 4_026_531_840_u64}});
    let target = |name, seeds, read| Target { name, seeds, read };
    vec![
        target("configuration", texts(&configurations), configuration as fn(&[u8])),
        target(
            "CNI_ARGS",
            vec![
                b"IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c;MAC=02:00:00:00:00:01;X=y"
                    .to_vec(),
                b"dataplaneMvp7".to_vec(),
            ],
            arguments,
        ),
        target("prevResult", texts(&results), result),
        target("IPAM answer", texts(&results), answer),
        target(
            "device table",
            texts(&[
                json!({"version": 1, "bootId": "b", "nextIfindex": 16_777_400, "standalone": true, "resources": {"dataplane": resource, "other": resource}}),
                json!({"version": 1, "bootId": "b", "nextIfindex": 16_777_400, "resources": {"dataplane": resource}}),
            ]),
            table,
        ),
        target("record", texts(&[record_seed]), record),
        target(
            "node's settings",
            texts(&[
                json!({"logFile": "/var/log/a", "logLevel": "debug", "moveHostLinks": true, "socketDirectories": ["/run/a"], "ipamTimeoutSeconds": 9, "ipamRetrySeconds": 9}),
            ]),
            settings,
        ),
        target("kernel's answer", vec![kernels_answer()], link),
    ]
}

/// A link as the kernel describes it: header, name, MTU, lower link, address, kind and mode.
fn kernels_answer() -> Vec<u8> {
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let info = [attribute(1, b"macvtap\0"), attribute(2, &attribute(1, &4_u32.to_ne_bytes()))].concat();
    let header = [0, 0, 1, 0, 7, 0, 0, 1, 0x43, 0x12, 0, 0, 0, 0, 0, 0];
    let attributes = [
        attribute(3, b"net1\0"),
        attribute(4, &1500_u32.to_ne_bytes()),
        attribute(5, &3_u32.to_ne_bytes()),
        attribute(1, &[2, 0, 0, 0, 0, 1]),
        attribute(18, &info),
    ];
    [&header[..], &attributes.concat()].concat()
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn every_seed_is_one_that_its_reader_accepts() {
    for target in targets() {
        for seed in &target.seeds {
            let accepted = match target.name {
                "configuration" => Document::parse(seed)
                    .and_then(|document| document.network(&Args::default(), &Settings::default()))
                    .is_ok(),
                "CNI_ARGS" => std::str::from_utf8(seed)
                    .is_ok_and(|text| Args::parse(text).is_ok() || text.parse::<DeviceId>().is_ok()),
                "prevResult" => {
                    CniResult::parse(serde_json::from_slice(seed).unwrap(), "it", Code::Config).is_ok()
                }
                "IPAM answer" => ipam::understand(serde_json::from_slice(seed).unwrap(), "static").is_ok(),
                "device table" => DeviceTable::parse(seed).is_ok(),
                "record" => serde_json::from_slice::<Attachment>(seed).is_ok(),
                "node's settings" => serde_json::from_slice::<Settings>(seed).is_ok(),
                _ => Link::parse(seed).is_ok(),
            };
            // Two resources with the same indexes contradict each other, on purpose.
            let contradicts =
                target.name == "device table" && seed.windows(7).any(|part| part == b"\"other\"");
            assert_eq!(accepted, !contradicts, "{}: {}", target.name, String::from_utf8_lossy(seed));
            (target.read)(seed);
        }
    }
}

#[test]
fn no_input_makes_a_reader_panic_or_hang() {
    let inputs = from_environment("MACVTAP_FUZZ_INPUTS").unwrap_or(INPUTS);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = from_environment("MACVTAP_FUZZ_SEED").unwrap_or(now.as_secs());
    println!("seed {seed}");
    let start = Instant::now();
    let progress: Vec<AtomicU64> = (0..WORKERS).map(|_| AtomicU64::new(0)).collect();
    let share = inputs.div_ceil(WORKERS);
    thread::scope(|scope| {
        for (worker, done) in (0..WORKERS).zip(&progress) {
            scope.spawn(move || work(seed, worker, share, done));
        }
        watch(&progress, share);
    });
    let took = start.elapsed();
    println!("{} inputs in {:.1} s", share * WORKERS, took.as_secs_f64());
}

fn work(seed: u64, worker: u64, share: u64, done: &AtomicU64) {
    let targets = targets();
    let mut numbers = Numbers(seed ^ (worker << 56));
    for number in 0..share {
        let target = &targets[usize::try_from(number % 8).unwrap()];
        let input = input(target, &mut numbers);
        if catch_unwind(AssertUnwindSafe(|| (target.read)(&input))).is_err() {
            done.store(u64::MAX, Ordering::Relaxed);
            panic!(
                "{} (seed {seed}, worker {worker}, input {number}): {}",
                target.name,
                input.escape_ascii()
            );
        }
        done.store(number + 1, Ordering::Relaxed);
    }
}

/// Until all are done. A reader that hangs cannot be stopped, so the process ends.
fn watch(progress: &[AtomicU64], share: u64) {
    let now = || progress.iter().map(|done| done.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (mut last, mut since) = (now(), Instant::now());
    while last.iter().any(|done| *done < share) {
        thread::sleep(Duration::from_millis(50));
        let current = now();
        if current != last {
            (last, since) = (current, Instant::now());
        } else if since.elapsed() > HANG {
            println!("a reader hangs at one of the inputs {last:?}");
            std::process::abort();
        }
    }
}
