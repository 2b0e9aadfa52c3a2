//! The device table: which devices this node offers, and from what each is made.
//!
//! The agent writes it before it advertises a device; the plugin reads it, so an ADD needs no daemon. The file is
//! replaced as a whole: temporary file, fsync, rename, fsync of the directory.

mod file;

use crate::device_id::{DeviceId, ResourceName, SLOT_MAX};
use crate::mac::MacAddr;
use crate::mode::Mode;
use crate::pci::PciAddress;
use file::{WrittenLink, WrittenResource, WrittenTable};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The version this program writes, and the only one it reads. A field that readers can do without leaves it as it is:
/// they pass over fields that they do not know.
pub const VERSION: u32 = 1;

/// Indexes of the links we make. Kernels number links from 1 upwards, so no other link comes near for a long time.
pub const IFINDEX_FIRST: u32 = 0x0100_0000;

/// The last index given to a device.
pub const IFINDEX_LAST: u32 = 0x7fef_ffff;

/// A placeholder (a link that only keeps a tap minor busy) has this index plus the minor.
pub const PLACEHOLDER_IFINDEX_FIRST: u32 = 0x7ff0_0000;

/// All devices of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceTable {
    /// [`VERSION`].
    pub version: u32,
    /// `/proc/sys/kernel/random/boot_id` when the table was written: links and indexes of another boot mean nothing.
    pub boot_id: String,
    /// The next index never given out in this boot.
    pub next_ifindex: u32,
    /// Whether the agent runs without the API (`DP_MACVTAP_CONF` or a file).
    pub standalone: bool,
    /// Resources by bare name.
    pub resources: BTreeMap<ResourceName, Resource>,
    /// Why resources, or lower links of them, were left out by [`DeviceTable::parse_known`].
    pub left_out: BTreeMap<ResourceName, String>,
}

/// One resource of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The pool that has it, for the agent that starts next; absent in tables of agents that did not know it yet.
    pub pool: Option<String>,
    /// What stands before the `/` in the resource's full name.
    pub prefix: String,
    /// MTU of the links; absent: the lower link's.
    pub mtu: Option<u32>,
    /// Links take every frame.
    pub promiscuous: bool,
    /// Links take every multicast frame; without it a guest's neighbour discovery hears nothing.
    pub all_multicast: bool,
    /// Owner of the device nodes.
    pub owner: Owner,
    /// Whether a pod may take the tap alone, without a network.
    pub tap_only: TapOnly,
    /// What is offered, in the order of discovery.
    pub devices: Devices,
}

/// The devices of a resource, which are all of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Macvtaps, by the links that they are made on.
    Macvtaps(Vec<LowerLink>),
    /// Whole NICs, each of which is one device.
    Nics(Vec<WholeNic>),
}

/// What a device of a resource is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceType {
    /// A macvtap made on a lower link.
    #[default]
    Macvtap,
    /// A whole NIC.
    HostDevice,
}

/// Owner of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

impl Default for Owner {
    /// KubeVirt's `qemu` user.
    fn default() -> Self {
        Self { uid: 107, gid: 107 }
    }
}

/// Whether a pod may take the tap alone, without a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TapOnly {
    /// It may: the agent makes the link when the container starts.
    Allowed,
    /// It may not.
    #[default]
    Forbidden,
}

/// A link under macvtaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerLink {
    /// Its index in the node's namespace: what it is known by within a boot.
    pub ifindex: u32,
    /// Its name when the table was written.
    pub name: String,
    /// What it is known by across boots.
    pub identity: LinkIdentity,
    /// The mode its devices have now. A change of the configured mode waits until the link's last device is free.
    pub mode: Mode,
    /// Its devices. Growing adds a range; an index is never moved, nor used again within a boot.
    pub ranges: Vec<SlotRange>,
}

/// A NIC that is given to a pod as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeNic {
    /// Where it is: what the kubelet and users call it.
    pub address: PciAddress,
    /// The number in its [`DeviceId`], under which its attachment is recorded.
    pub number: u32,
    /// Its index in the node's namespace; while it is in a pod, any that no link has.
    pub ifindex: u32,
    /// Its name when it was last on the node.
    pub name: String,
    /// What it is known by across boots.
    pub identity: LinkIdentity,
}

