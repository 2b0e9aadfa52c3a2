//! XDP programs of a link. Pure.

use super::value::word;
use netlink_packet_core::NlasIterator;

/// Attribute numbers of `linux/if_link.h`, within the one for XDP.
mod attribute {
    pub(super) const DRV_PROG_ID: u16 = 5;
    pub(super) const SKB_PROG_ID: u16 = 6;
    pub(super) const HW_PROG_ID: u16 = 7;
}

/// Where an XDP program runs that is attached to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpPlace {
    /// In the kernel, for drivers without XDP.
    Generic,
    /// In the driver.
    Driver,
    /// On the NIC.
    Hardware,
}

impl XdpPlace {
    /// The kernel's flag for it (`XDP_FLAGS_*_MODE` of `linux/if_link.h`).
    pub(super) fn flag(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Driver => 1 << 2,
            Self::Hardware => 1 << 3,
        }
    }
}

/// The programs that a link has, by the kernel's number.
pub(super) fn programs(value: &[u8]) -> Vec<(XdpPlace, u32)> {
    let place = |kind| match kind {
        attribute::SKB_PROG_ID => Some(XdpPlace::Generic),
        attribute::DRV_PROG_ID => Some(XdpPlace::Driver),
        attribute::HW_PROG_ID => Some(XdpPlace::Hardware),
        _ => None,
    };
    let attributes = NlasIterator::new(value).flatten();
    attributes.filter_map(|one| place(one.kind()).zip(word(one.value()))).collect()
}
