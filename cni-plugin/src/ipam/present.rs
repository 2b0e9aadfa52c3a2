//! Addresses and routes that the pod has now, compared with those that it should have.

use crate::ipam::route::{self, EVERYTHING, Entry, describe, entries, same_family};
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::{CniResult, Ip, Route};
use ipnet::IpNet;
use macvtap::kernel::{Home, Kernel, Place, Rtnl};
use macvtap::link::{By, IfName, Link};
use macvtap::netlink::{Kind, NetlinkError};
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::RouteMessage;
use std::collections::HashSet;
use std::net::IpAddr;

/// `IPV6_MIN_MTU` of `linux/ipv6.h`.
pub(super) const IPV6_MTU_MIN: u32 = 1280;

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    ifindex: u32,
    net: IpNet,
}

/// Refuses addresses that another interface of the pod has. kube-ovn has one address per pod and Subnet, and so gives the
/// same one to each of two interfaces whose networks name one Subnet.
pub(crate) fn refuse_twice(kernel: &mut Rtnl, lease: &CniResult) -> Result<(), CniError> {
    for ip in &lease.ips {
        let wanted = ip.address.addr();
        let all =
            addresses(kernel, None, wanted).map_err(|error| CniError::from_chain(Code::Attach, &error))?;
        let Some(taken) = all.into_iter().find(|present| present.net.addr() == wanted) else { continue };
        let found = kernel.find(Place::Home(Home::Target), &By::Index(taken.ifindex));
        let name = found.ok().flatten().map_or_else(|| "another interface".to_owned(), |link| link.name);
        let message = format!(
            "address {wanted} is already on {name} of this pod: kube-ovn gives one address per pod and Subnet, so a \
             network can be attached once only; name it once, or a second NetworkAttachmentDefinition with a Subnet of its own"
        );
        return Err(CniError::new(Code::Config, message));
    }
    Ok(())
}

/// Whether addresses and routes that ADD reported for this link are there.
pub(crate) fn check(kernel: &mut Rtnl, link: &Link, reported: &CniResult) -> Result<(), CniError> {
    let place = reported.interfaces.iter().position(|i| i.name == link.name && !i.sandbox.is_empty());
    let ours = reported.ips.iter().filter(|ip| ip.interface.is_some() && ip.interface == place);
    match missing(kernel, link, ours, &reported.routes) {
        Ok(None) => Ok(()),
        Ok(Some(lost)) => {
            let message = format!("interface {} lost {lost}; delete the pod to have it recreated", link.name);
            Err(CniError::new(Code::Check, message))
        }
        Err(error) => Err(CniError::from_chain(Code::Check, &error)),
    }
}

/// Whether an interface has all addresses and routes that were leased for it, and can keep them: a larger MTU than one too small for
/// IPv6 takes the link down, and so its routes away. What cannot be found out counts as no.
pub(crate) fn is_in_use(kernel: &mut Rtnl, interface: &IfName, lease: &CniResult) -> bool {
    let Ok(Some(link)) = kernel.find(Place::Home(Home::Target), &By::Name(interface.clone())) else {
        return false;
    };
    link.mtu >= IPV6_MTU_MIN && matches!(missing(kernel, &link, lease.ips.iter(), &lease.routes), Ok(None))
}

/// Returns the first of these addresses and routes that a link does not have, in words.
fn missing<'i>(
    kernel: &mut Rtnl,
    link: &Link,
    mut ips: impl Iterator<Item = &'i Ip> + Clone,
    reported: &[Route],
) -> Result<Option<String>, NetlinkError> {
    let mut present = HashSet::new();
    for everything in EVERYTHING {
        if ips.clone().any(|ip| same_family(&everything, &ip.address.addr())) {
            let found = addresses(kernel, Some(link.index), everything.addr())?;
            present.extend(found.into_iter().map(|present| present.net));
        }
    }
    if let Some(ip) = ips.find(|ip| !present.contains(&ip.address)) {
        return Ok(Some(format!("address {}", ip.address)));
    }
    let mut present = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        if reported.iter().any(|route| destination(route).is_some_and(|net| of(net) == family)) {
            present.extend(routes(kernel, family)?);
        }
    }
    let lost = reported.iter().find_map(|route| {
        let destination = destination(route)?;
        // Another plugin of the chain may have added one to a router of another interface.
        let is_there = |entry: &Entry| {
            let is_ours = entry.ifindex.is_none_or(|index| index == link.index);
            (is_ours || route.gw.is_some()) && is_meant(entry, destination, route)
        };
        (!present.iter().any(is_there)).then(|| Route { dst: Some(destination), ..route.clone() })
    });
    Ok(lost.map(|route| format!("route {}", describe(&route))))
}

