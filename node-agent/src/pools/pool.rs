//! Pools as the agent uses them: checked once, patterns compiled.
//!
//! They come from the node's `MacvtapNodeState` or, standalone, from the seeds' JSON; from here on nobody knows which.

use crate::links::link::Link;
use glob::Pattern;
use macvtap::device_id::{DeviceIdError, ResourceName};
use macvtap::mac::{MacAddr, MacAddrError};
use macvtap::mode::Mode;
use macvtap::table;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::settings::{self, Advertisement, DeviceType, Overlap};
use macvtap_crds::v1alpha1::{LinkKind, LinkSelector, NodePool, PoolSettings};
use std::collections::BTreeSet;

/// What makes a name a pattern.
const WILDCARDS: [char; 4] = ['*', '?', '[', ']'];

/// One pool of this node.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The generation of the pool these settings are of; 0 standalone.
    pub generation: i64,
    /// Whether it keeps devices in use and offers no other.
    pub draining: bool,
    /// What its resource is called.
    pub naming: Naming,
    /// Everything else, as the API has it.
    pub settings: PoolSettings,
    links: Vec<Selector>,
    exclude: Vec<Selector>,
}

/// How the resources of a pool get their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// One resource for all links.
    Fixed(ResourceName),
    /// One for each link, with the link's name.
    AfterLink,
}

/// One entry of `links` or `exclude`, ready to compare.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    kinds: Option<Vec<LinkKind>>,
    names: Option<NamePatterns>,
    pci_addresses: Option<Vec<String>>,
    vendors: Option<Vec<String>>,
    drivers: Option<Vec<String>>,
    mac_addresses: Option<Vec<MacAddr>>,
    numa_nodes: Option<Vec<u32>>,
    min_speed_mbps: Option<u32>,
}

/// The names that an entry selects.
#[derive(Clone, Debug, Default)]
struct NamePatterns {
    /// Those without a wildcard: a node may have hundreds.
    exact: BTreeSet<String>,
    patterns: Vec<Pattern>,
}

/// A pool that cannot be used. The API server refuses such pools; a hand-written node state may still have one.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The resource name cannot exist.
    #[error("pool {pool}")]
    ResourceName {
        /// The pool.
        pool: String,
        /// Why not.
        #[source]
        source: DeviceIdError,
    },
    /// A name pattern cannot be read.
    #[error("pool {pool}: name pattern {pattern:?}")]
    Pattern {
        /// The pool.
        pool: String,
        /// The pattern.
        pattern: String,
        /// Why not.
        #[source]
        source: glob::PatternError,
    },
    /// A MAC address cannot be read.
    #[error("pool {pool}")]
    MacAddress {
        /// The pool.
        pool: String,
        /// Why not.
        #[source]
        source: MacAddrError,
    },
}

impl Pool {
    /// Checks and compiles a pool of a node state.
    pub fn compile(pool: NodePool) -> Result<Self, PoolError> {
        let naming = match pool.resource() {
            None => Naming::AfterLink,
            Some(text) => Naming::Fixed(
                text.parse().map_err(|source| PoolError::ResourceName { pool: pool.name.clone(), source })?,
            ),
        };
        let NodePool { name, generation, phase, settings, .. } = pool;
        let compile = |entries: &[LinkSelector]| -> Result<Vec<Selector>, PoolError> {
            entries.iter().map(|entry| Selector::compile(&name, entry)).collect()
        };
        let links = compile(&settings.links)?;
        let exclude = compile(settings.exclude.as_deref().unwrap_or_default())?;
        Ok(Self {
            name,
            generation,
            draining: phase == PoolPhase::Draining,
            naming,
            settings,
            links,
            exclude,
        })
    }

    /// Whether it chooses or refuses links by their speed.
    pub fn asks_for_speed(&self) -> bool {
        self.links.iter().chain(&self.exclude).any(|entry| entry.min_speed_mbps.is_some())
    }

    /// Whether an entry of `links` matches.
    pub fn selects(&self, link: &Link) -> bool {
        self.links.iter().any(|entry| entry.matches(link))
    }

    /// Whether an entry of `exclude` matches.
    pub fn excludes(&self, link: &Link) -> bool {
        self.exclude.iter().any(|entry| entry.matches(link))
    }

    /// The name of the resource a link's devices belong to.
    pub fn resource_for(&self, link: &Link) -> Result<ResourceName, DeviceIdError> {
        match &self.naming {
            Naming::Fixed(name) => Ok(name.clone()),
            Naming::AfterLink => link.name.parse(),
        }
    }

    /// Whether other pools may have the same links.
    pub fn shares(&self) -> bool {
        self.settings.overlap == Overlap::Shared && !self.settings.takes_whole_links()
    }

