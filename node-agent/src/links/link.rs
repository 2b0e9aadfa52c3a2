//! One network link as the kernel describes it: a pure reading of `RTM_NEWLINK`.
//!
//! Knows nothing of other links; what follows from their relations is in [`crate::links::inventory`].

use macvtap::mac::MacAddr;
use macvtap::pci::PciAddress;
use macvtap_crds::v1alpha1::LinkKind;
use netlink_packet_core::{NlasIterator, ParseableParametrized};
use netlink_packet_route::link::{
    InfoData, InfoMacVlan, InfoMacVtap, InfoVlan, LinkAttribute, LinkFlags, LinkHeader, LinkInfo,
    LinkLayerType, LinkMessage, MacVlanMode, Prop, VlanFlags,
};

/// The longest link name the kernel gives, in bytes.
pub const NAME_MAX: usize = 15;

/// Length of `struct ifinfomsg` of `linux/rtnetlink.h`.
const HEADER_LEN: usize = 16;

/// A link of the node's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index: what it is known by within a boot.
    pub ifindex: u32,
    /// Its name now.
    pub name: String,
    /// Its other names, in the kernel's order.
    pub altnames: Vec<String>,
    /// What it is.
    pub kind: Kind,
    /// Its address, if it is an Ethernet one.
    pub mac: Option<MacAddr>,
    /// The address it was made with, where the kernel reports it: a bond gives its members its own.
    pub permanent_mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether somebody switched it on (`IFF_UP`).
    pub admin_up: bool,
    /// Whether it is on and has a partner (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// The link it is a part of, and how.
    pub master: Option<Master>,
    /// The link below it, if that is in the same namespace.
    pub lower: Option<u32>,
    /// Whether it is a macvlan or macvtap in passthru mode.
    pub passthru: bool,
    /// Whether a VLAN takes its tag out of frames.
    pub tag: Tag,
    /// The name of the port of a switch in hardware that it is (`phys_port_name`).
    pub port: Option<String>,
    /// The device behind it.
    pub hardware: Hardware,
}

/// Where a VLAN leaves its tag (`reorder_hdr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// It is taken out of frames, as VLANs do by default; also said of links that are not VLANs.
    Removed,
    /// It stays in frames.
    LeftInPlace,
}

/// Membership of a link in another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// The other link.
    pub ifindex: u32,
    /// rtnetlink's name for the kind of membership (`bond`, `bridge`, `vrf`, ...); empty when it reports none.
    pub kind: String,
}

/// What is known of the device behind a link. rtnetlink reports parent and bus only, sysfs the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Kernel name of the device, for example `virtio1` or `0000:3b:00.0`.
    pub parent: Option<String>,
    /// Driver of the device.
    pub driver: Option<String>,
    /// Address of the PCI function, of any depth above the device.
    pub pci_address: Option<String>,
    /// Vendor of the PCI function: four hexadecimal digits, as `8086`.
    pub vendor: Option<String>,
    /// Memory node of the device.
    pub numa_node: Option<u32>,
    /// Whether it is a virtual function of a NIC (SR-IOV).
    pub is_virtual_function: bool,
    /// The last known speed in Mbit/s.
    pub speed_mbps: Option<u32>,
}

impl Hardware {
    /// Fills every attribute that is unknown here with the one that is known there.
    #[must_use]
    pub fn or(self, known: &Self) -> Self {
        Self {
            parent: self.parent.or_else(|| known.parent.clone()),
            driver: self.driver.or_else(|| known.driver.clone()),
            pci_address: self.pci_address.or_else(|| known.pci_address.clone()),
            vendor: self.vendor.or_else(|| known.vendor.clone()),
            numa_node: self.numa_node.or(known.numa_node),
            is_virtual_function: self.is_virtual_function || known.is_virtual_function,
            speed_mbps: self.speed_mbps.or(known.speed_mbps),
        }
    }
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Ethernet with a device behind it and no rtnetlink kind.
    Physical,
    /// Several links as one.
    Bond,
    /// A tagged network on another link.
    Vlan,
    /// One end of a pair.
    Veth,
    /// A link without anything behind it.
    Dummy,
    /// A bridge.
    Bridge,
    /// Several links as one, the older driver.
    Team,
    /// A child of another link with a MAC address of its own.
    Macvlan,
    /// A macvlan with a tap.
    Macvtap,
    /// The loopback link.
    Loopback,
    /// Another Ethernet link, by rtnetlink's kind; empty for one without kind and device.
    Other(String),
    /// Not Ethernet, by rtnetlink's kind: nothing of ours can be made on it.
    NotEthernet(String),
}

