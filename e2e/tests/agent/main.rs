//! The node agent on a real cluster while everything around it breaks: upgrades, kubelet restarts, its own death, links that
//! vanish, an API server that is away. A few times each in ordinary tests, as often as it takes with `CHAOS=full`.

#![expect(clippy::print_stdout, reason = "what was measured belongs in the test's output")]

mod api_outage;
mod breaks;
mod checkpoint;
mod churn;
mod crun;
mod hangs;
mod kubelet;
mod links;
mod plugin;
#[allow(dead_code, reason = "shared with the tests of the product, which use all of it")]
#[path = "../product/pods.rs"]
mod pods;
mod reboot;
mod sandbox;
#[allow(dead_code, reason = "shared with the tests of the product, which use all of it")]
#[path = "../product/stage.rs"]
mod stage;
mod upgrade;
mod worker;
