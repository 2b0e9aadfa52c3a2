//! The rules for NICs that are given away as a whole.
//!
//! Such a NIC leaves the node's namespace with its pod, and may come back under another index and name; meanwhile its
//! index may be another link's. It has one slot, and to the kubelet its name is its PCI address, so an address is never in
//! the table twice: another NIC at the address of one that a pod has, or had and lost, waits.

use super::{Demand, Known, KnownLinks, Surroundings, Work, wanted};
use crate::devices::assignment::slots::Split;
use macvtap::device_id::DeviceId;
use macvtap::mac::MacAddr;
use macvtap::pci::PciAddress;
use macvtap::table::{DeviceTable, LinkIdentity, LowerLink};
use std::collections::{BTreeMap, BTreeSet};

/// Addresses of NICs that pods have, with the device of each.
pub(super) type Held = BTreeMap<PciAddress, DeviceId>;

/// The index of a NIC of the table, among these links.
pub fn find(nic: &LowerLink, links: &KnownLinks) -> Option<u32> {
    links.with_function(nic.pci?).find(|(_, known)| is_same(nic, known)).map(|(ifindex, _)| ifindex)
}

/// What in the table pods have, by address.
pub(super) fn held(table: &DeviceTable, in_use: &BTreeSet<DeviceId>) -> Held {
    let nics = in_use.iter().filter_map(|device| Some((table.device(device)?.link.pci?, device.clone())));
    nics.collect()
}

/// The NICs a resource had and those it should have, each once, under its index of today.
pub(super) fn adopt(
    before: &[LowerLink],
    demand: Option<&Demand>,
    around: Surroundings<'_>,
    same_boot: bool,
) -> Vec<LowerLink> {
    let mut nics: Vec<LowerLink> = before.to_vec();
    for nic in &mut nics {
        match find(nic, around.links) {
            Some(ifindex) => nic.ifindex = ifindex,
            // In a pod, or unplugged; its index is of another boot, or another link's by now.
            None if !same_boot || around.links.has(nic.ifindex) => nic.ifindex = 0,
            None => {}
        }
        if let Some(known) = around.links.get(nic.ifindex) {
            nic.name.clone_from(&known.name);
            nic.identity.clone_from(&known.identity);
        }
    }
    for wish in demand.map_or(&[][..], |demand| demand.links.as_slice()) {
        let known = around.links.get(wish.ifindex).filter(|known| known.pci.is_some());
        if let (Some(known), Some(demand), false) =
            (known, demand, nics.iter().any(|nic| nic.ifindex == wish.ifindex))
        {
            nics.push(LowerLink {
                ifindex: wish.ifindex,
                name: known.name.clone(),
                identity: known.identity.clone(),
                mode: demand.mode,
                pci: known.pci,
                ranges: Vec::new(),
            });
        }
    }
    nics
}

impl Work<'_> {
    /// Decides about the one device a NIC is. A free one that is no longer wanted goes at once: were it still honoured, two
    /// pods could get the same NIC.
    pub(super) fn keep_nic(&mut self, nic: &mut LowerLink, demand: Option<&Demand>) {
        let present = self.around.links.has(nic.ifindex);
        let in_use = self.in_use(nic).first().copied();
        let free = nic.ranges.first().map(|range| range.first_slot);
        let slot = in_use.or(free.filter(|_| present && wanted(demand, nic.ifindex) > 0));
        let ifindex = slot.and_then(|slot| nic.ranges.iter().find_map(|range| range.ifindex_of(slot)));
        let mut split = Split::default();
        if let (Some(slot), Some(ifindex), true) = (slot, ifindex, nic.pci.is_some()) {
            split.advertise(slot, ifindex);
        }
        nic.ranges = split.ranges();
        let offer = self.next.offers.entry(self.name.clone()).or_default();
        offer.extend(split.runs(nic));
    }

    /// Whether a NIC without a device may get one: no pod has, or has lost, another one at its address.
    pub(super) fn is_free(&mut self, nic: &LowerLink, held: &Held) -> bool {
        let free = nic.pci.is_some_and(|address| !held.contains_key(&address));
        if !free {
            self.next.replaced.insert((self.name.clone(), nic.name.clone()));
        }
        free
    }
}

/// Whether the NIC of the table is this link. Its parent's name may change when it is plugged again; where nobody noted
/// its address, the place decides.
pub fn is_same(nic: &LowerLink, known: &Known) -> bool {
    match (nic.pci, known.pci) {
        (Some(noted), Some(seen)) if noted == seen => {
            let addresses = mac(&nic.identity).zip(mac(&known.identity));
            addresses.is_none_or(|(noted, seen)| noted == seen)
        }
        _ => false,
    }
}

fn mac(identity: &LinkIdentity) -> Option<MacAddr> {
    match identity {
        LinkIdentity::Hardware { mac, .. } => Some(*mac),
        LinkIdentity::Name { .. } => None,
    }
}
