//! The configuration of an agent that runs without the API: macvtap-cni's JSON, read strictly.
//!
//! `[{"name": "dataplane", "lowerDevice": "eth0", "mode": "bridge", "capacity": 50}]`; `[]` offers every NIC and every
//! bond under its own name. With `"type": "HostDevice"` an entry gives a whole NIC to a pod. What macvtap-cni takes without a word and then never serves (an unknown key, a name that
//! cannot be a resource) is an error here, which says where it is and what to write instead.

mod json;

use crate::pools::pool::{Pool, PoolError};
use glob::Pattern;
use json::Object;
use macvtap::device_id::{DeviceIdError, ResourceName};
use macvtap::mode::{Mode, UnknownMode};
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::settings::{self, Capacity, DeviceType, Overlap, ResourcePer, TapOnly};
use macvtap_crds::v1alpha1::{LinkKind, LinkSelector, NodePool, PoolSettings};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The environment variable macvtap-cni reads.
pub const VARIABLE: &str = "DP_MACVTAP_CONF";

/// A longer text is not a configuration.
pub const SIZE_MAX: usize = 1 << 20;

/// The most devices one link can offer.
const CAPACITY_MAX: u64 = 4096;

/// The longest name of a link, alternative names included, in bytes.
const LINK_NAME_MAX: usize = 127;

/// Every key, with the older word for `lowerDevice`.
const KNOWN: [&str; 6] = ["name", "lowerDevice", "master", "type", "mode", "capacity"];

const KEYS: &str = "name, lowerDevice, type, mode and capacity";

/// What a configuration says.
#[derive(Clone, Debug)]
pub struct Standalone {
    /// A pool for each entry, or one for all links.
    pub pools: Vec<Pool>,
    /// What works, and should be written differently.
    pub warnings: Vec<String>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// Nothing there.
    #[error(
        "the configuration is empty; write [] to offer every NIC and bond, or [{{\"name\": \"dataplane\", \"lowerDevice\": \"eth0\"}}]"
    )]
    Empty,
    /// Too much.
    #[error("the configuration has {0} bytes; at most {SIZE_MAX} are read")]
    TooLong(usize),
    /// Not JSON, or no list of objects.
    #[error("the configuration is not a JSON array of objects")]
    Json(#[source] serde_json::Error),
    /// An entry is wrong.
    #[error("{place}")]
    Entry {
        /// Which one.
        place: EntryPlace,
        /// In what way.
        #[source]
        problem: Box<Problem>,
    },
}

/// Which entry is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    /// From 1.
    number: usize,
    name: Option<String>,
}

/// What is wrong with an entry. The text is complete: it names key, value and remedy.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A key nobody knows.
    #[error("unknown key {key:?}{}; the keys are {KEYS}", similar(key))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key twice.
    #[error("key {0:?} occurs twice; keep one")]
    KeyTwice(String),
    /// A key is absent.
    #[error("key {key:?} is missing; add {example}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write.
        example: &'static str,
    },
    /// A value of the wrong type.
    #[error("{key} is {value}; write {expected}")]
    Type {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What should.
        expected: &'static str,
    },
    /// A name that cannot be a resource's.
    #[error("name: {0}")]
    Name(DeviceIdError),
    /// A name that no link can have.
    #[error("lowerDevice {0:?} is no name of a link; `ip link` prints them")]
    LowerDevice(String),
    /// Two different lower devices.
    #[error(
        "lowerDevice is {lower_device:?} and master is {master:?}; master is the older word for the same: keep lowerDevice"
    )]
    Master {
        /// One.
        lower_device: String,
        /// The other.
        master: String,
    },
    /// No such mode.
    #[error("mode: {0}")]
    Mode(UnknownMode),
    /// A number of devices that cannot be.
    #[error("capacity is {0}; write a number from 1 to {CAPACITY_MAX}, or leave it out for 100")]
    Capacity(String),
    /// More than one device on a link that one device takes.
    #[error(
        "mode passthru gives the whole link to one device, and capacity is {0}; write 1 or leave capacity out"
    )]
    PassthruCapacity(u64),
    /// No such type.
    #[error("type is {0:?}; write \"Macvtap\" or \"HostDevice\", or leave it out for Macvtap")]
    DeviceType(String),
    /// A mode of something that has none.
    #[error("type HostDevice gives the NIC itself to a pod and has no mode; leave mode out")]
    HostDeviceMode,
    /// More than one device of something that is one.
    #[error("type HostDevice is one device, the NIC, and capacity is {0}; write 1 or leave capacity out")]
    HostDeviceCapacity(String),
    /// The same resource twice.
    #[error("name {name:?} is that of entry {first} too; each resource needs its own")]
    Duplicate {
        /// The name.
        name: String,
        /// The entry that had it first, from 1.
        first: usize,
    },
    /// The pool made of it is not accepted.
    #[error(transparent)]
    Pool(PoolError),
}

