//! The procedures on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

mod adopt;
mod collect;
mod fixtures;
mod nic_steps;
mod steps;
mod tap_number;
mod user_namespace;
