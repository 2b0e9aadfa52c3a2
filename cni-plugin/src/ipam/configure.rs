//! Gives addresses and routes to the pod's interface.

use crate::config::{Announce, Dad, Network};
use crate::ipam::objection::Objections;
use crate::ipam::present::{self, IPV6_MTU_MIN};
use crate::ipam::route::{self, describe, family};
use crate::protocol::error::{CniError, Code, chain};
use crate::protocol::result::{CniResult, Ip};
use ipnet::IpNet;
use macvtap::kernel::{Home, Kernel, Place, Rtnl};
use macvtap::link::{By, Carrier, Link};
use macvtap::netlink::{Kind, NetlinkError};
use macvtap::switch::{Family, SwitchError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rustix::io::Errno;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};
use tracing::warn;

/// `linux/if_addr.h`.
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_TENTATIVE: u8 = 0x40;

/// How long the kernel waits for an objection to an IPv6 address, and what it waits otherwise (RFC 4861, 10), in
/// milliseconds. A host of the same network answers within one or two.
const UNIQUENESS_WAIT: &str = "200";
const RETRANSMISSION: &str = "1000";

/// How long a NIC may take for its carrier: two partners negotiate one within seconds.
const CARRIER_PATIENCE: Duration = Duration::from_secs(10);

