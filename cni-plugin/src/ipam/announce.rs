//! Telling the network who has an address now, so that neighbours and switches which knew its former holder send to the
//! new one at once: a gratuitous ARP request (RFC 5227, an announcement) for IPv4, an unsolicited neighbour advertisement
//! (RFC 4861, 7.2.6) for IPv6.
//!
//! The kernel does the same when the link comes up, if `arp_notify` and `ndisc_notify` say so; but a pod's or a node's
//! settings may turn that off, and one of two lost frames is enough.

use crate::packet::PacketSocket;
use crate::protocol::result::CniResult;
use macvtap::kernel::Rtnl;
use macvtap::link::Link;
use macvtap::mac::MacAddr;
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tracing::warn;

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet group of [`ALL_NODES`].
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;

/// Sends a frame for each address. A frame that cannot be sent (no carrier, say) is not a reason to fail: who asks for the
/// address is answered.
pub(crate) fn announce(kernel: &Rtnl, link: &Link, lease: &CniResult) {
    let Some(mac) = link.device_mac() else { return };
    let open = || PacketSocket::open(link.index, None);
    let opened = match kernel.netns().map(|netns| netns.enter(open)) {
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            warn!(%error, "addresses not announced");
            return;
        }
        None => open(),
    };
    let send = |socket: &PacketSocket| -> Result<(), Errno> {
        lease.ips.iter().try_for_each(|ip| socket.send(&frame(mac, ip.address.addr())))
    };
    if let Err(error) = opened.and_then(|socket| send(&socket)) {
        warn!(%error, "addresses not announced");
    }
}

/// The frame that announces an address.
fn frame(mac: MacAddr, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(mac, address),
        IpAddr::V6(address) => unsolicited_advertisement(mac, address),
    }
}

fn gratuitous_arp(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    // Ethernet and IPv4, addresses of 6 and 4 bytes, a request.
    const HEADER: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];
    let (mac, address) = (mac.octets(), address.octets());
    [&BROADCAST[..], &mac, &ETHERTYPE_ARP, &HEADER, &mac, &address, &[0; 6], &address].concat()
}

fn unsolicited_advertisement(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    // Neighbour advertisement, checksum to come; "override": what neighbours know is out of date.
    const HEAD: [u8; 8] = [136, 0, 0, 0, 0x20, 0, 0, 0];
    // Target link-layer address, in units of 8 bytes.
    const OPTION: [u8; 2] = [2, 1];
    let mac = mac.octets();
    let mut message = [&HEAD[..], &address.octets(), &OPTION, &mac].concat();
    let [high, low] = checksum(address, ALL_NODES, &message).to_be_bytes();
    (message[2], message[3]) = (high, low);
    // Version 6; 32 bytes; hop limit 255, without which nobody accepts it.
    let header = [0x60, 0, 0, 0, 0, 32, ICMPV6, 255];
    [&ALL_NODES_MAC[..], &mac, &ETHERTYPE_IPV6, &header, &address.octets(), &ALL_NODES.octets(), &message]
        .concat()
}

/// The Internet checksum over pseudo-header and message, whose length is even.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum()
    };
    let length = u32::try_from(message.len()).unwrap_or_default();
    let mut sum =
        words(&source.octets()) + words(&destination.octets()) + length + u32::from(ICMPV6) + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddr {
        "02:00:00:00:00:07".parse().unwrap()
    }

    #[test]
    fn an_ipv4_address_is_asked_for_by_its_holder() {
        let frame = frame(mac(), "10.0.0.2".parse().unwrap());
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1], "a request for IPv4 on Ethernet");
        assert_eq!((&frame[28..32], &frame[38..42]), (&[10, 0, 0, 2][..], &[10, 0, 0, 2][..]));
    }

    #[test]
    fn an_ipv6_address_is_advertised_to_all_nodes_with_a_checksum_that_adds_up() {
        let frame = frame(mac(), "fd00::2".parse().unwrap());
        assert_eq!(frame.len(), 86);
        assert_eq!((frame[20], frame[21]), (58, 255), "ICMPv6 with hop limit 255");
        let message = &frame[54..];
        assert_eq!((message[0], message[4]), (136, 0x20), "an advertisement, unsolicited, override");
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
        // Over a message with its checksum the sum is zero.
        assert_eq!(checksum("fd00::2".parse().unwrap(), ALL_NODES, message), 0);
    }
}
