//! The rules for NICs that are given away as a whole.
//!
//! Such a NIC leaves the node's namespace with its pod, and may come back under another index and name; meanwhile its
//! index may be another link's. To the kubelet its name is its PCI address, so an address is never in the table twice:
//! another NIC at the address of one that a pod has, or had and lost, waits.

use super::{Demand, Known, KnownLinks, LinkRun, Surroundings, Work, wanted};
use macvtap::device_id::DeviceId;
use macvtap::mac::MacAddr;
use macvtap::pci::PciAddress;
use macvtap::table::{Device, DeviceTable, LinkIdentity, WholeNic};
use std::collections::BTreeSet;

/// The index of a NIC of the table, among these links.
pub fn find(nic: &WholeNic, links: &KnownLinks) -> Option<u32> {
    links.with_function(nic.address).find(|(_, known)| is_same(nic, known)).map(|(ifindex, _)| ifindex)
}

/// The addresses of NICs that pods have.
pub(super) fn held(table: &DeviceTable, in_use: &BTreeSet<DeviceId>) -> BTreeSet<PciAddress> {
    let nics = in_use.iter().filter_map(|device| match table.device(device)? {
        Device::Nic(found) => Some(found.nic.address),
        Device::Macvtap(_) => None,
    });
    nics.collect()
}

/// The NICs a resource had, each under its index of today.
pub(super) fn adopt(before: &[WholeNic], around: Surroundings<'_>, same_boot: bool) -> Vec<WholeNic> {
    let mut nics = before.to_vec();
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
    nics
}

impl Work<'_> {
    /// Decides about these NICs and those that the resource should have. A free one that is no longer wanted goes at
    /// once: were it still honoured, two pods could get the same NIC.
    pub(super) fn nics(
        &mut self,
        mut nics: Vec<WholeNic>,
        demand: Option<&Demand>,
        held: &BTreeSet<PciAddress>,
    ) -> Vec<WholeNic> {
        let around = self.around;
        nics.retain(|nic| {
            self.note_replaced(nic.ifindex, &nic.name);
            let is_wanted = || around.links.has(nic.ifindex) && wanted(demand, nic.ifindex) > 0;
            around.in_use.contains(&self.device(nic.number)) || is_wanted()
        });
        for wish in demand.map_or(&[][..], |demand| demand.links.as_slice()) {
            let known = around.links.get(wish.ifindex).filter(|_| wish.count > 0);
            let Some((known, address)) = known.and_then(|known| Some((known, known.pci?))) else { continue };
            if nics.iter().any(|nic| nic.ifindex == wish.ifindex) {
                continue;
            }
            // No pod may have, or have lost, another one at its address.
            if held.contains(&address) {
                self.next.replaced.insert((self.name.clone(), known.name.clone()));
                continue;
            }
            nics.push(WholeNic {
                address,
                number: first_free(&nics),
                ifindex: wish.ifindex,
                name: known.name.clone(),
                identity: known.identity.clone(),
            });
        }
        let offer = self.next.offers.entry(self.name.clone()).or_default();
        offer.extend(nics.iter().map(LinkRun::of_nic));
        nics
    }
}

/// The lowest number that none of these NICs has.
fn first_free(nics: &[WholeNic]) -> u32 {
    let taken: BTreeSet<u32> = nics.iter().map(|nic| nic.number).collect();
    (0..=u32::MAX).find(|number| !taken.contains(number)).unwrap_or_default()
}

/// Whether the NIC of the table is this link. Its parent's name may change when it is plugged again; where nobody noted
/// its address, the place decides.
pub fn is_same(nic: &WholeNic, known: &Known) -> bool {
    known.pci == Some(nic.address)
        && mac(&nic.identity).zip(mac(&known.identity)).is_none_or(|(noted, seen)| noted == seen)
}

fn mac(identity: &LinkIdentity) -> Option<MacAddr> {
    match identity {
        LinkIdentity::Hardware { mac, .. } => Some(*mac),
        LinkIdentity::Name { .. } => None,
    }
}
