//! Versions of the specification.

use serde_json::json;
use std::fmt;

/// A version we speak, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0, whose results have the form of 0.3.1.
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: no `version` in `ips`.
    V1_0_0,
    /// 1.1.0: STATUS, GC, `mtu` of an interface.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest one.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it stands in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version that a configuration asks for. By the specification an absent one means 0.1.0, whose results have no
    /// interfaces and so cannot say what this plugin does.
    pub fn of(asked: Option<&str>) -> Result<Self, UnsupportedVersion> {
        let known = Self::ALL.into_iter().find(|version| Some(version.as_str()) == asked);
        known.ok_or_else(|| UnsupportedVersion(asked.map(str::to_owned)))
    }

    /// The answer to VERSION in the form of this version.
    pub fn report(self) -> serde_json::Value {
        json!({"cniVersion": self.as_str(), "supportedVersions": Self::ALL.map(Self::as_str)})
    }
}

/// A version that this plugin does not speak; none where the configuration has no version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedVersion(Option<String>);

impl fmt::Display for UnsupportedVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(asked) => write!(f, "cniVersion {asked:?} is not supported")?,
            None => f.write_str("cniVersion is missing, which means 0.1.0, and that is not supported")?,
        }
        let supported = Version::ALL.map(Version::as_str).join(", ");
        write!(f, "; write \"cniVersion\": \"1.0.0\" into the network configuration (supported: {supported})")
    }
}

impl std::error::Error for UnsupportedVersion {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_version_and_those_we_do_not_speak_are_refused() {
        for asked in [None, Some("0.1.0"), Some("0.2.0"), Some("2.0.0"), Some(""), Some("1.0")] {
            let error = Version::of(asked).unwrap_err();
            assert!(error.to_string().contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"));
        }
        assert!(Version::ALL.into_iter().all(|v| Version::of(Some(v.as_str())) == Ok(v)));
    }
}
