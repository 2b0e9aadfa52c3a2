//! Whether a link fits its lower link and its new namespace: the same for a macvtap that is made and for one that moves.

use crate::device_id::DeviceId;
use crate::link::{IfName, Link};
use crate::mac::MacAddr;
use crate::netlink::NetlinkError;
use crate::pci::PciAddress;
use rustix::io::Errno;
use std::fmt;

/// A macvtap cannot be as asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitError {
    /// The name is taken.
    #[error("interface {0} already exists in the pod's network namespace")]
    NameTaken(IfName),
    /// The MTU does not fit.
    #[error(
        "mtu {mtu} is above the {lower_mtu} of lower link {lower}; use {lower_mtu} or less, or raise the lower link's"
    )]
    MtuTooHigh {
        /// As asked for.
        mtu: u32,
        /// The lower link.
        lower: String,
        /// Its MTU.
        lower_mtu: u32,
    },
    /// The kernel would put it on the link below that one.
    #[error(
        "lower link {lower} is a {kind}: the kernel makes a macvtap on it one of the link below it; use the link below it"
    )]
    LowerKind {
        /// The lower link.
        lower: String,
        /// What it is.
        kind: String,
    },
    /// The address is taken.
    #[error(
        "MAC address {mac} is in use on lower link {lower}: by the link itself or by another device on it; give this one another address"
    )]
    MacInUse {
        /// The address.
        mac: MacAddr,
        /// The lower link.
        lower: String,
    },
}

/// A NIC cannot be given to a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitNic {
    /// The NIC is not on the node.
    #[error(
        "NIC {pci} ({name}) of device {device} is not on the node any more: it was unplugged or moved by hand"
    )]
    Missing {
        /// The device.
        device: DeviceId,
        /// Its address.
        pci: PciAddress,
        /// Its name in the device table.
        name: String,
    },
    /// The node uses the NIC by now.
    #[error("NIC {name} cannot be given to a pod: {tie}; remove that, or exclude the NIC from its resource")]
    Tied {
        /// Its name.
        name: String,
        /// The reason.
        tie: Tie,
    },
    /// The MTU does not fit.
    #[error("mtu {mtu} is above the {max} that NIC {name} can do; use {max} or less")]
    MtuTooHigh {
        /// As asked for.
        mtu: u32,
        /// The NIC.
        name: String,
        /// Its largest.
        max: u32,
    },
    /// A name is taken.
    #[error(
        "interface {taken_by} of the pod's network namespace has the name {wanted}, which NIC {name} needs there; remove it"
    )]
    NameTaken {
        /// The NIC.
        name: String,
        /// The name it needs.
        wanted: String,
        /// Who has it.
        taken_by: String,
    },
    /// A link cannot have a name twice.
    #[error(
        "NIC {name} cannot be called {wanted} in the pod: that is one of its other names; remove that name"
    )]
    OwnOtherName {
        /// The NIC.
        name: String,
        /// The name.
        wanted: IfName,
    },
    /// Its name could not be given back.
    #[error(
        "NIC {pci} is called {name:?} on the node, which cannot be given back to it; give it another name"
    )]
    OddName {
        /// Its name.
        name: String,
        /// Its address.
        pci: PciAddress,
    },
}

/// The reason why the node holds a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tie {
    /// The node reaches the world through it.
    DefaultRoute,
    /// The node has an address on it.
    HostAddress,
    /// It is a port or member of another link.
    Master(String),
    /// Another link is built on it.
    Upper(String),
    /// A device of another resource is built on it.
    Device(DeviceId),
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute => f.write_str("a default route of the node uses it"),
            Self::HostAddress => f.write_str("the node has an address on it"),
            Self::Master(name) => write!(f, "it belongs to {name}"),
            Self::Upper(name) => write!(f, "{name} is built on it"),
            Self::Device(device) => write!(f, "device {device} is built on it"),
        }
    }
}

/// A link of the node cannot be moved into a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnfitHostLink {
    /// The link does not exist.
    #[error("deviceID {0} is neither a device of this node nor an interface on it")]
    Missing(IfName),
    /// It is something else.
    #[error(
        "deviceID {name} is an interface of this node, but not a macvtap ({kind}); only a macvtap is moved into a pod"
    )]
    NotMacvtap {
        /// The link.
        name: IfName,
        /// What it is.
        kind: String,
    },
    /// It is a device's.
    #[error(
        "deviceID {0} is the link of a device of this node; leave deviceID out of the configuration, Multus fills it in"
    )]
    Ours(IfName),
}

/// Whether a link of this rtnetlink kind can carry a macvtap of its own. On a macvlan or macvtap the kernel makes the new
/// one a sibling, on the link below.
pub fn can_carry(kind: Option<&str>) -> bool {
    !matches!(kind, Some("macvlan" | "macvtap"))
}

/// Judges the lower link and the MTU asked for on it.
pub(crate) fn judge(wanted_mtu: Option<u32>, lower: &Link) -> Result<(), UnfitError> {
    match &lower.kind {
        Some(kind) if !can_carry(Some(kind)) => {
            Err(UnfitError::LowerKind { lower: lower.name.clone(), kind: kind.clone() })
        }
        _ => judge_mtu(wanted_mtu, lower),
    }
}

/// Judges the MTU asked for: the lower link's is the largest.
pub(crate) fn judge_mtu(wanted: Option<u32>, lower: &Link) -> Result<(), UnfitError> {
    match wanted {
        Some(mtu) if mtu > lower.mtu => {
            Err(UnfitError::MtuTooHigh { mtu, lower: lower.name.clone(), lower_mtu: lower.mtu })
        }
        _ => Ok(()),
    }
}

/// What a refused change of a macvtap with this address means. The kernel looks for the address on the siblings when the
/// link comes up or gets another one.
pub(crate) fn explain<E>(error: NetlinkError, mac: Option<MacAddr>, lower: &str) -> E
where
    E: From<NetlinkError> + From<UnfitError>,
{
    match mac.filter(|_| error.errno() == Some(Errno::ADDRINUSE)) {
        Some(mac) => UnfitError::MacInUse { mac, lower: lower.to_owned() }.into(),
        None => error.into(),
    }
}
