//! Figures in the form of `target/bench/results.json`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// A series of durations, beside that of its floor.
pub(crate) fn durations(name: &str, series: &[Duration], floor: Option<&[Duration]>) -> Value {
    let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    let (p50, p99) = (milliseconds(percentile(series, 50)), milliseconds(percentile(series, 99)));
    let floor = floor.map(|floor| milliseconds(percentile(floor, 50)));
    let ratio = floor.map(|floor| (p50 / floor * 1e3).round() / 1e3);
    json!({"name": name, "unit": "ms", "p50": p50, "p99": p99, "n": series.len(), "floor_p50": floor, "ratio": ratio})
}

/// A single figure.
pub(crate) fn figure(name: &str, unit: &str, value: u64) -> Value {
    json!({"name": name, "unit": unit, "p50": value, "p99": value, "n": 1, "floor_p50": null, "ratio": null})
}

/// The duration below or at which so many per cent of the series are. Of a few the highest percentile is the last.
pub(crate) fn percentile(series: &[Duration], percent: usize) -> Duration {
    let mut series = series.to_vec();
    series.sort_unstable();
    let place = series.len().saturating_sub(1) * percent;
    let place = if percent > 50 { place.div_ceil(100) } else { place / 100 };
    series.get(place).copied().unwrap_or_default()
}

/// Puts these results in place of those of the same name from an earlier run.
pub(crate) fn merge(root: &Path, results: &[Value]) -> Result<()> {
    let directory = root.join("target/bench");
    fs::create_dir_all(&directory).context("make the directory of results")?;
    let path = directory.join("results.json");
    let earlier = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Vec<Value>>(&text).ok());
    let replaced = |old: &Value| results.iter().any(|new| new["name"] == old["name"]);
    let mut all: Vec<_> = earlier.unwrap_or_default().into_iter().filter(|old| !replaced(old)).collect();
    all.extend_from_slice(results);
    fs::write(&path, serde_json::to_vec_pretty(&all)?).with_context(|| format!("write {}", path.display()))
}
