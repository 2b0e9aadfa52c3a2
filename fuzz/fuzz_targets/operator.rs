//! The targets of `operator/tests/fuzz_operator`.

#![no_main]
#![allow(dead_code, reason = "what only the test uses")]

#[path = "../../operator/tests/fuzz_operator/admission.rs"]
mod admission;
#[path = "../../cni-plugin/tests/fuzz/harness/mod.rs"]
mod harness;
#[path = "../../operator/tests/fuzz_operator/readers.rs"]
mod readers;
#[path = "../../operator/tests/fuzz_operator/seeds.rs"]
mod seeds;

include!("../guided.rs");
