//! Arithmetic on runs of slots.

use macvtap::device_id::SLOT_MAX;
use macvtap::pci::PciAddress;
use macvtap::table::{LinkIdentity, LowerLink, SlotRange, WholeNic};

/// Devices of one link that are all advertised, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The devices.
    pub devices: RunDevices,
    /// Index of the lower link; 0 for one of an earlier boot that has not come back.
    pub lower: u32,
    /// Whether they are advertised to the kubelet. Those that are no longer advertised are honoured for a while.
    pub advertised: bool,
}

/// What the devices of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunDevices {
    /// Macvtaps with consecutive slots and indexes.
    Macvtaps(SlotRange),
    /// The link itself.
    Nic {
        /// Where it is.
        address: PciAddress,
        /// The number in its ID.
        number: u32,
    },
}

/// Devices of one link, and what the table says of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRun {
    /// The devices.
    pub run: Run,
    /// Name of the link.
    pub link: String,
    /// What it is known by across boots.
    pub identity: LinkIdentity,
}

impl Run {
    /// How many devices these are.
    pub fn count(&self) -> u32 {
        match self.devices {
            RunDevices::Macvtaps(range) => range.count,
            RunDevices::Nic { .. } => 1,
        }
    }

    /// Slots and indexes, of macvtaps.
    pub fn range(&self) -> Option<SlotRange> {
        match self.devices {
            RunDevices::Macvtaps(range) => Some(range),
            RunDevices::Nic { .. } => None,
        }
    }

    /// Where the device is, of a whole NIC.
    pub fn address(&self) -> Option<PciAddress> {
        match self.devices {
            RunDevices::Macvtaps(_) => None,
            RunDevices::Nic { address, .. } => Some(address),
        }
    }
}

impl LinkRun {
    /// Returns these macvtaps of the link.
    pub fn of_macvtaps(link: &LowerLink, range: SlotRange, advertised: bool) -> Self {
        let run = Run { devices: RunDevices::Macvtaps(range), lower: link.ifindex, advertised };
        Self { run, link: link.name.clone(), identity: link.identity.clone() }
    }

    /// Returns the device that a NIC is.
    pub fn of_nic(nic: &WholeNic) -> Self {
        let devices = RunDevices::Nic { address: nic.address, number: nic.number };
        let run = Run { devices, lower: nic.ifindex, advertised: true };
        Self { run, link: nic.name.clone(), identity: nic.identity.clone() }
    }
}

/// The devices of one link, sorted into advertised and withdrawn ones; fed in the order of slots.
#[derive(Debug, Default)]
pub(super) struct Split {
    runs: Vec<(SlotRange, bool)>,
}

impl Split {
    pub(super) fn advertise(&mut self, slot: u32, ifindex: u32) {
        self.add(slot, ifindex, true);
    }

    pub(super) fn withdraw(&mut self, slot: u32, ifindex: u32) {
        self.add(slot, ifindex, false);
    }

    pub(super) fn runs(&self, link: &LowerLink) -> impl Iterator<Item = LinkRun> {
        self.runs.iter().map(|(range, advertised)| LinkRun::of_macvtaps(link, *range, *advertised))
    }

    /// As few ranges as possible: for the table it does not matter what is advertised.
    pub(super) fn ranges(&self) -> Vec<SlotRange> {
        let mut ranges: Vec<SlotRange> = Vec::new();
        for (range, _) in &self.runs {
            match ranges.last_mut().filter(|last| continues(last, range.first_slot, range.first_ifindex)) {
                Some(last) => last.count += range.count,
                None => ranges.push(*range),
            }
        }
        ranges
    }

    fn add(&mut self, slot: u32, ifindex: u32, advertised: bool) {
        match self.runs.last_mut() {
            Some((last, kind)) if *kind == advertised && continues(last, slot, ifindex) => last.count += 1,
            _ => {
                let range = SlotRange { first_slot: slot, count: 1, first_ifindex: ifindex };
                self.runs.push((range, advertised));
            }
        }
    }
}

/// How many devices of a link are advertised.
pub(super) fn advertised(runs: &[LinkRun], lower: u32) -> u32 {
    let runs = runs.iter().map(|offered| offered.run);
    runs.filter(|run| run.lower == lower && run.advertised).map(|run| run.count()).sum()
}

/// The lowest slot that is in none of the ranges, and how many follow it that are not either.
pub(super) fn first_gap<'r>(taken: impl Iterator<Item = &'r SlotRange>) -> Option<(u32, u32)> {
    let mut taken: Vec<(u32, u32)> = taken.map(|range| (range.slots().start, range.slots().end)).collect();
    taken.sort_unstable();
    let mut first = 0;
    for (start, end) in taken {
        if start > first {
            return Some((first, start - first));
        }
        first = first.max(end);
    }
    let left = (SLOT_MAX + 1).checked_sub(first).filter(|left| *left > 0)?;
    Some((first, left))
}

fn continues(range: &SlotRange, slot: u32, ifindex: u32) -> bool {
    range.slots().end == slot && range.first_ifindex.checked_add(range.count) == Some(ifindex)
}
