//! Addresses and routes on the pod's interface.

use crate::config::Announce;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::{CniResult, Ip, Route};
use ipnet::IpNet;
use macvtap::kernel::Rtnl;
use macvtap::link::Link;
use macvtap::netlink::{Kind, NetlinkError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};
use tracing::warn;

/// `linux/if_addr.h`.
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_TENTATIVE: u8 = 0x40;

/// The kernel asks the wire for one to two seconds; without a carrier it waits for one for ever.
const UNIQUENESS_PATIENCE: Duration = Duration::from_secs(5);
const UNIQUENESS_POLL: Duration = Duration::from_millis(20);

/// Gives the link its addresses, while it is down: the kernel announces those it has when it comes up.
pub fn addresses(
    kernel: &mut Rtnl,
    link: &Link,
    result: &CniResult,
    announce: Announce,
) -> Result<(), CniError> {
    prepare(kernel, link, result, announce)?;
    for ip in &result.ips {
        let what = format!("add address {} to {}", ip.address, link.name);
        let request = address_message(link, ip);
        let added = kernel.target_socket().act(Kind::NewAddress, &request, NLM_F_CREATE | NLM_F_EXCL, &what);
        match added {
            // The plugin named it twice.
            Err(error) if error.errno() != Some(Errno::EXIST) => return Err(failed(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// Adds the routes, which the kernel takes only while the link is up.
pub fn routes(kernel: &mut Rtnl, link: &Link, result: &CniResult) -> Result<(), CniError> {
    for route in &result.routes {
        let (destination, gateway) = resolve(route, &result.ips)?;
        let what = match gateway {
            Some(gateway) => format!("add route {destination} via {gateway} on {}", link.name),
            None => format!("add route {destination} on {}", link.name),
        };
        let mut send = |flags| {
            let request = route_message(link, destination, gateway);
            kernel.target_socket().act(Kind::NewRoute, &request, flags, &what)
        };
        match send(NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => {}
            // Asked for by this network: what another interface had before gives way.
            Err(error) if error.errno() == Some(Errno::EXIST) => {
                warn!(%destination, "existing route replaced");
                send(NLM_F_CREATE | NLM_F_REPLACE).map_err(|error| failed(&error))?;
            }
            Err(error) => return Err(failed(&error)),
        }
    }
    Ok(())
}

/// Whether the addresses that ADD reported for this link are there.
pub fn check(kernel: &mut Rtnl, link: &Link, reported: &CniResult) -> Result<(), CniError> {
    let place = reported.interfaces.iter().position(|i| i.name == link.name && !i.sandbox.is_empty());
    for ip in reported.ips.iter().filter(|ip| ip.interface.is_some() && ip.interface == place) {
        if !has_address(kernel, link, ip)? {
            let message = format!(
                "interface {} lost address {}; delete the pod to have it made anew",
                link.name, ip.address
            );
            return Err(CniError::new(Code::Check, message));
        }
    }
    Ok(())
}

/// Waits until nobody on the wire has objected to the IPv6 addresses. An address that somebody else has is an error.
pub fn await_uniqueness(kernel: &mut Rtnl, link: &Link, result: &CniResult) -> Result<(), CniError> {
    let deadline = Instant::now() + UNIQUENESS_PATIENCE;
    for ip in result.ips.iter().filter(|ip| ip.address.addr().is_ipv6()) {
        loop {
            let flags = v6_flags(kernel, link, ip).map_err(|error| failed(&error))?;
            match flags {
                _ if flags.is_none_or(|flags| flags & IFA_F_DADFAILED != 0) => {
                    let message = format!(
                        "address {} is in use by another host on the network of {}",
                        ip.address, link.name
                    );
                    return Err(CniError::new(Code::Attach, message));
                }
                Some(flags) if flags & IFA_F_TENTATIVE == 0 => break,
                _ if Instant::now() >= deadline => {
                    warn!(address = %ip.address, "address is still being checked for duplicates, is the lower link connected?");
                    break;
                }
                _ => thread::sleep(UNIQUENESS_POLL),
            }
        }
    }
    Ok(())
}

fn has_address(kernel: &mut Rtnl, link: &Link, ip: &Ip) -> Result<bool, CniError> {
    let found = match ip.address.addr() {
        IpAddr::V4(_) => v4_is_local(kernel, link, ip),
        IpAddr::V6(_) => v6_flags(kernel, link, ip).map(|flags| flags.is_some()),
    };
    found.map_err(|error| CniError::from_chain(Code::Check, &error))
}

/// Whether the kernel delivers packets to this address here. It tells single IPv4 addresses in no other way.
fn v4_is_local(kernel: &mut Rtnl, link: &Link, ip: &Ip) -> Result<bool, NetlinkError> {
    let mut message = route_header(ip.address.addr());
    message.header.destination_prefix_length = ip.address.max_prefix_len();
    message.attributes.push(RouteAttribute::Destination(route_address(ip.address.addr())));
    let what = format!("look for address {} of {}", ip.address, link.name);
    match kernel.target_socket().get(Kind::GetRoute, &message, &what) {
        // `struct rtmsg`: the eighth byte is the type of the route.
        Ok(route) => Ok(route.get(7).copied() == Some(u8::from(RouteType::Local))),
        Err(error) => match error.errno() {
            Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL) => Ok(false),
            _ => Err(error),
        },
    }
}

/// The kernel's flags of an IPv6 address; none when the link does not have it.
fn v6_flags(kernel: &mut Rtnl, link: &Link, ip: &Ip) -> Result<Option<u8>, NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.index = link.index;
    message.attributes.push(AddressAttribute::Address(ip.address.addr()));
    let what = format!("look for address {} of {}", ip.address, link.name);
    match kernel.target_socket().get(Kind::GetAddress, &message, &what) {
        // `struct ifaddrmsg`: the third byte has the flags.
        Ok(address) => Ok(address.get(2).copied()),
        Err(error) if error.errno() == Some(Errno::ADDRNOTAVAIL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kernel's per-link switches, before the link comes up.
fn prepare(kernel: &mut Rtnl, link: &Link, result: &CniResult, announce: Announce) -> Result<(), CniError> {
    let has = |v6: bool| result.ips.iter().any(|ip| ip.address.addr().is_ipv6() == v6);
    let announced = announce == Announce::Auto;
    let switches = [
        (has(false) && announced, "ipv4", "arp_notify", "1"),
        (has(true), "ipv6", "disable_ipv6", "0"),
        (has(true), "ipv6", "accept_ra", "0"),
        (has(true) && announced, "ipv6", "ndisc_notify", "1"),
    ];
    let write = || -> io::Result<()> {
        for (_, family, name, value) in switches.into_iter().filter(|(wanted, ..)| *wanted) {
            let path = Path::new("/proc/sys/net").join(family).join("conf").join(&link.name).join(name);
            fs::write(&path, value).map_err(|error| {
                io::Error::new(error.kind(), format!("write {}: {error}", path.display()))
            })?;
        }
        Ok(())
    };
    // /proc/sys/net shows the namespace of the thread that opens it.
    let written = kernel.netns().map(|netns| netns.enter(write));
    match written {
        Some(Ok(Err(error))) => Err(CniError::from_chain(Code::Attach, &error)),
        Some(Err(error)) => Err(CniError::from_chain(Code::Attach, &error)),
        Some(Ok(Ok(()))) | None => Ok(()),
    }
}

/// Destination and router of a route. A route without a destination is the default route of its router's family; one
/// without a router uses the gateway of its family, if an address came with one.
fn resolve(route: &Route, ips: &[Ip]) -> Result<(IpNet, Option<IpAddr>), CniError> {
    let everything = |gateway: IpAddr| match gateway {
        IpAddr::V4(_) => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let destination = match (route.dst, route.gw) {
        (Some(destination), _) => Some(destination.trunc()),
        (None, Some(gateway)) => everything(gateway).ok(),
        (None, None) => None,
    };
    let destination = destination.ok_or_else(|| {
        CniError::new(Code::Ipam, "the IPAM plugin gave a route with neither destination nor router")
    })?;
    let same_family = |address: &IpAddr| address.is_ipv4() == destination.addr().is_ipv4();
    let of_family = || ips.iter().find_map(|ip| ip.gateway.filter(same_family));
    Ok((destination, route.gw.or_else(of_family)))
}

fn address_message(link: &Link, ip: &Ip) -> AddressMessage {
    let mut message = AddressMessage::default();
    let address = ip.address.addr();
    message.header.family = family(address);
    message.header.prefix_len = ip.address.prefix_len();
    message.header.index = link.index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    if let IpNet::V4(net) = ip.address
        && net.prefix_len() < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}

fn route_message(link: &Link, destination: IpNet, gateway: Option<IpAddr>) -> RouteMessage {
    let mut message = route_header(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(destination.addr())));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(route_address(gateway))));
    message.attributes.push(RouteAttribute::Oif(link.index));
    message
}

fn route_header(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn failed(error: &NetlinkError) -> CniError {
    CniError::from_chain(Code::Attach, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dst: Option<&str>, gw: Option<&str>) -> Route {
        Route {
            dst: dst.map(|d| d.parse().unwrap()),
            gw: gw.map(|g| g.parse().unwrap()),
            more: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_route_is_completed_from_its_family() {
        let ip = |address: &str, gateway: Option<&str>| Ip {
            address: address.parse().unwrap(),
            gateway: gateway.map(|g| g.parse().unwrap()),
            interface: None,
        };
        let ips = [ip("10.0.0.2/24", Some("10.0.0.1")), ip("fd00::2/64", None)];
        let resolved = |dst, gw| {
            let (destination, gateway) = resolve(&route(dst, gw), &ips).unwrap();
            (destination.to_string(), gateway.map(|g| g.to_string()))
        };
        let pair = |d: &str, g: Option<&str>| (d.to_owned(), g.map(str::to_owned));
        assert_eq!(resolved(Some("10.9.1.7/16"), None), pair("10.9.0.0/16", Some("10.0.0.1")));
        assert_eq!(resolved(None, Some("10.0.0.9")), pair("0.0.0.0/0", Some("10.0.0.9")));
        assert_eq!(resolved(None, Some("fd00::9")), pair("::/0", Some("fd00::9")));
        assert_eq!(resolved(Some("fd01::/64"), None), pair("fd01::/64", None));
        assert!(resolve(&route(None, None), &ips).is_err());
    }
}
