//! What needs real NICs, bonds and VLANs. Each test has a machine of its own: `make test-guest`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod bond;
mod changes;
mod host_device;
mod inventory;
mod lost_checkpoint;
mod no_ipv6;
mod no_macvtap;
mod pools;
mod recording;
mod slow_carrier;
mod sriov;
mod support;
mod taken;
mod unplug;
mod vhost;