/// What a link is known by across boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "by")]
pub enum LinkIdentity {
    /// A NIC: its permanent address and the device it is part of.
    #[serde(rename_all = "camelCase")]
    Hardware {
        /// Permanent MAC address.
        mac: MacAddr,
        /// Kernel name of the parent device, for example `0000:3b:00.0` or `virtio1`.
        parent: String,
    },
    /// A link made by software.
    Name {
        /// rtnetlink kind (`bond`, `vlan`, ...), empty for none.
        kind: String,
        /// Its name.
        name: String,
    },
}

impl LinkIdentity {
    /// Whether a link that was known by this can be of this kind, on this device. A link can be renamed, and a driver may
    /// report an address that was set as its own; but kind and device of a link stay.
    pub fn may_be(&self, kind: Option<&str>, device: Option<&str>) -> bool {
        match self {
            // The device is not always reported.
            Self::Hardware { parent, .. } => kind.is_none() && device.is_none_or(|device| device == parent),
            Self::Name { kind: known, .. } => kind.unwrap_or_default() == known,
        }
    }
}

/// Consecutive slots with consecutive indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlotRange {
    /// The first slot.
    pub first_slot: u32,
    /// How many slots.
    pub count: u32,
    /// Index of the first slot's link.
    pub first_ifindex: u32,
}

/// One device, as the table describes it.
#[derive(Clone, Copy, Debug)]
pub enum Device<'t> {
    /// A macvtap.
    Macvtap(TableMacvtap<'t>),
    /// A whole NIC.
    Nic(TableNic<'t>),
}

/// A macvtap of the table.
#[derive(Clone, Copy, Debug)]
pub struct TableMacvtap<'t> {
    /// Its resource.
    pub resource: &'t Resource,
    /// Its lower link.
    pub link: &'t LowerLink,
    /// The index its link has whenever it exists.
    pub ifindex: u32,
}

/// A whole NIC of the table.
#[derive(Clone, Copy, Debug)]
pub struct TableNic<'t> {
    /// Its resource.
    pub resource: &'t Resource,
    /// The NIC.
    pub nic: &'t WholeNic,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not the JSON we write.
    #[error("device table is damaged")]
    Json(#[from] serde_json::Error),
    /// Written by a program that knows more, or less, than this one.
    #[error(
        "device table has version {0}, this program reads version {VERSION}; run agent and plugin of one release"
    )]
    Version(u32),
    /// Slots or indexes that contradict each other.
    #[error("device table is damaged: resource {resource}: {what}")]
    Inconsistent {
        /// The resource.
        resource: ResourceName,
        /// The contradiction.
        what: &'static str,
    },
}

impl DeviceTable {
    /// Reads a table and checks that no slot and no index occurs twice.
    pub fn parse(json: &[u8]) -> Result<Self, TableError> {
        serde_json::from_slice::<WrittenTable>(json)?.checked()
    }

    /// Reads what this program knows of a table: a resource or a lower link with a value of another release is left out.
    pub fn parse_known(json: &[u8]) -> Result<Self, TableError> {
        match Self::parse(json) {
            Err(TableError::Json(_)) => {}
            parsed => return parsed,
        }
        let mut document: Value = serde_json::from_slice(json)?;
        let mut left_out = BTreeMap::new();
        let resources = document.get_mut("resources").and_then(Value::as_object_mut);
        for (name, resource) in resources.into_iter().flatten() {
            let Ok(name) = name.parse::<ResourceName>() else { continue };
            let mut is_known = |problem: Option<serde_json::Error>| match problem {
                Some(problem) => {
                    left_out.insert(name.clone(), problem.to_string());
                    false
                }
                None => true,
            };
            if let Some(links) = resource.get_mut("links").and_then(Value::as_array_mut) {
                links.retain(|link| is_known(WrittenLink::deserialize(link).err()));
            }
            if !is_known(WrittenResource::deserialize(&*resource).err()) {
                *resource = Value::Null;
            }
        }
        if let Some(resources) = document.get_mut("resources").and_then(Value::as_object_mut) {
            resources.retain(|_, resource| !resource.is_null());
        }
        let known = Self::parse(document.to_string().as_bytes())?;
        Ok(Self { left_out, ..known })
    }

