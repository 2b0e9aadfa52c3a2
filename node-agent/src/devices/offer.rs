//! What one resource offers the kubelet at a moment, and what follows from it: the list, which allocations are
//! honoured, which devices are preferred. Pure.

use crate::devices::assignment::Run;
use macvtap::device_id::{self, DeviceId, DeviceIdError, ResourceName};
use macvtap::pci::{BadPciAddress, PciAddress};
use macvtap::table::{DeviceType, LinkIdentity, Resource, TapOnly};
use macvtap_crds::v1alpha1::reason::LinkReason;
use macvtap_crds::v1alpha1::settings::Allocation;
use macvtap_proto::deviceplugin as kubelet;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// The kubelet's word for a device that can be allocated.
pub const HEALTHY: &str = "Healthy";

/// The kubelet's word for one that cannot.
pub const UNHEALTHY: &str = "Unhealthy";

/// The longest message a kubelet takes, in bytes: gRPC's default, which it does not change.
const MESSAGE_MAX: usize = 4 << 20;

/// The most that the list needs for a device beside the resource's name, in bytes.
const DEVICE_MAX: usize = 40;

/// How many devices of a resource one list can hold. A kubelet that gets a longer one drops the resource.
pub fn devices_max(resource: &ResourceName) -> u32 {
    u32::try_from(MESSAGE_MAX / (DEVICE_MAX + resource.as_str().len())).unwrap_or(u32::MAX)
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its bare name.
    pub resource: ResourceName,
    /// Its name with prefix.
    pub full_name: String,
    /// Whether a pod may take the tap alone.
    pub tap_only: TapOnly,
    /// What a device is, and so what the kubelet calls it.
    pub device_type: DeviceType,
    /// Which free device is preferred.
    pub allocation: Allocation,
    /// Its devices.
    pub runs: Vec<OfferedRun>,
}

/// Consecutive devices of one link, and how the link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedRun {
    /// The devices.
    pub run: Run,
    /// Name of the link.
    pub link: String,
    /// What it is known by across boots.
    pub identity: LinkIdentity,
    /// How the link is.
    pub state: LinkState,
    /// Memory node of the link, if the kubelet should know it.
    pub numa_node: Option<u32>,
    /// The PCI function, when the device is the NIC itself: the kubelet knows the device by that.
    pub pci: Option<PciAddress>,
}

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Its devices work.
    Healthy,
    /// They do not.
    Unhealthy(LinkReason),
}

/// How many devices there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Advertised, healthy or not.
    pub capacity: u32,
    /// Advertised and healthy.
    pub allocatable: u32,
}

/// A device that may be allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The device.
    pub device: DeviceId,
    /// The index its link will have; of no meaning for a NIC.
    pub ifindex: u32,
    /// The PCI function, when the device is the NIC itself.
    pub pci: Option<PciAddress>,
    /// What its link on the node is known by.
    pub lower: LinkIdentity,
}

