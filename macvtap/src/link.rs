//! Links: what we ask of them, and how the kernel describes them. Pure: nothing here is sent.

mod message;
mod name;
mod nic;
pub(crate) mod value;
mod xdp;

pub use message::{
    change, create_macvtap, create_veth, delete, get, get_all, no_ipv6_address, remove_names, transfer,
};
pub use name::{BadIfName, IfName};
pub use nic::NicLink;
pub(crate) use nic::{known, named, recorded};
pub use xdp::XdpPlace;

use crate::mac::MacAddr;
use crate::mode::Mode;
use message::kernel_mode;
use netlink_packet_core::NlasIterator;
use std::fmt;
use std::os::fd::BorrowedFd;
use value::{lossy, text, word};

/// Length of `struct ifinfomsg`.
pub(crate) const HEADER_LEN: usize = 16;

/// Attribute numbers of `linux/if_link.h`. Read by number, so that an attribute of a newer kernel that no library
/// knows yet cannot make an answer unreadable.
mod attribute {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const LINK: u16 = 5;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const INFO_DATA: u16 = 2;
    pub(super) const MACVLAN_MODE: u16 = 1;
    pub(super) const PARENT_DEV_NAME: u16 = 56;
}

/// The kernel's bits of `linux/if.h`.
const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFF_ALLMULTI: u32 = 0x200;
const IFF_RUNNING: u32 = 0x40;
const IFF_LOWER_UP: u32 = 0x1_0000;

/// What we know of an existing link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name. The kernel takes any bytes, and a pod may choose them: what is not text has [`char::REPLACEMENT_CHARACTER`]
    /// in it.
    pub name: String,
    /// rtnetlink kind; absent for hardware.
    pub kind: Option<String>,
    /// Mode of a macvtap or macvlan, if we know it.
    pub mode: Option<Mode>,
    /// Index of the link below, in that link's namespace.
    pub lower: Option<u32>,
    /// The device behind it; reported by the kernel since 5.14.
    pub parent: Option<String>,
    /// Hardware address; absent when it has none or another length than Ethernet's.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is connected to something that is up.
    pub carrier: Carrier,
    /// Whether it is set to receive every frame.
    pub promiscuous: bool,
    /// Whether it is set to receive every multicast frame.
    pub all_multicast: bool,
}

/// Whether a link is connected to something that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// It is.
    Present,
    /// It is since a moment ago: until the kernel has started its queues it drops what is sent.
    Starting,
    /// It is not, or is down.
    Absent,
}

impl Carrier {
    fn of(flags: u32) -> Self {
        match (flags & IFF_LOWER_UP != 0, flags & IFF_RUNNING != 0) {
            (true, true) => Self::Present,
            (true, false) => Self::Starting,
            (false, _) => Self::Absent,
        }
    }
}

/// A macvtap to be made. It is made down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvtap {
    /// Index of the link below, in the namespace of the node.
    pub lower: u32,
    /// The index it gets.
    pub index: u32,
    /// The name it gets.
    pub name: IfName,
    /// How it sees its siblings.
    pub mode: Mode,
    /// Its address; absent: the kernel draws one.
    pub mac: Option<MacAddr>,
    /// Its MTU; absent: the lower link's.
    pub mtu: Option<u32>,
    /// Whether it takes every frame.
    pub promiscuous: bool,
    /// Whether it takes every multicast frame.
    pub all_multicast: bool,
}

/// Two links that are each other's cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// One end.
    pub name: IfName,
    /// The other.
    pub peer: IfName,
}

