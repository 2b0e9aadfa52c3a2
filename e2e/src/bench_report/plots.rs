//! The plots: which figures each shows.

use super::Recorded;
use super::svg::{Bar, bars};
use super::tables::{AT_ONCE, PATHS};

/// Every plot with the name of its file.
pub(super) fn all(recorded: &Recorded) -> Vec<(&'static str, String)> {
    let over_paths = |figure: &str| -> Vec<Bar> {
        let bar = |(path, label): &(&str, &str)| {
            let name = format!("data_{path}_{figure}");
            bar(recorded, &name, (*label).to_owned(), path.starts_with("macvtap"))
        };
        PATHS.iter().filter_map(bar).collect()
    };
    let at_once = AT_ONCE.iter().flat_map(|count| {
        let one = |verb: &str, label: &str| {
            bar(
                recorded,
                &format!("cni_at_once_{count}_{verb}"),
                format!("{count} at once, {label}"),
                verb == "add",
            )
        };
        [one("add", "ADD"), one("del", "DEL")].into_iter().flatten()
    });
    vec![
        (
            "bench-throughput.svg",
            bars("Guest to guest, segments, MTU 1500: Gbit/s", &over_paths("1500_segments_rate")),
        ),
        (
            "bench-frames.svg",
            bars("Guest to guest, frames of 64 bytes: thousands a second", &over_paths("64_rate")),
        ),
        (
            "bench-at-once.svg",
            bars("Calls at once, until the last has ended: ms", &at_once.collect::<Vec<_>>()),
        ),
    ]
}

fn bar(recorded: &Recorded, name: &str, label: String, is_ours: bool) -> Option<Bar> {
    let number = |key: &str| recorded.number(name, key);
    Some(Bar { label, low: number("min")?, median: number("p50")?, high: number("max")?, is_ours })
}
