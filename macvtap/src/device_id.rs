//! Device IDs: `<resourceName>Mvp<slot>`.
//!
//! The form is macvtap-cni's, so a kubelet checkpoint written while that device plugin ran stays valid. It holds the
//! bare resource name only, hence a resource name is unique on a node whatever its prefix.

use std::fmt;
use std::str::FromStr;

/// Between resource name and slot.
const SEPARATOR: &str = "Mvp";

/// The longest resource name, in bytes: the name part of a Kubernetes qualified name.
pub const RESOURCE_NAME_MAX: usize = 63;

/// The highest slot a device may have; far above what one node can carry (4,096 a link, 128 links).
pub const SLOT_MAX: u32 = 999_999;

/// One device of a resource on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    resource: ResourceName,
    slot: u32,
}

/// The bare name of a resource (without prefix): 1 to 63 bytes of `[A-Za-z0-9._-]`, first and last alphanumeric, as
/// Kubernetes demands of the name part of an extended resource. Safe as a file name: never `.`, `..` or with a `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName(String);

/// Why a text is not a device ID or a resource name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceIdError {
    /// The separator is absent.
    #[error("device ID {0:?} is not of the form <resourceName>Mvp<slot>")]
    Form(String),
    /// What follows the separator is not a slot.
    #[error(
        "device ID {id:?} has slot {slot:?}; a slot is a decimal number from 0 to {SLOT_MAX} without leading zeros"
    )]
    Slot {
        /// The whole text.
        id: String,
        /// The part after the separator.
        slot: String,
    },
    /// The resource name cannot exist in Kubernetes.
    #[error(
        "resource name {0:?} is not 1 to 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
    )]
    ResourceName(String),
}

impl DeviceId {
    /// The device of `resource` with this slot.
    pub fn new(resource: ResourceName, slot: u32) -> Self {
        Self { resource, slot }
    }

    /// The bare name of its resource.
    pub fn resource(&self) -> &ResourceName {
        &self.resource
    }

    /// Its place in the resource, from 0.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl ResourceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ResourceName {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, DeviceIdError> {
        let alphanumeric = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        let valid = bytes.len() <= RESOURCE_NAME_MAX
            && alphanumeric(bytes.first())
            && alphanumeric(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if valid { Ok(Self(text.to_owned())) } else { Err(DeviceIdError::ResourceName(text.to_owned())) }
    }
}

/// Returns the slot in what follows the resource in a device ID, without a copy of anything.
pub fn slot(text: &str) -> Option<u32> {
    number(text.strip_prefix(SEPARATOR)?)
}

/// The number of a slot, in its only form.
fn number(text: &str) -> Option<u32> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    text.parse().ok().filter(|number| canonical && *number <= SLOT_MAX)
}

impl FromStr for DeviceId {
    type Err = DeviceIdError;

    fn from_str(text: &str) -> Result<Self, DeviceIdError> {
        // The last separator: a resource name may itself contain "Mvp".
        let (resource, slot) =
            text.rsplit_once(SEPARATOR).ok_or_else(|| DeviceIdError::Form(text.to_owned()))?;
        let bad_slot = || DeviceIdError::Slot { id: text.to_owned(), slot: slot.to_owned() };
        let slot = number(slot).ok_or_else(bad_slot)?;
        Ok(Self { resource: resource.parse()?, slot })
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.resource, self.slot)
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_text;
serde_as_text!(DeviceId, ResourceName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_names_resource_and_slot() {
        let id: DeviceId = "dataplaneMvp7".parse().unwrap();
        assert_eq!((id.resource().as_str(), id.slot()), ("dataplane", 7));
        assert_eq!(id.to_string(), "dataplaneMvp7");
    }

    #[test]
    fn a_resource_name_may_contain_the_separator() {
        let id: DeviceId = "aMvp1bMvp0".parse().unwrap();
        assert_eq!((id.resource().as_str(), id.slot()), ("aMvp1b", 0));
    }

    #[test]
    fn what_the_agent_never_wrote_is_refused() {
        for text in [
            "",
            "Mvp",
            "Mvp0",
            "dataplane",
            "dataplaneMvp",
            "dataplaneMvp-1",
            "dataplaneMvp+1",
            "dataplaneMvp01",
            "dataplaneMvp1000000",
            "dataplaneMvp99999999999",
            "../../etcMvp0",
            "a/bMvp0",
            ".Mvp0",
            "a b Mvp0",
            "$(reboot)Mvp0",
            "dataplaneMvp0\n",
            "dataplaneMvp٣",
        ] {
            assert!(text.parse::<DeviceId>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("{}Mvp0", "a".repeat(64)).parse::<DeviceId>().is_err());
    }

    proptest! {
        #[test]
        fn every_accepted_text_is_the_id_it_prints(text in "\\PC{0,80}|[a-zA-Z0-9._-]{1,63}Mvp[0-9]{1,7}") {
            if let Ok(id) = text.parse::<DeviceId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
