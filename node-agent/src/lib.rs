//! The node agent: finds the links of a node, offers macvtaps on them to the kubelet, and keeps the node clean.
//!
//! One module for each room, from the lowest up; each knows those before it and none after it. What decides is pure and
//! knows neither sockets nor files: [`pools`], [`devices`], [`links::inventory`], [`attachments::collector`].

pub mod pods;
pub mod process;

pub mod links;
pub mod pools;

pub mod devices;

pub mod attachments;

pub mod kubelet;

pub mod config;

pub mod report;

pub mod worker;

/// An error with its causes, `what: why: why`, for the one place where it is reported.
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
