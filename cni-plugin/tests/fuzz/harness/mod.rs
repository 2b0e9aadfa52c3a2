//! Tries readers with inputs that grow from valid ones, by changes to their JSON and to their bytes. Shared by the tests of all
//! three programs.
//!
//! `MACVTAP_FUZZ_INPUTS` says how many inputs in sum, from another seed in each run, which is printed; `MACVTAP_FUZZ_SEED`
//! repeats a run. Without either the inputs are always the same ones: a test that fails is about the change before it.

mod inputs;

use inputs::{Numbers, input};
use std::panic::{AssertUnwindSafe, catch_unwind};
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
        let input = input(target, &mut numbers);
        if catch_unwind(AssertUnwindSafe(|| (target.read)(&input))).is_err() {
            done.store(u64::MAX, Ordering::Relaxed);
            panic!(
                "{} (seed {seed}, worker {worker}, input {number}): {}",
                target.name,
                input.escape_ascii()
            );
        }
        done.store(number + 1, Ordering::Relaxed);
    }
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