/// One entry, checked.
struct Entry {
    name: ResourceName,
    lower_device: String,
    device: Device,
}

/// What the devices of an entry are.
enum Device {
    Macvtap { mode: Mode, capacity: Option<u32> },
    HostDevice,
}

impl Standalone {
    /// Reads a configuration.
    pub fn parse(text: &str) -> Result<Self, StandaloneError> {
        if text.trim().is_empty() {
            return Err(StandaloneError::Empty);
        }
        if text.len() > SIZE_MAX {
            return Err(StandaloneError::TooLong(text.len()));
        }
        // macvtap-cni takes null for an empty list.
        let objects: Option<Vec<Object>> = serde_json::from_str(text).map_err(StandaloneError::Json)?;
        let objects = objects.unwrap_or_default();
        if objects.is_empty() {
            return Ok(Self { pools: vec![every_link()?], warnings: Vec::new() });
        }
        let (mut pools, mut warnings) = (Vec::new(), Vec::new());
        let mut numbers: BTreeMap<ResourceName, usize> = BTreeMap::new();
        for (index, object) in objects.iter().enumerate() {
            let place = EntryPlace { number: index + 1, name: object.text("name").map(str::to_owned) };
            let at = |problem| StandaloneError::Entry { place: place.clone(), problem: Box::new(problem) };
            let entry = Entry::check(object, &place, &mut warnings).map_err(at)?;
            if let Some(first) = numbers.insert(entry.name.clone(), place.number) {
                return Err(at(Problem::Duplicate { name: entry.name.to_string(), first }));
            }
            pools.push(entry.into_pool().map_err(|error| at(Problem::Pool(error)))?);
        }
        Ok(Self { pools, warnings })
    }
}

impl Entry {
    fn check(object: &Object, place: &EntryPlace, warnings: &mut Vec<String>) -> Result<Self, Problem> {
        for (number, (key, _)) in object.0.iter().enumerate() {
            if !KNOWN.contains(&key.as_str()) {
                return Err(Problem::UnknownKey { key: key.clone() });
            }
            if object.0.iter().take(number).any(|(earlier, _)| earlier == key) {
                return Err(Problem::KeyTwice(key.clone()));
            }
        }
        let name = required(object, "name", "\"name\": \"dataplane\"")?.parse().map_err(Problem::Name)?;
        let lower_device = Self::lower_device(object, place, warnings)?;
        let device = Device::check(object, place, warnings)?;
        Ok(Self { name, lower_device, device })
    }

    fn lower_device(
        object: &Object,
        place: &EntryPlace,
        warnings: &mut Vec<String>,
    ) -> Result<String, Problem> {
        let name = match (string(object, "lowerDevice")?, string(object, "master")?) {
            (Some(lower_device), Some(master)) if lower_device != master => {
                return Err(Problem::Master {
                    lower_device: lower_device.to_owned(),
                    master: master.to_owned(),
                });
            }
            (Some(name), _) => name,
            (None, Some(name)) => {
                warnings
                    .push(format!("{place}: master is the older word for lowerDevice; write lowerDevice"));
                name
            }
            (None, None) => required(object, "lowerDevice", "\"lowerDevice\": \"eth0\"")?,
        };
        let usable = (1..=LINK_NAME_MAX).contains(&name.len())
            && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
            && !matches!(name, "." | "..");
        if usable { Ok(name.to_owned()) } else { Err(Problem::LowerDevice(name.to_owned())) }
    }

    fn into_pool(self) -> Result<Pool, PoolError> {
        let name = self.name.to_string();
        let selector = LinkSelector {
            names: Some(vec![Pattern::escape(&self.lower_device)]),
            ..LinkSelector::default()
        };
        let settings = self.device.settings(pool_settings(selector));
        Pool::compile(NodePool { resource_name: Some(name.clone()), ..node_pool(name, settings) })
    }
}

