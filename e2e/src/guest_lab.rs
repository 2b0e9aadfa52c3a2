//! Tests in virtual machines: bonds, VLANs, real NICs that can be unplugged, and whatever else the kernel of the
//! machine that builds may lack.
//!
//! Every test of the package `guest-lab` runs in a machine of its own, which boots Debian's cloud kernel in emulation
//! within seconds, runs that test, and is gone: no test finds what another one left. The programs in it are
//! those that the kernel stage tests.

pub(crate) mod image;
pub(crate) mod kernel;
mod machine;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::layout::{self, Checkout};
use crate::{prerequisites, process};
use kernel::Flavour;
use machine::{Machine, Variant};

/// The package and its test program.
const PACKAGE: &str = "guest-lab";
const PROGRAM: &str = "guest";

/// Programs of the product, and where the machines have them.
const PRODUCT: [(&str, &str); 3] = [
    ("macvtap-node-agent", "/bin/macvtap-node-agent"),
    ("macvtap", "/opt/cni/bin/macvtap"),
    (PACKAGE, "/init"),
];

/// Others. Names relative to the unpacked Debian packages, absolute ones of this machine.
const TOOLS: [(&str, &str); 3] = [
    ("bin/busybox", "/bin/busybox"),
    ("/usr/sbin/ip", "/usr/sbin/ip"),
    ("/usr/lib/cni/host-local", "/opt/cni/bin/host-local"),
];

/// What became of one test.
struct Outcome {
    test: String,
    took: Duration,
    console: String,
    failure: Option<String>,
}

/// Runs the tests whose names contain `matching`, and gives the report: Cargo's words, and the consoles of machines
/// whose tests failed.
pub fn run(checkout: &Checkout, matching: Option<&str>) -> Result<(String, bool)> {
    prerequisites::ensure_guest_lab(checkout)?;
    let start = Instant::now();
    let programs = build(checkout)?;
    let tests = list(&programs.test, matching)?;
    ensure!(!tests.is_empty(), "no test of {PACKAGE} matches");
    let mut files: Vec<(PathBuf, &str)> = vec![(programs.test.clone(), "/test")];
    files.extend(programs.product);
    files.extend(TOOLS.map(|(file, place)| (checkout.debian().join(file), place)));
    let dir = own_directory(checkout)?;
    let outcomes = machines(checkout, &dir, &files, &tests).and_then(|machines| {
        let built = start.elapsed();
        Ok((run_all(&machines, &consoles(checkout), tests)?, built))
    });
    layout::remove(&dir)?;
    let (outcomes, built) = outcomes?;
    let failed = outcomes.iter().any(|outcome| outcome.failure.is_some());
    Ok((report(&outcomes, built, start.elapsed()), failed))
}

/// The machines that these tests want, each with its kernel and files.
fn machines(
    checkout: &Checkout,
    dir: &Path,
    files: &[(PathBuf, &str)],
    tests: &[String],
) -> Result<Vec<Machine>> {
    let mut kernels: BTreeMap<Flavour, (PathBuf, PathBuf)> = BTreeMap::new();
    let mut machines: Vec<Machine> = Vec::new();
    for variant in tests.iter().map(|test| Variant::of(test)) {
        if machines.iter().any(|machine| machine.variant == variant) {
            continue;
        }
        let flavour = variant.flavour();
        let (kernel, archive) = if let Some(known) = kernels.get(&flavour) {
            known.clone()
        } else {
            let kernel = kernel::unpack(checkout, flavour)?;
            let archive = dir.join(format!("{}.cpio", flavour.name()));
            image::write(&archive, files, &kernel.modules)?;
            kernels.entry(flavour).or_insert((kernel.image, archive)).clone()
        };
        let emulator = prerequisites::emulator(checkout, variant.wants_recent_emulator())?;
        machines.push(Machine { variant, emulator, kernel, archive, dir: dir.to_owned() });
    }
    Ok(machines)
}

/// Where what the machines said is kept, also after a success.
fn consoles(checkout: &Checkout) -> PathBuf {
    checkout.artefacts().join("guest-lab/consoles")
}

/// A directory for this run alone; those of runs that were killed go.
fn own_directory(checkout: &Checkout) -> Result<PathBuf> {
    let all = checkout.artefacts().join("guest-lab/run");
    for entry in std::fs::read_dir(&all).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
        if !owner.is_some_and(process::alive) {
            layout::remove(&entry.path())?;
        }
    }
    Ok(all.join(std::process::id().to_string()))
}