fn of(net: IpNet) -> AddressFamily {
    route::family(net.addr())
}

/// The destination of a reported route; that of its router's family if it names none.
fn destination(route: &Route) -> Option<IpNet> {
    let of_gateway = |gateway| EVERYTHING.into_iter().find(|net| same_family(net, &gateway));
    route.dst.map(|net| net.trunc()).or_else(|| route.gw.and_then(of_gateway))
}

/// A route of a result names a router, a priority and a table, or leaves each open. One without a table is in the main one,
/// until a later plugin of the chain (sbr, vrf) moves it.
fn is_meant(entry: &Entry, destination: IpNet, route: &Route) -> bool {
    let named = |number: Option<u32>| number.filter(|number| *number != 0);
    let (priority, table) = (named(route.priority), named(route.table));
    entry.destination == destination
        && route.gw.is_none_or(|gw| gw.is_unspecified() || Some(gw) == entry.gateway)
        && (priority.is_none()
            || priority == entry.priority
            // ADD chooses another metric where another interface has this one.
            || entry.destination.addr().is_ipv6())
        && (table.is_none() || table == Some(entry.table))
}

/// The pod's addresses of the family of `like`, of one interface or of all.
fn addresses(kernel: &mut Rtnl, ifindex: Option<u32>, like: IpAddr) -> Result<Vec<Address>, NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.family = route::family(like);
    request.header.index = ifindex.unwrap_or_default();
    let listed = kernel.target_socket().list(Kind::GetAddress, &request, &"list the pod's addresses")?;
    // What this program cannot read is not an address of the kind that it makes.
    Ok(listed.iter().filter_map(|payload| address(payload)).collect())
}

fn address(payload: &[u8]) -> Option<Address> {
    let message = AddressMessage::parse(payload).ok()?;
    // Of a point-to-point interface, `Address` is the other end's.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let either = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let all = &message.attributes;
    let address = all.iter().find_map(own).or_else(|| all.iter().find_map(either))?;
    let net = IpNet::new(address, message.header.prefix_len).ok()?;
    Some(Address { ifindex: message.header.index, net })
}

/// All unicast routes of the pod, in one list: one dump, whatever number of them is looked for.
pub(super) fn routes(kernel: &mut Rtnl, family: AddressFamily) -> Result<Vec<Entry>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    kernel.target_socket().fold(
        Kind::GetRoute,
        &request,
        &"list the pod's routes",
        |found: &mut Vec<Entry>, payload| {
            found.extend(RouteMessage::parse(payload).iter().flat_map(entries));
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn a_route_that_was_added_is_found_again() {
        let route = |dst: &str, gw: Option<&str>, priority| Route {
            dst: Some(dst.parse().unwrap()),
            gw: gw.map(|gw| gw.parse().unwrap()),
            priority,
            ..Route::default()
        };
        for wanted in [
            route("0.0.0.0/0", Some("10.0.0.1"), None),
            route("10.9.0.0/16", None, Some(50)),
            route("::/0", Some("fd00::1"), None),
        ] {
            let added = route::message(7, &wanted).unwrap();
            let found = entries(&RouteMessage::parse(&bytes(&added)).unwrap())[0];
            assert!(is_meant(&found, wanted.dst.unwrap(), &wanted), "{found:?}");
            let other = route("10.9.0.0/16", Some("10.0.0.9"), None);
            assert!(!is_meant(&found, other.dst.unwrap(), &other), "{found:?}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_makes_the_readers_panic(noise in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = (address(&noise), RouteMessage::parse(&noise).iter().flat_map(entries).count());
        }
    }
}
