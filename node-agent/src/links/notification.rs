//! Notifications of the kernel about links, addresses and routes.

use crate::links::link;
use macvtap::host_ties::nexthop_id;
use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::proto::{self, Connection};
use rtnetlink::sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE};
use std::convert::Infallible;
use std::io;

/// Message types of the kernel (`linux/rtnetlink.h`).
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// A notification as far as it can be read: the kernel takes any bytes for an alias or another name of a link, and the
/// library drops a message with an attribute that it cannot read.
#[derive(Debug)]
pub enum Notification {
    /// What the library can read.
    Read(RouteNetlinkMessage),
    /// A nexthop object was added, replaced or removed.
    Nexthop(u32),
    /// Anything else.
    Unreadable,
}

/// Notifications with their senders.
pub(super) type Notifications = futures::channel::mpsc::UnboundedReceiver<(
    netlink_packet_core::NetlinkMessage<Notification>,
    SocketAddr,
)>;

/// Subscribes to groups. The connection must be polled, and ends when the handle is dropped.
pub(super) fn subscribe(
    groups: &[MulticastGroup],
) -> io::Result<(Connection<Notification>, proto::ConnectionHandle<Notification>, Notifications)> {
    let (mut connection, handle, notifications) = proto::new_connection(NETLINK_ROUTE)?;
    // The mask has the groups up to 32, which are all that are asked for.
    let mask = groups.iter().fold(0_u32, |mask, group| mask | 1 << (*group as u32 - 1));
    connection.socket_mut().socket_mut().bind(&SocketAddr::new(0, mask))?;
    Ok((connection, handle, notifications))
}

impl NetlinkDeserializable for Notification {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let of_link =
            |make: fn(LinkMessage) -> RouteNetlinkMessage| link::read_message(payload).ok().map(make);
        let read = match header.message_type {
            RTM_NEWLINK => of_link(RouteNetlinkMessage::NewLink),
            RTM_DELLINK => of_link(RouteNetlinkMessage::DelLink),
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => {
                return Ok(nexthop_id(payload).map_or(Self::Unreadable, Self::Nexthop));
            }
            _ => RouteNetlinkMessage::deserialize(header, payload).ok(),
        };
        Ok(read.map_or(Self::Unreadable, Self::Read))
    }
}

/// Needed by the type of the connection: nothing is sent on it.
impl NetlinkSerializable for Notification {
    fn message_type(&self) -> u16 {
        0
    }

    fn buffer_len(&self) -> usize {
        0
    }

    fn serialize(&self, _buffer: &mut [u8]) {}
}