/// What is changed of a link; absent: as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change<'a> {
    /// Its name.
    pub name: Option<&'a IfName>,
    /// Its address.
    pub mac: Option<MacAddr>,
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Whether it takes every frame.
    pub promiscuous: Option<bool>,
    /// Whether it takes every multicast frame.
    pub all_multicast: Option<bool>,
    /// Whether it asks for its neighbours' addresses and answers for its own.
    pub arp: Option<bool>,
    /// Whether it sends to groups.
    pub multicast: Option<bool>,
    /// Its alias; empty: none.
    pub alias: Option<&'a str>,
    /// How many frames its queue takes.
    pub queue_length: Option<u32>,
    /// The group it belongs to.
    pub group: Option<u32>,
    /// Whether it stays dormant until a program of the user says otherwise.
    pub dormant: Option<bool>,
    /// The XDP program that is detached from it.
    pub detach: Option<XdpPlace>,
    /// Whether it is administratively up.
    pub up: Option<bool>,
}

/// How a link of one namespace becomes one of another.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// Its index where it is.
    pub index: u32,
    /// Its name where it goes.
    pub name: &'a IfName,
    /// Its index where it goes; absent: the one it has, if that is free. Kernels before 5.13 ignore it.
    pub new_index: Option<u32>,
    /// The namespace where it goes.
    pub netns: BorrowedFd<'a>,
}

/// The key by which a link is looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Its index.
    Index(u32),
    /// Its name.
    Name(IfName),
}

impl Change<'_> {
    /// A change of the administrative state.
    #[must_use]
    pub fn up(up: bool) -> Self {
        Self { up: Some(up), ..Self::default() }
    }

    /// A change of the address; the link is down.
    #[must_use]
    pub fn mac(mac: MacAddr) -> Self {
        Self { mac: Some(mac), ..Self::default() }
    }

    /// A change of the MTU.
    #[must_use]
    pub fn mtu(mtu: u32) -> Self {
        Self { mtu: Some(mtu), ..Self::default() }
    }
}

impl fmt::Display for Change<'_> {
    /// The beginning of "... link with index 7".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { mac: Some(mac), .. } => write!(f, "set MAC address {mac} of"),
            Self { mtu: Some(mtu), .. } => write!(f, "set MTU {mtu} of"),
            Self { up: Some(true), .. } => f.write_str("set up"),
            Self { up: Some(false), .. } => f.write_str("set down"),
            _ => f.write_str("change"),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "link with index {index}"),
            Self::Name(name) => write!(f, "link {name}"),
        }
    }
}

impl Link {
    /// Reads the payload of an `RTM_NEWLINK`. The error is the rest of a sentence about the answer.
    pub fn parse(payload: &[u8]) -> Result<Self, &'static str> {
        let number = |at: usize| {
            payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
        };
        let (index, flags) = number(4).zip(number(8)).ok_or("is too short for a link")?;
        let attributes = payload.get(HEADER_LEN..).ok_or("is too short for a link")?;
        let mut link = Self {
            index,
            name: String::new(),
            kind: None,
            mode: None,
            lower: None,
            parent: None,
            mac: None,
            mtu: 0,
            up: flags & IFF_UP != 0,
            carrier: Carrier::of(flags),
            promiscuous: flags & IFF_PROMISC != 0,
            all_multicast: flags & IFF_ALLMULTI != 0,
        };
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.map_err(|_| "has a broken attribute")?;
            let value = attribute.value();
            match attribute.kind() {
                attribute::IFNAME => link.name = lossy(value),
                attribute::ADDRESS => link.mac = value.try_into().ok(),
                attribute::MTU => link.mtu = word(value).ok_or("has a broken MTU")?,
                attribute::LINK => link.lower = word(value),
                attribute::PARENT_DEV_NAME => link.parent = text(value),
                attribute::LINKINFO => (link.kind, link.mode) = info(value)?,
                _ => {}
            }
        }
        if link.name.is_empty() { Err("has no name") } else { Ok(link) }
    }

    /// Whether it is a macvtap.
    pub fn is_macvtap(&self) -> bool {
        self.kind.as_deref() == Some("macvtap")
    }

    /// Its address, if a device may have it.
    pub fn device_mac(&self) -> Option<MacAddr> {
        self.mac.and_then(|mac| mac.try_into().ok())
    }
}

