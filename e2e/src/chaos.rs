//! Faults on a real cluster, in two ways.
//!
//! The tests of `e2e/tests/agent` inject one fault after the other by a script; [`figures`] says how often, and keeps what
//! they measured. [`run`] injects faults at random, several at once, while pods come and go, and a judge watches:
//! [`plan`] derives from a seed what happens and when, [`faults`] and [`load`] do it, [`kube_ovn`] restarts what ended of
//! kube-ovn, [`observe`] reads the state of the nodes from outside of the product, [`judge`] compares it with a model, and
//! [`history`] keeps what happened.

mod faults;
mod figures;
mod history;
mod judge;
mod kube_ovn;
mod leases;
mod load;
mod numbers;
mod observe;
mod plan;
mod processes;
mod run;
mod settle;
mod snapshot;

pub use figures::{Figure, VARIABLE, clear, is_full, path, table, times};
pub use plan::Kind;
pub use run::{Settings, run};