/// A message that does not describe a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No index.
    #[error("link message without an interface index")]
    Index,
    /// No name, or one that no link can have.
    #[error("link {ifindex} has name {name:?}; the kernel allows 1 to {NAME_MAX} bytes")]
    Name {
        /// Its index.
        ifindex: u32,
        /// What stood in the message.
        name: String,
    },
}

/// Reads the payload of a message, without those of its attributes that cannot be read.
pub(super) fn read_message(payload: &[u8]) -> Result<LinkMessage, LinkError> {
    let mut message = LinkMessage::default();
    message.header = LinkHeader::parse(payload).map_err(|_| LinkError::Index)?;
    let family = message.header.interface_family;
    let attributes = NlasIterator::new(payload.get(HEADER_LEN..).unwrap_or_default()).flatten();
    let attributes =
        attributes.filter_map(|attribute| LinkAttribute::parse_with_param(&attribute, family).ok());
    message.attributes.extend(attributes);
    Ok(message)
}

impl Link {
    /// Reads the payload of a message, without what of it cannot be read: the kernel takes any bytes for an alias or
    /// another name, and a link with such is a link all the same.
    pub fn read(payload: &[u8]) -> Result<Self, LinkError> {
        Self::parse(&read_message(payload)?)
    }

    /// Reads a message of a dump or an event.
    pub fn parse(message: &LinkMessage) -> Result<Self, LinkError> {
        let ifindex = Some(message.header.index).filter(|index| *index > 0 && i32::try_from(*index).is_ok());
        let mut link = Self::blank(ifindex.ok_or(LinkError::Index)?);
        let flags = message.header.flags;
        link.admin_up = flags.contains(LinkFlags::Up);
        link.carrier = flags.contains(LinkFlags::LowerUp);
        let mut parts = Parts::default();
        for attribute in &message.attributes {
            link.take(attribute, &mut parts);
        }
        if link.name.is_empty() || link.name.len() > NAME_MAX {
            return Err(LinkError::Name { ifindex: link.ifindex, name: link.name });
        }
        link.lower = parts.lower.filter(|_| !parts.lower_is_elsewhere);
        link.master = parts.master.map(|ifindex| Master { ifindex, kind: parts.port_kind });
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        link.kind = if flags.contains(LinkFlags::Loopback) {
            Kind::Loopback
        } else {
            Kind::of(&parts.kind, ethernet, link.hardware.parent.is_some())
        };
        Ok(link)
    }

    /// The address that stays when the link becomes part of another one.
    pub fn own_mac(&self) -> Option<MacAddr> {
        self.permanent_mac.or(self.mac)
    }

    /// The PCI function that this NIC is: none if its device is one of several behind a function, or behind a bus of its
    /// own there (USB).
    pub fn pci_function(&self) -> Option<PciAddress> {
        let Hardware { parent, pci_address, .. } = &self.hardware;
        let (parent, address) = (parent.as_deref()?, pci_address.as_deref()?);
        let is_function = parent == address || parent.starts_with("virtio");
        address.parse().ok().filter(|_| is_function && self.kind == Kind::Physical)
    }

    /// Whether it stands for the other side of a port of a switch in hardware (a representor): what is sent on it goes
    /// to a function of the NIC, not to the network. Such ports are called `pf0vf3`, `pf0sf1`, `c1pf0`; those of the
    /// network `p0`.
    pub fn is_representor(&self) -> bool {
        let port = self.port.as_deref().unwrap_or_default();
        let of_controller =
            port.strip_prefix('c').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        of_controller
            .unwrap_or(port)
            .strip_prefix("pf")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// All its names, the primary one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.altnames.iter().map(String::as_str))
    }

    /// Takes what sysfs reported about the device. A device that only sysfs knows (kernels before 5.14) makes a link
    /// without rtnetlink kind a physical one as well.
    pub fn set_hardware(&mut self, hardware: Hardware) {
        if self.kind == Kind::Other(String::new()) && hardware.parent.is_some() {
            self.kind = Kind::Physical;
        }
        self.hardware = hardware;
    }

