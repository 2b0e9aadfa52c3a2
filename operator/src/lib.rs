//! The operator: pools and nodes to node states, node states to pool status, pools to networks.
//!
//! Everything that decides is a pure function over values (`acceptance`, `catalog`, `node`, `node_state`, `network`,
//! `pool`, `relevance`, `rollout`, `leader::lease`, `migrate::plan`). `run` elects a leader, keeps caches of the cluster
//! (`watches`, `states`, `context`) and runs the `controllers`: each observes what one key depends on, has a pure function
//! decide, and performs that. They and the modules named `apply` are the only ones that write, `overwrite` for them also where
//! an object is not as its schema has it, through a gate that is open only for the leader. `webhook` is a program of its own in
//! the same executable: it shares none of this.

pub mod acceptance;
pub mod admin;
pub mod agents;
pub mod args;
pub mod catalog;
pub mod clock;
pub mod context;
pub mod controller;
pub mod controllers;
pub mod entry;
pub mod gate;
pub mod leader;
pub mod metrics;
pub mod migrate;
pub mod network;
pub mod node;
pub mod node_config;
pub mod node_state;
pub mod overwrite;
pub mod pace;
pub mod pool;
pub mod queue;
pub mod refresh;
pub mod refusal;
pub mod relevance;
pub mod rollout;
pub mod run;
pub mod states;
pub mod takeover;
pub mod trouble;
pub mod watches;
pub mod webhook;

#[cfg(test)]
pub(crate) mod testing;
