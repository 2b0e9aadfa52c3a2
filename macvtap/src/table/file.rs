//! The device table as it is written. Every release since the first reads and writes this form, in which a whole NIC
//! has a slot and an index like any device.

use super::{
    DeviceTable, DeviceType, Devices, IFINDEX_FIRST, IFINDEX_LAST, LinkIdentity, LowerLink, Owner, Resource,
    SlotRange, TableError, TapOnly, VERSION, WholeNic, overlap,
};
use crate::device_id::ResourceName;
use crate::mode::Mode;
use crate::pci::PciAddress;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenTable {
    version: u32,
    boot_id: String,
    next_ifindex: u32,
    #[serde(default)]
    standalone: bool,
    resources: BTreeMap<ResourceName, WrittenResource>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenResource {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    prefix: String,
    #[serde(rename = "type")]
    device_type: DeviceType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default)]
    promiscuous: bool,
    all_multicast: bool,
    owner: Owner,
    tap_only: TapOnly,
    links: Vec<WrittenLink>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WrittenLink {
    ifindex: u32,
    name: String,
    identity: LinkIdentity,
    mode: Mode,
    ranges: Vec<SlotRange>,
    /// Of a whole NIC, and only of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pci: Option<PciAddress>,
}

impl Serialize for DeviceTable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut next_ifindex = self.next_ifindex;
        let mut indexes =
            self.unused().inspect(|index| next_ifindex = next_ifindex.max(index.saturating_add(1)));
        let resources = self.resources.iter();
        let resources =
            resources.map(|(name, resource)| (name.clone(), WrittenResource::of(resource, &mut indexes)));
        let table = WrittenTable {
            version: self.version,
            boot_id: self.boot_id.clone(),
            standalone: self.standalone,
            resources: resources.collect(),
            next_ifindex,
        };
        table.serialize(serializer)
    }
}

impl DeviceTable {
    /// Indexes that no macvtap has, for NICs: from the next one on and, where those are used up, the lowest. NICs have no
    /// link of ours, so that an index may be one that was given out before.
    fn unused(&self) -> impl Iterator<Item = u32> {
        let next = self.next_ifindex.clamp(IFINDEX_FIRST, IFINDEX_LAST + 1);
        let ranges = self.resources.values().flat_map(Resource::links).flat_map(|link| &link.ranges);
        let given =
            ranges.map(|range| (range.first_ifindex, range.first_ifindex.saturating_add(range.count)));
        let mut given: Vec<(u32, u32)> = given.chain([(next, next)]).collect();
        given.sort_unstable();
        let mut from = IFINDEX_FIRST;
        let below = given.into_iter().flat_map(move |(first, end)| {
            let gap = from..first.min(next);
            from = from.max(end);
            gap
        });
        (next..=IFINDEX_LAST).chain(below)
    }
}

impl WrittenTable {
    /// The table, unless it contradicts itself.
    pub(super) fn checked(self) -> Result<DeviceTable, TableError> {
        if self.version != VERSION {
            return Err(TableError::Version(self.version));
        }
        self.check()?;
        let next_ifindex = self.next_for_macvtap();
        let resources = self.resources.into_iter();
        Ok(DeviceTable {
            version: self.version,
            boot_id: self.boot_id,
            next_ifindex,
            standalone: self.standalone,
            resources: resources.map(|(name, resource)| (name, resource.into_known())).collect(),
            left_out: BTreeMap::new(),
        })
    }

    /// The next index for a macvtap. The last ones were written for NICs, and no link ever has them.
    fn next_for_macvtap(&self) -> u32 {
        let nics = self.resources.values().filter(|resource| resource.device_type == DeviceType::HostDevice);
        let ranges = nics.flat_map(|resource| &resource.links).flat_map(|link| &link.ranges);
        let written: BTreeSet<u32> = ranges.map(|range| range.first_ifindex).collect();
        let next = self.next_ifindex;
        written
            .into_iter()
            .rev()
            .fold(next, |next, index| if index.checked_add(1) == Some(next) { index } else { next })
    }

