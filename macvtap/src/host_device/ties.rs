//! What forbids taking a NIC from the node: somebody there uses it.

use super::link::NicLink;
use crate::kernel::Rtnl;
use crate::link::value::word;
use crate::netlink::{Kind, NetlinkError};
use crate::paths::Paths;
use crate::records::{self, RecordError};
use netlink_packet_core::NlasIterator;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::fmt;

/// `struct ifaddrmsg`: where the scope and the index are, and its length.
const ADDRESS_SCOPE: usize = 3;
const ADDRESS_INDEX: std::ops::Range<usize> = 4..8;

/// `RT_SCOPE_LINK` of `linux/rtnetlink.h`: addresses of this scope the kernel gives by itself.
const SCOPE_LINK: u8 = 253;

/// `struct rtmsg`: where the prefix length is, and its length; `RTA_OIF` and `RTA_MULTIPATH` of `linux/rtnetlink.h`.
const ROUTE_PREFIX: usize = 1;
const ROUTE_LEN: usize = 12;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;

/// `struct rtnexthop`: its length, and where its index is.
const HOP_LEN: usize = 8;
const HOP_INDEX: std::ops::Range<usize> = 4..8;

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
    Ok(found.iter().any(|payload| is_address_of(payload, index)))
}

fn is_address_of(payload: &[u8], index: u32) -> bool {
    let scope = payload.get(ADDRESS_SCOPE).copied();
    payload.get(ADDRESS_INDEX).and_then(word) == Some(index) && scope.is_some_and(|scope| scope < SCOPE_LINK)
}

fn has_default_route(kernel: &mut Rtnl, index: u32, family: AddressFamily) -> Result<bool, NetlinkError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    // Fewer to read where the kernel sorts them out.
    message.attributes.push(RouteAttribute::Oif(index));
    let found = kernel.node_socket().list(Kind::GetRoute, &message, &"list the node's routes")?;
    Ok(found.iter().any(|payload| is_default_through(payload, index)))
}

fn is_default_through(payload: &[u8], index: u32) -> bool {
    let everything = payload.get(ROUTE_PREFIX) == Some(&0);
    let attributes = NlasIterator::new(payload.get(ROUTE_LEN..).unwrap_or_default()).flatten();
    let mut attributes = attributes.filter(|_| everything);
    attributes.any(|attribute| match attribute.kind() {
        RTA_OIF => word(attribute.value()) == Some(index),
        RTA_MULTIPATH => hops(attribute.value()).any(|hop| hop == index),
        _ => false,
    })
}

/// The indexes of a route's next hops.
fn hops(mut value: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let index = value.get(HOP_INDEX).and_then(word)?;
        let length = value.get(..2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes)?;
        // Each is aligned to four bytes.
        let next = usize::from(length).max(HOP_LEN).next_multiple_of(4);
        value = value.get(next..).unwrap_or_default();
        Some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use netlink_packet_route::route::{RouteHeader, RouteNextHop};
    use proptest::prelude::*;

    fn route(prefix: u8, attributes: Vec<RouteAttribute>) -> Vec<u8> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader { destination_prefix_length: prefix, ..RouteHeader::default() };
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn hop(index: u32) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.attributes = vec![RouteAttribute::Priority(1)];
        hop
    }

    #[test]
    fn only_a_default_route_through_the_nic_ties_it() {
        assert!(is_default_through(&route(0, vec![RouteAttribute::Oif(7)]), 7));
        assert!(!is_default_through(&route(0, vec![RouteAttribute::Oif(8)]), 7));
        assert!(!is_default_through(&route(24, vec![RouteAttribute::Oif(7)]), 7));
        let multipath = route(0, vec![RouteAttribute::MultiPath(vec![hop(8), hop(7)])]);
        assert!(is_default_through(&multipath, 7) && is_default_through(&multipath, 8));
        assert!(!is_default_through(&multipath, 9));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_readers_panic_or_hang(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (is_default_through(&noise, 7), is_address_of(&noise, 7), hops(&noise).count());
        }
    }
}
