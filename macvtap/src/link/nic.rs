//! NICs as the kernel describes them, and how one is known again. Pure.

use super::value::{lossy, text, until_zero, word};
use super::xdp::{self, XdpPlace};
use super::{BadIfName, HEADER_LEN, IfName, Link};
use crate::mac::MacAddr;
use crate::record::{Nic, Tuning};
use crate::table::LinkIdentity;
use netlink_packet_core::NlasIterator;

/// Attribute numbers of `linux/if_link.h` that only whole NICs need.
mod attribute {
    pub(super) const MASTER: u16 = 10;
    pub(super) const TXQLEN: u16 = 13;
    pub(super) const LINKMODE: u16 = 17;
    pub(super) const IFALIAS: u16 = 20;
    pub(super) const GROUP: u16 = 27;
    pub(super) const LINK_NETNSID: u16 = 37;
    pub(super) const XDP: u16 = 43;
    pub(super) const MAX_MTU: u16 = 51;
    pub(super) const PROP_LIST: u16 = 52;
    pub(super) const ALT_IFNAME: u16 = 53;
    pub(super) const PERM_ADDRESS: u16 = 54;
}

/// Where the flags are in `struct ifinfomsg`, and the kernel's bits of `linux/if.h` that only whole NICs need.
const FLAGS: std::ops::Range<usize> = 8..12;
const IFF_NOARP: u32 = 0x80;
const IFF_MULTICAST: u32 = 0x1000;

/// `IF_LINK_MODE_DORMANT` of `linux/if.h`.
const LINK_MODE_DORMANT: u8 = 1;

/// A link with what identifies it as a certain NIC and decides what becomes of it in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicLink {
    /// What every link has.
    pub link: Link,
    /// The address it was made with; kept by the kernel since 5.6.
    pub permanent_mac: Option<MacAddr>,
    /// Its alias.
    pub alias: Option<String>,
    /// Its other names.
    pub alt_names: Vec<String>,
    /// Other names that are not text. The kernel takes any bytes, and nobody but a pod gives such.
    pub odd_names: Vec<Vec<u8>>,
    /// Index of the link that it is a port or member of.
    pub master: Option<u32>,
    /// Whether the link below is in another namespace.
    pub lower_elsewhere: bool,
    /// The largest MTU it takes; none for no limit.
    pub max_mtu: Option<u32>,
    /// Whether it resolves its neighbours' addresses and answers for its own. A pod can turn that off.
    pub arp: bool,
    /// Whether it sends to groups. A pod can turn that off.
    pub multicast: bool,
    /// What of it only a pod with `NET_ADMIN` changes.
    pub tuning: Tuning,
    /// Its XDP programs, by the kernel's number. They see every frame, in whatever namespace it is.
    pub programs: Vec<(XdpPlace, u32)>,
}

