//! Gives addresses and routes to the pod's interface.

use crate::config::Announce;
use crate::ipam::displaced;
use crate::ipam::route::{self, describe, family};
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::{CniResult, Ip};
use ipnet::IpNet;
use macvtap::kernel::Rtnl;
use macvtap::link::Link;
use macvtap::netlink::{Kind, NetlinkError};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rustix::io::Errno;
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
        let request = address_message(link, ip, announce);
        let added = kernel.target_socket().act(Kind::NewAddress, &request, NLM_F_CREATE | NLM_F_EXCL, &what);
        match added {
            // The plugin named it twice.
            Err(error) if error.errno() != Some(Errno::EXIST) => return Err(failed(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// Adds the routes, which the kernel takes only while the link is up. They are complete.
pub fn routes(kernel: &mut Rtnl, link: &Link, result: &CniResult) -> Result<(), CniError> {
    for route in &result.routes {
        let Some(request) = route::message(link.index, route) else { continue };
        let what = format!("add route {} on {}", describe(route), link.name);
        let mut send = |flags| kernel.target_socket().act(Kind::NewRoute, &request, flags, &what);
        match send(NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => {}
            // Asked for by this network: what another interface had before gives way.
            Err(error) if error.errno() == Some(Errno::EXIST) => {
                displaced::keep(kernel, link, route).map_err(|error| failed(&error))?;
                warn!(
                    route = describe(route),
                    "existing route replaced, it comes back with the end of this interface"
                );
                let mut send = |flags| kernel.target_socket().act(Kind::NewRoute, &request, flags, &what);
                send(NLM_F_CREATE | NLM_F_REPLACE).map_err(|error| failed(&error))?;
            }
            Err(error) => return Err(failed(&error)),
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
    let notify = match announce {
        Announce::Auto => "1",
        // What the node's own default is counts for new namespaces too.
        Announce::Never => "0",
    };
    let switches = [
        (has(false), "ipv4", "arp_notify", notify),
        (has(true), "ipv6", "disable_ipv6", "0"),
        (has(true), "ipv6", "accept_ra", "0"),
        (has(true), "ipv6", "keep_addr_on_down", "1"),
        (has(true), "ipv6", "ndisc_notify", notify),
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

fn address_message(link: &Link, ip: &Ip, announce: Announce) -> AddressMessage {
    let mut message = AddressMessage::default();
    let address = ip.address.addr();
    message.header.family = family(address);
    message.header.prefix_len = ip.address.prefix_len();
    message.header.index = link.index;
    message.header.scope = AddressScope::Universe;
    if announce == Announce::Never && address.is_ipv6() {
        // Its former holder still has it and would object.
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
