//! The targets of `node-agent/tests/fuzz_agent`.

#![no_main]
#![allow(dead_code, reason = "what only the test uses")]

#[path = "../../cni-plugin/tests/fuzz/harness/mod.rs"]
mod harness;
#[path = "../../node-agent/tests/fuzz_agent/readers.rs"]
mod readers;
#[path = "../../node-agent/tests/fuzz_agent/seeds.rs"]
mod seeds;

include!("../guided.rs");
