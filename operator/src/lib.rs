//! The operator: pools and nodes to node states, node states to pool status, pools to networks.
//!
//! Everything that decides is a pure function over values (`acceptance`, `node_state::render`, `network::plan`,
//! `network::config`, `pool::assess`, `pool::report`); `run` keeps caches of the cluster and calls the reconcilers,
//! and the modules named `apply` and `publish` are the only ones that write.

pub mod acceptance;
pub mod admin;
pub mod args;
pub mod context;
pub mod network;
pub mod node_state;
pub mod pace;
pub mod pool;
pub mod refusal;
pub mod run;
pub mod watches;

#[cfg(test)]
pub(crate) mod testing;
