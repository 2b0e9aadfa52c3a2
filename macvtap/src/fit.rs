//! Whether a macvtap fits its lower link and its new namespace: the same for one that is made and for one that moves.

use crate::link::{IfName, Link};
use crate::mac::MacAddr;
use crate::netlink::NetlinkError;
use rustix::io::Errno;

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
