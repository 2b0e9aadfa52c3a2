//! Frames: reading, answering and making them. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_LLDP: u16 = 0x88cc;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO6_REQUEST: u8 = 128;
const ECHO6_REPLY: u8 = 129;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The guest's own addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// What a frame says that a pinging guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// An address is at this MAC.
    Neighbour(IpAddr, Mac),
    /// The answer to the echo with this sequence number.
    Echo(IpAddr, u16),
}

impl Guest {
    /// The answer the frame asks for, if it asks us.
    pub(crate) fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (source, ethertype, payload) = ethernet(frame)?;
        match ethertype {
            ETHERTYPE_ARP => {
                let (operation, sender, target) = arp(payload)?;
                (operation == 1 && target == self.v4).then(|| self.arp(2, source, source, sender))
            }
            ETHERTYPE_IPV4 => {
                let (sender, target, icmp) = icmp4(payload)?;
                let asked = target == self.v4 && icmp.first() == Some(&ECHO_REQUEST);
                asked.then(|| self.ipv4(source, sender, &echo(ECHO_REPLY, icmp)))
            }
            ETHERTYPE_IPV6 => self.answer6(source, payload),
            _ => None,
        }
    }

    fn answer6(&self, source: Mac, payload: &[u8]) -> Option<Vec<u8>> {
        let (sender, target, icmp) = icmp6(payload)?;
        match *icmp.first()? {
            NEIGHBOUR_SOLICITATION if neighbour_target(icmp)? == self.v6 => {
                // Solicited and override; the target's link-layer address as the only option.
                let mut advertisement = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0];
                advertisement.extend(self.v6.octets());
                advertisement.extend([2, 1]);
                advertisement.extend(self.mac);
                Some(self.ipv6(source, sender, &advertisement))
            }
            ECHO6_REQUEST if target == self.v6 => Some(self.ipv6(source, sender, &echo(ECHO6_REPLY, icmp))),
            _ => None,
        }
    }

    /// What the frame tells us.
    pub(crate) fn hear(&self, frame: &[u8]) -> Option<Heard> {
        let (source, ethertype, payload) = ethernet(frame)?;
        match ethertype {
            ETHERTYPE_ARP => {
                let (operation, sender, target) = arp(payload)?;
                (operation == 2 && target == self.v4).then_some(Heard::Neighbour(sender.into(), source))
            }
            ETHERTYPE_IPV4 => {
                let (sender, target, icmp) = icmp4(payload)?;
                let reply = target == self.v4 && icmp.first() == Some(&ECHO_REPLY);
                reply.then(|| sequence(icmp)).flatten().map(|number| Heard::Echo(sender.into(), number))
            }
            ETHERTYPE_IPV6 => {
                let (sender, target, icmp) = icmp6(payload)?;
                match *icmp.first()? {
                    NEIGHBOUR_ADVERTISEMENT => Some(Heard::Neighbour(neighbour_target(icmp)?.into(), source)),
                    ECHO6_REPLY if target == self.v6 => Some(Heard::Echo(sender.into(), sequence(icmp)?)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The question where an address is.
    pub(crate) fn resolve(&self, target: IpAddr) -> Vec<u8> {
        match target {
            IpAddr::V4(target) => self.arp(1, BROADCAST, [0; 6], target),
            IpAddr::V6(target) => {
                let [.., x, y, z] = target.octets();
                let group =
                    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
                let mut solicitation = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
                solicitation.extend(target.octets());
                solicitation.extend([1, 1]);
                solicitation.extend(self.mac);
                self.ipv6([0x33, 0x33, 0xff, x, y, z], group, &solicitation)
            }
        }
    }

    /// An echo request with at least so many bytes of data.
    pub(crate) fn ping(&self, mac: Mac, target: IpAddr, number: u16, bytes: usize) -> Vec<u8> {
        let [high, low] = number.to_be_bytes();
        let request = |kind| {
            let mut icmp = vec![kind, 0, 0, 0, 0x74, 0x67, high, low];
            let text = b"macvtap guest to macvtap guest";
            icmp.extend(text.iter().cycle().take(bytes.max(text.len())));
            icmp
        };
        match target {
            IpAddr::V4(target) => self.ipv4(mac, target, &echo(ECHO_REQUEST, &request(ECHO_REQUEST))),
            IpAddr::V6(target) => self.ipv6(mac, target, &request(ECHO6_REQUEST)),
        }
    }

    fn arp(&self, operation: u8, to: Mac, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
        let mut frame = self.header(to, ETHERTYPE_ARP);
        frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend(self.mac);
        frame.extend(self.v4.octets());
        frame.extend(target_mac);
        frame.extend(target.octets());
        frame
    }

    fn ipv4(&self, to: Mac, target: Ipv4Addr, icmp: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0];
        header.extend(length(20 + icmp.len()));
        header.extend([0, 0, 0x40, 0, 64, PROTOCOL_ICMP, 0, 0]);
        header.extend(self.v4.octets());
        header.extend(target.octets());
        put_checksum(&mut header, 10, 0);
        let mut frame = self.header(to, ETHERTYPE_IPV4);
        frame.extend(header);
        frame.extend(icmp);
        frame
    }

    /// With the hop limit that neighbour discovery demands (RFC 4861, section 7.1).
    fn ipv6(&self, to: Mac, target: Ipv6Addr, icmp: &[u8]) -> Vec<u8> {
        let mut body = icmp.to_vec();
        put_checksum(&mut body, 2, pseudo_header(self.v6, target, icmp.len()));
        let mut frame = self.header(to, ETHERTYPE_IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length(body.len()));
        frame.extend([PROTOCOL_ICMPV6, 255]);
        frame.extend(self.v6.octets());
        frame.extend(target.octets());
        frame.extend(body);
        frame
    }

    fn header(&self, to: Mac, ethertype: u16) -> Vec<u8> {
        let mut frame = to.to_vec();
        frame.extend(self.mac);
        frame.extend(ethertype.to_be_bytes());
        frame
    }
}

/// A frame in one line, for people and tests: destination, source, what it is.
pub(crate) fn describe(frame: &[u8]) -> String {
    let Some((_, ethertype, payload)) = ethernet(frame) else {
        return "runt".to_owned();
    };
    let what = match ethertype {
        ETHERTYPE_ARP => match arp(payload) {
            Some((1, _, target)) => format!("arp-request {target}"),
            Some((_, sender, _)) => format!("arp-reply {sender}"),
            None => "arp".to_owned(),
        },
        ETHERTYPE_IPV4 => match icmp4(payload) {
            Some((sender, target, _)) => format!("icmp {sender} {target}"),
            None => "ipv4".to_owned(),
        },
        ETHERTYPE_IPV6 => match icmp6(payload) {
            Some((_, _, icmp)) => match (icmp.first(), neighbour_target(icmp)) {
                (Some(&NEIGHBOUR_SOLICITATION), Some(target)) => format!("neighbour-solicitation {target}"),
                (Some(&NEIGHBOUR_ADVERTISEMENT), Some(target)) => format!("neighbour-advertisement {target}"),
                _ => "icmpv6".to_owned(),
            },
            None => "ipv6".to_owned(),
        },
        ETHERTYPE_LLDP => "lldp".to_owned(),
        other => format!("ethertype 0x{other:04x}"),
    };
    format!("{} {} {what}", print(frame, 0), print(frame, 6))
}

fn print(frame: &[u8], at: usize) -> String {
    let mut text = String::new();
    for (i, byte) in frame.iter().skip(at).take(6).enumerate() {
        let separator = if i == 0 { "" } else { ":" };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{byte:02x}");
    }
    text
}

fn ethernet(frame: &[u8]) -> Option<(Mac, u16, &[u8])> {
    let source = frame.get(6..12)?.try_into().ok()?;
    Some((source, be16(frame, 12)?, frame.get(14..)?))
}

fn arp(payload: &[u8]) -> Option<(u16, Ipv4Addr, Ipv4Addr)> {
    if payload.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some((be16(payload, 6)?, address4(payload, 14)?, address4(payload, 24)?))
}

fn icmp4(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, &[u8])> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 || *packet.get(9)? != PROTOCOL_ICMP {
        return None;
    }
    let end = usize::from(be16(packet, 2)?);
    Some((address4(packet, 12)?, address4(packet, 16)?, packet.get(header..end)?))
}

fn icmp6(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr, &[u8])> {
    if packet.first()? >> 4 != 6 || *packet.get(6)? != PROTOCOL_ICMPV6 {
        return None;
    }
    let end = 40 + usize::from(be16(packet, 4)?);
    Some((address6(packet, 8)?, address6(packet, 24)?, packet.get(40..end)?))
}

fn neighbour_target(icmp: &[u8]) -> Option<Ipv6Addr> {
    address6(icmp, 8)
}

fn sequence(icmp: &[u8]) -> Option<u16> {
    be16(icmp, 6)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
}

fn address6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?))
}