    /// The device with this ID, if the node has it.
    pub fn device(&self, id: &DeviceId) -> Option<Device<'_>> {
        let resource = self.resources.get(id.resource())?;
        let nic = resource.nics().iter().find(|nic| nic.number == id.slot());
        match nic {
            Some(nic) => Some(Device::Nic(TableNic { resource, nic })),
            None => self.macvtap(id).map(Device::Macvtap),
        }
    }

    /// The macvtap with this ID, if the node has it.
    pub fn macvtap(&self, id: &DeviceId) -> Option<TableMacvtap<'_>> {
        let resource = self.resources.get(id.resource())?;
        resource.links().iter().find_map(|link| {
            let ifindex = link.ranges.iter().find_map(|range| range.ifindex_of(id.slot()))?;
            Some(TableMacvtap { resource, link, ifindex })
        })
    }

    /// Every NIC that the node offers as a whole.
    pub fn nics(&self) -> impl Iterator<Item = (DeviceId, TableNic<'_>)> {
        self.resources.iter().flat_map(|(name, resource)| {
            let nics = resource.nics().iter();
            nics.map(move |nic| (DeviceId::new(name.clone(), nic.number), TableNic { resource, nic }))
        })
    }

    /// The NIC at this address, if the node offers it as a whole.
    pub fn nic(&self, address: PciAddress) -> Option<(DeviceId, TableNic<'_>)> {
        self.nics().find(|(_, found)| found.nic.address == address)
    }
}

impl Resource {
    /// What its devices are.
    pub fn device_type(&self) -> DeviceType {
        match self.devices {
            Devices::Macvtaps(_) => DeviceType::Macvtap,
            Devices::Nics(_) => DeviceType::HostDevice,
        }
    }

    /// The links that its macvtaps are made on.
    pub fn links(&self) -> &[LowerLink] {
        match &self.devices {
            Devices::Macvtaps(links) => links,
            Devices::Nics(_) => &[],
        }
    }

    /// The links that its macvtaps are made on.
    pub fn links_mut(&mut self) -> &mut [LowerLink] {
        match &mut self.devices {
            Devices::Macvtaps(links) => links,
            Devices::Nics(_) => &mut [],
        }
    }

    /// Its whole NICs.
    pub fn nics(&self) -> &[WholeNic] {
        match &self.devices {
            Devices::Macvtaps(_) => &[],
            Devices::Nics(nics) => nics,
        }
    }
}

impl Devices {
    /// No device, of this type.
    pub fn none(device_type: DeviceType) -> Self {
        match device_type {
            DeviceType::Macvtap => Self::Macvtaps(Vec::new()),
            DeviceType::HostDevice => Self::Nics(Vec::new()),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Macvtaps(links) => links.is_empty(),
            Self::Nics(nics) => nics.is_empty(),
        }
    }
}

impl SlotRange {
    /// The index of a slot's link, if the slot is in this range.
    pub fn ifindex_of(&self, slot: u32) -> Option<u32> {
        let offset = slot.checked_sub(self.first_slot).filter(|offset| *offset < self.count)?;
        self.first_ifindex.checked_add(offset)
    }

    /// The slots of this range in ascending order.
    pub fn slots(&self) -> std::ops::Range<u32> {
        self.first_slot..self.first_slot.saturating_add(self.count)
    }

    /// First and last slot, first and last index; none when empty or outside the numbers we use.
    fn bounds(&self) -> Option<((u32, u32), (u32, u32))> {
        let more = self.count.checked_sub(1)?;
        let last_slot = self.first_slot.checked_add(more).filter(|last| *last <= SLOT_MAX)?;
        let last_index = self.first_ifindex.checked_add(more).filter(|last| *last <= IFINDEX_LAST)?;
        (self.first_ifindex >= IFINDEX_FIRST)
            .then_some(((self.first_slot, last_slot), (self.first_ifindex, last_index)))
    }
}

/// Whether two of these closed intervals share a number. Sorts them.
fn overlap(intervals: &mut [(u32, u32)]) -> bool {
    intervals.sort_unstable();
    intervals.windows(2).any(|pair| matches!(pair, [(_, last), (first, _)] if first <= last))
}

#[cfg(test)]
mod tests;
