//! Figures of the benchmarks, in `target/bench/results.json`: what was measured, and by which command, at which commit, on
//! which machine.

use std::cmp::Ordering;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use serde_json::{Value, json};

/// Names the command that the figures are recorded under.
pub const COMMAND: &str = "MACVTAP_BENCH_COMMAND";

/// The figures, below the root of the repository.
pub const FILE: &str = "target/bench/results.json";

/// A series of durations, with that of its floor.
pub fn durations(name: &str, series: &[Duration], floor: Option<&[Duration]>) -> Value {
    let milliseconds = |series: &[Duration]| series.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    let (series, floor): (Vec<f64>, Option<Vec<f64>>) = (milliseconds(series), floor.map(milliseconds));
    values(name, "ms", &series, floor.as_deref())
}

/// A series of values, with that of its floor.
pub fn values(name: &str, unit: &str, series: &[f64], floor: Option<&[f64]>) -> Value {
    let p50 = rounded(percentile(series, 50));
    let floor = floor.map(|floor| rounded(percentile(floor, 50)));
    json!({
        "name": name, "unit": unit, "n": series.len(),
        "min": rounded(percentile(series, 0)), "p25": rounded(percentile(series, 25)), "p50": p50,
        "p75": rounded(percentile(series, 75)), "p99": rounded(percentile(series, 99)), "max": rounded(percentile(series, 100)),
        "floor_p50": floor, "ratio": floor.map(|floor| rounded(p50 / floor)),
    })
}

/// A single figure.
pub fn figure(name: &str, unit: &str, value: u64) -> Value {
    json!({"name": name, "unit": unit, "n": 1, "p50": value, "floor_p50": null, "ratio": null})
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The value below or at which so many per cent of the series are. Of a few the highest percentile is the last.
pub fn percentile<T: Copy + Default + PartialOrd>(series: &[T], percent: usize) -> T {
    let mut series = series.to_vec();
    series.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    let place = series.len().saturating_sub(1) * percent;
    let place = if percent > 50 { place.div_ceil(100) } else { place / 100 };
    series.get(place).copied().unwrap_or_default()
}

/// Puts these results in place of those of the same name from an earlier run, and notes the run.
pub fn merge(root: &Path, results: &[Value]) -> io::Result<()> {
    let path = root.join(FILE);
    let earlier = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let command = env::var(COMMAND).unwrap_or_else(|_| "cargo bench".to_owned());
    let all = merged(earlier.unwrap_or_default(), results, &command, run(root));
    fs::create_dir_all(root.join("target/bench"))?;
    fs::write(&path, format!("{all:#}\n"))
}

/// Runs that no result refers to any more are forgotten.
fn merged(mut all: Value, results: &[Value], command: &str, run: Value) -> Value {
    let kept = all["results"].as_array().cloned().unwrap_or_default().into_iter();
    let replaced = |old: &Value| results.iter().any(|new| new["name"] == old["name"]);
    let mut kept: Vec<Value> = kept.filter(|old| !replaced(old)).collect();
    kept.extend(results.iter().cloned().map(|mut result| {
        result["command"] = command.into();
        result
    }));
    let mut runs = all["runs"].as_object_mut().map(std::mem::take).unwrap_or_default();
    runs.insert(command.to_owned(), run);
    runs.retain(|command, _| kept.iter().any(|result| result["command"] == **command));
    json!({"runs": runs, "results": kept})
}

/// Where and of what the figures are.
fn run(root: &Path) -> Value {
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(root));
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "commit": format!("{commit}{}", if changed { " with changes" } else { "" }),
        "date": output(Command::new("date").args(["-u", "+%Y-%m-%d"])),
        "machine": machine(),
        "load_at_end": load.split(' ').next().unwrap_or_default(),
    })
}

fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = processors
        .lines()
        .filter(|line| line.starts_with("model name"))
        .filter_map(|line| Some(line.split_once(": ")?.1))
        .collect();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = release.split(['-', '\n']).next().unwrap_or_default();
    format!("{} x {}, Linux {kernel}", models.len(), models.first().unwrap_or(&"unknown processor"))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_one_name_are_replaced_and_know_their_run() {
        let first = merged(
            Value::Null,
            &[figure("a", "B", 1), figure("b", "B", 1)],
            "make x",
            json!({"commit": "1"}),
        );
        let second = merged(first, &[figure("b", "B", 2)], "make y", json!({"commit": "2"}));
        assert_eq!(second["results"][0]["command"], "make x");
        assert_eq!(
            (&second["results"][1]["p50"], &second["runs"]["make y"]["commit"]),
            (&json!(2), &json!("2"))
        );
        let third = merged(second, &[figure("a", "B", 3)], "make y", json!({"commit": "3"}));
        assert_eq!(third["runs"], json!({"make y": {"commit": "3"}}));
    }

    #[test]
    fn values_give_median_range_and_ratio() {
        let result = values("a", "s", &[3.0, 1.0, 2.0], Some(&[1.0]));
        assert_eq!((&result["min"], &result["p50"], &result["max"]), (&json!(1.0), &json!(2.0), &json!(3.0)));
        assert_eq!(result["ratio"], 2.0);
    }
}
