//! Many calls at once, and calls among many macvtaps of one lower link.

use crate::call::{Network, call, crowd};
use crate::raw::Raw;
use crate::timed;
use e2e::results::durations;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How many calls begin at once.
const AT_ONCE: [usize; 6] = [1, 2, 4, 8, 16, 32];
const BATCHES: usize = 20;

/// How many macvtaps the lower link has.
const AMONG: [usize; 4] = [1, 100, 1_000, 4_000];
const CALLS: usize = 40;

/// Devices of the node: those of the largest population, one that comes and goes, and one that no plugin uses.
pub(crate) const DEVICES: usize = AMONG[AMONG.len() - 1] + 2;

/// A program and what the names of its figures end with.
type Program = (PathBuf, &'static str);

/// From the first spawn until the last has ended, beside a program that does nothing.
pub(crate) fn at_once(nothing: &Path, programs: &[Program], pods: &[PathBuf]) -> Vec<Value> {
    let mut results = Vec::new();
    for count in AT_ONCE {
        let pods = &pods[..count];
        let mut floor = Vec::new();
        let mut series = vec![(Vec::new(), Vec::new()); programs.len()];
        for _ in 0..BATCHES {
            floor.push(crowd(nothing, "ADD", pods, 0));
            for ((program, _), (add, del)) in programs.iter().zip(&mut series) {
                add.push(crowd(program, "ADD", pods, 0));
                del.push(crowd(program, "DEL", pods, 0));
            }
        }
        for ((_, suffix), (add, del)) in programs.iter().zip(&series) {
            let name = |verb| format!("cni_at_once_{count}_{verb}{suffix}");
            results.push(durations(&name("add"), add, Some(&floor)));
            results.push(durations(&name("del"), del, None));
        }
    }
    results
}

/// Calls for one device while the lower link has so many others, and the kernel's own work for a link there.
pub(crate) fn among(programs: &[Program], pods: &[PathBuf]) -> Vec<Value> {
    let own = Network::of(AMONG[AMONG.len() - 1]);
    let pod = pods[0].as_path();
    let previous = Network { previous: Some(pod), ..own };
    let mut raw = Raw::new(pod, DEVICES - 1);
    let mut there = 0;
    let mut results = Vec::new();
    for count in AMONG {
        while there < count {
            let batch = pods.len().min(count - there);
            crowd(&programs[0].0, "ADD", &pods[..batch], there);
            there += batch;
        }
        let mut series = vec![[const { Vec::new() }; 3]; programs.len()];
        let [mut create, mut delete] = [const { Vec::new() }; 2];
        for _ in 0..CALLS {
            create.push(timed(|| raw.create()));
            delete.push(timed(|| raw.delete()));
            for ((program, _), [add, check, del]) in programs.iter().zip(&mut series) {
                add.push(call(program, "ADD", pod, &own));
                check.push(call(program, "CHECK", pod, &previous));
                del.push(call(program, "DEL", pod, &own));
            }
        }
        for ((_, suffix), series) in programs.iter().zip(&series) {
            let floors = [Some(&*create), None, Some(&*delete)];
            for ((verb, floor), series) in ["add", "check", "del"].iter().zip(floors).zip(series) {
                results.push(durations(&format!("cni_among_{count}_{verb}{suffix}"), series, floor));
            }
        }
    }
    results
}