impl NicLink {
    /// Reads the payload of an `RTM_NEWLINK`. The error is the rest of a sentence about the answer.
    pub fn parse(payload: &[u8]) -> Result<Self, &'static str> {
        let link = Link::parse(payload)?;
        let flags = payload.get(FLAGS).and_then(word).unwrap_or_default();
        let mut nic = Self {
            link,
            permanent_mac: None,
            alias: None,
            alt_names: Vec::new(),
            odd_names: Vec::new(),
            master: None,
            lower_elsewhere: false,
            max_mtu: None,
            arp: flags & IFF_NOARP == 0,
            multicast: flags & IFF_MULTICAST != 0,
            tuning: Tuning::default(),
            programs: Vec::new(),
        };
        for attribute in NlasIterator::new(payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute.map_err(|_| "has a broken attribute")?;
            let value = attribute.value();
            match attribute.kind() {
                attribute::MASTER => nic.master = word(value).filter(|index| *index != 0),
                attribute::IFALIAS => nic.alias = Some(lossy(value)).filter(|alias| !alias.is_empty()),
                attribute::TXQLEN => nic.tuning.queue_length = word(value),
                attribute::LINKMODE => {
                    nic.tuning.dormant = value.first().map(|mode| *mode == LINK_MODE_DORMANT);
                }
                attribute::GROUP => nic.tuning.group = word(value),
                attribute::XDP => nic.programs = xdp::programs(value),
                attribute::LINK_NETNSID => nic.lower_elsewhere = true,
                attribute::MAX_MTU => nic.max_mtu = word(value).filter(|mtu| *mtu != 0),
                attribute::PERM_ADDRESS => nic.permanent_mac = mac(value),
                attribute::PROP_LIST => {
                    let names = NlasIterator::new(value).flatten();
                    let names = names.filter(|property| property.kind() == attribute::ALT_IFNAME);
                    for name in names {
                        match text(name.value()) {
                            Some(name) => nic.alt_names.push(name),
                            None => nic.odd_names.push(until_zero(name.value()).to_vec()),
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(nic)
    }

    /// Whether this may be the NIC that was at hand when this was noted; [`known`] decides. A link made by software is known
    /// by the alias that it got when it left the node: under its name there may be another one by now.
    fn is(&self, identity: &LinkIdentity) -> bool {
        match identity {
            LinkIdentity::Hardware { mac, parent } => {
                // A kernel that reports only one of them is believed.
                let known = self.link.parent.is_some() || self.permanent_mac.is_some();
                // An ipvlan or passthru macvlan on the NIC has its address, also as its permanent one.
                let is_hardware = self.link.kind.is_none();
                known
                    && is_hardware
                    && self.link.parent.as_ref().is_none_or(|own| own == parent)
                    && self.permanent_mac.is_none_or(|own| own == *mac)
            }
            LinkIdentity::Name { kind, name } => self.has_kind(kind) && self.alias.as_ref() == Some(name),
        }
    }

    /// Whether this is another NIC behind the same device, where only one can be.
    pub(crate) fn displaces(&self, identity: &LinkIdentity) -> bool {
        match identity {
            LinkIdentity::Hardware { mac, parent } => {
                self.link.parent.as_ref() == Some(parent) && self.permanent_mac.is_some_and(|own| own != *mac)
            }
            LinkIdentity::Name { .. } => false,
        }
    }

    /// Whether this is a link made by software that has not left the node.
    pub(crate) fn is_still(&self, identity: &LinkIdentity) -> bool {
        match identity {
            LinkIdentity::Hardware { .. } => false,
            LinkIdentity::Name { kind, name } => self.has_kind(kind) && self.link.name == *name,
        }
    }

    fn has_kind(&self, kind: &str) -> bool {
        self.link.kind.as_deref().unwrap_or_default() == kind
    }

    /// Whether this is built on the link with that index.
    pub(crate) fn is_on(&self, index: u32) -> bool {
        // A veth's other end is no link on it.
        self.link.lower == Some(index) && !self.lower_elsewhere && self.link.kind.as_deref() != Some("veth")
    }

    /// All its names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.link.name.as_str()).chain(self.alt_names.iter().map(String::as_str))
    }

    /// What of it changes while a pod has it, for the way back. An error if it could not be called again as it is called.
    pub(crate) fn as_nic(
        &self,
        pci: crate::pci::PciAddress,
        identity: LinkIdentity,
    ) -> Result<Nic, BadIfName> {
        self.link.name.parse::<IfName>()?;
        Ok(Nic {
            pci,
            identity,
            name: self.link.name.clone(),
            mac: self.link.device_mac(),
            mtu: self.link.mtu,
            up: self.link.up,
            promiscuous: self.link.promiscuous,
            all_multicast: self.link.all_multicast,
            alias: self.alias.clone(),
            alt_names: self.alt_names.clone(),
            tuning: self.tuning,
            programs: Some(self.programs.iter().map(|(_, program)| *program).collect()),
        })
    }

    /// The other names that do not pass a test, as the kernel has them.
    pub(crate) fn other_names_but(&self, keep: impl Fn(&str) -> bool) -> Vec<&[u8]> {
        let names = self.alt_names.iter().filter(|name| !keep(name)).map(String::as_bytes);
        names.chain(self.odd_names.iter().map(Vec::as_slice)).collect()
    }
}

/// Which of these links, all of one namespace, is the NIC that was at hand when this was noted.
pub(crate) fn known<'l>(links: &'l [NicLink], identity: &LinkIdentity) -> Option<&'l NicLink> {
    // A kernel that reports the device behind one link reports it for every link that has one.
    let reports_parents = links.iter().any(|link| link.link.parent.is_some());
    let needs_parent = reports_parents && matches!(identity, LinkIdentity::Hardware { .. });
    links.iter().find(|link| link.is(identity) && (link.link.parent.is_some() || !needs_parent))
}

/// Which of these links, all of one namespace, is the NIC of a record. A driver may report an address that was set as the
/// permanent one (igbvf, after a reset), so a NIC behind the right device that still has the alias under which it left the
/// node is the one, too.
pub(crate) fn recorded<'l>(links: &'l [NicLink], nic: &Nic) -> Option<&'l NicLink> {
    let LinkIdentity::Hardware { parent, .. } = &nic.identity else { return known(links, &nic.identity) };
    let is_marked = |link: &&NicLink| {
        link.link.kind.is_none()
            && link.link.parent.as_ref() == Some(parent)
            && link.alias.as_ref() == Some(&nic.name)
    };
    known(links, &nic.identity).or_else(|| links.iter().find(is_marked))
}

