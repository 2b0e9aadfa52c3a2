//! What one resource offers the kubelet at a moment, and what follows from it: the list, which allocations are
//! honoured, which devices are preferred. Pure.

use crate::devices::Run;
use macvtap::device_id::{DeviceId, DeviceIdError, ResourceName};
use macvtap::pci::{BadPciAddress, PciAddress};
use macvtap::table::{DeviceType, TapOnly};
use macvtap_crds::v1alpha1::reason::LinkReason;
use macvtap_crds::v1alpha1::settings::Allocation;
use macvtap_proto::deviceplugin as kubelet;
use std::collections::{BTreeMap, BTreeSet};

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
    /// How the link is.
    pub state: LinkState,
    /// Memory node of the link, if the kubelet shall know it.
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
}

/// Why a device is not allocated. The kubelet shows the text as the pod's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
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
    pub fn grant(&self, ids: &[String]) -> Result<Vec<Granted>, Refusal> {
        let mut seen = BTreeSet::new();
        ids.iter()
            .map(|id| {
                let granted = self.grant_one(id)?;
                if seen.insert(granted.device.slot()) { Ok(granted) } else { Err(Refusal::Twice(id.clone())) }
            })
            .collect()
    }

    fn grant_one(&self, id: &str) -> Result<Granted, Refusal> {
        let resource = || self.full_name.clone();
        let unknown = || Refusal::Unknown { device: id.to_owned(), resource: resource() };
        // Also devices withdrawn less than a minute ago and unhealthy ones: the kubelet may not have read the last
        // list yet, and a refusal would end the pod for good.
        let (offered, slot, ifindex) = match self.device_type {
            DeviceType::Macvtap => {
                let device: DeviceId = id.parse()?;
                if *device.resource() != self.resource {
                    return Err(Refusal::OtherResource { device, resource: resource() });
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
            return Err(Refusal::LinkGone { device: id.to_owned(), link: offered.link.clone() });
        }
        Ok(Granted { device: DeviceId::new(self.resource.clone(), slot), ifindex, pci: offered.pci })
    }

    /// Which of the available devices a container should get.
    pub fn prefer(&self, available: &[String], must: &[String], size: usize) -> Vec<String> {
        let mut free: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut used: BTreeMap<u32, usize> = BTreeMap::new();
        for offered in self.runs.iter().filter(|offered| offered.run.advertised) {
            *used.entry(offered.run.lower).or_default() += offered.run.range.count as usize;
        }
        for slot in available.iter().filter(|id| !must.contains(id)).filter_map(|id| self.slot(id)) {
            if let Some((offered, _)) = self.find(slot) {
                free.entry(offered.run.lower).or_default().insert(slot);
            }
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
                Allocation::Pack => {
                    candidates.min_by_key(|(lower, _)| (std::cmp::Reverse(in_use(lower)), **lower))
                }
            };
            let Some((lower, slots)) = best else { break };
            let Some(slot) = slots.pop_first() else { break };
            *used.entry(*lower).or_default() += 1;
            let Some((offered, _)) = self.find(slot) else { break };
            chosen.push(self.name_of(offered, slot));
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

    fn slot(&self, id: &str) -> Option<u32> {
        match self.device_type {
            DeviceType::Macvtap => {
                let device: DeviceId = id.parse().ok()?;
                (*device.resource() == self.resource).then(|| device.slot())
            }
            DeviceType::HostDevice => Some(self.at(id.parse().ok()?)?.run.range.first_slot),
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

#[cfg(test)]
mod tests {
    use super::*;
    use macvtap::table::SlotRange;

    fn run(first_slot: u32, count: u32, lower: u32) -> OfferedRun {
        OfferedRun {
            run: Run {
                range: SlotRange { first_slot, count, first_ifindex: 1000 + first_slot },
                lower,
                advertised: true,
            },
            link: format!("eth{lower}"),
            state: LinkState::Healthy,
            numa_node: None,
            pci: None,
        }
    }

    fn offer(allocation: Allocation, runs: Vec<OfferedRun>) -> Offer {
        Offer {
            resource: "a".parse().unwrap(),
            full_name: "example.com/a".into(),
            tap_only: TapOnly::Forbidden,
            device_type: DeviceType::Macvtap,
            allocation,
            runs,
        }
    }

    fn ids(slots: impl IntoIterator<Item = u32>) -> Vec<String> {
        slots.into_iter().map(|slot| format!("aMvp{slot}")).collect()
    }

    #[test]
    fn unknown_foreign_and_repeated_devices_are_refused_with_the_reason_and_nothing_is_granted() {
        let mut gone = run(4, 1, 3);
        gone.state = LinkState::Unhealthy(LinkReason::LinkGone);
        let offer = offer(Allocation::Spread, vec![run(0, 4, 2), gone]);
        assert_eq!(offer.grant(&ids([1, 3])).unwrap()[1].ifindex, 1003);
        for (ids, text) in [
            (vec!["aMvp0", "aMvp9"], "device aMvp9 is not offered by resource example.com/a"),
            (vec!["bMvp0"], "device bMvp0 is not of resource example.com/a"),
            (vec!["nonsense"], "\"nonsense\" is not of the form"),
            (vec![""], "is not of the form"),
            (vec!["aMvp0", "aMvp0"], "device aMvp0 is asked for twice"),
            (vec!["aMvp4"], "link eth3 of device aMvp4 does not exist"),
        ] {
            let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
            let error = offer.grant(&ids).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_withdrawn_or_unhealthy_device_is_still_honoured_but_not_listed_as_healthy() {
        let mut withdrawn = run(4, 1, 2);
        withdrawn.run.advertised = false;
        let mut down = run(5, 1, 3);
        down.state = LinkState::Unhealthy(LinkReason::NoCarrier);
        let offer = offer(Allocation::Spread, vec![run(0, 2, 2), withdrawn, down]);
        assert!(offer.grant(&ids([4, 5])).is_ok());
        assert_eq!(offer.counts(), Counts { capacity: 3, allocatable: 2 });
        let listed: Vec<(String, String)> = offer.devices().into_iter().map(|d| (d.id, d.health)).collect();
        let expected = [("aMvp0", HEALTHY), ("aMvp1", HEALTHY), ("aMvp5", UNHEALTHY)];
        assert_eq!(listed, expected.map(|(id, health)| (id.to_owned(), health.to_owned())));
    }

    #[test]
    fn spread_takes_from_the_link_with_the_fewest_in_use_and_pack_from_the_one_with_the_most() {
        let runs = || vec![run(0, 4, 2), run(4, 4, 3)];
        // One device of the first link is in use.
        let available = ids([1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(offer(Allocation::Spread, runs()).prefer(&available, &[], 3), ids([4, 1, 5]));
        assert_eq!(offer(Allocation::Pack, runs()).prefer(&available, &[], 4), ids([1, 2, 3, 4]));
    }

    #[test]
    fn preferences_keep_what_must_be_and_end_with_what_there_is() {
        let offer = offer(Allocation::Spread, vec![run(0, 4, 2)]);
        assert_eq!(offer.prefer(&ids([1, 2]), &ids([2]), 3), ids([2, 1]));
        assert_eq!(offer.prefer(&["junk".into()], &[], 1), [""; 0]);
    }

    #[test]
    fn whole_nics_are_listed_preferred_and_granted_by_their_pci_address_and_by_nothing_else() {
        let nic = |slot: u32, address: &str| OfferedRun {
            pci: Some(address.parse().unwrap()),
            numa_node: Some(slot),
            ..run(slot, 1, slot)
        };
        let (a, b) = ("0000:00:0a.0", "0000:00:0b.0");
        let mut offer = offer(Allocation::Spread, vec![nic(0, a), nic(1, b)]);
        offer.device_type = DeviceType::HostDevice;
        let listed = offer.devices();
        let nodes: Vec<_> = listed
            .iter()
            .map(|device| (device.id.as_str(), device.topology.as_ref().unwrap().nodes[0].id))
            .collect();
        assert_eq!(nodes, [(a, 0), (b, 1)]);
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(offer.prefer(&texts(&[b, a]), &[], 1), [a]);
        assert_eq!(offer.prefer(&texts(&[b, a, "0000:00:0c.0", "aMvp0"]), &texts(&[b]), 3), [b, a]);
        let granted = offer.grant(&texts(&[b])).unwrap();
        assert_eq!((granted[0].device.to_string().as_str(), granted[0].pci), ("aMvp1", b.parse().ok()));
        for (ids, text) in [
            (&["0000:00:0c.0"][..], "device 0000:00:0c.0 is not offered by resource example.com/a"),
            (&["aMvp0"], "\"aMvp0\" is not a PCI address"),
            (&["0000:00:0A.0"], "is not a PCI address"),
            (&[""], "is not a PCI address"),
            (&["../0000:00:0a.0"], "is not a PCI address"),
            (&[a, a], "device 0000:00:0a.0 is asked for twice"),
            (&[a, "0000:00:0c.0"], "0000:00:0c.0 is not offered"),
        ] {
            let error = offer.grant(&texts(ids)).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_longest_list_is_one_that_a_kubelet_takes() {
        for name in ["a".to_owned(), "a".repeat(63)] {
            let resource: ResourceName = name.parse().unwrap();
            let mut all =
                run(macvtap::device_id::SLOT_MAX + 1 - devices_max(&resource), devices_max(&resource), 2);
            (all.state, all.numa_node) = (LinkState::Unhealthy(LinkReason::NoCarrier), Some(1023));
            let offer = Offer { resource, ..offer(Allocation::Spread, vec![all]) };
            let list = kubelet::ListAndWatchResponse { devices: offer.devices() };
            let length = prost::Message::encoded_len(&list);
            assert!(length <= MESSAGE_MAX && length > MESSAGE_MAX / 2, "{length} bytes");
        }
    }

    #[test]
    fn before_the_table_is_stored_only_what_it_had_is_offered() {
        let before = offer(Allocation::Spread, vec![run(0, 2, 2)]);
        let mut moved = run(0, 2, 9);
        moved.run.range.first_ifindex = 1000;
        let after = offer(Allocation::Spread, vec![run(0, 2, 2), run(2, 2, 2)]);
        assert_eq!(after.common_with(Some(&before)).runs, before.runs);
        assert_eq!(offer(Allocation::Spread, vec![moved]).common_with(Some(&before)).runs, []);
        assert_eq!(after.common_with(None).runs, []);
    }
}