/// The same echo with another type. The checksum is IPv4's; for IPv6 it is written again with the pseudo header.
fn echo(kind: u8, icmp: &[u8]) -> Vec<u8> {
    let mut reply = icmp.to_vec();
    if let Some(first) = reply.first_mut() {
        *first = kind;
    }
    put_checksum(&mut reply, 2, 0);
    reply
}

fn length(bytes: usize) -> [u8; 2] {
    // Frames here are at most an MTU long.
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

fn pseudo_header(source: Ipv6Addr, target: Ipv6Addr, bytes: usize) -> u32 {
    let mut header = source.octets().to_vec();
    header.extend(target.octets());
    header.extend([0, 0]);
    header.extend(length(bytes));
    header.extend([0, 0, 0, PROTOCOL_ICMPV6]);
    sum(&header)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// Internet checksum (RFC 1071) over `bytes` and what `start` already sums up, written at `at`.
fn put_checksum(bytes: &mut [u8], at: usize, start: u32) {
    if bytes.len() < at + 2 {
        return;
    }
    bytes[at..at + 2].fill(0);
    let mut total = sum(bytes) + start;
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    let checksum = !u16::try_from(total).unwrap_or(u16::MAX);
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(last: u8) -> Guest {
        Guest {
            mac: [2, 0, 0, 0, 0, last],
            v4: Ipv4Addr::new(198, 51, 100, last),
            v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()),
        }
    }

    #[test]
    fn two_guests_find_and_ping_each_other() {
        let (a, b) = (guest(1), guest(2));
        for target in [IpAddr::from(b.v4), IpAddr::from(b.v6)] {
            let found = b.answer(&a.resolve(target)).and_then(|reply| a.hear(&reply));
            assert_eq!(found, Some(Heard::Neighbour(target, b.mac)));
            let echoed = b.answer(&a.ping(b.mac, target, 7, 1400)).and_then(|reply| a.hear(&reply));
            assert_eq!(echoed, Some(Heard::Echo(target, 7)));
        }
    }

    #[test]
    fn a_question_for_somebody_else_stays_unanswered() {
        let (a, b) = (guest(1), guest(2));
        for target in [IpAddr::from(guest(3).v4), IpAddr::from(guest(3).v6)] {
            assert_eq!(b.answer(&a.resolve(target)), None);
            assert_eq!(b.answer(&a.ping(b.mac, target, 1, 0)), None);
        }
    }

    #[test]
    fn checksums_sum_to_all_ones() {
        let frame = guest(1).ping([2; 6], guest(2).v4.into(), 1, 0);
        let folded = |bytes: &[u8]| {
            let total = sum(bytes);
            (total >> 16) + (total & 0xffff)
        };
        assert_eq!(folded(&frame[14..34]), 0xffff);
        assert_eq!(folded(&frame[34..]), 0xffff);
    }

    #[test]
    fn no_prefix_of_a_frame_is_a_surprise() {
        let (a, b) = (guest(1), guest(2));
        for frame in [
            a.resolve(b.v4.into()),
            a.resolve(b.v6.into()),
            a.ping(b.mac, b.v4.into(), 1, 0),
            a.ping(b.mac, b.v6.into(), 1, 0),
        ] {
            for end in 0..frame.len() {
                let _ = (b.answer(&frame[..end]), b.hear(&frame[..end]), describe(&frame[..end]));
            }
        }
    }

    #[test]
    fn frames_are_named() {
        let (a, b) = (guest(1), guest(2));
        assert_eq!(
            describe(&a.resolve(b.v4.into())),
            "ff:ff:ff:ff:ff:ff 02:00:00:00:00:01 arp-request 198.51.100.2"
        );
        assert_eq!(
            describe(&a.resolve(b.v6.into())),
            "33:33:ff:00:00:02 02:00:00:00:00:01 neighbour-solicitation fd00::2"
        );
    }
}
