//! What happened, in order: faults, pods, what the judge found.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::progress::say;

/// Everything since the begin of a run.
#[derive(Debug)]
pub(super) struct History {
    begun: Instant,
    lines: Mutex<Vec<String>>,
}

impl History {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), lines: Mutex::default() }
    }

    /// The time since the begin.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Keeps a line.
    pub(super) fn note(&self, what: impl Display) {
        let line = format!("{:8.2} {what}", self.now().as_secs_f64());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Keeps a line and prints it.
    pub(super) fn say(&self, what: impl Display) {
        say(format_args!("  {:7.1} s  {what}", self.now().as_secs_f64()));
        self.note(what);
    }

    /// All lines.
    pub(super) fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}
