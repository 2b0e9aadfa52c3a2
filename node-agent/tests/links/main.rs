//! The agent and the kernel's links, on the real kernel.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;

mod configuration;
mod events;
mod killed;
mod leftovers;
mod offered;
mod routes;
mod table;
mod tap_only;

const CONFIGURATION: &str = r#"[{"name":"dataplane","lowerDevice":"dp0","capacity":50}]"#;
