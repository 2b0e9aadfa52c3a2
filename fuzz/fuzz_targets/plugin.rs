//! The targets of `cni-plugin/tests/fuzz`.

#![no_main]
#![allow(dead_code, reason = "what only the test uses")]

#[path = "../../cni-plugin/tests/fuzz/harness/mod.rs"]
mod harness;
#[path = "../../cni-plugin/tests/fuzz/readers.rs"]
mod readers;
#[path = "../../cni-plugin/tests/fuzz/seeds.rs"]
mod seeds;

include!("../guided.rs");
