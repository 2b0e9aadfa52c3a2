//! What one resource offers the kubelet at a moment, and what follows from it: the list, which allocations are
//! honoured, which devices are preferred. Pure.

use crate::devices::assignment::{LinkRun, Run, RunDevices};
use macvtap::device_id::{self, DeviceId, DeviceIdError, ResourceName};
use macvtap::pci::{BadPciAddress, PciAddress};
use macvtap::table::{DeviceType, LinkIdentity, Resource, SlotRange, TapOnly};
use macvtap_crds::v1alpha1::reason::LinkReason;
use macvtap_crds::v1alpha1::settings::Allocation;
use macvtap_proto::deviceplugin as kubelet;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;

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

/// Devices of one link, and how the link is.
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
pub enum Granted {
    /// A macvtap.
    Macvtap {
        /// The device.
        device: DeviceId,
        /// The index its link will have.
        ifindex: u32,
        /// What its link on the node is known by.
        lower: LinkIdentity,
    },
    /// A whole NIC.
    Nic {
        /// The device.
        device: DeviceId,
        /// What the kubelet calls it.
        address: PciAddress,
    },
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
        let macvtaps = entry
            .links()
            .iter()
            .flat_map(|link| link.ranges.iter().map(move |range| LinkRun::of_macvtaps(link, *range, true)));
        let runs = macvtaps.chain(entry.nics().iter().map(LinkRun::of_nic));
        let runs = runs.map(|LinkRun { run, link, identity }| OfferedRun {
            run,
            link,
            identity,
            state: LinkState::Healthy,
            numa_node: None,
        });
        Self {
            resource: resource.clone(),
            full_name: format!("{}/{resource}", entry.prefix),
            tap_only: entry.tap_only,
            device_type: entry.device_type(),
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
            numbers(&offered.run).map(move |number| kubelet::Device {
                id: self.name_of(&offered.run, number),
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
            counts.capacity += offered.run.count();
            if offered.state == LinkState::Healthy {
                counts.allocatable += offered.run.count();
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
                if seen.insert(granted.device().slot()) {
                    Ok(granted)
                } else {
                    Err(Denial::Twice(id.clone()))
                }
            })
            .collect()
    }

    fn grant_one(&self, id: &str) -> Result<Granted, Denial> {
        let resource = || self.full_name.clone();
        let unknown = || Denial::Unknown { device: id.to_owned(), resource: resource() };
        // Also devices withdrawn less than a minute ago and unhealthy ones: the kubelet may not have read the last
        // list yet, and a refusal would end the pod for good.
        let (offered, granted) = match self.device_type {
            DeviceType::Macvtap => {
                let device: DeviceId = id.parse()?;
                if *device.resource() != self.resource {
                    return Err(Denial::OtherResource { device, resource: resource() });
                }
                let (offered, ifindex) = self.find(device.slot()).ok_or_else(unknown)?;
                (offered, Granted::Macvtap { device, ifindex, lower: offered.identity.clone() })
            }
            DeviceType::HostDevice => {
                let address: PciAddress = id.parse()?;
                let (offered, number) = self.at(address).ok_or_else(unknown)?;
                (offered, Granted::Nic { device: DeviceId::new(self.resource.clone(), number), address })
            }
        };
        if offered.state == LinkState::Unhealthy(LinkReason::LinkGone) {
            return Err(Denial::LinkGone { device: id.to_owned(), link: offered.link.clone() });
        }
        Ok(granted)
    }

    /// Which of the available devices a container should get.
    pub fn prefer(&self, available: &[impl AsRef<str>], must: &[String], size: usize) -> Vec<String> {
        let index = DeviceIndex::of(self);
        let mut used: BTreeMap<u32, usize> = BTreeMap::new();
        for offered in self.runs.iter().filter(|offered| offered.run.advertised) {
            *used.entry(offered.run.lower).or_default() += offered.run.count() as usize;
        }
        // By run first: to look up and order a link's heap for each of tens of thousands of devices took longer than to read
        // their names, above all in the order of the kubelet, which has none.
        let mut named: Vec<Vec<u32>> = vec![Vec::new(); self.runs.len()];
        let available = available.iter().map(AsRef::as_ref);
        for id in available.filter(|id| !must.iter().any(|must| must == id)) {
            if let Some((place, number)) = self.named(&index, id) {
                named[place].push(number);
            }
        }
        let mut free: BTreeMap<u32, BinaryHeap<Reverse<(u32, usize)>>> = BTreeMap::new();
        for (place, numbers) in named.into_iter().enumerate().filter(|(_, numbers)| !numbers.is_empty()) {
            let devices = numbers.into_iter().map(|number| Reverse((number, place)));
            free.entry(self.runs[place].run.lower).or_default().extend(devices);
        }
        for (lower, devices) in &free {
            let used = used.entry(*lower).or_default();
            *used = used.saturating_sub(devices.len());
        }
        let mut chosen = must.to_vec();
        while chosen.len() < size {
            let candidates = free.iter_mut().filter(|(_, devices)| !devices.is_empty());
            let in_use = |lower: &u32| used.get(lower).copied().unwrap_or_default();
            let best = match self.allocation {
                Allocation::Spread => candidates.min_by_key(|(lower, _)| (in_use(lower), **lower)),
                Allocation::Pack => candidates.min_by_key(|(lower, _)| (Reverse(in_use(lower)), **lower)),
            };
            let Some((lower, devices)) = best else { break };
            let Some(Reverse((number, place))) = devices.pop() else { break };
            *used.entry(*lower).or_default() += 1;
            let name = self.name_of(&self.runs[place].run, number);
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
            let Some(range) = offered.run.range() else {
                // A NIC that comes back from a pod with another index is the one that it was.
                let is_it = |before: &OfferedRun| before.run.devices == offered.run.devices;
                return earlier.is_some_and(|earlier| earlier.runs.iter().any(is_it));
            };
            // Not all or nothing: links of a rebuilt table that are merged may give a run one of its devices only.
            let before = earlier.iter().flat_map(|earlier| &earlier.runs);
            let before = before.filter(|before| before.run.lower == offered.run.lower);
            let same = before.filter_map(|before| before.run.range()).map(|before| shared(range, before));
            same.sum::<u32>() == range.count
        };
        Self { runs: self.runs.iter().filter(|offered| known(offered)).cloned().collect(), ..self.clone() }
    }

    fn find(&self, slot: u32) -> Option<(&OfferedRun, u32)> {
        self.runs.iter().find_map(|offered| Some((offered, offered.run.range()?.ifindex_of(slot)?)))
    }

    /// The NIC at this address, and its number.
    fn at(&self, address: PciAddress) -> Option<(&OfferedRun, u32)> {
        self.runs.iter().find_map(|offered| match offered.run.devices {
            RunDevices::Nic { address: known, number } if known == address => Some((offered, number)),
            RunDevices::Nic { .. } | RunDevices::Macvtaps(_) => None,
        })
    }

    /// The place of the run, and the number, of the device that the kubelet calls so. Makes no copy of the name: a kubelet
    /// names tens of thousands at a time.
    fn named(&self, index: &DeviceIndex, id: &str) -> Option<(usize, u32)> {
        match self.device_type {
            DeviceType::Macvtap => {
                let slot = id.strip_prefix(self.resource.as_str()).and_then(device_id::slot)?;
                Some((index.with_slot(slot)?, slot))
            }
            DeviceType::HostDevice => index.by_address.get(&id.parse().ok()?).copied(),
        }
    }

    /// What the kubelet calls a device of the run.
    fn name_of(&self, run: &Run, number: u32) -> String {
        match run.devices {
            RunDevices::Macvtaps(_) => DeviceId::new(self.resource.clone(), number).to_string(),
            RunDevices::Nic { address, .. } => address.to_string(),
        }
    }
}

impl Granted {
    /// The device.
    pub fn device(&self) -> &DeviceId {
        match self {
            Self::Macvtap { device, .. } | Self::Nic { device, .. } => device,
        }
    }
}

/// The numbers in the IDs of a run's devices.
fn numbers(run: &Run) -> Range<u32> {
    match run.devices {
        RunDevices::Macvtaps(range) => range.slots(),
        RunDevices::Nic { number, .. } => number..number.saturating_add(1),
    }
}

/// The places of runs in an offer, by slot and by address.
struct DeviceIndex {
    by_slot: Vec<(Range<u32>, usize)>,
    by_address: BTreeMap<PciAddress, (usize, u32)>,
}

impl DeviceIndex {
    fn of(offer: &Offer) -> Self {
        let mut index = Self { by_slot: Vec::new(), by_address: BTreeMap::new() };
        for (place, offered) in offer.runs.iter().enumerate() {
            match offered.run.devices {
                RunDevices::Macvtaps(range) => index.by_slot.push((range.slots(), place)),
                RunDevices::Nic { address, number } => {
                    index.by_address.insert(address, (place, number));
                }
            }
        }
        index.by_slot.sort_by_key(|(slots, _)| slots.start);
        index
    }

    fn with_slot(&self, slot: u32) -> Option<usize> {
        let after = self.by_slot.partition_point(|(slots, _)| slots.start <= slot);
        let (slots, place) = self.by_slot.get(after.checked_sub(1)?)?;
        slots.contains(&slot).then_some(*place)
    }
}

/// How many devices are in both ranges, with the same index.
fn shared(one: SlotRange, other: SlotRange) -> u32 {
    let (first, end) = (one.slots().start.max(other.slots().start), one.slots().end.min(other.slots().end));
    let same = one.ifindex_of(first).is_some_and(|index| other.ifindex_of(first) == Some(index));
    if same { end.saturating_sub(first) } else { 0 }
}

#[cfg(test)]
mod tests;
