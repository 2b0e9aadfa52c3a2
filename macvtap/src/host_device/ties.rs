//! What forbids taking a NIC from the node: somebody there uses it.

use super::link::NicLink;
use crate::host_ties;
use crate::kernel::Rtnl;
use crate::netlink::{Kind, NetlinkError};
use crate::paths::Paths;
use crate::records::{self, RecordError};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::fmt;

/// By what the node holds a NIC.
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

impl From<TieError> for super::TakeError {
    fn from(error: TieError) -> Self {
        match error {
            TieError::Netlink(error) => Self::Netlink(error),
            TieError::Record(error) => Self::Record(error),
        }
    }
}

/// The first tie of a NIC of the node. `links` are all links there.
pub(crate) fn find(
    paths: &Paths,
    kernel: &mut Rtnl,
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
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        if has_default_route(kernel, index, family)? {
            return Ok(Some(Tie::DefaultRoute));
        }
        if has_address(kernel, index, family)? {
            return Ok(Some(Tie::HostAddress));
        }
    }
    Ok(None)
}

fn has_address(kernel: &mut Rtnl, index: u32, family: AddressFamily) -> Result<bool, NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = family;
    message.header.index = index;
    let found = kernel.node_socket().list(Kind::GetAddress, &message, &"list the node's addresses")?;
    Ok(found.iter().any(|payload| host_ties::addressed(payload) == Some(index)))
}

fn has_default_route(kernel: &mut Rtnl, index: u32, family: AddressFamily) -> Result<bool, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    // Fewer to read where the kernel sorts them out.
    message.attributes.push(RouteAttribute::Oif(index));
    // A node may have more routes than a list takes.
    let what = &"list the node's routes";
    kernel.node_socket().fold(Kind::GetRoute, &message, what, |found: &mut bool, payload| {
        *found |= host_ties::default_routes(payload).contains(&index);
    })
}
