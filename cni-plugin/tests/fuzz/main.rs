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

mod inputs;
mod readers;
mod seeds;

use inputs::{Numbers, input};
use macvtap::device_id::DeviceId;
use macvtap::link::Link;
use macvtap::pci::PciAddress;
use macvtap::record::Attachment;
use macvtap::table::DeviceTable;
use macvtap_cni::config::Document;
use macvtap_cni::ipam;
use macvtap_cni::protocol::environment::Args;
use macvtap_cni::protocol::error::Code;
use macvtap_cni::protocol::result::CniResult;
use macvtap_cni::settings::Settings;
use seeds::targets;
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
                "CNI_ARGS" => std::str::from_utf8(seed).is_ok_and(|text| {
                    Args::parse(text).is_ok()
                        || text.parse::<DeviceId>().is_ok()
                        || text.parse::<PciAddress>().is_ok()
                }),
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
