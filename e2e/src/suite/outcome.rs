//! What a stage gave, and what its log says of it.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::process;

/// So much of a failed test's output, or of a log without tests, is repeated at the end: enough for the error and its
/// causes.
const LINES: usize = 12;

/// What one stage gave.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) stage: &'static str,
    pub(super) took: Duration,
    pub(super) counts: Counts,
    pub(super) failure: Option<String>,
    pub(super) log: PathBuf,
}

/// What the test programs reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
    /// Passed in name only: the test said that it cannot run here.
    skipped: u32,
}

/// A test that failed.
#[derive(Debug, PartialEq, Eq)]
struct FailedTest<'l> {
    name: &'l str,
    output: Vec<&'l str>,
}

impl Outcome {
    /// What failed in this stage and with which words; nothing when all went well.
    pub(super) fn why(&self) -> Option<String> {
        let failure = self.failure.as_ref()?;
        let log = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let failed = log.as_deref().map(failed_tests).unwrap_or_default();
        let mut text = format!("== {}: {failure}\n   log: {}", self.stage, self.log.display());
        if failed.is_empty() {
            text.push('\n');
            text.push_str(&process::tail(&self.log, LINES));
        }
        for test in failed {
            let last = &test.output[test.output.len().saturating_sub(LINES)..];
            text.extend(["\n-- ", test.name, "\n", &last.join("\n")]);
        }
        Some(text)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = if self.failure.is_some() { "FAILED" } else { "ok" };
        write!(formatter, "{:8} {result:6} {:7.1} s", self.stage, self.took.as_secs_f64())?;
        let Counts { passed, failed, ignored, skipped } = self.counts;
        if passed + failed > 0 {
            write!(formatter, "   {passed} passed, {failed} failed, {ignored} ignored, {skipped} left out")?;
        }
        Ok(())
    }
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; ...`, and those by which a test says that it was left out.
pub(super) fn count(log: &str) -> Counts {
    let mut counts = Counts::default();
    for line in log.lines() {
        if line.trim_start().starts_with("skipped:") {
            counts.skipped += 1;
        }
        let Some(result) = line.strip_prefix("test result: ") else { continue };
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            if let [number, kind] = pair {
                let number: u32 = number.parse().unwrap_or(0);
                match *kind {
                    "passed" => counts.passed += number,
                    "failed" => counts.failed += number,
                    "ignored" => counts.ignored += number,
                    _ => {}
                }
            }
        }
    }
    counts
}

/// The tests that failed, each with what it printed: a test program shows that between two lines `failures:`, after
/// `successes:`.
fn failed_tests(log: &str) -> Vec<FailedTest<'_>> {
    let mut failed: Vec<FailedTest<'_>> = Vec::new();
    let mut shown = false;
    for line in log.lines() {
        let title = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----"));
        match (line, title) {
            ("failures:", _) => shown = !shown,
            ("successes:", _) => shown = false,
            (_, Some(name)) if shown => failed.push(FailedTest { name, output: Vec::new() }),
            _ if shown && !line.is_empty() => {
                failed.last_mut().into_iter().for_each(|test| test.output.push(line));
            }
            _ => {}
        }
        // A program's last line: the next one starts again, even if a test printed `failures:` itself.
        if line.starts_with("test result: ") {
            shown = false;
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
running 2 tests
test a ... ok
test b ... FAILED

successes:

---- a stdout ----
nothing to see

successes:
    a

failures:

---- b stdout ----
figure: 7
Error: wait for pod

Caused by:
    it is gone


failures:
    b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    #[test]
    fn results_of_all_programs_add_up() {
        let log = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                   skipped: needs root\n\
                   test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(log), Counts { passed: 5, failed: 1, ignored: 1, skipped: 1 });
    }

    #[test]
    fn a_failed_test_is_found_with_its_words() {
        let log = format!("{LOG}{LOG}");
        let failed = failed_tests(&log);
        let output = vec!["figure: 7", "Error: wait for pod", "Caused by:", "    it is gone"];
        assert_eq!(failed.len(), 2);
        assert_eq!(failed[1], FailedTest { name: "b", output });
    }

    #[test]
    fn a_failed_stage_ends_with_its_failed_tests() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let outcome = |text: &str, failure: Option<&str>| {
            fs::write(log.path(), text).unwrap();
            let took = Duration::from_secs(1);
            let failure = failure.map(str::to_owned);
            Outcome { stage: "cluster", took, counts: count(text), failure, log: log.path().into() }
        };
        assert_eq!(outcome(LOG, None).why(), None);
        let why = outcome(LOG, Some("cargo test ended with 101")).why().unwrap();
        assert!(why.contains("-- b\nfigure: 7\nError: wait for pod\n"), "{why}");
        let why =
            outcome("error[E0308]: mismatched types", Some("cargo clippy ended with 101")).why().unwrap();
        assert!(why.ends_with("error[E0308]: mismatched types"), "{why}");
    }
}