/// Why a device is not allocated. The kubelet shows the text as the pod's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Not even of the right form.
    #[error(transparent)]
    Id(#[from] DeviceIdError),
    /// Not even a PCI address, which is what a whole NIC is called.
    #[error(transparent)]
    Address(#[from] BadPciAddress),
    /// Of another resource.
    #[error("device {device} is not of resource {resource}")]
    OtherResource {
        /// The device.
        device: DeviceId,
        /// This resource.
        resource: String,
    },
    /// Never offered, or withdrawn too long ago.
    #[error("device {device} is not offered by resource {resource} on this node (any more)")]
    Unknown {
        /// The device, as the kubelet calls it.
        device: String,
        /// This resource.
        resource: String,
    },
    /// Its link is gone.
    #[error("link {link} of device {device} does not exist any more")]
    LinkGone {
        /// The device, as the kubelet calls it.
        device: String,
        /// The link.
        link: String,
    },
    /// Twice in one request.
    #[error("device {0} is asked for twice")]
    Twice(String),
}

impl Offer {
    /// What a table says that a resource has, with nothing that only links and pools determine.
    pub fn of_table(resource: &ResourceName, entry: &Resource) -> Self {
        let nics = entry.device_type == DeviceType::HostDevice;
        let runs = entry.links.iter().flat_map(|link| {
            link.ranges.iter().map(move |range| OfferedRun {
                run: Run { range: *range, lower: link.ifindex, advertised: true },
                link: link.name.clone(),
                identity: link.identity.clone(),
                state: LinkState::Healthy,
                numa_node: None,
                pci: link.pci.filter(|_| nics),
            })
        });
        Self {
            resource: resource.clone(),
            full_name: format!("{}/{resource}", entry.prefix),
            tap_only: entry.tap_only,
            device_type: entry.device_type,
            allocation: Allocation::default(),
            runs: runs.collect(),
        }
    }

    /// The list for the kubelet.
    pub fn devices(&self) -> Vec<kubelet::Device> {
        let advertised = self.runs.iter().filter(|offered| offered.run.advertised);
        let devices = advertised.flat_map(|offered| {
            let health = match offered.state {
                LinkState::Healthy => HEALTHY,
                LinkState::Unhealthy(_) => UNHEALTHY,
            };
            let topology = offered
                .numa_node
                .map(|node| kubelet::TopologyInfo { nodes: vec![kubelet::NumaNode { id: i64::from(node) }] });
            offered.run.range.slots().map(move |slot| kubelet::Device {
                id: self.name_of(offered, slot),
                health: health.to_owned(),
                topology: topology.clone(),
            })
        });
        devices.collect()
    }

    /// How many devices there are.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for offered in self.runs.iter().filter(|offered| offered.run.advertised) {
            counts.capacity += offered.run.range.count;
            if offered.state == LinkState::Healthy {
                counts.allocatable += offered.run.range.count;
            }
        }
        counts
    }

    /// Whether these devices may be allocated together, to one container. All or none.
    pub fn grant(&self, ids: &[String]) -> Result<Vec<Granted>, Denial> {
        let mut seen = BTreeSet::new();
        ids.iter()
            .map(|id| {
                let granted = self.grant_one(id)?;
                if seen.insert(granted.device.slot()) { Ok(granted) } else { Err(Denial::Twice(id.clone())) }
            })
            .collect()
    }

    fn grant_one(&self, id: &str) -> Result<Granted, Denial> {
        let resource = || self.full_name.clone();
        let unknown = || Denial::Unknown { device: id.to_owned(), resource: resource() };
        // Also devices withdrawn less than a minute ago and unhealthy ones: the kubelet may not have read the last
        // list yet, and a refusal would end the pod for good.
        let (offered, slot, ifindex) = match self.device_type {
            DeviceType::Macvtap => {
                let device: DeviceId = id.parse()?;
                if *device.resource() != self.resource {
                    return Err(Denial::OtherResource { device, resource: resource() });
                }
                let (offered, ifindex) = self.find(device.slot()).ok_or_else(unknown)?;
                (offered, device.slot(), ifindex)
            }
            DeviceType::HostDevice => {
                let address: PciAddress = id.parse()?;
                let offered = self.at(address).ok_or_else(unknown)?;
                (offered, offered.run.range.first_slot, offered.run.range.first_ifindex)
            }
        };
        if offered.state == LinkState::Unhealthy(LinkReason::LinkGone) {
            return Err(Denial::LinkGone { device: id.to_owned(), link: offered.link.clone() });
        }
        let lower = offered.identity.clone();
        Ok(Granted { device: DeviceId::new(self.resource.clone(), slot), ifindex, pci: offered.pci, lower })
    }

    /// Which of the available devices a container should get.
    pub fn prefer(&self, available: &[impl AsRef<str>], must: &[String], size: usize) -> Vec<String> {
        let index = DeviceIndex::of(self);
        let mut slots = vec![Vec::new(); self.runs.len()];
        let mut used: BTreeMap<u32, usize> = BTreeMap::new();
        for offered in self.runs.iter().filter(|offered| offered.run.advertised) {
            *used.entry(offered.run.lower).or_default() += offered.run.range.count as usize;
        }
        let available = available.iter().map(AsRef::as_ref);
        for id in available.filter(|id| !must.iter().any(|must| must == id)) {
            if let Some((place, slot)) = self.named(&index, id) {
                slots[place].push(Reverse(slot));
            }
        }
        let mut free: BTreeMap<u32, BinaryHeap<Reverse<u32>>> = BTreeMap::new();
        for (offered, slots) in index.by_slot.iter().zip(slots) {
            free.entry(offered.run.lower).or_default().extend(slots);
        }
        for (lower, slots) in &free {
            let used = used.entry(*lower).or_default();
            *used = used.saturating_sub(slots.len());
        }
        let mut chosen = must.to_vec();
        while chosen.len() < size {
            let candidates = free.iter_mut().filter(|(_, slots)| !slots.is_empty());
            let in_use = |lower: &u32| used.get(lower).copied().unwrap_or_default();
            let best = match self.allocation {
                Allocation::Spread => candidates.min_by_key(|(lower, _)| (in_use(lower), **lower)),
                Allocation::Pack => candidates.min_by_key(|(lower, _)| (Reverse(in_use(lower)), **lower)),
            };
            let Some((lower, slots)) = best else { break };
            let Some(Reverse(slot)) = slots.pop() else { break };
            *used.entry(*lower).or_default() += 1;
            let Some(offered) = index.find(slot) else { break };
            let name = self.name_of(offered, slot);
            if !chosen.contains(&name) {
                chosen.push(name);
            }
        }
        chosen
    }

    /// What of this offer the earlier one had too, with the same index on the same link: it can be offered before a new
    /// table is on the disk.
    #[must_use]
    pub fn common_with(&self, earlier: Option<&Self>) -> Self {
        let known = |offered: &OfferedRun| {
            let slots = offered.run.range.slots();
            let (first, last) = (slots.start, slots.end.saturating_sub(1));
            let same = |slot| {
                earlier.and_then(|earlier| earlier.find(slot)).is_some_and(|(before, ifindex)| {
                    // A NIC that comes back from a pod with another index is the one that it was.
                    let same_link = match offered.pci {
                        Some(address) => before.pci == Some(address),
                        None => before.pci.is_none() && before.run.lower == offered.run.lower,
                    };
                    same_link && offered.run.range.ifindex_of(slot) == Some(ifindex)
                })
            };
            // A run is new as a whole or not at all: ranges are only ever added whole.
            same(first) && same(last)
        };
        Self { runs: self.runs.iter().filter(|offered| known(offered)).cloned().collect(), ..self.clone() }
    }

    fn find(&self, slot: u32) -> Option<(&OfferedRun, u32)> {
        self.runs.iter().find_map(|offered| Some((offered, offered.run.range.ifindex_of(slot)?)))
    }

    /// The device that the kubelet calls so. Makes no copy of the name: a kubelet names tens of thousands at a time.
    fn named(&self, index: &DeviceIndex<'_>, id: &str) -> Option<(usize, u32)> {
        match self.device_type {
            DeviceType::Macvtap => {
                let slot = id.strip_prefix(self.resource.as_str()).and_then(device_id::slot)?;
                Some((index.place(slot)?, slot))
            }
            DeviceType::HostDevice => {
                let slot = index.at(id.parse().ok()?)?.run.range.first_slot;
                Some((index.place(slot)?, slot))
            }
        }
    }

    /// The NIC at this address.
    fn at(&self, address: PciAddress) -> Option<&OfferedRun> {
        self.runs.iter().find(|offered| offered.pci == Some(address))
    }

    /// What the kubelet calls a device.
    fn name_of(&self, offered: &OfferedRun, slot: u32) -> String {
        match offered.pci {
            Some(address) => address.to_string(),
            None => DeviceId::new(self.resource.clone(), slot).to_string(),
        }
    }
}

/// The devices of an offer by slot and by address.
struct DeviceIndex<'o> {
    by_slot: Vec<&'o OfferedRun>,
    by_address: BTreeMap<PciAddress, &'o OfferedRun>,
}

impl<'o> DeviceIndex<'o> {
    fn of(offer: &'o Offer) -> Self {
        let mut by_slot: Vec<&OfferedRun> = offer.runs.iter().collect();
        by_slot.sort_by_key(|offered| offered.run.range.first_slot);
        let by_address = offer.runs.iter().filter_map(|offered| Some((offered.pci?, offered))).collect();
        Self { by_slot, by_address }
    }

    fn find(&self, slot: u32) -> Option<&'o OfferedRun> {
        self.by_slot.get(self.place(slot)?).copied()
    }

    /// The place of a device's run among all of them.
    fn place(&self, slot: u32) -> Option<usize> {
        let after = self.by_slot.partition_point(|offered| offered.run.range.first_slot <= slot);
        let place = after.checked_sub(1)?;
        self.by_slot[place].run.range.slots().contains(&slot).then_some(place)
    }

    fn at(&self, address: PciAddress) -> Option<&'o OfferedRun> {
        self.by_address.get(&address).copied()
    }
}

#[cfg(test)]
mod tests;
