use super::*;
use netlink_packet_core::Parseable;

/// `RTM_NEWLINK` payloads without statistics, written as the kernel lays them out.
struct Recorded(Vec<u8>);

impl Recorded {
    fn new(layer: u16, index: u32, flags: u32) -> Self {
        let mut bytes = vec![0, 0];
        bytes.extend(layer.to_ne_bytes());
        bytes.extend(index.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        Self(bytes)
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(attribute(kind, value));
        self
    }

    fn named(self, name: &str) -> Self {
        self.with(3, &c_string(name))
    }

    fn kind(self, kind: &str) -> Self {
        self.with(18, &attribute(1, &c_string(kind)))
    }

    fn parse(&self) -> Result<Link, LinkError> {
        Link::parse(&LinkMessage::parse(&self.0).unwrap())
    }

    fn link(&self) -> Link {
        self.parse().unwrap()
    }
}

const ETHER: u16 = 1;
const LOOPBACK: u16 = 772;
const VOID: u16 = 0xffff;
const UP: u32 = 0x1 | 0x40 | 0x1_0000;
const MAC: [u8; 6] = [2, 0xfc, 0, 0, 0, 1];

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

#[test]
fn a_nic_is_physical_by_its_device() {
    let link = Recorded::new(ETHER, 4, UP)
        .named("eth0")
        .with(1, &MAC)
        .with(4, &1400_u32.to_ne_bytes())
        .with(56, &c_string("virtio2"))
        .with(57, &c_string("virtio"))
        .link();
    assert_eq!((link.ifindex, link.name.as_str(), link.mtu), (4, "eth0", 1400));
    assert_eq!((link.kind, link.admin_up, link.carrier), (Kind::Physical, true, true));
    assert_eq!(link.hardware.parent.as_deref(), Some("virtio2"));
    assert_eq!(link.mac.unwrap().octets(), MAC);
}

#[test]
fn kindless_links_without_a_nic_are_not_physical() {
    let teql = Recorded::new(VOID, 5, 0x80).named("teql0").link();
    assert_eq!(teql.kind, Kind::NotEthernet(String::new()));
    let lo = Recorded::new(LOOPBACK, 1, UP | 0x8).named("lo").link();
    assert_eq!(lo.kind, Kind::Loopback);
    let unknown = Recorded::new(ETHER, 6, UP).named("odd0").link();
    assert_eq!(unknown.kind, Kind::Other(String::new()));
    // A network over Thunderbolt is Ethernet on a device: a NIC, to be excluded by name or driver where unwanted.
    let thunderbolt = Recorded::new(ETHER, 7, UP).named("thunderbolt0").with(56, &c_string("0-1.0")).link();
    assert_eq!(thunderbolt.kind, Kind::Physical);
    let tun = Recorded::new(0xfffe, 8, UP).named("tun0").kind("tun").link();
    assert_eq!(tun.kind, Kind::NotEthernet("tun".into()));
}

#[test]
fn kinds_made_by_software_go_by_rtnetlinks_word() {
    for (word, kind) in [
        ("bond", Kind::Bond),
        ("vlan", Kind::Vlan),
        ("veth", Kind::Veth),
        ("bridge", Kind::Bridge),
        ("dummy", Kind::Dummy),
        ("macvtap", Kind::Macvtap),
        ("vxlan", Kind::Other("vxlan".into())),
    ] {
        let link = Recorded::new(ETHER, 9, UP).named("x0").kind(word).link();
        assert_eq!(link.kind, kind);
        assert_eq!(link.kind.rtnetlink(), word);
    }
}

#[test]
fn a_bond_member_keeps_its_own_address_and_names_its_bond() {
    let info = [attribute(4, &c_string("bond"))].concat();
    let member = Recorded::new(ETHER, 3, UP | 0x800)
        .named("ens1")
        .with(1, &[2, 0, 0, 0, 0, 9])
        .with(54, &MAC)
        .with(10, &7_u32.to_ne_bytes())
        .with(56, &c_string("0000:01:00.0"))
        .with(18, &info)
        .link();
    assert_eq!(member.own_mac().unwrap().octets(), MAC);
    assert_eq!(member.master, Some(Master { ifindex: 7, kind: "bond".into() }));
    assert_eq!(member.kind, Kind::Physical);
}

#[test]
fn a_lower_link_in_another_namespace_is_none_of_ours() {
    let vlan = Recorded::new(ETHER, 3, UP).named("v").kind("vlan").with(5, &4_u32.to_ne_bytes());
    assert_eq!(vlan.link().lower, Some(4));
    assert_eq!(vlan.with(37, &0_u32.to_ne_bytes()).link().lower, None);
}

#[test]
fn altnames_and_passthru_are_read() {
    let props = attribute(53, &c_string("enp1s0"));
    let link = Recorded::new(ETHER, 3, UP).named("a").with(0x8034, &props).link();
    assert_eq!(link.names().collect::<Vec<_>>(), ["a", "enp1s0"]);
    let data = attribute(1, &8_u32.to_ne_bytes());
    let info = [attribute(1, &c_string("macvtap")), attribute(2, &data)].concat();
    assert!(Recorded::new(ETHER, 3, UP).named("p").with(18, &info).link().passthru);
}

#[test]
fn a_message_that_describes_no_link_is_refused() {
    assert_eq!(Recorded::new(ETHER, 0, UP).named("a").parse(), Err(LinkError::Index));
    assert_eq!(Recorded::new(ETHER, u32::MAX, UP).named("a").parse(), Err(LinkError::Index));
    assert!(matches!(Recorded::new(ETHER, 1, UP).parse(), Err(LinkError::Name { .. })));
    assert!(matches!(
        Recorded::new(ETHER, 1, UP).named(&"a".repeat(16)).parse(),
        Err(LinkError::Name { .. })
    ));
}

#[test]
fn a_device_that_only_sysfs_knows_makes_a_nic() {
    let mut link = Recorded::new(ETHER, 4, UP).named("eth0").link();
    link.set_hardware(Hardware { parent: Some("virtio0".into()), ..Hardware::default() });
    assert_eq!(link.kind, Kind::Physical);
    let mut vlan = Recorded::new(ETHER, 4, UP).named("v").kind("vlan").link();
    vlan.set_hardware(Hardware { parent: Some("virtio0".into()), ..Hardware::default() });
    assert_eq!(vlan.kind, Kind::Vlan);
}
