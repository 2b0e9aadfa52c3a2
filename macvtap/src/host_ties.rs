//! What ties links to the node, as the kernel lists it: addresses of the node, and default routes. Pure.

use crate::link::value::word;
use netlink_packet_core::NlasIterator;
use std::collections::BTreeSet;

/// `struct ifaddrmsg` of `linux/if_addr.h`: where the scope is, and the index.
const ADDRESS_SCOPE: usize = 3;
const ADDRESS_INDEX: std::ops::Range<usize> = 4..8;

/// `RT_SCOPE_LINK` of `linux/rtnetlink.h`: addresses of this scope the kernel gives by itself.
const SCOPE_LINK: u8 = 253;

/// `struct rtmsg` of `linux/rtnetlink.h`: where the prefix length is, and the type, and its length.
const ROUTE_PREFIX: usize = 1;
const ROUTE_TYPE: usize = 7;
const ROUTE_LEN: usize = 12;

/// `RTN_UNICAST`, `RTA_OIF`, `RTA_MULTIPATH` and `RTA_NH_ID` of `linux/rtnetlink.h`.
const UNICAST: u8 = 1;
const OIF: u16 = 4;
const MULTIPATH: u16 = 9;
const NH_ID: u16 = 30;

/// `struct nhmsg`, `NHA_ID`, `NHA_GROUP`, `NHA_OIF` and `struct nexthop_grp` of `linux/nexthop.h`.
pub(crate) const NEXTHOP_LEN: usize = 8;
const NEXTHOP_ID: u16 = 1;
const NEXTHOP_GROUP: u16 = 2;
const NEXTHOP_OIF: u16 = 5;
const NEXTHOP_MEMBER_LEN: usize = 8;

/// `struct rtnexthop` of `linux/rtnetlink.h`: its length, and where its index is.
const HOP_LEN: usize = 8;
const HOP_INDEX: std::ops::Range<usize> = 4..8;

/// The link of an address (`RTM_NEWADDR`); none if only neighbours on the link can use it.
pub fn addressed(payload: &[u8]) -> Option<u32> {
    let scope = payload.get(ADDRESS_SCOPE).copied();
    payload.get(ADDRESS_INDEX).and_then(word).filter(|_| scope.is_some_and(|scope| scope < SCOPE_LINK))
}

/// What default routes use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    /// The links of all next hops.
    pub links: BTreeSet<u32>,
    /// The nexthop objects of routes that name nothing else (`net.ipv4.nexthop_compat_mode=0`).
    pub nexthops: BTreeSet<u32>,
}

impl DefaultRoutes {
    /// Takes a route (`RTM_NEWROUTE`), which may be any.
    pub fn add(&mut self, payload: &[u8]) {
        let is_default = payload.get(ROUTE_PREFIX) == Some(&0) && payload.get(ROUTE_TYPE) == Some(&UNICAST);
        let attributes = payload.get(ROUTE_LEN..).filter(|_| is_default).unwrap_or_default();
        let (mut links, mut nexthop) = (Vec::new(), None);
        for attribute in NlasIterator::new(attributes).flatten() {
            match attribute.kind() {
                OIF => links.extend(word(attribute.value())),
                MULTIPATH => links.extend(hops(attribute.value())),
                NH_ID => nexthop = word(attribute.value()),
                _ => {}
            }
        }
        self.nexthops.extend(nexthop.filter(|_| links.is_empty()));
        self.links.extend(links);
    }
}

/// A nexthop object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nexthop {
    /// Through this link.
    Link(u32),
    /// Several others.
    Group(Vec<u32>),
}

/// Reads a nexthop object with its number (`RTM_NEWNEXTHOP`).
pub fn nexthop(payload: &[u8]) -> Option<(u32, Nexthop)> {
    let mut found = None;
    for attribute in NlasIterator::new(payload.get(NEXTHOP_LEN..)?).flatten() {
        match attribute.kind() {
            NEXTHOP_OIF => found = word(attribute.value()).map(Nexthop::Link),
            NEXTHOP_GROUP => {
                let members = attribute.value().chunks_exact(NEXTHOP_MEMBER_LEN);
                found = Some(Nexthop::Group(members.filter_map(|member| word(member.get(..4)?)).collect()));
            }
            _ => {}
        }
    }
    nexthop_id(payload).zip(found)
}

/// Reads the number of a nexthop object that was added, replaced or removed.
pub fn nexthop_id(payload: &[u8]) -> Option<u32> {
    let mut attributes = NlasIterator::new(payload.get(NEXTHOP_LEN..)?).flatten();
    attributes.find(|attribute| attribute.kind() == NEXTHOP_ID).and_then(|id| word(id.value()))
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
        let mut found = DefaultRoutes::default();
        found.add(&bytes(&message));
        assert_eq!(found.nexthops, [].into());
        found.links.into_iter().collect()
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
        assert_eq!(route(0, RouteType::Unicast, several), [7, 8]);
    }

    #[test]
    fn a_default_route_that_names_a_nexthop_object_only_is_of_that_objects_links() {
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).unwrap();
            [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
        };
        let number = |kind, number: u32| attribute(kind, &number.to_ne_bytes());
        let header = [vec![0; ROUTE_TYPE], vec![UNICAST], vec![0; 4]].concat();
        let mut found = DefaultRoutes::default();
        found.add(&[header.clone(), number(NH_ID, 5)].concat());
        found.add(&[header, number(NH_ID, 6), number(OIF, 7)].concat());
        assert_eq!((found.links, found.nexthops), ([7].into(), [5].into()));
        let object = |attributes: &[Vec<u8>]| nexthop(&[vec![0; NEXTHOP_LEN], attributes.concat()].concat());
        assert_eq!(object(&[number(NEXTHOP_ID, 5), number(NEXTHOP_OIF, 7)]), Some((5, Nexthop::Link(7))));
        let members = [8_u32, 0, 9, 0].map(u32::to_ne_bytes).concat();
        let group = object(&[number(NEXTHOP_ID, 5), attribute(NEXTHOP_GROUP, &members)]);
        assert_eq!(group, Some((5, Nexthop::Group(vec![8, 9]))));
        assert_eq!(object(&[number(NEXTHOP_ID, 5)]), None, "a blackhole");
        assert_eq!(nexthop_id(&[vec![0; NEXTHOP_LEN], number(NEXTHOP_ID, 5)].concat()), Some(5));
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

    /// No kernel sends one; a notification and the list must name the same object all the same.
    #[test]
    fn a_nexthop_object_with_two_numbers_has_the_first_one_for_all_readers() {
        let attribute = |kind: u16, value: u32| {
            [8_u16.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &value.to_ne_bytes()].concat()
        };
        let numbers = [attribute(NEXTHOP_ID, 1), attribute(NEXTHOP_OIF, 3), attribute(NEXTHOP_ID, 2)];
        let object = [vec![0; NEXTHOP_LEN], numbers.concat()].concat();
        assert_eq!(nexthop(&object), Some((1, Nexthop::Link(3))));
        assert_eq!(nexthop_id(&object), Some(1));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_readers_panic_or_hang(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            DefaultRoutes::default().add(&noise);
            let _ = (addressed(&noise), nexthop(&noise), nexthop_id(&noise), hops(&noise).count());
        }
    }
}
