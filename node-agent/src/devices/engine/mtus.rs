//! The MTUs that pods were left with when the MTU of their link was lowered.

use super::{Memory, World};
use crate::links::link::Link;

/// The smallest MTU of a link while a device on it was in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct SmallestMtu {
    lower: u32,
    mtu: u32,
    /// The MTU that the pool asks for.
    wanted: Option<u32>,
}

impl Memory {
    /// The kernel lowers the MTU of macvtaps with that of their link, and never raises it again.
    pub(super) fn note_mtus(&mut self, World { in_use, inventory, .. }: &World) {
        let Self { smallest_mtus, table, .. } = self;
        smallest_mtus.retain(|device, _| in_use.contains(device));
        for device in in_use {
            let Some(found) = table.macvtap(device) else { continue };
            let Some(link) = inventory.get(found.link.ifindex) else { continue };
            let now = SmallestMtu { lower: link.ifindex, mtu: link.mtu, wanted: found.resource.mtu };
            let noted = smallest_mtus.entry(device.clone()).or_insert(now);
            *noted = if noted.lower == now.lower {
                SmallestMtu { mtu: noted.mtu.min(now.mtu), ..now }
            } else {
                now
            };
        }
    }

    /// The MTU that pods on the link were left with when the link's own was lowered and raised again.
    pub(super) fn lowered_mtu(&self, link: &Link) -> Option<u32> {
        let of_link = self.smallest_mtus.values().filter(|noted| noted.lower == link.ifindex);
        let lowered = of_link.filter(|noted| noted.mtu < noted.wanted.unwrap_or(link.mtu).min(link.mtu));
        lowered.map(|noted| noted.mtu).min()
    }
}
