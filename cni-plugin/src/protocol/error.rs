//! Errors as the specification wants them: a code, a sentence, details.

use crate::protocol::version::Version;
use serde_json::json;

/// Error codes. Below 100 they are the specification's, from 100 ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The version of the network configuration is not supported.
    IncompatibleVersion = 1,
    /// An environment variable is missing or invalid.
    Environment = 4,
    /// The configuration could not be read from standard input.
    Io = 5,
    /// The configuration is not JSON.
    Decode = 6,
    /// The network configuration is invalid.
    Config = 7,
    /// Nothing is wrong with the request; the same request may succeed later.
    TryAgain = 11,
    /// STATUS: an ADD could not be served now.
    NotAvailable = 50,
    /// The kernel or the file system refused a step of attaching.
    Attach = 100,
    /// The IPAM plugin failed.
    Ipam = 101,
    /// CHECK found something that is not as it was made.
    Check = 102,
    /// Something could not be removed.
    Detach = 103,
}

/// More than this of a message, in characters, nobody reads: values come from tenants, and quotations from plugins.
const MESSAGE_MAX: usize = 4_000;

/// What the plugin prints when it fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// The specification's number.
    pub code: u32,
    /// What failed on what value, and the remedy.
    pub message: String,
    /// More for a person, or nothing.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_MAX) {
            message.truncate(end);
            message.push_str("...");
        }
        Self { code: code as u32, message, details: String::new() }
    }

    /// An error described by a chain of causes.
    pub fn from_chain(code: Code, error: &dyn std::error::Error) -> Self {
        Self::new(code, chain(error))
    }

    /// The form on standard output.
    pub fn to_json(&self, version: Version) -> serde_json::Value {
        let mut json = json!({"cniVersion": version.as_str(), "code": self.code, "msg": self.message});
        if !self.details.is_empty() {
            json["details"] = self.details.clone().into();
        }
        json
    }
}

/// An error and its causes in one line: `a: b: c`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A transparent wrapper says what its source says.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn a_chain_is_one_line_and_a_code_is_the_specifications() {
        let error = CniError::from_chain(Code::TryAgain, &Outer(std::fmt::Error));
        let json = error.to_json(Version::V0_4_0);
        assert_eq!(json["code"], 11);
        assert_eq!(json["cniVersion"], "0.4.0");
        assert!(json["msg"].as_str().unwrap().starts_with("outer: "));
        assert_eq!(json.get("details"), None);
    }
}
