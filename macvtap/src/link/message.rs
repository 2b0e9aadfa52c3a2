//! The messages that ask for links, make them and change them. Pure: nothing here is sent.

use super::{By, Change, IfName, Macvtap, Settings, Veth};
use crate::mode::Mode;
use crate::netns::NetnsId;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
};
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// Gives one link of the socket's namespace what it shall have.
pub fn settings(index: u32, settings: Settings) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    for (wanted, flag) in [(settings.up, LinkFlags::Up), (settings.promiscuous, LinkFlags::Promisc)] {
        let Some(on) = wanted else { continue };
        message.header.change_mask |= flag;
        message.header.flags.set(flag, on);
    }
    message.attributes.extend(settings.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    message.attributes.extend(settings.mtu.map(LinkAttribute::Mtu));
    message
}

/// Moves one link of the socket's namespace into `netns` under this name.
pub fn relocate(index: u32, name: &IfName, netns: BorrowedFd<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    message.attributes.push(LinkAttribute::IfName(name.to_string()));
    message
}

/// Changes one link in the namespace of the socket.
pub fn change(index: u32, change: Change) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    match change {
        Change::NoAutoconfiguration => {
            let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
            message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
        }
        Change::Mac(mac) => message.attributes.push(LinkAttribute::Address(mac.octets().to_vec())),
        Change::Mtu(mtu) => message.attributes.push(LinkAttribute::Mtu(mtu)),
        Change::Up => {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
    }
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
