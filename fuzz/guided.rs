// Part of each program in fuzz_targets: one of the targets of `seeds::targets`, which the variable MACVTAP_FUZZ_TARGET names
// as its file in the corpus is named, under libFuzzer. Without the variable the names of all are printed.

use harness::Target;
use harness::inputs::{Numbers, change};
use serde_json::Value;
use std::sync::OnceLock;

static TARGET: OnceLock<Target> = OnceLock::new();

fn choose() {
    let (targets, wanted) = (seeds::targets(), std::env::var("MACVTAP_FUZZ_TARGET"));
    let Ok(wanted) = wanted else {
        targets.iter().for_each(|target| println!("{}", target.file_name()));
        std::process::exit(0);
    };
    let target = targets.into_iter().find(|target| target.file_name() == wanted);
    let target = target.unwrap_or_else(|| panic!("there is no target {wanted:?}"));
    if let Some(directory) = std::env::var_os("MACVTAP_FUZZ_SEEDS") {
        let kept = harness::kept(env!("CARGO_BIN_NAME"), &target);
        for (number, seed) in target.seeds.iter().chain(&kept).enumerate() {
            let path = std::path::Path::new(&directory).join(format!("seed-{number}"));
            std::fs::write(path, seed).unwrap();
        }
    }
    if let Some(directory) = std::env::var_os("MACVTAP_FUZZ_CHOSEN") {
        print_shortest(std::path::Path::new(&directory));
        std::process::exit(0);
    }
    let _ = TARGET.set(target);
}

/// Prints inputs as the corpus has them, the shortest first, up to a length in sum.
fn print_shortest(directory: &std::path::Path) {
    const KEPT_MAX: usize = 7000;
    let files = std::fs::read_dir(directory).unwrap();
    let mut inputs: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    inputs.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    let mut length = 0;
    for input in inputs {
        length += input.len();
        if length <= KEPT_MAX {
            println!("{}", input.escape_ascii());
        }
    }
}

/// Half of the inputs that are JSON are changed as JSON, so that they get behind the parser.
fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut numbers = Numbers(u64::from(seed));
    if numbers.below(2) == 0
        && let Ok(mut json) = serde_json::from_slice::<Value>(&data[..size])
    {
        change(&mut json, &mut numbers);
        let text = serde_json::to_vec(&json).unwrap();
        if text.len() <= max_size {
            data[..text.len()].copy_from_slice(&text);
            return text.len();
        }
    }
    libfuzzer_sys::fuzzer_mutate(data, size, max_size)
}

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, size, max_size, seed)
});

libfuzzer_sys::fuzz_target!(init: choose(), |data: &[u8]| {
    (TARGET.get().expect("a target").read)(data);
});