    fn check(&self) -> Result<(), TableError> {
        let mut indexes: Vec<(u32, u32)> = Vec::new();
        let mut addresses = BTreeSet::new();
        for (name, resource) in &self.resources {
            let bad = |what| TableError::Inconsistent { resource: name.clone(), what };
            if resource.device_type == DeviceType::HostDevice {
                for link in &resource.links {
                    let address = link.pci.ok_or_else(|| bad("a NIC has no PCI address"))?;
                    if link.ranges.iter().map(|range| u64::from(range.count)).sum::<u64>() != 1 {
                        return Err(bad("a NIC has not exactly one slot"));
                    }
                    if !addresses.insert(address) {
                        return Err(bad("a PCI address occurs twice"));
                    }
                }
            }
            let mut slots: Vec<(u32, u32)> = Vec::new();
            for range in resource.links.iter().flat_map(|link| &link.ranges) {
                let (slot, index) = range.bounds().ok_or_else(|| bad("a range leaves the numbers we use"))?;
                slots.push(slot);
                indexes.push(index);
            }
            if overlap(&mut slots) {
                return Err(bad("a slot occurs twice"));
            }
            if overlap(&mut indexes) {
                return Err(bad("an interface index occurs twice"));
            }
        }
        Ok(())
    }
}

impl WrittenResource {
    fn of(resource: &Resource, indexes: &mut impl Iterator<Item = u32>) -> Self {
        let links = match &resource.devices {
            Devices::Macvtaps(links) => links.iter().map(WrittenLink::of_macvtaps).collect(),
            Devices::Nics(nics) => nics.iter().map(|nic| WrittenLink::of_nic(nic, indexes)).collect(),
        };
        Self {
            pool: resource.pool.clone(),
            prefix: resource.prefix.clone(),
            device_type: resource.device_type(),
            mtu: resource.mtu,
            promiscuous: resource.promiscuous,
            all_multicast: resource.all_multicast,
            owner: resource.owner,
            tap_only: resource.tap_only,
            links,
        }
    }

    fn into_known(self) -> Resource {
        let links = self.links.into_iter();
        let devices = match self.device_type {
            DeviceType::Macvtap => Devices::Macvtaps(links.map(WrittenLink::into_macvtaps).collect()),
            DeviceType::HostDevice => Devices::Nics(links.filter_map(WrittenLink::into_nic).collect()),
        };
        Resource {
            pool: self.pool,
            prefix: self.prefix,
            mtu: self.mtu,
            promiscuous: self.promiscuous,
            all_multicast: self.all_multicast,
            owner: self.owner,
            tap_only: self.tap_only,
            devices,
        }
    }
}

impl WrittenLink {
    fn of_macvtaps(link: &LowerLink) -> Self {
        let LowerLink { ifindex, name, identity, mode, ranges } = link.clone();
        Self { ifindex, name, identity, mode, ranges, pci: None }
    }

    /// No link ever has the index that is written; but no other device of the table may have it.
    fn of_nic(nic: &WholeNic, indexes: &mut impl Iterator<Item = u32>) -> Self {
        let first_ifindex = indexes.next().unwrap_or_default();
        let range = SlotRange { first_slot: nic.number, count: 1, first_ifindex };
        Self {
            ifindex: nic.ifindex,
            name: nic.name.clone(),
            identity: nic.identity.clone(),
            mode: Mode::Passthru,
            ranges: vec![range],
            pci: Some(nic.address),
        }
    }

    fn into_macvtaps(self) -> LowerLink {
        let Self { ifindex, name, identity, mode, ranges, pci: _ } = self;
        LowerLink { ifindex, name, identity, mode, ranges }
    }

    fn into_nic(self) -> Option<WholeNic> {
        let Self { ifindex, name, identity, ranges, pci, .. } = self;
        Some(WholeNic { address: pci?, number: ranges.first()?.first_slot, ifindex, name, identity })
    }
}
