//! Real machines of KubeVirt on our macvtaps: they boot, are reached, migrate, and survive what nodes do.

#![expect(clippy::print_stdout, reason = "what was measured belongs in the test's output")]

mod disk;
mod examples;
mod faults;
mod hotplug;
mod machine;
mod machines;
mod migration;
mod nodes;
mod pools;
mod stage;
mod watch;