/// Kind and mode from `IFLA_LINKINFO`.
fn info(value: &[u8]) -> Result<(Option<String>, Option<Mode>), &'static str> {
    let (mut kind, mut data) = (None, Vec::new());
    for attribute in NlasIterator::new(value) {
        let attribute = attribute.map_err(|_| "has broken link information")?;
        match attribute.kind() {
            attribute::INFO_KIND => kind = Some(text(attribute.value()).ok_or("has a broken kind")?),
            attribute::INFO_DATA => data = attribute.value().to_vec(),
            _ => {}
        }
    }
    let sees_siblings = matches!(kind.as_deref(), Some("macvtap" | "macvlan"));
    let mode = NlasIterator::new(data.as_slice())
        .flatten()
        .find(|a| sees_siblings && a.kind() == attribute::MACVLAN_MODE)
        .and_then(|a| word(a.value()));
    let all = [Mode::Bridge, Mode::Vepa, Mode::Private, Mode::Passthru];
    let mode = mode.and_then(|number| all.into_iter().find(|m| u32::from(kernel_mode(*m)) == number));
    Ok((kind, mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::Emitable;
    use netlink_packet_route::link::{
        InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkInfo, LinkMessage, MacVtapMode,
    };
    use proptest::prelude::*;

    fn bytes(message: &LinkMessage) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn macvtap() -> Macvtap {
        Macvtap {
            lower: 3,
            index: 0x0100_0007,
            name: "net1".parse().unwrap(),
            mode: Mode::Vepa,
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(9000),
            promiscuous: false,
            all_multicast: true,
        }
    }

    #[test]
    fn a_request_says_everything_about_the_link_except_up() {
        // The request has the form of an answer, so the reader can judge the writer.
        let link = Link::parse(&bytes(&create_macvtap(&macvtap(), None))).unwrap();
        let wanted = Link {
            index: 0x0100_0007,
            name: "net1".into(),
            kind: Some("macvtap".into()),
            mode: Some(Mode::Vepa),
            lower: Some(3),
            parent: None,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 9000,
            up: false,
            carrier: Carrier::Absent,
            promiscuous: false,
            all_multicast: true,
        };
        assert_eq!(link, wanted);
    }

    #[test]
    fn a_name_that_is_no_text_makes_no_link_unreadable() {
        let mut bytes = bytes(&create_macvtap(&macvtap(), None));
        let at = bytes.windows(4).position(|part| part == b"net1").unwrap();
        bytes[at..at + 4].copy_from_slice(b"n\xff\xfe1");
        let link = Link::parse(&bytes).unwrap();
        assert_eq!((link.index, link.name.as_str()), (0x0100_0007, "n\u{fffd}\u{fffd}1"));
    }

    #[test]
    fn a_link_without_information_is_hardware_and_an_unknown_mode_is_none() {
        let mut message = LinkMessage::default();
        assert!(Link::parse(&bytes(&message)).is_err(), "a link without a name");
        message.attributes.push(LinkAttribute::IfName("eth0".into()));
        assert_eq!(Link::parse(&bytes(&message)).unwrap().kind, None);
        let source = InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Source)]);
        let info = vec![LinkInfo::Kind(InfoKind::MacVtap), LinkInfo::Data(source)];
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let link = Link::parse(&bytes(&message)).unwrap();
        assert_eq!((link.is_macvtap(), link.mode), (true, None));
    }

    proptest! {
        #[test]
        fn no_payload_makes_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Link::parse(&noise);
        }

        #[test]
        fn a_damaged_answer_never_makes_the_reader_panic(at in 0..120_usize, value: u8, cut in 0..120_usize) {
            let mut bytes = bytes(&create_macvtap(&macvtap(), None));
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            let _ = Link::parse(&bytes);
        }
    }
}
