//! Waiting for a condition with a deadline, never for a time.

use std::error::Error;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The pause between two looks.
const STEP: Duration = Duration::from_millis(50);

/// What will not come any more: waiting ends at once.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl fmt::Display for Hopeless {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Error for Hopeless {}

/// Looks until `look` gives a value. `what` completes the sentence "waited 10 s for ...". An error of `look` counts as
/// "not yet", unless it is [`Hopeless`], and is part of the message when time runs out.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) if error.is::<Hopeless>() => return Err(error.context(format!("waited for {what}"))),
            Err(error) => Some(error),
        };
        if start.elapsed() >= deadline {
            let reason = last.map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!("waited {:.0} s for {what}{reason}", deadline.as_secs_f64());
        }
        thread::sleep(STEP);
    }
}
