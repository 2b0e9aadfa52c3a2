//! The links that default routes use, asked of the kernel.

use crate::host_ties::{DefaultRoutes, Nexthop, nexthop};
use crate::netlink::{Kind, NetlinkError, Socket};
use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use std::collections::BTreeMap;

/// Returns the links that default routes of a family use, in the namespace of the socket, and the nexthop objects, with the
/// members of groups. Nothing is kept of all other routes, of which there may be a million. With a `link` only routes through
/// that one are sure to be among them.
pub fn find(
    socket: &mut Socket,
    family: AddressFamily,
    link: Option<u32>,
) -> Result<DefaultRoutes, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    // Fewer to read where the kernel sorts them out.
    request.attributes.extend(link.map(RouteAttribute::Oif));
    let add = |found: &mut DefaultRoutes, payload: &[u8]| found.add(payload);
    let mut routes: DefaultRoutes = socket.fold(Kind::GetRoute, &request, &"list the node's routes", add)?;
    if !routes.nexthops.is_empty() {
        let add = |known: &mut BTreeMap<u32, Nexthop>, payload: &[u8]| known.extend(nexthop(payload));
        let known = socket.fold(Kind::GetNexthop, &AllNexthops, &"list the node's nexthops", add)?;
        let members = routes.nexthops.iter().filter_map(|id| match known.get(id) {
            Some(Nexthop::Group(members)) => Some(members),
            Some(Nexthop::Link(_)) | None => None,
        });
        let members: Vec<u32> = members.flatten().copied().collect();
        routes.nexthops.extend(members);
        // Groups have no groups.
        routes.links.extend(routes.nexthops.iter().filter_map(|id| match known.get(id) {
            Some(Nexthop::Link(link)) => Some(*link),
            Some(Nexthop::Group(_)) | None => None,
        }));
    }
    Ok(routes)
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
