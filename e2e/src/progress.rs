//! What a person at the terminal sees: lines on standard error, and the time the same step took before.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::layout::{self, Checkout};

/// How often a long step says that it is still at it.
const REMINDER: Duration = Duration::from_secs(30);

/// Cargo and Go need about a second to see that everything is built.
const NOTHING_TO_DO: Duration = Duration::from_millis(1500);

/// Prints a line; a closed terminal is not a reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs one long step and prints what it is, how long it took the last time, and a reminder every half minute.
/// `expected` is the time on two cores, shown as long as there is no last time. A step that finds nothing to do is not
/// worth a line.
pub fn timed<T>(step: &str, expected: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let times = Times::of(&Checkout::here());
    let before = times.get(step).map_or_else(
        || format!("about {} s on two cores", expected.as_secs()),
        |seconds| format!("last time {seconds:.0} s"),
    );
    let start = Instant::now();
    let (done, waiting) = channel::<()>();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            let mut pause = NOTHING_TO_DO;
            while waiting.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let so_far = start.elapsed().as_secs();
                say(format_args!("  building {step} ... {so_far} s so far, {before}"));
                pause = REMINDER;
            }
        });
        let result = work();
        drop(done);
        result
    })?;
    let took = start.elapsed();
    if took >= NOTHING_TO_DO {
        say(format_args!("  built {step} in {:.1} s", took.as_secs_f64()));
        times.set(step, took)?;
    }
    Ok(result)
}

/// How long each step took last: one small file per step, so that steps that run at once do not meet.
struct Times {
    dir: PathBuf,
}

impl Times {
    fn of(checkout: &Checkout) -> Self {
        Self { dir: checkout.artefacts().join("times") }
    }

    fn file(&self, step: &str) -> PathBuf {
        self.dir.join(step.replace(['/', ' '], "-"))
    }

    fn get(&self, step: &str) -> Option<f64> {
        std::fs::read_to_string(self.file(step)).ok()?.trim().parse().ok()
    }

    fn set(&self, step: &str, took: Duration) -> Result<()> {
        layout::write(&self.file(step), format!("{:.1}\n", took.as_secs_f64()))
    }
}

/// All recorded times, in seconds.
pub fn times(checkout: &Checkout) -> BTreeMap<String, f64> {
    let times = Times::of(checkout);
    let entries = std::fs::read_dir(&times.dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|step| times.get(&step).map(|seconds| (step, seconds)))
        .collect()
}
