//! The real binary on the real kernel, each test in namespaces of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

mod attach;
mod chain;
mod companions;
mod disturbed;
mod follow;
mod follow_disturbed;
mod host_device;
mod host_link;
mod ipam;
mod ipam_process;
mod ipam_release;
mod ipv6;
mod killed;
mod kube_ovn;
mod lower_link;
mod odd_files;
mod order;
mod protocol;
mod queues;
mod races;
mod reference;
mod routes;
mod sandbox;
mod surroundings;
mod wire;
