//! The product on a real cluster, one user story after the other.

#![expect(clippy::print_stdout, reason = "what was measured belongs in the test's output")]

mod documentation;
mod metrics;
mod mistakes;
mod pods;
mod pools;
#[allow(dead_code, reason = "shared with the tests of alerts, which use all of it")]
#[path = "../api/prometheus.rs"]
mod prometheus;
mod stage;
mod webhook;
