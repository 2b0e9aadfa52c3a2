//! How often the scripted tests that inject faults do so, and what that gave: `target/chaos/results.json`, and a table.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::layout::{self, Checkout};

/// Asks for the full counts when it is `full`.
pub const VARIABLE: &str = "CHAOS";

/// What was measured while things broke.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What, in words of its own: no two tests share one.
    pub name: String,
    /// Milliseconds, or what was counted.
    pub unit: String,
    /// How many times.
    pub n: usize,
    /// How many of them, for a count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The median of a series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// The value that one of a hundred exceeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// The largest of a series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// Whether the full counts are wanted.
pub fn is_full() -> bool {
    std::env::var(VARIABLE).is_ok_and(|value| value == "full")
}

/// `few` times in ordinary tests, `full` times when that is wanted.
pub fn times(few: u32, full: u32) -> u32 {
    if is_full() { full } else { few }
}

impl Figure {
    /// So many of `n`.
    pub fn count(name: &str, unit: &str, count: u64, n: usize) -> Self {
        Self { name: name.into(), unit: unit.into(), n, count: Some(count), p50: None, p99: None, max: None }
    }

    /// A series of durations, in milliseconds.
    pub fn series(name: &str, durations: &[Duration]) -> Self {
        let mut sorted: Vec<f64> = durations.iter().map(|duration| duration.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        // The nearest rank: a value that was measured.
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Self {
            name: name.into(),
            unit: "ms".into(),
            n: sorted.len(),
            count: None,
            p50: rank(50),
            p99: rank(99),
            max: sorted.last().copied(),
        }
    }

    /// Puts it among the results, in the place of an earlier one of this name. Ordinary tests leave the results alone.
    pub fn record(&self) -> Result<()> {
        if !is_full() {
            return Ok(());
        }
        let _lock = Checkout::here().lock("chaos")?;
        let mut figures = read()?;
        figures.retain(|other| other.name != self.name);
        figures.push(self.clone());
        layout::write(&path(), format!("{}\n", serde_json::to_string_pretty(&figures)?))
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, unit, n, count, p50, p99, max } = self;
        write!(formatter, "{name}: n={n}")?;
        if let Some(count) = count {
            write!(formatter, " count={count} {unit}")?;
        }
        for (word, value) in [("p50", p50), ("p99", p99), ("max", max)] {
            if let Some(value) = value {
                write!(formatter, " {word}={value:.1} {unit}")?;
            }
        }
        Ok(())
    }
}

/// Where the results are.
pub fn path() -> PathBuf {
    Checkout::here().path("target/chaos/results.json")
}

/// Forgets earlier results.
pub fn clear() -> Result<()> {
    layout::remove(&path())
}

fn read() -> Result<Vec<Figure>> {
    let path = path();
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// All results, for people.
pub fn table() -> Result<String> {
    Ok(lines(&read()?))
}

fn lines(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or_default();
    let mut text = format!(
        "{:width$} {:>6} {:>8} {:>10} {:>10} {:>10}  unit\n",
        "what", "n", "count", "p50", "p99", "max"
    );
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    for Figure { name, unit, n, count, p50, p99, max } in figures {
        let count = count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let (p50, p99, max) = (cell(*p50), cell(*p99), cell(*max));
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:width$} {n:>6} {count:>8} {p50:>10} {p99:>10} {max:>10}  {unit}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_told_by_values_that_were_measured() {
        let durations: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        let figure = Figure::series("gap", &durations);
        assert_eq!(
            (figure.n, figure.p50, figure.p99, figure.max),
            (100, Some(50.0), Some(99.0), Some(100.0))
        );
        let one = Figure::series("gap", &durations[..1]);
        assert_eq!((one.p50, one.p99), (Some(100.0), Some(100.0)));
        assert_eq!(Figure::series("none", &[]).p50, None);
    }

    #[test]
    fn figures_survive_their_file_and_stand_in_one_table() {
        let figures = [
            Figure::count("pods refused", "pods", 2, 300),
            Figure::series("gap", &[Duration::from_micros(20_500)]),
        ];
        let text = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Figure>>(&text).unwrap(), figures);
        let table = lines(&figures);
        assert!(table.contains("pods refused    300        2"), "{table}");
        assert!(table.lines().nth(2).unwrap().contains("20.5"), "{table}");
    }
}
