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