impl Device {
    fn check(object: &Object, place: &EntryPlace, warnings: &mut Vec<String>) -> Result<Self, Problem> {
        match string(object, "type")? {
            None | Some("Macvtap") => {}
            Some("HostDevice") if object.get("mode").is_some() => return Err(Problem::HostDeviceMode),
            Some("HostDevice") => {
                let many = object.get("capacity").filter(|value| value.as_u64() != Some(1));
                return match many {
                    Some(value) => Err(Problem::HostDeviceCapacity(value.to_string())),
                    None => Ok(Self::HostDevice),
                };
            }
            Some(other) => return Err(Problem::DeviceType(other.to_owned())),
        }
        let mode = match string(object, "mode")? {
            // macvtap-cni's default has two spellings.
            None | Some("") => Mode::Bridge,
            Some(text) => text.parse().map_err(Problem::Mode)?,
        };
        let capacity = capacity(object, place, warnings)?;
        if let Some(capacity) = capacity.filter(|capacity| mode == Mode::Passthru && *capacity > 1) {
            return Err(Problem::PassthruCapacity(capacity.into()));
        }
        Ok(Self::Macvtap { mode, capacity })
    }

    fn settings(self, common: PoolSettings) -> PoolSettings {
        let (mode, capacity) = match self {
            Self::Macvtap { mode, capacity } => (mode, capacity),
            Self::HostDevice => {
                return PoolSettings {
                    device_type: DeviceType::HostDevice,
                    overlap: Overlap::Exclusive,
                    tap_only: TapOnly::Forbidden,
                    ..common
                };
            }
        };
        let mode = match mode {
            Mode::Bridge => settings::Mode::Bridge,
            Mode::Vepa => settings::Mode::Vepa,
            Mode::Private => settings::Mode::Private,
            Mode::Passthru => settings::Mode::Passthru,
        };
        PoolSettings {
            macvtap: Some(settings::Macvtap { mode, ..settings::Macvtap::default() }),
            capacity: capacity.map(|count| Capacity { per_link: Some(count), per_node: None }),
            ..common
        }
    }
}

/// The pool that `[]` means.
fn every_link() -> Result<Pool, StandaloneError> {
    let selector =
        LinkSelector { kinds: Some(vec![LinkKind::Physical, LinkKind::Bond]), ..LinkSelector::default() };
    let settings = PoolSettings { resource_per: ResourcePer::Link, ..pool_settings(selector) };
    Pool::compile(node_pool("every-link".to_owned(), settings)).map_err(|error| StandaloneError::Entry {
        place: EntryPlace { number: 0, name: None },
        problem: Box::new(Problem::Pool(error)),
    })
}

fn node_pool(name: String, settings: PoolSettings) -> NodePool {
    NodePool {
        name,
        uid: String::new(),
        generation: 0,
        phase: PoolPhase::Active,
        resource_name: None,
        settings,
    }
}

/// A pool's defaults, but for what macvtap-cni has always allowed: several resources on one link, and pods that take
/// the tap alone.
fn pool_settings(selector: LinkSelector) -> PoolSettings {
    PoolSettings {
        resource_prefix: macvtap_crds::GROUP.to_owned(),
        priority: 0,
        links: vec![selector],
        exclude: None,
        exclude_default_route: false,
        overlap: Overlap::Shared,
        resource_per: ResourcePer::default(),
        advertisement: settings::Advertisement::default(),
        capacity: None,
        allocation: settings::Allocation::default(),
        tap_only: TapOnly::Allowed,
        topology: settings::Topology::default(),
        health: settings::Health::default(),
        device_type: settings::DeviceType::default(),
        macvtap: None,
        host_device: None,
    }
}

fn capacity(object: &Object, place: &EntryPlace, warnings: &mut Vec<String>) -> Result<Option<u32>, Problem> {
    let Some(value) = object.get("capacity") else {
        return Ok(None);
    };
    match value.as_u64() {
        Some(0) => {
            warnings.push(format!("{place}: capacity 0 means 100, as it does to macvtap-cni; leave it out"));
            Ok(None)
        }
        Some(number) if number <= CAPACITY_MAX => Ok(u32::try_from(number).ok()),
        _ => Err(Problem::Capacity(value.to_string())),
    }
}

fn required<'o>(object: &'o Object, key: &'static str, example: &'static str) -> Result<&'o str, Problem> {
    string(object, key)?.ok_or(Problem::Missing { key, example })
}

fn string<'o>(object: &'o Object, key: &'static str) -> Result<Option<&'o str>, Problem> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(value) => {
            Err(Problem::Type { key, value: value.to_string(), expected: "a text in double quotes" })
        }
    }
}

/// The known key a mistyped one is meant to be, if only case or separators differ.
fn similar(key: &str) -> String {
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    let known = KNOWN.into_iter().find(|known| plain(known) == plain(key));
    known.map(|known| format!(", is {known:?} meant?")).unwrap_or_default()
}

impl fmt::Display for EntryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}", self.number)?;
        match &self.name {
            Some(name) => write!(f, " ({name:?})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