    /// A link of which only the index is known.
    pub fn blank(ifindex: u32) -> Self {
        Self {
            ifindex,
            name: String::new(),
            altnames: Vec::new(),
            kind: Kind::Loopback,
            mac: None,
            permanent_mac: None,
            mtu: 0,
            admin_up: false,
            carrier: false,
            master: None,
            lower: None,
            passthru: false,
            tag: Tag::Removed,
            port: None,
            hardware: Hardware::default(),
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kernel reports far more than the agent needs, and more with every release"
    )]
    fn take(&mut self, attribute: &LinkAttribute, parts: &mut Parts) {
        match attribute {
            LinkAttribute::IfName(name) => self.name.clone_from(name),
            LinkAttribute::Address(bytes) => self.mac = ethernet_address(bytes),
            LinkAttribute::PermAddress(bytes) => self.permanent_mac = ethernet_address(bytes),
            LinkAttribute::Mtu(mtu) => self.mtu = *mtu,
            LinkAttribute::Link(0) | LinkAttribute::Controller(0) => {}
            LinkAttribute::Link(ifindex) => parts.lower = Some(*ifindex),
            LinkAttribute::LinkNetNsId(_) => parts.lower_is_elsewhere = true,
            LinkAttribute::Controller(ifindex) => parts.master = Some(*ifindex),
            LinkAttribute::PhysPortName(port) => self.port = Some(port.clone()),
            LinkAttribute::ParentDevName(name) => self.hardware.parent = Some(name.clone()),
            LinkAttribute::PropList(props) => {
                self.altnames.extend(props.iter().filter_map(|prop| match prop {
                    Prop::AltIfName(name) => Some(name.clone()),
                    _ => None,
                }));
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    self.take_info(info, parts);
                }
            }
            _ => {}
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "as above")]
    fn take_info(&mut self, info: &LinkInfo, parts: &mut Parts) {
        match info {
            LinkInfo::Kind(kind) => parts.kind = kind.to_string(),
            LinkInfo::PortKind(kind) => parts.port_kind = kind.to_string(),
            LinkInfo::Data(InfoData::Vlan(data)) => {
                let is_left = |info: &InfoVlan| matches!(info, InfoVlan::Flags((flags, _)) if !flags.contains(VlanFlags::ReorderHdr));
                self.tag = if data.iter().any(is_left) { Tag::LeftInPlace } else { Tag::Removed };
            }
            LinkInfo::Data(InfoData::MacVlan(data)) => {
                self.passthru = data.contains(&InfoMacVlan::Mode(MacVlanMode::Passthrough));
            }
            LinkInfo::Data(InfoData::MacVtap(data)) => {
                self.passthru = data.contains(&InfoMacVtap::Mode(MacVlanMode::Passthrough));
            }
            _ => {}
        }
    }
}

impl Kind {
    fn of(kind: &str, ethernet: bool, has_device: bool) -> Self {
        match kind {
            _ if !ethernet => Self::NotEthernet(kind.to_owned()),
            // Without a device it is not a NIC.
            "" if has_device => Self::Physical,
            "bond" => Self::Bond,
            "vlan" => Self::Vlan,
            "veth" => Self::Veth,
            "dummy" => Self::Dummy,
            "bridge" => Self::Bridge,
            "team" => Self::Team,
            "macvlan" => Self::Macvlan,
            "macvtap" => Self::Macvtap,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The kind as the API knows it.
    pub fn api(&self) -> LinkKind {
        match self {
            Self::Physical => LinkKind::Physical,
            Self::Bond => LinkKind::Bond,
            Self::Vlan => LinkKind::Vlan,
            Self::Veth => LinkKind::Veth,
            Self::Dummy => LinkKind::Dummy,
            Self::Bridge => LinkKind::Bridge,
            Self::Team => LinkKind::Team,
            Self::Macvlan | Self::Macvtap | Self::Loopback | Self::Other(_) | Self::NotEthernet(_) => {
                LinkKind::Other
            }
        }
    }

    /// rtnetlink's name of the kind; empty for a link that has none.
    pub fn rtnetlink(&self) -> &str {
        match self {
            Self::Physical | Self::Loopback => "",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Veth => "veth",
            Self::Dummy => "dummy",
            Self::Bridge => "bridge",
            Self::Team => "team",
            Self::Macvlan => "macvlan",
            Self::Macvtap => "macvtap",
            Self::Other(kind) | Self::NotEthernet(kind) => kind,
        }
    }
}

/// What several attributes of one message mean together.
#[derive(Default)]
struct Parts {
    kind: String,
    port_kind: String,
    lower: Option<u32>,
    lower_is_elsewhere: bool,
    master: Option<u32>,
}

/// A unicast Ethernet address; InfiniBand's and tunnels' addresses are of other lengths.
fn ethernet_address(bytes: &[u8]) -> Option<MacAddr> {
    let octets = <[u8; 6]>::try_from(bytes).ok()?;
    MacAddr::try_from(octets).ok()
}

#[cfg(test)]
mod tests;