/// Who of these links has a name.
pub(crate) fn named<'l>(links: &'l [NicLink], name: &str) -> Option<&'l NicLink> {
    links.iter().find(|link| link.names().any(|own| own == name))
}

fn mac(value: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(value).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::remove_names;
    use netlink_packet_core::{DefaultNla, Emitable};
    use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, Prop};
    use proptest::prelude::*;

    fn bytes(attributes: Vec<LinkAttribute>) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.attributes = attributes;
        message.attributes.push(LinkAttribute::IfName("ens5".into()));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn nic(attributes: Vec<LinkAttribute>) -> NicLink {
        NicLink::parse(&bytes(attributes)).unwrap()
    }

    const PERMANENT: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    fn hardware(mac: [u8; 6], parent: &str) -> LinkIdentity {
        LinkIdentity::Hardware { mac: mac.try_into().unwrap(), parent: parent.into() }
    }

    #[test]
    fn a_nic_is_known_by_permanent_address_and_device_whatever_it_is_called() {
        let permanent = || LinkAttribute::PermAddress(PERMANENT.to_vec());
        let parent = || LinkAttribute::ParentDevName("virtio1".into());
        let address = LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]);
        let ours = hardware(PERMANENT, "virtio1");
        assert!(nic(vec![permanent(), parent(), address]).is(&ours));
        assert!(nic(vec![parent()]).is(&ours) && nic(vec![permanent()]).is(&ours), "an older kernel");
        assert!(!nic(vec![]).is(&ours));
        assert!(!nic(vec![permanent(), parent()]).is(&hardware(PERMANENT, "virtio2")));
        assert!(!nic(vec![permanent(), parent()]).is(&hardware([2, 0, 0, 0, 0, 9], "virtio1")));
    }

    #[test]
    fn a_nic_whose_permanent_address_follows_the_one_that_was_set_is_known_by_device_and_alias() {
        let changed = |parent: &str, alias: &str| {
            nic(vec![
                LinkAttribute::PermAddress(vec![2, 0, 0, 0, 0, 9]),
                LinkAttribute::ParentDevName(parent.into()),
                LinkAttribute::IfAlias(alias.into()),
            ])
        };
        let ours =
            nic(vec![]).as_nic("0000:00:0a.0".parse().unwrap(), hardware(PERMANENT, "virtio1")).unwrap();
        assert!(recorded(&[changed("virtio1", "ens5")], &ours).is_some());
        assert!(recorded(&[changed("virtio1", "other")], &ours).is_none(), "another NIC in its place");
        assert!(recorded(&[changed("virtio2", "ens5")], &ours).is_none());
    }

    #[test]
    fn a_link_that_a_pod_made_on_the_nic_is_not_taken_for_the_nic() {
        let permanent = || LinkAttribute::PermAddress(PERMANENT.to_vec());
        let parent = || LinkAttribute::ParentDevName("virtio1".into());
        let named = |name: &str| LinkAttribute::IfAlias(name.into());
        let made = |kind: InfoKind| {
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
            nic(vec![permanent(), named("made"), info])
        };
        let ours = hardware(PERMANENT, "virtio1");
        for kind in [InfoKind::IpVlan, InfoKind::MacVlan, InfoKind::MacVtap] {
            // The kernel lists by index, and the pod chose one below the NIC's.
            for nic in [nic(vec![permanent(), parent(), named("nic")]), nic(vec![permanent(), named("nic")])]
            {
                let links = [made(kind.clone()), nic];
                assert_eq!(known(&links, &ours).unwrap().alias.as_deref(), Some("nic"), "{kind:?}");
            }
            assert_eq!(known(&[made(kind)], &ours), None);
        }
        // Of no kind that we know, but without a device where others have one.
        let links = [nic(vec![permanent()]), nic(vec![LinkAttribute::ParentDevName("virtio2".into())])];
        assert_eq!(known(&links, &ours), None);
    }

    #[test]
    fn another_address_behind_the_same_device_is_another_nic_in_its_place() {
        let permanent = || LinkAttribute::PermAddress(PERMANENT.to_vec());
        let parent = || LinkAttribute::ParentDevName("virtio1".into());
        let plugged = nic(vec![permanent(), parent()]);
        assert!(plugged.displaces(&hardware([2, 0, 0, 0, 0, 9], "virtio1")));
        assert!(!plugged.displaces(&hardware([2, 0, 0, 0, 0, 9], "virtio2")));
        assert!(!plugged.displaces(&hardware(PERMANENT, "virtio1")));
        assert!(!nic(vec![parent()]).displaces(&hardware(PERMANENT, "virtio1")), "its identity is unknown");
    }

    #[test]
    fn a_link_made_by_software_is_known_by_its_kind_and_by_the_name_it_left_the_node_with() {
        let named = |kind: &str, name: &str| LinkIdentity::Name { kind: kind.into(), name: name.into() };
        let moved = nic(vec![LinkAttribute::IfAlias("dp0".into())]);
        assert!(moved.is(&named("", "dp0")) && !moved.is(&named("veth", "dp0")));
        assert!(!moved.is(&named("", "ens5")), "another one took that name");
        assert!(nic(vec![]).is_still(&named("", "ens5")) && !nic(vec![]).is(&named("", "ens5")));
        assert!(!nic(vec![]).is_still(&named("veth", "ens5")));
    }

    #[test]
    fn all_names_and_limits_are_read() {
        let names = vec![Prop::AltIfName("enp0s5".into()), Prop::AltIfName("lan".into())];
        let nic = nic(vec![
            LinkAttribute::PropList(names),
            LinkAttribute::Controller(7),
            LinkAttribute::MaxMtu(9000),
            LinkAttribute::LinkNetNsId(0),
        ]);
        assert_eq!(nic.other_names_but(|name| name == "lan"), [b"enp0s5"]);
        assert_eq!(nic.names().collect::<Vec<_>>(), ["ens5", "enp0s5", "lan"]);
        assert_eq!((nic.master, nic.max_mtu, nic.lower_elsewhere), (Some(7), Some(9000), true));
        assert_eq!(named(std::slice::from_ref(&nic), "lan"), Some(&nic));
    }

    #[test]
    fn a_nic_is_only_given_away_under_a_name_that_can_be_given_back() {
        let pci = "0000:00:0a.0".parse().unwrap();
        let named = |name: &[u8; 4]| {
            let mut bytes = bytes(vec![LinkAttribute::PermAddress(PERMANENT.to_vec())]);
            let at = bytes.windows(4).position(|part| part == b"ens5").unwrap();
            bytes[at..at + 4].copy_from_slice(name);
            NicLink::parse(&bytes).unwrap().as_nic(pci, hardware(PERMANENT, "virtio1"))
        };
        assert_eq!(named(b"lan7").unwrap().name, "lan7");
        assert!(named(b"n\xff\xfe1").is_err() && named(b"n\x01\x021").is_err());
    }

    #[test]
    fn what_is_built_on_a_nic_is_told_from_the_other_end_of_a_cable() {
        let on = |kind: InfoKind, more: Option<LinkAttribute>| {
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
            nic([LinkAttribute::Link(7), info].into_iter().chain(more).collect())
        };
        assert!(on(InfoKind::Vlan, None).is_on(7) && on(InfoKind::IpVlan, None).is_on(7));
        assert!(!on(InfoKind::Vlan, None).is_on(8) && !on(InfoKind::Veth, None).is_on(7));
        assert!(!on(InfoKind::MacVtap, Some(LinkAttribute::LinkNetNsId(0))).is_on(7));
    }

    #[test]
    fn other_names_that_are_no_text_can_be_taken_away() {
        let odd = |name: &[u8]| Prop::Other(DefaultNla::new(attribute::ALT_IFNAME, name.to_vec()));
        let nic = nic(vec![LinkAttribute::PropList(vec![Prop::AltIfName("lan".into()), odd(b"\xff\x01\0")])]);
        let names = nic.other_names_but(|name| name == "lan");
        assert_eq!(names, [b"\xff\x01"]);
        let removed = remove_names(7, &names).attributes;
        assert_eq!(removed, [LinkAttribute::PropList(vec![odd(b"\xff\x01\0")])]);
    }

    proptest! {
        #[test]
        fn no_payload_makes_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = NicLink::parse(&noise);
        }

        #[test]
        fn a_damaged_answer_never_makes_the_reader_panic(at in 0..120_usize, value: u8, cut in 0..120_usize) {
            let names = vec![Prop::AltIfName("enp0s5".into())];
            let mut bytes = bytes(vec![LinkAttribute::PropList(names), LinkAttribute::PermAddress(PERMANENT.to_vec())]);
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            let _ = NicLink::parse(&bytes);
        }
    }
}
