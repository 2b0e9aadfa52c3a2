//! What is asked for.

use crate::claim::Repeat;
use crate::device_id::DeviceId;
use crate::kernel::{Home, Place};
use crate::link::Macvtap;
use crate::mac::MacAddr;
use crate::netns::NetnsId;
use crate::record::{Holder, Made};
use crate::table::{LinkIdentity, Owner};

/// Where the link of a device is made.
pub(super) const TARGET: Place = Place::Home(Home::Target);

/// A link to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The device.
    pub device: DeviceId,
    /// Its future holder.
    pub holder: Holder,
    /// Name of the pod's network; none for a pod that has only the tap.
    pub network: Option<String>,
    /// Number of the pod's namespace; none for a pod that has only the tap.
    pub netns_id: Option<NetnsId>,
    /// Name of the lower link in the device table.
    pub lower_name: String,
    /// What the lower link is known by.
    pub lower_identity: LinkIdentity,
    /// The link.
    pub link: Macvtap,
    /// Addresses that are tried in turn when another device has [`Macvtap::mac`].
    pub spare_macs: Vec<MacAddr>,
    /// Another address that the link may have by now, where something changes it while the pod runs.
    pub also_mac: Option<MacAddr>,
    /// Whether the link has IPv6 addresses of its network, if it is there.
    pub has_ipv6: bool,
    /// The owner of the device node.
    pub owner: Owner,
    /// What happens when the same holder has the device already.
    pub repeat: Repeat,
}

impl Request {
    pub(super) fn made(&self) -> Made {
        Made { mtu: self.link.mtu, owner: Some(self.owner) }
    }
}
