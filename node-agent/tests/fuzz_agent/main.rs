//! Hostile input for the agent: whatever a kubelet, a damaged file, an administrator, a loose schema or a kernel of the future
//! writes, no reader panics, hangs, or leads to a device table that the plugin would refuse.
//!
//! How inputs grow, and how a run is repeated, is in [`harness`], which the plugin's test uses too. `make fuzz` tries ten million.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

#[path = "../../../cni-plugin/tests/fuzz/harness/mod.rs"]
mod harness;
mod readers;
mod seeds;

use harness::{fuzz, replay};
use macvtap::record::Attachment;
use macvtap::table::DeviceTable;
use macvtap_crds::v1alpha1::MacvtapNodeStateSpec;
use macvtap_node_agent::config::Configuration;
use macvtap_node_agent::config::standalone::Standalone;
use macvtap_node_agent::links::link::Link;
use macvtap_node_agent::links::notification::Notification;
use macvtap_proto::podresources::ListPodResourcesResponse;
use prost::Message as _;
use seeds::targets;

/// A step of the engine in a test without optimization takes a tenth of a millisecond.
const INPUTS: u64 = 20_000;

#[test]
fn every_seed_is_one_that_its_reader_accepts() {
    for target in targets() {
        for seed in &target.seeds {
            let text = String::from_utf8_lossy(seed);
            let accepted = match target.name {
                "device table" => DeviceTable::parse(seed).is_ok(),
                "record" => serde_json::from_slice::<Attachment>(seed).is_ok(),
                "checkpoint" => !readers::given(seed).is_empty(),
                "pod resources" => ListPodResourcesResponse::decode(&seed[..]).is_ok(),
                "node state" => serde_json::from_slice::<MacvtapNodeStateSpec>(seed).is_ok_and(|spec| {
                    Configuration::compile(spec.pools.unwrap_or_default(), &[], spec.config_hash)
                        .refused
                        .is_empty()
                }),
                "DP_MACVTAP_CONF" => Standalone::parse(&text).is_ok(),
                "tap note" => readers::tap_note(seed).is_some(),
                "devices to allocate" => true,
                "kernel's answer" => Link::read(seed).is_ok(),
                "kernel's notification" => {
                    readers::notified(seed).is_some_and(|told| !matches!(told, Notification::Unreadable))
                }
                other => panic!("no seed of {other} is checked"),
            };
            assert!(accepted, "{}: {text}", target.name);
            (target.read)(seed);
        }
    }
}

#[test]
fn no_kept_input_makes_a_reader_panic_or_hang() {
    replay("agent", targets);
}

#[test]
fn no_input_makes_a_reader_panic_or_hang() {
    fuzz(targets, INPUTS);
}
