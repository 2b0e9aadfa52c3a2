//! Hostile input: whatever a tenant, an IPAM plugin, a damaged file or a kernel of the future writes, no reader panics, hangs,
//! or gives a value that contradicts itself.
//!
//! How inputs grow, and how a run is repeated, is in [`harness`]. `make fuzz` tries ten million.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod harness;
mod readers;
mod seeds;

use harness::{fuzz, replay};
use macvtap::device_id::DeviceId;
use macvtap::link::Link;
use macvtap::netlink::answer::{Answer, read};
use macvtap::pci::PciAddress;
use macvtap::record::Attachment;
use macvtap::table::DeviceTable;
use macvtap::uevent::Announced;
use macvtap_cni::config::Document;
use macvtap_cni::ipam;
use macvtap_cni::protocol::environment::{Args, Command};
use macvtap_cni::protocol::error::Code;
use macvtap_cni::protocol::result::CniResult;
use macvtap_cni::settings::Settings;
use seeds::targets;

/// In a test without optimization this is most of a minute of one processor.
const INPUTS: u64 = 400_000;

#[test]
fn every_seed_is_one_that_its_reader_accepts() {
    for target in targets() {
        for seed in &target.seeds {
            let accepted = match target.name {
                "configuration" => Document::parse(seed)
                    .and_then(|document| document.network(&Args::default(), &Settings::default()))
                    .is_ok(),
                "CNI_ARGS" => std::str::from_utf8(seed).is_ok_and(|text| {
                    Args::parse(text).is_ok()
                        || text.parse::<DeviceId>().is_ok()
                        || text.parse::<PciAddress>().is_ok()
                }),
                "prevResult" => {
                    CniResult::parse(serde_json::from_slice(seed).unwrap(), "it", Code::Config).is_ok()
                }
                "IPAM answer" => ipam::understand(serde_json::from_slice(seed).unwrap(), "static").is_ok(),
                "device table" => DeviceTable::parse(seed).is_ok(),
                "record" => serde_json::from_slice::<Attachment>(seed).is_ok(),
                "node's settings" => serde_json::from_slice::<Settings>(seed).is_ok(),
                "environment" => matches!(Command::read(&readers::Environment::new(seed)), Ok(Some(_))),
                "kernel's answer" => Link::parse(seed).is_ok(),
                "announced taps" => matches!(readers::announced(seed), Announced::Once(_)),
                "kernel's datagram" => {
                    read(seed, readers::SEQUENCE).is_ok_and(|answer| answer != Answer::Stray)
                }
                "routes and addresses" => readers::names_a_link(seed),
                other => panic!("no seed of {other} is checked"),
            };
            // Two resources with the same indexes contradict each other, on purpose.
            let contradicts =
                target.name == "device table" && seed.windows(7).any(|part| part == b"\"other\"");
            assert_eq!(accepted, !contradicts, "{}: {}", target.name, String::from_utf8_lossy(seed));
            (target.read)(seed);
        }
    }
}

#[test]
fn no_kept_input_makes_a_reader_panic_or_hang() {
    replay("plugin", targets);
}

#[test]
fn no_input_makes_a_reader_panic_or_hang() {
    fuzz(targets, INPUTS);
}
