//! Network attachment definitions of a pool.

pub mod apply;
pub mod config;
pub mod former;
pub mod kind;
pub mod links;
pub mod plan;
mod report;
pub mod reports;

pub use report::{NetworkReport, Problem};