    /// Whether it registers nothing.
    pub fn is_dry_run(&self) -> bool {
        self.settings.advertisement == Advertisement::DryRun
    }

    /// Whether its devices are whole NICs.
    pub fn gives_nics(&self) -> bool {
        self.settings.device_type == DeviceType::HostDevice
    }

    /// The mode of its devices. A NIC that is given away leaves as little to others as one in passthru mode.
    pub fn mode(&self) -> Mode {
        if self.gives_nics() {
            return Mode::Passthru;
        }
        match self.settings.macvtap.as_ref().map_or(settings::Mode::Bridge, |m| m.mode) {
            settings::Mode::Bridge => Mode::Bridge,
            settings::Mode::Vepa => Mode::Vepa,
            settings::Mode::Private => Mode::Private,
            settings::Mode::Passthru => Mode::Passthru,
        }
    }

    /// What the device table says of each of its resources, without links.
    pub fn table_entry(&self) -> table::Resource {
        let macvtap = self.settings.macvtap.clone().unwrap_or_default();
        table::Resource {
            pool: Some(self.name.clone()),
            prefix: self.settings.resource_prefix.clone(),
            mtu: macvtap.mtu,
            promiscuous: macvtap.promiscuous,
            all_multicast: macvtap.all_multicast,
            owner: table::Owner { uid: macvtap.owner.uid, gid: macvtap.owner.gid },
            tap_only: match self.settings.tap_only {
                settings::TapOnly::Allowed if !self.gives_nics() => table::TapOnly::Allowed,
                settings::TapOnly::Allowed | settings::TapOnly::Forbidden => table::TapOnly::Forbidden,
            },
            devices: table::Devices::none(match self.settings.device_type {
                DeviceType::Macvtap => table::DeviceType::Macvtap,
                DeviceType::HostDevice => table::DeviceType::HostDevice,
            }),
        }
    }
}

impl Selector {
    fn compile(pool: &str, entry: &LinkSelector) -> Result<Self, PoolError> {
        let pattern = |text: &String| {
            Pattern::new(text).map_err(|source| PoolError::Pattern {
                pool: pool.to_owned(),
                pattern: text.clone(),
                source,
            })
        };
        let address = |text: &String| {
            text.parse().map_err(|source| PoolError::MacAddress { pool: pool.to_owned(), source })
        };
        let names = |list: &Vec<String>| -> Result<NamePatterns, PoolError> {
            let (patterns, exact): (Vec<_>, Vec<_>) = list.iter().partition(|text| text.contains(WILDCARDS));
            let patterns = patterns.into_iter().map(pattern).collect::<Result<_, _>>()?;
            Ok(NamePatterns { exact: exact.into_iter().cloned().collect(), patterns })
        };
        let names = entry.names.as_ref().map(names).transpose()?;
        let mac_addresses =
            entry.mac_addresses.as_ref().map(|list| list.iter().map(address).collect()).transpose()?;
        let any_kind = names.is_some() || entry.pci_addresses.is_some() || mac_addresses.is_some();
        let default_kinds = (!any_kind).then(|| vec![LinkKind::Physical, LinkKind::Bond]);
        Ok(Self {
            kinds: entry.kinds.clone().or(default_kinds),
            names,
            pci_addresses: entry.pci_addresses.clone(),
            vendors: entry.vendors.clone(),
            drivers: entry.drivers.clone(),
            mac_addresses,
            numa_nodes: entry.numa_nodes.clone(),
            min_speed_mbps: entry.min_speed_mbps,
        })
    }

    fn matches(&self, link: &Link) -> bool {
        let hardware = &link.hardware;
        among(self.kinds.as_ref(), Some(&link.kind.api()))
            && among(self.pci_addresses.as_ref(), hardware.pci_address.as_ref())
            && among(self.vendors.as_ref(), hardware.vendor.as_ref())
            && among(self.drivers.as_ref(), hardware.driver.as_ref())
            && among(self.mac_addresses.as_ref(), link.own_mac().as_ref())
            && among(self.numa_nodes.as_ref(), hardware.numa_node.as_ref())
            && self.min_speed_mbps.is_none_or(|min| hardware.speed_mbps.is_some_and(|speed| speed >= min))
            && self.names.as_ref().is_none_or(|names| link.names().any(|name| names.contain(name)))
    }
}

impl NamePatterns {
    fn contain(&self, name: &str) -> bool {
        self.exact.contains(name) || self.patterns.iter().any(|pattern| pattern.matches(name))
    }
}

/// Whether a field's list is absent or has the value. What is not known is in no list.
fn among<T: PartialEq>(list: Option<&Vec<T>>, value: Option<&T>) -> bool {
    list.is_none_or(|list| value.is_some_and(|value| list.contains(value)))
}
