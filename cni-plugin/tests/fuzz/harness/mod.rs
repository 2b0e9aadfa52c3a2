//! Tries readers with inputs that grow from valid ones, by changes to their JSON and to their bytes. Shared by the tests of all
//! three programs.
//!
//! `MACVTAP_FUZZ_INPUTS` says how many inputs in sum, from another seed in each run, which is printed; `MACVTAP_FUZZ_SEED`
//! repeats a run. Without either the inputs are always the same ones: a test that fails is about the change before it.
//!
//! `make fuzz-guided` tries the same targets with inputs that are guided by coverage; those that it found and that are kept
//! are in `fuzz/corpus`, and are tried by [`replay`].

pub(crate) mod inputs;

use inputs::{Numbers, input};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const WORKERS: u64 = 2;

/// An input takes microseconds.
const HANG: Duration = Duration::from_secs(30);

/// One reader, valid inputs for it, and what must be true of what it reads.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) seeds: Vec<Vec<u8>>,
    pub(crate) read: fn(&[u8]),
}

impl Target {
    /// The name as a part of a path: the target's file in the corpus.
    pub(crate) fn file_name(&self) -> String {
        let name = self.name.to_lowercase().replace('\'', "");
        name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Tries `few` inputs, or as many as the environment asks for.
pub(crate) fn fuzz(targets: fn() -> Vec<Target>, few: u64) {
    let wanted = from_environment("MACVTAP_FUZZ_INPUTS");
    let inputs = wanted.unwrap_or(few);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed =
        from_environment("MACVTAP_FUZZ_SEED").unwrap_or(if wanted.is_some() { now.as_secs() } else { 1 });
    println!("seed {seed}");
    let start = Instant::now();
    let progress: Vec<AtomicU64> = (0..WORKERS).map(|_| AtomicU64::new(0)).collect();
    let share = inputs.div_ceil(WORKERS);
    thread::scope(|scope| {
        for (worker, done) in (0..WORKERS).zip(&progress) {
            scope.spawn(move || work(&targets(), seed, worker, share, done));
        }
        watch(&progress, share);
    });
    let took = start.elapsed();
    println!("{} inputs in {:.1} s", share * WORKERS, took.as_secs_f64());
}

fn work(targets: &[Target], seed: u64, worker: u64, share: u64, done: &AtomicU64) {
    let mut numbers = Numbers(seed ^ (worker << 56));
    for number in 0..share {
        let target = &targets[usize::try_from(number % targets.len() as u64).unwrap()];
        let origin = format_args!("seed {seed}, worker {worker}, input {number}");
        attempt(target, &input(target, &mut numbers), &origin, done);
    }
}

fn attempt(target: &Target, input: &[u8], origin: &dyn Display, done: &AtomicU64) {
    if catch_unwind(AssertUnwindSafe(|| (target.read)(input))).is_err() {
        done.store(u64::MAX, Ordering::Relaxed);
        panic!("{} ({origin}): {}", target.name, input.escape_ascii());
    }
    done.fetch_add(1, Ordering::Relaxed);
}

/// Tries the inputs that are kept for a program in `fuzz/corpus`: each target must have some.
pub(crate) fn replay(program: &str, targets: fn() -> Vec<Target>) {
    let targets = targets();
    let known: BTreeSet<String> =
        targets.iter().map(|target| format!("{}.txt", target.file_name())).collect();
    let files = fs::read_dir(corpus(program)).unwrap();
    let files: BTreeSet<String> =
        files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(files, known, "the files of fuzz/corpus/{program}, and the targets");
    let mut inputs = Vec::new();
    for target in &targets {
        let kept = kept(program, target);
        assert!(!kept.is_empty(), "{} has no kept input: run make fuzz-guided KEEP=1", target.name);
        inputs.extend(kept.into_iter().enumerate().map(|(number, input)| (target, number + 1, input)));
    }
    let (start, progress) = (Instant::now(), [AtomicU64::new(0)]);
    let work = || {
        for (target, line, input) in &inputs {
            attempt(target, input, &format_args!("kept, line {line}"), &progress[0]);
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        watch(&progress, inputs.len() as u64);
    });
    println!("{} kept inputs in {:.1} s", inputs.len(), start.elapsed().as_secs_f64());
}

/// The inputs that are kept for a target: one a line, as [`slice::escape_ascii`] writes them.
pub(crate) fn kept(program: &str, target: &Target) -> Vec<Vec<u8>> {
    let path = corpus(program).join(format!("{}.txt", target.file_name()));
    fs::read_to_string(path).unwrap_or_default().lines().map(unescape).collect()
}

fn corpus(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(program)
}

fn unescape(line: &str) -> Vec<u8> {
    let mut bytes = line.bytes();
    let mut input = Vec::new();
    while let Some(byte) = bytes.next() {
        let escaped = (byte == b'\\').then(|| bytes.next().expect("an escape has a second letter"));
        input.push(match escaped {
            None => byte,
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b'x') => {
                let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).expect("two digits of a byte")
            }
            Some(itself) => itself,
        });
    }
    input
}

/// Until all are done. A reader that hangs cannot be stopped, so the process ends.
fn watch(progress: &[AtomicU64], share: u64) {
    let now = || progress.iter().map(|done| done.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (mut last, mut since) = (now(), Instant::now());
    while last.iter().any(|done| *done < share) {
        thread::sleep(Duration::from_millis(50));
        let current = now();
        if current != last {
            (last, since) = (current, Instant::now());
        } else if since.elapsed() > HANG {
            println!("a reader hangs at one of the inputs {last:?}");
            std::process::abort();
        }
    }
}
