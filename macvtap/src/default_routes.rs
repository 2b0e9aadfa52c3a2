//! The links that default routes use, asked of the kernel.

use crate::host_ties::{DefaultRoutes, Nexthop, nexthop};
use crate::netlink::{Kind, NetlinkError, Socket};
use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the links that default routes of a family use, in the namespace of the socket. Nothing is kept of all other routes,
/// of which there may be a million. With a `link` only routes through that one are sure to be among them.
pub fn links(
    socket: &mut Socket,
    family: AddressFamily,
    link: Option<u32>,
) -> Result<BTreeSet<u32>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    // Fewer to read where the kernel sorts them out.
    request.attributes.extend(link.map(RouteAttribute::Oif));
    let add = |found: &mut DefaultRoutes, payload: &[u8]| found.add(payload);
    let DefaultRoutes { mut links, nexthops } =
        socket.fold(Kind::GetRoute, &request, &"list the node's routes", add)?;
    if !nexthops.is_empty() {
        let add = |known: &mut BTreeMap<u32, Nexthop>, payload: &[u8]| known.extend(nexthop(payload));
        let known = socket.fold(Kind::GetNexthop, &AllNexthops, &"list the node's nexthops", add)?;
        for id in nexthops {
            match known.get(&id) {
                Some(Nexthop::Link(link)) => _ = links.insert(*link),
                Some(Nexthop::Group(members)) => links.extend(members.iter().filter_map(|member| {
                    match known.get(member) {
                        Some(Nexthop::Link(link)) => Some(*link),
                        // Groups have no groups.
                        Some(Nexthop::Group(_)) | None => None,
                    }
                })),
                None => {}
            }
        }
    }
    Ok(links)
}

/// Asks for all nexthop objects: an empty `struct nhmsg`.
struct AllNexthops;

impl Emitable for AllNexthops {
    fn buffer_len(&self) -> usize {
        crate::host_ties::NEXTHOP_LEN
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}
