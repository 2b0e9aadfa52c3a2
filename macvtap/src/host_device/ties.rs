//! What forbids taking a NIC from the node: somebody there uses it.

use crate::kernel::Kernel;
use crate::link::NicLink;
use crate::links::Links;
use crate::netlink::NetlinkError;
use crate::paths::Paths;
use crate::records::{self, RecordError};
use std::fmt;

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
    Device(crate::device_id::DeviceId),
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

/// What could not be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TieError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The first tie of a NIC of the node. `links` are all links there.
pub(crate) fn find<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    links: &[NicLink],
    nic: &NicLink,
) -> Result<Option<Tie>, TieError> {
    let index = nic.link.index;
    if let Some(master) = nic.master {
        let name = links.iter().find(|link| link.link.index == master).map(|link| link.link.name.clone());
        return Ok(Some(Tie::Master(name.unwrap_or_else(|| format!("link {master}")))));
    }
    if let Some(upper) = links.iter().find(|link| link.is_on(index)) {
        return Ok(Some(Tie::Upper(upper.link.name.clone())));
    }
    // A macvtap in a pod is not to be seen from here, and would end with the move.
    let built =
        records::list(paths)?.records.into_iter().find(|r| r.nic.is_none() && r.lower_ifindex == index);
    if let Some(record) = built {
        return Ok(Some(Tie::Device(record.device)));
    }
    let node = kernel.node_links();
    if node.has_default_route(index)? {
        return Ok(Some(Tie::DefaultRoute));
    }
    Ok(node.has_address(index)?.then_some(Tie::HostAddress))
}
