//! The steps on the links of one namespace that only whole NICs need.

use crate::default_routes;
use crate::host_ties;
use crate::link::{self, Change, Move, NicLink};
use crate::netlink::{Kind, NetlinkError, Socket};
use crate::netns::NetnsId;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use std::fmt::Display;

/// The links of one namespace. `what` says what is asked for, for the error.
pub trait Links {
    /// Returns all links with what distinguishes NICs.
    fn nics(&mut self) -> Result<Vec<NicLink>, NetlinkError>;
    /// Changes what is set of a link.
    fn set(&mut self, index: u32, change: Change<'_>, what: &dyn Display) -> Result<(), NetlinkError>;
    /// Moves a link into another namespace.
    fn transfer(&mut self, to: Move<'_>, what: &dyn Display) -> Result<(), NetlinkError>;
    /// Takes other names from a link.
    fn remove_names(&mut self, index: u32, names: &[&[u8]], what: &dyn Display) -> Result<(), NetlinkError>;
    /// Deletes a link.
    fn delete(&mut self, index: u32, what: &dyn Display) -> Result<(), NetlinkError>;
    /// Whether a default route uses a link.
    fn has_default_route(&mut self, index: u32) -> Result<bool, NetlinkError>;
    /// Whether a link has an address that somebody gave it.
    fn has_address(&mut self, index: u32) -> Result<bool, NetlinkError>;
}

impl Links for Socket {
    fn nics(&mut self) -> Result<Vec<NicLink>, NetlinkError> {
        list(self, None)
    }

    fn set(&mut self, index: u32, change: Change<'_>, what: &dyn Display) -> Result<(), NetlinkError> {
        self.act(Kind::SetLink, &link::change(index, change), 0, what)
    }

    fn transfer(&mut self, to: Move<'_>, what: &dyn Display) -> Result<(), NetlinkError> {
        self.act(Kind::SetLink, &link::transfer(to), 0, what)
    }

    fn remove_names(&mut self, index: u32, names: &[&[u8]], what: &dyn Display) -> Result<(), NetlinkError> {
        self.act(Kind::DelLinkProperty, &link::remove_names(index, names), 0, what)
    }

    fn delete(&mut self, index: u32, what: &dyn Display) -> Result<(), NetlinkError> {
        self.act(Kind::DelLink, &link::delete(index, None), 0, what)
    }

    fn has_default_route(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let mut is_among =
            |family| Ok(default_routes::find(self, family, Some(index))?.links.contains(&index));
        Ok(is_among(AddressFamily::Inet)? || is_among(AddressFamily::Inet6)?)
    }

    fn has_address(&mut self, index: u32) -> Result<bool, NetlinkError> {
        Ok(address_of(self, index, AddressFamily::Inet)? || address_of(self, index, AddressFamily::Inet6)?)
    }
}

/// All links that a socket sees, in its namespace or in the one with that number.
pub(crate) fn list(socket: &mut Socket, netns: Option<NetnsId>) -> Result<Vec<NicLink>, NetlinkError> {
    let what = "list links";
    let payloads = socket.list(Kind::GetLink, &link::get_all(netns), &what)?;
    let unreadable = |problem| NetlinkError::Answer { what: what.to_owned(), problem };
    payloads.iter().map(|payload| NicLink::parse(payload).map_err(unreadable)).collect()
}

fn address_of(socket: &mut Socket, index: u32, family: AddressFamily) -> Result<bool, NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = family;
    message.header.index = index;
    let found = socket.list(Kind::GetAddress, &message, &"list the node's addresses")?;
    Ok(found.iter().any(|payload| host_ties::addressed(payload) == Some(index)))
}
