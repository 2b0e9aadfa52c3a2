//! What the kernel announces of links, addresses and routes: the socket that hears it, and what its messages say.

use super::read_link;
use crate::link::Link;
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;

/// Groups of `linux/rtnetlink.h`: links, and the addresses and routes of IPv4 and IPv6.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// Messages of `linux/rtnetlink.h`.
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;

/// `AF_UNSPEC`: a bridge tells of its ports by messages of its own family, and losing a port is not losing a link.
const ANY_FAMILY: u8 = 0;

/// Where the index is in `struct ifinfomsg`, and the prefix length in `struct rtmsg`.
const LINK_INDEX: std::ops::Range<usize> = 4..8;
const ROUTE_PREFIX: usize = 1;

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// The longest message is one about a link with as many other names as the kernel allows: 64 KiB.
const DATAGRAM_MAX: usize = 128 << 10;

/// What was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A link appeared or changed. What sysfs tells of it is missing.
    Link(Box<Link>),
    /// A link went away.
    Gone(u32),
    /// Addresses or default routes are others than before.
    Ties,
    /// Something the kernel could not deliver.
    Lost,
}

/// Hears events of the namespace in which it was made. What nobody takes waits in the kernel, which bounds it.
pub(super) struct Events {
    socket: TokioSocket,
    datagram: Vec<u8>,
    heard: VecDeque<Event>,
}

impl Events {
    /// From here on everything is heard.
    pub(super) fn subscribe() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (group - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM_MAX), heard: VecDeque::new() })
    }

    /// Waits for the next event that may matter. Loses nothing when it is given up.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            self.datagram.clear();
            match poll_fn(|context| self.socket.poll_recv_from(context, &mut self.datagram)).await {
                // Processes with CAP_NET_ADMIN in the namespace can write to the socket, too.
                Ok(sender) if sender.port_number() != 0 => {}
                Ok(_) if self.datagram.len() >= DATAGRAM_MAX => return Ok(Event::Lost),
                Ok(_) => read(&self.datagram, &mut self.heard),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => return Ok(Event::Lost),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The events of a datagram. Everything else in it, most of all other routes, is passed over unread.
fn read(datagram: &[u8], heard: &mut VecDeque<Event>) {
    let mut rest = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        heard.extend(event(message.message_type(), message.payload()));
        let length = HEADER_LEN + message.payload_length();
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn event(kind: u16, payload: &[u8]) -> Option<Event> {
    let is_link = payload.first() == Some(&ANY_FAMILY);
    match kind {
        NEW_LINK if is_link => read_link(payload).map(|link| Event::Link(Box::new(link))),
        DEL_LINK if is_link => {
            let index = payload.get(LINK_INDEX)?.try_into().ok()?;
            Some(Event::Gone(u32::from_ne_bytes(index)))
        }
        NEW_ADDRESS | DEL_ADDRESS => Some(Event::Ties),
        NEW_ROUTE | DEL_ROUTE => (payload.get(ROUTE_PREFIX) == Some(&0)).then_some(Event::Ties),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message, followed by as many bytes as make the next one begin where it must.
    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LEN + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// The header of a link's messages.
    fn link(family: u8, index: u32) -> Vec<u8> {
        let mut bytes = vec![family, 0, 1, 0];
        bytes.extend(index.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes
    }

    fn events(datagram: &[u8]) -> Vec<Event> {
        let mut heard = VecDeque::new();
        read(datagram, &mut heard);
        heard.into()
    }

    #[test]
    fn every_message_of_a_datagram_is_heard_and_what_does_not_matter_is_not() {
        const BRIDGE: u8 = 7;
        let route = |prefix| [2, prefix, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, 9];
        let datagram = [
            message(NEW_ROUTE, &route(24)),
            message(DEL_ROUTE, &route(0)),
            message(DEL_LINK, &link(BRIDGE, 3)),
            message(DEL_LINK, &link(ANY_FAMILY, 4)),
            message(NEW_ADDRESS, &[]),
            message(28, &[]),
        ];
        assert_eq!(events(&datagram.concat()), [Event::Ties, Event::Gone(4), Event::Ties]);
    }

    #[test]
    fn a_link_is_heard_of_whatever_its_alias_is() {
        const NAME: u8 = 3;
        const ALIAS: u8 = 20;
        let mut payload = link(ANY_FAMILY, 4);
        payload.extend([6, 0, ALIAS, 0, 0xff, 0xfe, 0, 0]);
        payload.extend([8, 0, NAME, 0, b'd', b'p', b'0', 0]);
        let heard = events(&message(NEW_LINK, &payload));
        assert!(
            matches!(&heard[..], [Event::Link(link)] if link.name == "dp0" && link.ifindex == 4),
            "{heard:?}"
        );
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_reader_panic(kind in 0..40_u16, noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (events(&noise), events(&message(kind, &noise)));
        }
    }
}
