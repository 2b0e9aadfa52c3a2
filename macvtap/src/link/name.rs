//! Names of links.

use std::fmt;
use std::str::FromStr;

/// A name that a link can be given: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..`. Without `%`, which the
/// kernel takes for a pattern, and not `all` or `default`, which are the switches of all links.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IfName(String);

/// A text that is not a link name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an interface name; use 1 to 15 characters without '/', ':', '%' and white space, and not \"all\" or \"default\""
)]
pub struct BadIfName(pub String);

impl IfName {
    /// The name of a link that only has a tap, in the namespace of the node.
    pub fn tap_only(ifindex: u32) -> Self {
        Self(format!("mvt{ifindex:08x}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = BadIfName;

    fn from_str(text: &str) -> Result<Self, BadIfName> {
        // The last stands for what was not text.
        let forbidden = |c: char| {
            c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%' | char::REPLACEMENT_CHARACTER)
        };
        let valid = (1..=15).contains(&text.len())
            && !text.contains(forbidden)
            && !matches!(text, "." | ".." | "all" | "default");
        if valid { Ok(Self(text.to_owned())) } else { Err(BadIfName(text.to_owned())) }
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_the_kernel_takes_are_names() {
        for text in [
            "",
            ".",
            "..",
            "all",
            "default",
            "net%d",
            "a%b",
            "a/b",
            "a b",
            "a:b",
            "a\n",
            "abcdefghijklmnop",
            "\u{a0}x",
            "\u{fffd}",
        ] {
            assert_eq!(text.parse::<IfName>(), Err(BadIfName(text.into())));
        }
        for text in ["net1", "pod0123456789a", "abcdefghijklmno", "eth0.100"] {
            assert!(text.parse::<IfName>().is_ok(), "{text}");
        }
        assert!(IfName::tap_only(0x7fef_ffff).as_str().parse::<IfName>().is_ok());
    }
}
