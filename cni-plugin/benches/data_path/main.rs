//! What guests get of each other: throughput, frames a second, round trips and processor time, through macvtaps that the
//! plugin's ADD made, and the other ways in the same rounds: taps behind bridges and cables, and a cable alone.
//!
//! The guest is this program: it opens the taps as QEMU does and moves frames by `read` and `write`. It has no network
//! stack, so the figures are those of the path and of its user-space end. Results go to `target/bench/results.json`.
//!
//! Wants root. Nothing but namespaces of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

mod frames;
mod processor;
mod scene;
mod sockets;
#[path = "../../tests/support/mod.rs"]
mod support;
mod traffic;

use e2e::layout::Checkout;
use e2e::results::{self, durations, values};
use frames::Kind;
use scene::{End, Scene};
use serde_json::Value;
use sockets::Cable;
use std::collections::BTreeMap;
use std::time::Duration;
use support::vhost::Vhost;
use traffic::Stream;

/// Rounds, in each of which everything is measured once.
const ROUNDS: usize = 5;

/// The smallest frame.
const SMALLEST: &str = "64";

/// What is sent, and what its figures are called: a frame of 64 bytes on the wire has four of check sequence.
const KINDS: [(&str, Kind); 5] = [
    (SMALLEST, Kind::Frames(60)),
    ("1500", Kind::Frames(1514)),
    ("9000", Kind::Frames(9014)),
    ("1500_segments", Kind::Segments(1500)),
    ("9000_segments", Kind::Segments(9000)),
];

/// What is also sent through several queues.
const MANY: [&str; 2] = [SMALLEST, "1500_segments"];
const QUEUES: [usize; 3] = [1, 2, 4];

/// The series of a figure, by unit and name.
type Series = BTreeMap<(String, &'static str), Vec<f64>>;

fn main() {
    if !support::is_root() {
        return;
    }
    let (scenes, cable) = (Scene::all(), Cable::new());
    let mut ends = vec![(End::User, "")];
    if Vhost::is_present() {
        ends.push((End::Vhost, "_vhost"));
    } else {
        println!("{} is absent: guests are measured without it only", support::vhost::DEVICE);
    }
    let mut series = Series::new();
    let mut trips: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        // The first round fills caches and lets links settle.
        if round == 1 {
            series.clear();
            trips.clear();
        }
        for (scene, &(end, suffix)) in
            scenes.iter().flat_map(|scene| ends.iter().map(move |end| (scene, end)))
        {
            let name = format!("{}{suffix}", scene.name);
            measure(scene, end, &name, &mut series);
            trips.entry(name).or_default().extend(traffic::round_trips(scene, end));
        }
        for mtu in [1500, 9000] {
            note(&mut series, "cable", &format!("{mtu}_segments"), cable.stream(mtu));
        }
        trips.entry("cable".to_owned()).or_default().extend(cable.round_trips());
        println!("round {round} of {ROUNDS}");
    }
    let mut results: Vec<Value> =
        series.iter().map(|((name, unit), series)| values(name, unit, series, None)).collect();
    results
        .extend(trips.iter().map(|(name, trips)| durations(&format!("data_{name}_round_trip"), trips, None)));
    results.push(results::figure("data_vhost_net", "present", Vhost::is_present().into()));
    for result in &results {
        println!("{result}");
    }
    results::merge(Checkout::here().root(), &results).unwrap();
}

fn measure(scene: &Scene, end: End, path: &str, series: &mut Series) {
    for (name, kind) in KINDS {
        for queues in QUEUES {
            if queues == 1 || MANY.contains(&name) {
                let several = if queues == 1 { String::new() } else { format!("_{queues}_queues") };
                note(series, path, &format!("{name}{several}"), traffic::stream(scene, end, kind, queues));
            }
        }
    }
}

/// Adds one measurement to the series. Of the smallest frames the number counts, of others the bytes.
fn note(series: &mut Series, scene: &str, what: &str, stream: Stream) {
    let mut add = |name: String, unit, value| series.entry((name, unit)).or_default().push(value);
    let name = |figure| format!("data_{scene}_{what}_{figure}");
    let processor = stream.processor.as_secs_f64();
    if what.starts_with(SMALLEST) {
        add(name("rate"), "1000/s", stream.rate / 1e3);
        add(name("processor"), "us", processor * 1e6);
    } else {
        add(name("rate"), "Gbit/s", stream.bytes * 8.0 / 1e9);
        add(name("processor"), "ms/GB", processor * stream.rate / stream.bytes * 1e12);
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    add(format!("data_{scene}_lost"), "frames", stream.lost as f64);
}
