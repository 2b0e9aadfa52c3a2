//! What ties links to the node, as the kernel lists it: addresses of the node, and default routes. Pure.

use crate::link::value::word;
use netlink_packet_core::NlasIterator;

/// `struct ifaddrmsg` of `linux/if_addr.h`: where the scope is, and the index.
const ADDRESS_SCOPE: usize = 3;
const ADDRESS_INDEX: std::ops::Range<usize> = 4..8;

/// `RT_SCOPE_LINK` of `linux/rtnetlink.h`: addresses of this scope the kernel gives by itself.
const SCOPE_LINK: u8 = 253;

/// `struct rtmsg` of `linux/rtnetlink.h`: where the prefix length is, and the type, and its length.
const ROUTE_PREFIX: usize = 1;
const ROUTE_TYPE: usize = 7;
const ROUTE_LEN: usize = 12;

/// `RTN_UNICAST`, `RTA_OIF` and `RTA_MULTIPATH` of `linux/rtnetlink.h`.
const UNICAST: u8 = 1;
const OIF: u16 = 4;
const MULTIPATH: u16 = 9;

/// `struct rtnexthop` of `linux/rtnetlink.h`: its length, and where its index is.
const HOP_LEN: usize = 8;
const HOP_INDEX: std::ops::Range<usize> = 4..8;

/// The link of an address (`RTM_NEWADDR`); none if only neighbours on the link can use it.
pub fn addressed(payload: &[u8]) -> Option<u32> {
    let scope = payload.get(ADDRESS_SCOPE).copied();
    payload.get(ADDRESS_INDEX).and_then(word).filter(|_| scope.is_some_and(|scope| scope < SCOPE_LINK))
}

/// The links of a default route (`RTM_NEWROUTE`), of every next hop; none of any other route.
pub fn default_routes(payload: &[u8]) -> Vec<u32> {
    let is_default = payload.get(ROUTE_PREFIX) == Some(&0) && payload.get(ROUTE_TYPE) == Some(&UNICAST);
    let attributes = payload.get(ROUTE_LEN..).filter(|_| is_default).unwrap_or_default();
    let mut links = Vec::new();
    for attribute in NlasIterator::new(attributes).flatten() {
        match attribute.kind() {
            OIF => links.extend(word(attribute.value())),
            MULTIPATH => links.extend(hops(attribute.value())),
            _ => {}
        }
    }
    links
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
    use netlink_packet_route::address::{AddressMessage, AddressScope};
    use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteNextHop, RouteType};
    use proptest::prelude::*;

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn route(prefix: u8, kind: RouteType, attributes: Vec<RouteAttribute>) -> Vec<u32> {
        let mut message = RouteMessage::default();
        message.header.destination_prefix_length = prefix;
        message.header.kind = kind;
        message.attributes = attributes;
        default_routes(&bytes(&message))
    }

    fn hop(index: u32) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = index;
        hop.attributes = vec![RouteAttribute::Priority(1)];
        hop
    }

    #[test]
    fn a_default_route_is_of_the_links_of_all_its_next_hops_and_another_route_of_none() {
        let through = |index| vec![RouteAttribute::Priority(1), RouteAttribute::Oif(index)];
        assert_eq!(route(0, RouteType::Unicast, through(7)), [7]);
        assert_eq!(route(24, RouteType::Unicast, through(7)), [0; 0]);
        assert_eq!(route(0, RouteType::Unreachable, through(1)), [0; 0]);
        let several = vec![RouteAttribute::MultiPath(vec![hop(8), hop(7)])];
        assert_eq!(route(0, RouteType::Unicast, several), [8, 7]);
    }

    #[test]
    fn an_address_that_others_than_neighbours_can_use_is_of_its_link() {
        let of = |scope| {
            let mut message = AddressMessage::default();
            message.header.index = 7;
            message.header.scope = scope;
            addressed(&bytes(&message))
        };
        for (scope, link) in [
            (AddressScope::Universe, Some(7)),
            (AddressScope::Site, Some(7)),
            (AddressScope::Link, None),
            (AddressScope::Host, None),
        ] {
            assert_eq!(of(scope), link, "{scope:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_readers_panic_or_hang(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (addressed(&noise), default_routes(&noise), hops(&noise).count());
        }
    }
}
