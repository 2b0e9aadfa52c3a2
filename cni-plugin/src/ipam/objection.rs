//! Who objects to a new IPv6 address. The kernel reports only that somebody does; the objection itself is a neighbour
//! advertisement, or the other host's own question for the same address (RFC 4862, 5.4).

use crate::packet::PacketSocket;
use macvtap::kernel::Rtnl;
use macvtap::link::Link;
use macvtap::mac::MacAddr;
use rustix::io::Errno;
use std::net::Ipv6Addr;

const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Longer than every message of neighbour discovery that is looked at.
const FRAME: usize = 128;

/// Listens on one interface from before it is up.
#[derive(Debug)]
pub(crate) struct Objections(PacketSocket);

impl Objections {
    /// Listens; none where that is not possible, for it only makes an error more exact.
    pub(crate) fn listen(kernel: &Rtnl, link: &Link) -> Option<Self> {
        let open = || PacketSocket::open(link.index, Some(ETHERTYPE_IPV6)).ok();
        match kernel.netns() {
            Some(netns) => netns.enter(open).ok().flatten().map(Self),
            None => open().map(Self),
        }
    }

    /// Returns the MAC address of the first host that objected to an address.
    pub(crate) fn to(&self, address: Ipv6Addr) -> Option<MacAddr> {
        let mut frame = [0; FRAME];
        loop {
            let length = match rustix::io::read(&self.0, &mut frame) {
                // Once: the interface was down when the socket was made.
                Err(Errno::NETDOWN) => continue,
                length => length.ok()?,
            };
            if let Some(mac) = objector(frame.get(..length)?, address) {
                return Some(mac);
            }
        }
    }
}

/// The sender of a frame that objects to an address.
fn objector(frame: &[u8], address: Ipv6Addr) -> Option<MacAddr> {
    let is_objection = frame.get(20) == Some(&ICMPV6)
        && matches!(frame.get(54), Some(&(SOLICITATION | ADVERTISEMENT)))
        && frame.get(62..78) == Some(&address.octets());
    let sender: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    sender.try_into().ok().filter(|_| is_objection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_about_the_address_is_an_objection() {
        let address: Ipv6Addr = "fd09::2".parse().unwrap();
        let mut frame = vec![0; 86];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        (frame[20], frame[54]) = (ICMPV6, ADVERTISEMENT);
        frame[62..78].copy_from_slice(&address.octets());
        assert_eq!(objector(&frame, address), "02:00:00:00:00:07".parse().ok());
        assert_eq!(objector(&frame, "fd09::3".parse().unwrap()), None);
        frame[54] = 128;
        assert_eq!(objector(&frame, address), None);
        assert_eq!(objector(&frame[..20], address), None);
    }
}
