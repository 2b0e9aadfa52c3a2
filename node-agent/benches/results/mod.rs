//! Figures of the benchmarks, in the form of `target/bench/results.json`.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A series of times, beside its floor where there is one.
pub(crate) fn of(name: &str, series: Vec<Duration>, floor: Option<Vec<Duration>>) -> Value {
    let milliseconds = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
    let percentile = |mut series: Vec<Duration>, percent: usize| {
        series.sort_unstable();
        milliseconds(series[(series.len() - 1) * percent / 100])
    };
    let n = series.len();
    let p50 = percentile(series.clone(), 50);
    let floor = floor.map(|floor| percentile(floor, 50));
    let ratio = floor.map(|floor| (p50 / floor * 1e3).round() / 1e3);
    json!({"name": name, "unit": "ms", "p50": p50, "p99": percentile(series, 99), "n": n, "floor_p50": floor, "ratio": ratio})
}

/// Puts these results in place of those of the same name from an earlier run.
pub(crate) fn merge(results: &[Value]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
    fs::create_dir_all(&directory).unwrap();
    let path: PathBuf = directory.join("results.json");
    let earlier = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Vec<Value>>(&text).ok());
    let replaced = |old: &Value| results.iter().any(|new| new["name"] == old["name"]);
    let mut all: Vec<_> = earlier.unwrap_or_default().into_iter().filter(|old| !replaced(old)).collect();
    all.extend_from_slice(results);
    fs::write(&path, serde_json::to_vec_pretty(&all).unwrap()).unwrap();
}
