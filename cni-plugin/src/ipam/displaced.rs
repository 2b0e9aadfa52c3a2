//! Routes of the pod's other interfaces that give way to those of this network, and come back when it goes.
//!
//! Meanwhile they are in a routing table of the pod that no rule names, so that nothing is sent by them. It needs no
//! file, survives a call that is killed, and ends with the namespace.

use crate::address;
use crate::ipam::{present, route};
use crate::protocol::result::Route;
use macvtap::kernel::{Home, Kernel, Place, Rtnl};
use macvtap::link::{By, IfName, Link};
use macvtap::netlink::{Kind, NetlinkError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage};
use rustix::io::Errno;
use tracing::{info, warn};

/// What an IPv6 route gets that names no priority (`IP6_RT_PRIO_USER` of `net/ipv6.h`); an IPv4 route gets 0.
const V6_PRIORITY: u32 = 1024;

/// Keeps what a route of this link is going to replace. The kernel has one route for each destination and priority of
/// a table. Other tables than the main one are left to those who make rules for them.
pub(super) fn keep(kernel: &mut Rtnl, link: &Link, new: &Route) -> Result<(), NetlinkError> {
    let Some(wanted) = route::message(link.index, new) else { return Ok(()) };
    if route::table(new) != main_table() {
        return Ok(());
    }
    let table = waiting_table(&link.name);
    let present = present::routes(kernel, wanted.header.address_family, main_table())?;
    for old in present.into_iter().filter(|old| gives_way(old, &wanted)) {
        let request = in_table(old, table);
        let what = format!("keep the route that one of {} replaces", link.name);
        kernel.target_socket().act(Kind::NewRoute, &request, NLM_F_CREATE | NLM_F_REPLACE, &what)?;
    }
    Ok(())
}

/// Puts back what gave way to an interface, if that is gone. Where something else has taken the place, that stays.
pub(crate) fn put_back(kernel: &mut Rtnl, ifname: &IfName) {
    // The call may have failed because of it, and a late DEL of another container leaves it.
    match kernel.find(Place::Home(Home::Target), &By::Name(ifname.clone())) {
        Ok(None) => {}
        Ok(Some(_)) => return,
        Err(error) => return warn!(%error, "routes that may have given way to the interface's are not back"),
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        if let Err(error) = put_back_family(kernel, ifname, family) {
            warn!(%error, "routes that had given way to the interface's are not back");
        }
    }
}

fn put_back_family(kernel: &mut Rtnl, ifname: &IfName, family: AddressFamily) -> Result<(), NetlinkError> {
    let table = waiting_table(ifname.as_str());
    for old in present::routes(kernel, family, table)? {
        let request = in_table(old.clone(), main_table());
        let what = format!("put back a route that one of {ifname} had replaced");
        match kernel.target_socket().act(Kind::NewRoute, &request, NLM_F_CREATE | NLM_F_EXCL, &what) {
            Ok(()) => info!("route put back that had given way"),
            Err(error) if error.errno() == Some(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let what = format!("remove the copy of a route that one of {ifname} had replaced");
        kernel.target_socket().act(Kind::DelRoute, &in_table(old, table), 0, &what)?;
    }
    Ok(())
}

/// Whether adding the second route replaces the first, which is another interface's.
fn gives_way(old: &RouteMessage, new: &RouteMessage) -> bool {
    let place = |message: &RouteMessage| {
        let header = &message.header;
        let prefix = (header.address_family, header.destination_prefix_length);
        (prefix, header.source_prefix_length, header.tos, destination(message).cloned(), priority(message))
    };
    place(old) == place(new) && interface(old) != interface(new)
}

fn destination(message: &RouteMessage) -> Option<&RouteAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    })
}

fn priority(message: &RouteMessage) -> u32 {
    let named = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    match message.header.address_family {
        // The kernel takes 0 for "not named".
        AddressFamily::Inet6 => named.filter(|priority| *priority != 0).unwrap_or(V6_PRIORITY),
        _ => named.unwrap_or_default(),
    }
}

fn interface(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// A listed route as a request that makes it in another table: without what only the kernel says.
fn in_table(mut message: RouteMessage, table: u32) -> RouteMessage {
    message.header.flags &= RouteFlags::Onlink;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.retain(|attribute| {
        !matches!(
            attribute,
            RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_)
        )
    });
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// The table for an interface's name: nobody numbers tables from 2^31 on by hand.
fn waiting_table(ifname: &str) -> u32 {
    let [.., a, b, c, d] = address::hash(ifname.bytes()).to_be_bytes();
    0x8000_0000 | u32::from_be_bytes([a, b, c, d])
}

fn main_table() -> u32 {
    RouteHeader::RT_TABLE_MAIN.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(ifindex: u32, dst: &str, gw: Option<&str>, priority: Option<u32>) -> RouteMessage {
        let (dst, gw) = (Some(dst.parse().unwrap()), gw.map(|gw| gw.parse().unwrap()));
        route::message(ifindex, &Route { dst, gw, priority, ..Route::default() }).unwrap()
    }

    #[test]
    fn a_route_gives_way_to_one_of_the_same_destination_and_priority_on_another_interface() {
        let v4 = message(7, "0.0.0.0/0", Some("10.0.0.1"), None);
        assert!(gives_way(&message(2, "0.0.0.0/0", Some("10.9.0.1"), Some(0)), &v4));
        assert!(!gives_way(&message(2, "0.0.0.0/0", Some("10.9.0.1"), Some(5)), &v4));
        assert!(!gives_way(&message(2, "10.0.0.0/8", Some("10.9.0.1"), None), &v4));
        assert!(!gives_way(&message(7, "0.0.0.0/0", Some("10.0.0.9"), None), &v4), "our own");
        let v6 = message(7, "::/0", Some("fd00::1"), None);
        assert!(gives_way(&message(2, "::/0", Some("fd09::1"), Some(V6_PRIORITY)), &v6));
        assert!(!gives_way(&message(2, "::/0", Some("fd09::1"), Some(1)), &v6));
    }

    #[test]
    fn each_interface_has_a_table_of_its_own_beyond_those_of_administrators() {
        assert_ne!(waiting_table("net1"), waiting_table("net2"));
        assert!(waiting_table("net1") > i32::MAX.unsigned_abs());
        let moved = in_table(message(2, "::/0", None, None), 9);
        let tables: Vec<_> =
            moved.attributes.iter().filter(|a| matches!(a, RouteAttribute::Table(_))).collect();
        assert_eq!(tables, [&RouteAttribute::Table(9)]);
    }
}
