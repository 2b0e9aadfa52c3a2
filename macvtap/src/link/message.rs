//! The messages that ask for links, make them and change them. Pure: nothing here is sent.

use super::{By, Change, IfName, Macvtap, Move, Veth, XdpPlace};
use crate::mode::Mode;
use crate::netns::NetnsId;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkMode, LinkXdp, MacVtapMode, Prop,
};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attribute numbers of `linux/if_link.h` whose values are bytes, not text.
const IFALIAS: u16 = 20;
const ALT_IFNAME: u16 = 53;

/// Asks for one link, in the namespace of the socket or in the one with that number.
pub fn get(by: &By, netns: Option<NetnsId>) -> LinkMessage {
    let mut message = addressed(by, netns);
    // Statistics are half of an answer, and nobody here reads them.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

/// Deletes one link, in the namespace of the socket or in the one with that number.
pub fn delete(index: u32, netns: Option<NetnsId>) -> LinkMessage {
    addressed(&By::Index(index), netns)
}

/// Makes a macvtap: in `netns`, or in the namespace of the socket, where its lower link is.
pub fn create_macvtap(link: &Macvtap, netns: Option<BorrowedFd<'_>>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    let wanted = [(link.promiscuous, LinkFlags::Promisc), (link.all_multicast, LinkFlags::Allmulti)];
    for (_, flag) in wanted.into_iter().filter(|(on, _)| *on) {
        message.header.flags |= flag;
        message.header.change_mask |= flag;
    }
    let attributes = &mut message.attributes;
    attributes.push(LinkAttribute::IfName(link.name.to_string()));
    attributes.push(LinkAttribute::Link(link.lower));
    attributes.extend(netns.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd())));
    attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    attributes.extend(link.mtu.map(LinkAttribute::Mtu));
    attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::MacVtap),
        LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(kernel_mode(link.mode))])),
    ]));
    message
}

/// Makes a veth pair in the namespace of the socket.
pub fn create_veth(link: &Veth) -> LinkMessage {
    let named = |name: &IfName| {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_string()));
        message
    };
    let mut message = named(&link.name);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(&link.peer)))),
    ]));
    message
}

/// Asks for all links of the namespace of the socket, or of the one with that number.
pub fn get_all(netns: Option<NetnsId>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.extend(netns.map(|NetnsId(id)| LinkAttribute::IfNetnsId(id)));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message
}

/// Changes one link of the socket's namespace.
pub fn change(index: u32, change: Change<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let flags = [
        (change.up, LinkFlags::Up),
        (change.promiscuous, LinkFlags::Promisc),
        (change.all_multicast, LinkFlags::Allmulti),
        (change.arp.map(|on| !on), LinkFlags::Noarp),
        (change.multicast, LinkFlags::Multicast),
    ];
    for (setting, flag) in flags {
        let Some(on) = setting else { continue };
        message.header.change_mask |= flag;
        message.header.flags.set(flag, on);
    }
    let attributes = &mut message.attributes;
    attributes.extend(change.name.map(|name| LinkAttribute::IfName(name.to_string())));
    attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    // Without a final zero, which would make an empty alias one of length 1.
    let alias = change.alias.map(|alias| DefaultNla::new(IFALIAS, alias.as_bytes().to_vec()));
    attributes.extend(alias.map(LinkAttribute::Other));
    attributes.extend(change.queue_length.map(LinkAttribute::TxQueueLen));
    attributes.extend(change.group.map(LinkAttribute::Group));
    let mode = |dormant| if dormant { LinkMode::Dormant } else { LinkMode::Default };
    attributes.extend(change.dormant.map(|dormant| LinkAttribute::Mode(mode(dormant))));
    let nothing = |place: XdpPlace| LinkAttribute::Xdp(vec![LinkXdp::Fd(-1), LinkXdp::Flags(place.flag())]);
    attributes.extend(change.detach.map(nothing));
    message
}

/// Moves one link of the socket's namespace into another.
pub fn transfer(to: Move<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = to.index;
    message.attributes.push(LinkAttribute::NetNsFd(to.netns.as_raw_fd()));
    message.attributes.push(LinkAttribute::IfName(to.name.to_string()));
    let index = to.new_index.and_then(|index| i32::try_from(index).ok());
    message.attributes.extend(index.map(LinkAttribute::NewIfIndex));
    message
}

/// Takes other names from one link.
pub fn remove_names(index: u32, names: &[&[u8]]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let name = |name: &[u8]| DefaultNla::new(ALT_IFNAME, [name, &[0]].concat());
    let names = names.iter().map(|own| Prop::Other(name(own)));
    message.attributes.push(LinkAttribute::PropList(names.collect()));
    message
}

/// Stops the kernel from giving one link in the namespace of the socket an IPv6 address of its own. Cannot be part of the
/// request that makes the link (`EAFNOSUPPORT`), and comes too late together with [`Change::up`].
pub fn no_ipv6_address(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
    message
}

fn addressed(by: &By, netns: Option<NetnsId>) -> LinkMessage {
    let mut message = LinkMessage::default();
    match by {
        By::Index(index) => message.header.index = *index,
        By::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_string())),
    }
    message.attributes.extend(netns.map(|NetnsId(id)| LinkAttribute::IfNetnsId(id)));
    message
}

/// The kernel's number for a mode.
pub(super) fn kernel_mode(mode: Mode) -> MacVtapMode {
    match mode {
        Mode::Bridge => MacVtapMode::Bridge,
        Mode::Vepa => MacVtapMode::Vepa,
        Mode::Private => MacVtapMode::Private,
        Mode::Passthru => MacVtapMode::Passthrough,
    }
}
