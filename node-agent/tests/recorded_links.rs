//! Links of a kernel that has them all, as it described them: what each is, and what can be made on it.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

use macvtap_crds::v1alpha1::LinkKind;
use macvtap_node_agent::links::inventory::Inventory;
use macvtap_node_agent::links::link::{Kind, Link, Master};
use macvtap_node_agent::pools::selection;
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use std::collections::BTreeMap;

/// Made as `data/README.md` says.
const RECORDED: &str = include_str!("data/links-6.1.txt");

fn messages() -> BTreeMap<String, LinkMessage> {
    let byte = |digits: &str, at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let lines = RECORDED.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, digits) = line.split_once(' ').unwrap();
            let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(|at| byte(digits, at)).collect();
            (name.to_owned(), LinkMessage::parse(&bytes).unwrap())
        })
        .collect()
}

fn inventory(messages: &BTreeMap<String, LinkMessage>) -> Inventory {
    let mut inventory = Inventory::default();
    let _ = inventory.reset(messages.values().map(|message| Link::parse(message).unwrap()));
    inventory
}

fn link<'i>(inventory: &'i Inventory, name: &str) -> &'i Link {
    inventory.iter().find(|link| link.name == name).unwrap()
}

/// Why no macvtap can be made on a link: the reason and what a person is told.
fn shared(inventory: &Inventory, name: &str) -> Option<String> {
    let refusal = selection::obstacle(inventory, link(inventory, name))?;
    Some(format!("{}: {}", refusal.reason, refusal.message))
}

/// Why a link cannot be given away as a whole, though macvtaps could be made on it.
fn whole(inventory: &Inventory, name: &str) -> Option<String> {
    let refusal = selection::tie(inventory, link(inventory, name))?;
    Some(format!("{}: {}", refusal.reason, refusal.message))
}

#[test]
fn every_recorded_link_is_read_under_its_name() {
    for (name, message) in messages() {
        assert_eq!(Link::parse(&message).unwrap().name, name);
    }
}

#[test]
fn each_link_is_of_the_kind_it_was_made_as() {
    let inventory = inventory(&messages());
    for (name, kind, api) in [
        ("lo", Kind::Loopback, LinkKind::Other),
        ("eth0", Kind::Physical, LinkKind::Physical),
        ("eth3", Kind::Physical, LinkKind::Physical),
        ("bond0", Kind::Bond, LinkKind::Bond),
        ("bond0.100", Kind::Vlan, LinkKind::Vlan),
        ("br0", Kind::Bridge, LinkKind::Bridge),
        ("team0", Kind::Team, LinkKind::Team),
        ("dum0", Kind::Dummy, LinkKind::Dummy),
        ("veth0", Kind::Veth, LinkKind::Veth),
        ("ipvl0", Kind::Other("ipvlan".into()), LinkKind::Other),
        ("vrf0", Kind::Other("vrf".into()), LinkKind::Other),
        ("tap0", Kind::Macvtap, LinkKind::Other),
        ("teql0", Kind::NotEthernet(String::new()), LinkKind::Other),
    ] {
        assert_eq!((&link(&inventory, name).kind, link(&inventory, name).kind.api()), (&kind, api), "{name}");
    }
}

#[test]
fn a_virtio_nic_names_its_device_and_its_other_names_and_what_it_can() {
    let inventory = inventory(&messages());
    let nic = link(&inventory, "eth3");
    assert_eq!(nic.hardware.parent.as_deref(), Some("virtio4"));
    assert_eq!(nic.altnames, ["enp65s0"]);
    assert_eq!(nic.mac.unwrap().to_string(), "52:54:00:00:00:03");
    assert_eq!((nic.mtu, nic.admin_up, nic.carrier), (1500, true, true));
    assert_eq!((shared(&inventory, "eth3"), whole(&inventory, "eth3")), (None, None));
}

#[test]
fn members_of_a_bond_have_its_address_and_keep_their_own() {
    let inventory = inventory(&messages());
    let bond = link(&inventory, "bond0");
    for (name, own) in [("eth0", "52:54:00:00:00:00"), ("eth1", "52:54:00:00:00:01")] {
        let member = link(&inventory, name);
        assert_eq!(member.master, Some(Master { ifindex: bond.ifindex, kind: "bond".into() }), "{name}");
        assert_eq!(member.mac, bond.mac, "{name}");
        assert_eq!(member.own_mac().unwrap().to_string(), own);
    }
    let vlan = link(&inventory, "bond0.100");
    assert_eq!((vlan.lower, vlan.master.as_ref()), (Some(bond.ifindex), None));
}

#[test]
fn each_link_that_carries_no_macvtap_says_why() {
    let inventory = inventory(&messages());
    for (name, reason) in [
        ("lo", "KindNotSupported: no macvtap can be made on the loopback link"),
        ("eth0", "EnslavedTo: eth0 is a port of bond0; use bond0"),
        ("eth1", "EnslavedTo: eth1 is a port of bond0; use bond0"),
        ("eth2", "EnslavedTo: eth2 is a port of br0; use br0"),
        ("dum0", "EnslavedTo: dum0 is a port of team0; use team0"),
        ("dum1", "HasUpper: ipvlan ipvl0 takes what dum1 receives; remove ipvl0"),
        ("dum3", "PassthruInUse: pass0 has dum3 in passthru mode; remove pass0"),
        ("ipvl0", "KindNotSupported: no macvtap can be made on ipvlan ipvl0"),
        ("vrf0", "KindNotSupported: no macvtap can be made on vrf vrf0"),
        ("tap0", "KindNotSupported: tap0 is itself a macvtap; use the link below it"),
        ("teql0", "KindNotSupported: teql0 (no kind) is not an Ethernet link"),
    ] {
        assert_eq!(shared(&inventory, name).as_deref(), Some(reason), "{name}");
    }
    for name in ["bond0", "bond0.100", "br0", "team0", "dum2", "veth0", "eth3"] {
        assert_eq!(shared(&inventory, name), None, "{name}");
    }
}

#[test]
fn links_that_carry_others_cannot_be_given_away() {
    let inventory = inventory(&messages());
    assert_eq!(whole(&inventory, "bond0").as_deref(), Some("HasUpper: bond0.100 is built on bond0"));
    assert_eq!(whole(&inventory, "dum2").as_deref(), Some("HasUpper: tap0 is built on dum2"));
    // The other end of a cable is not built on this one.
    assert_eq!(whole(&inventory, "veth0"), None);
}

/// Made by hand from a NIC's message: no emulated machine has such a link. The driver names no rtnetlink kind, and its
/// device is a Thunderbolt service.
#[test]
fn a_thunderbolt_network_is_a_nic_without_a_pci_function() {
    let mut messages = messages();
    let mut message = messages.remove("eth3").unwrap();
    for attribute in &mut message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            *name = "thunderbolt0".into();
        }
        if let LinkAttribute::ParentDevName(name) = attribute {
            *name = "0-1.0".into();
        }
    }
    messages.insert("thunderbolt0".into(), message);
    let inventory = inventory(&messages);
    let nic = link(&inventory, "thunderbolt0");
    assert_eq!((&nic.kind, nic.hardware.pci_address.as_deref()), (&Kind::Physical, None));
    assert_eq!(nic.hardware.parent.as_deref(), Some("0-1.0"));
    assert_eq!(shared(&inventory, "thunderbolt0"), None);
}
