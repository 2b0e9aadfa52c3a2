//! The node agent: finds the links of a node, offers macvtaps on them to the kubelet, and keeps the node clean.
//!
//! What decides is pure and knows neither sockets nor files: [`link`], [`inventory`], [`pool`], [`selection`],
//! [`devices`], [`health`],
//! [`offer`], and [`engine`], which joins them. What acts is around it.

pub mod admin;
pub mod args;
pub mod checkpoint;
pub mod collector;
pub mod devices;
pub mod engine;
pub mod health;
pub mod install;
pub mod inventory;
pub mod kubelet;
pub mod link;
pub mod lock;
pub mod metrics;
pub mod netlink;
pub mod nics;
pub mod nodestate;
pub mod offer;
pub mod pool;
pub mod probe;
pub mod recovery;
pub mod report;
pub mod selection;
pub mod source;
pub mod standalone;
pub mod supervisor;
pub mod sysfs;
pub mod taps;
pub mod worker;

/// An error with its causes, `what: why: why`, for the one place where it is told.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