/// As many machines at a time as there are processors: each emulates one.
fn run_all(machines: &[Machine], consoles: &Path, tests: Vec<String>) -> Result<Vec<Outcome>> {
    let waiting = Mutex::new(VecDeque::from(tests));
    let next = || waiting.lock().ok().and_then(|mut tests| tests.pop_front());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes: Vec<Outcome> = thread::scope(|scope| {
        let run = || -> Result<Vec<Outcome>> {
            let mut outcomes = Vec::new();
            while let Some(test) = next() {
                outcomes.push(run_one(machines, consoles, test)?);
            }
            Ok(outcomes)
        };
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        let joined = handles.into_iter().map(|handle| match handle.join() {
            Ok(outcomes) => outcomes,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Result<Vec<_>>>().map(|lists| lists.into_iter().flatten().collect())
    })?;
    outcomes.sort_by(|one, other| one.test.cmp(&other.test));
    Ok(outcomes)
}

fn run_one(machines: &[Machine], consoles: &Path, test: String) -> Result<Outcome> {
    let variant = Variant::of(&test);
    let machine = machines.iter().find(|machine| machine.variant == variant);
    let machine = machine.with_context(|| format!("no machine for {test}"))?;
    let start = Instant::now();
    let console = machine.run(&test)?;
    let log = consoles.join(format!("{}.log", test.replace("::", "-")));
    layout::write(&log, console.replace('\r', ""))?;
    Ok(Outcome { took: start.elapsed(), failure: failure(&console), console, test })
}

/// What a console says about the end of its test; nothing after a success.
fn failure(console: &str) -> Option<String> {
    let last = console.lines().rev().find_map(|line| {
        let line = line.trim_end();
        line.strip_prefix("guest-lab: ")
            .filter(|said| said.starts_with("ended with") || said.starts_with("failed"))
    });
    match last {
        // A name that no test has runs none.
        Some("ended with 0") if console.contains("test result: ok. 1 passed") => None,
        Some(said) => Some(said.to_owned()),
        None => Some("the machine ended, or was ended, without a result".to_owned()),
    }
}

fn report(outcomes: &[Outcome], built: Duration, took: Duration) -> String {
    let mut text = String::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.failure.is_some()) {
        let _ = writeln!(text, "---- {} ----", outcome.test);
        // Set off, so that nobody counts the machine's results as ours.
        for line in outcome.console.trim_end().lines() {
            let _ = writeln!(text, "  {}", line.trim_end());
        }
    }
    for Outcome { test, took, failure, .. } in outcomes {
        let result = failure.as_ref().map_or("ok".to_owned(), |said| format!("FAILED ({said})"));
        let _ = writeln!(text, "test {test} ... {result} ({:.1} s)", took.as_secs_f64());
    }
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let passed = outcomes.len() - failed;
    let _ = writeln!(
        text,
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; \
         finished in {:.1} s, {:.1} s of it to build the image",
        took.as_secs_f64(),
        built.as_secs_f64()
    );
    text
}

struct Programs {
    test: PathBuf,
    product: Vec<(PathBuf, &'static str)>,
}

/// The part of Cargo's messages that is read here.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds with the profile and features of the other tests, so that they share what is compiled.
fn build(checkout: &Checkout) -> Result<Programs> {
    let cargo = |words: &[&str]| -> Result<Vec<(String, PathBuf)>> {
        let mut command = Command::new("cargo");
        command.args(words).args(["--locked", "--workspace", "--message-format=json-render-diagnostics"]);
        let text = process::output(command.current_dir(checkout.root()))?;
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
        Ok(messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect())
    };
    let find = |built: &[(String, PathBuf)], name: &str| {
        let found = built.iter().find(|(target, _)| target == name);
        found.map(|(_, path)| path.clone()).with_context(|| format!("cargo built no {name}"))
    };
    let test = find(&cargo(&["test", "--no-run", "--test", PROGRAM])?, PROGRAM)?;
    let built = cargo(&["build", "--bins"])?;
    let product = PRODUCT.iter().map(|(name, place)| Ok((find(&built, name)?, *place)));
    Ok(Programs { test, product: product.collect::<Result<_>>()? })
}

fn list(program: &Path, matching: Option<&str>) -> Result<Vec<String>> {
    let text = process::output(Command::new(program).args(["--list", "--format", "terse"]))?;
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.filter(|name| matching.is_none_or(|part| name.contains(part))).map(str::to_owned).collect())
}

/// Runs everything as [`run`] does, and appends the report to a log.
pub fn logged(checkout: &Checkout, matching: Option<&str>, log: &Path) -> Result<()> {
    let (report, failed) = run(checkout, matching)?;
    let before = std::fs::read_to_string(log).unwrap_or_default();
    layout::write(log, before + &report)?;
    ensure!(!failed, "tests in virtual machines failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_test_that_ran_and_ended_well_is_a_success() {
        let passed = "test result: ok. 1 passed; 0 failed\r\nguest-lab: ended with 0\r\n";
        assert_eq!(failure(passed), None);
        assert_eq!(failure("guest-lab: ended with 101\r\n").as_deref(), Some("ended with 101"));
        assert_eq!(failure("guest-lab: failed: load x\r\n").as_deref(), Some("failed: load x"));
        // No such test.
        assert!(failure("test result: ok. 0 passed\r\nguest-lab: ended with 0\r\n").is_some());
        // A panic of the kernel, or the time was over.
        assert!(failure("test result: ok. 1 passed\r\n").is_some());
    }
}
