//! Hostile input for the operator: pools, node states, networks, configurations and pods that no schema has checked. Whatever is in them,
//! no decision panics or hangs, what is rejected has a reason, and what is sent to nodes is what agents can read.
//!
//! How inputs grow, and how a run is repeated, is in [`harness`], which the plugin's test uses too. `make fuzz` tries ten million.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod admission;
#[path = "../../../cni-plugin/tests/fuzz/harness/mod.rs"]
mod harness;
mod readers;
mod seeds;

use harness::{fuzz, replay};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::migrate::source;
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use macvtap_operator::states::RawState;
use seeds::targets;

/// A report in a test without optimization takes a tenth of a millisecond.
const INPUTS: u64 = 20_000;

#[test]
fn every_seed_is_one_that_its_reader_accepts() {
    for target in targets() {
        for seed in &target.seeds {
            let text = String::from_utf8_lossy(seed);
            let accepted = match target.name {
                "pool" => serde_json::from_slice::<MacvtapResourcePool>(seed).map(drop),
                "node state" => serde_json::from_slice::<RawState>(seed).map(drop),
                "network" => serde_json::from_slice::<NetworkAttachmentDefinition>(seed).map(drop),
                "admission review" => {
                    assert!(admission::patched(seed).is_some(), "no device is added: {text}");
                    Ok(())
                }
                _ => {
                    assert!(source::read("it", &text).is_ok(), "{}: {text}", target.name);
                    Ok(())
                }
            };
            assert!(accepted.is_ok(), "{}: {accepted:?}: {text}", target.name);
            (target.read)(seed);
        }
    }
}

#[test]
fn no_kept_input_makes_a_reader_panic_or_hang() {
    replay("operator", targets);
}

#[test]
fn no_input_makes_a_reader_panic_or_hang() {
    fuzz(targets, INPUTS);
}
