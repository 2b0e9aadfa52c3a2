//! Macvtap operating modes, as `linux/if_link.h` names them (`MACVLAN_MODE_*`).

use std::fmt;
use std::str::FromStr;

/// How the devices of one lower link see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Frames between devices of one lower link are delivered directly.
    #[default]
    Bridge,
    /// Every frame goes out to the switch, which may send it back.
    Vepa,
    /// Devices of one lower link never reach each other.
    Private,
    /// One device takes the whole lower link, with its MAC address.
    Passthru,
}

/// A text that is not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown macvtap mode {0:?}; use bridge, vepa, private or passthru")]
pub struct UnknownMode(pub String);

impl Mode {
    /// The name iproute2, `DP_MACVTAP_CONF` and CNI configurations use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Vepa => "vepa",
            Self::Private => "private",
            Self::Passthru => "passthru",
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        [Self::Bridge, Self::Vepa, Self::Private, Self::Passthru]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| UnknownMode(text.to_owned()))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

crate::device_id::serde_as_text!(Mode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        assert_eq!("passthru".parse(), Ok(Mode::Passthru));
        for text in ["", "Bridge", "bridge ", "source", "passthrough"] {
            assert_eq!(text.parse::<Mode>(), Err(UnknownMode(text.to_owned())));
        }
    }
}