/// Without a carrier the kernel waits for one for ever.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Gives the link its addresses, while it is down: the kernel announces those it has when it comes up.
pub fn addresses(
    kernel: &mut Rtnl,
    link: &Link,
    result: &CniResult,
    network: &Network,
) -> Result<(), CniError> {
    prepare(kernel, link, result, network)?;
    for ip in &result.ips {
        let what = format!("add address {} to {}", ip.address, link.name);
        let request = address_message(link, ip, network.dad);
        let added = kernel.target_socket().act(Kind::NewAddress, &request, NLM_F_CREATE | NLM_F_EXCL, &what);
        match added {
            // The plugin named it twice.
            Err(error) if error.errno() != Some(Errno::EXIST) => return Err(failed(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// Adds the routes, which the kernel takes only while the link is up. They are complete. None takes the place of another
/// interface's: IPv4 routes are put in front of those with the same destination and priority (no `NLM_F_EXCL`), IPv6 routes
/// get a metric in front, so that the others are used again as soon as these are removed or moved.
pub fn routes(kernel: &mut Rtnl, link: &Link, result: &CniResult) -> Result<(), CniError> {
    let mut others = None;
    for route in &result.routes {
        let Some(mut request) = route::message(link.index, route) else { continue };
        if request.header.address_family == AddressFamily::Inet6 {
            let others = match &mut others {
                Some(others) => others,
                None => others.insert(present::routes(kernel, AddressFamily::Inet6).map_err(|e| failed(&e))?),
            };
            route::put_in_front(&mut request, others);
        }
        let what = format!("add route {} on {}", describe(route), link.name);
        match kernel.target_socket().act(Kind::NewRoute, &request, NLM_F_CREATE, &what) {
            // The plugin named it twice, or it is the one that the kernel made for an address.
            Err(error) if error.errno() != Some(Errno::EXIST) => return Err(failed(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether there are IPv6 addresses among those leased.
pub fn has_ipv6(result: &CniResult) -> bool {
    result.ips.iter().any(|ip| ip.address.addr().is_ipv6())
}

/// Waits until the link has a carrier and can send, for some seconds: many a NIC negotiates one only when it is set up.
pub fn await_carrier(kernel: &mut Rtnl, link: &Link) -> Result<Link, CniError> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    loop {
        let found =
            kernel.find(Place::Home(Home::Target), &By::Index(link.index)).map_err(|error| failed(&error))?;
        match found {
            Some(now) if now.carrier != Carrier::Present && Instant::now() < deadline => thread::sleep(POLL),
            Some(now) => {
                if now.carrier != Carrier::Present {
                    warn!(link = now.name, "interface has no carrier, so its addresses are not announced");
                }
                return Ok(now);
            }
            // The next request for the link reports that it is gone.
            None => return Ok(link.clone()),
        }
    }
}

/// Waits until nobody on the wire has objected to the IPv6 addresses. An address that somebody else has is an error.
pub(crate) fn await_uniqueness(
    kernel: &mut Rtnl,
    link: &Link,
    result: &CniResult,
    objections: Option<&Objections>,
) -> Result<(), CniError> {
    let deadline = Instant::now() + PATIENCE;
    for ip in result.ips.iter().filter(|ip| ip.address.addr().is_ipv6()) {
        loop {
            let flags = v6_flags(kernel, link, ip).map_err(|error| failed(&error))?;
            match flags {
                _ if flags.is_none_or(|flags| flags & IFA_F_DADFAILED != 0) => {
                    return Err(taken(link, ip, objections));
                }
                Some(flags) if flags & IFA_F_TENTATIVE == 0 => break,
                _ if Instant::now() >= deadline => {
                    warn!(address = %ip.address, "address is still being checked for duplicates, is the lower link connected?");
                    break;
                }
                _ => thread::sleep(POLL),
            }
        }
    }
    if has_ipv6(result)
        && let Err(error) =
            kernel.set_switch(Family::Ipv6Neighbours, &link.name, "retrans_time_ms", RETRANSMISSION)
    {
        warn!(%error, "neighbours of the interface are asked for more often than usual");
    }
    Ok(())
}

/// The error for an address that another host has, with that host's MAC address if its objection was heard.
fn taken(link: &Link, ip: &Ip, objections: Option<&Objections>) -> CniError {
    let objector = match (objections, ip.address.addr()) {
        (Some(objections), IpAddr::V6(address)) => objections.to(address),
        _ => None,
    };
    let who = objector.map(|mac| format!(" ({mac})")).unwrap_or_default();
    let message =
        format!("address {} is in use by another host{who} on the network of {}", ip.address, link.name);
    CniError::new(Code::Attach, message)
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

/// Sets the kernel's per-link switches, before the link comes up.
fn prepare(kernel: &mut Rtnl, link: &Link, result: &CniResult, network: &Network) -> Result<(), CniError> {
    let notify = match network.announce {
        Announce::Auto => "1",
        // The node's own default holds for new namespaces too.
        Announce::Never => "0",
    };
    let v4 = [("arp_notify", notify)];
    let v6 = [
        (Family::Ipv6, "disable_ipv6", "0"),
        (Family::Ipv6, "accept_ra", "0"),
        (Family::Ipv6, "keep_addr_on_down", "1"),
        (Family::Ipv6, "ndisc_notify", notify),
        // The kernel puts off its question for a new address by up to so many seconds.
        (Family::Ipv6, "router_solicitation_delay", "0"),
        (Family::Ipv6Neighbours, "retrans_time_ms", UNIQUENESS_WAIT),
    ];
    if result.ips.iter().any(|ip| ip.address.addr().is_ipv4()) {
        for (name, value) in v4 {
            set(kernel, link, Family::Ipv4, name, value)
                .map_err(|error| CniError::from_chain(Code::Attach, &error))?;
        }
    }
    let Some(ip) = result.ips.iter().find(|ip| ip.address.addr().is_ipv6()) else { return Ok(()) };
    for (family, name, value) in v6 {
        match set(kernel, link, family, name, value) {
            Err(error) if error.is_absent() => return Err(no_ipv6(link, ip)),
            written => written.map_err(|error| CniError::from_chain(Code::Attach, &error))?,
        }
    }
    Ok(())
}

/// Sets a switch of the link. In a container whose `/proc/sys` is read-only, which has not the node's either, the kernel's
/// default stays: whether the link can have its addresses shows when it gets them.
fn set(kernel: &Rtnl, link: &Link, family: Family, name: &str, value: &str) -> Result<(), SwitchError> {
    match kernel.set_switch(family, &link.name, name, value) {
        Err(error) if error.is_forbidden() => {
            let error = chain(&error);
            warn!(
                link = link.name,
                wanted = value,
                error,
                "setting of the kernel not changed; mount the node's /proc/sys/net at /host/proc/sys/net"
            );
            Ok(())
        }
        written => written,
    }
}

/// The error for an IPv6 address on a link that the kernel gives no IPv6.
fn no_ipv6(link: &Link, ip: &Ip) -> CniError {
    let reason = if link.mtu < IPV6_MTU_MIN {
        format!("its MTU of {} is below {IPV6_MTU_MIN}, the least for IPv6; raise the MTU", link.mtu)
    } else {
        "the kernel of this node runs without IPv6 (ipv6.disable=1); use a network with IPv4 addresses only, \
         or boot the node with IPv6"
            .to_owned()
    };
    CniError::new(
        Code::Attach,
        format!("interface {} cannot have IPv6 address {}: {reason}", link.name, ip.address),
    )
}

fn address_message(link: &Link, ip: &Ip, dad: Dad) -> AddressMessage {
    let mut message = AddressMessage::default();
    let address = ip.address.addr();
    message.header.family = family(address);
    message.header.prefix_len = ip.address.prefix_len();
    message.header.index = link.index;
    message.header.scope = AddressScope::Universe;
    if dad == Dad::Never && address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    if let IpNet::V4(net) = ip.address
        && net.prefix_len() < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}

fn failed(error: &NetlinkError) -> CniError {
    CniError::from_chain(Code::Attach, error)
}
