use super::*;
use crate::links::link::{Hardware, Master};
use macvtap::table::IFINDEX_FIRST;
use proptest::prelude::*;

/// A link as tests need it.
pub(crate) fn link(ifindex: u32, name: &str, kind: Kind) -> Link {
    let physical = kind == Kind::Physical;
    Link {
        name: name.to_owned(),
        kind,
        mtu: 1500,
        admin_up: true,
        carrier: true,
        hardware: Hardware { parent: physical.then(|| format!("virtio{ifindex}")), ..Hardware::default() },
        ..Link::blank(ifindex)
    }
}

/// A NIC on virtio at this slot of the first bus, with an address of its own.
pub(crate) fn nic(ifindex: u32, name: &str, slot: u8) -> Link {
    let mut nic = link(ifindex, name, Kind::Physical);
    nic.permanent_mac = Some([2, 0, 0, 0, 0, slot].try_into().unwrap());
    nic.hardware.parent = Some(format!("virtio{slot}"));
    nic.hardware.pci_address = Some(format!("0000:00:{slot:02x}.0"));
    nic
}

fn inventory(links: Vec<Link>) -> Inventory {
    let mut inventory = Inventory::default();
    let _ = inventory.reset(links);
    inventory
}

fn obstacle_of(links: Vec<Link>, ifindex: u32) -> Option<Obstacle> {
    let inventory = inventory(links);
    inventory.obstacle(inventory.get(ifindex).unwrap())
}

#[test]
fn a_port_cannot_be_used_but_a_link_in_a_vrf_can() {
    let port = |kind: &str| {
        let mut port = link(1, "a", Kind::Physical);
        port.master = Some(Master { ifindex: 2, kind: kind.into() });
        obstacle_of(vec![port, link(2, "up", Kind::Other(kind.into()))], 1)
    };
    for kind in ["bond", "bridge", "team", "openvswitch", ""] {
        assert_eq!(port(kind), Some(Obstacle::EnslavedTo("up".into())), "{kind}");
    }
    assert_eq!(port("vrf"), None);
}

#[test]
fn a_representor_carries_no_macvtap_and_the_port_of_the_network_does() {
    let port = |name: &str| {
        let mut port = link(1, "a", Kind::Physical);
        port.port = Some(name.to_owned());
        obstacle_of(vec![port], 1)
    };
    for representor in ["pf0vf3", "pf1sf12", "pf0", "c1pf0vf0", "c2pf1"] {
        assert_eq!(port(representor), Some(Obstacle::Representor), "{representor}");
    }
    for uplink in ["p0", "p3s1", "1", "", "c1"] {
        assert_eq!(port(uplink), None, "{uplink}");
    }
}

#[test]
fn an_ipvlan_or_vrf_carries_no_macvtap() {
    let others = ["ipvlan", "ipvtap", "vrf"].map(|kind| Kind::Other(kind.into()));
    // On these the kernel uses the link below instead.
    for kind in others.into_iter().chain([Kind::Macvlan, Kind::Macvtap]) {
        assert_eq!(obstacle_of(vec![link(1, "a", kind.clone())], 1), Some(Obstacle::Kind(kind)));
    }
    assert_eq!(obstacle_of(vec![link(1, "a", Kind::Other("vxlan".into()))], 1), None);
}

#[test]
fn children_that_take_the_whole_link_are_named() {
    let child = |kind: Kind, passthru| {
        let mut child = link(2, "child", kind);
        (child.lower, child.passthru) = (Some(1), passthru);
        obstacle_of(vec![link(1, "a", Kind::Physical), child], 1)
    };
    assert_eq!(child(Kind::Macvlan, true), Some(Obstacle::Passthru("child".into())));
    assert_eq!(child(Kind::Macvtap, true), Some(Obstacle::Passthru("child".into())));
    assert_eq!(child(Kind::Other("ipvlan".into()), false), Some(Obstacle::IpvlanParent("child".into())));
    assert_eq!(child(Kind::Macvlan, false), None);
    assert_eq!(child(Kind::Vlan, false), None);
}

#[test]
fn a_device_of_ours_that_has_the_whole_link_does_not_take_it_from_its_own_pool() {
    let mut tap = link(IFINDEX_FIRST + 1, "mvt01000001", Kind::Macvtap);
    (tap.lower, tap.passthru) = (Some(1), true);
    assert_eq!(obstacle_of(vec![link(1, "a", Kind::Physical), tap], 1), None);
}

#[test]
fn a_stranger_whose_index_is_in_our_range_is_a_stranger() {
    let upper = |name: &str, kind, passthru| {
        let mut upper = link(IFINDEX_FIRST + 1, name, kind);
        (upper.lower, upper.passthru) = (Some(1), passthru);
        inventory(vec![link(1, "a", Kind::Physical), upper])
    };
    let a = link(1, "a", Kind::Physical);
    assert_eq!(upper("a.5", Kind::Vlan, false).tie(&a), Some(Tie::Upper("a.5".into())));
    assert_eq!(upper("bond0", Kind::Macvtap, false).tie(&a), Some(Tie::Upper("bond0".into())));
    let passthru = upper("macvlan0", Kind::Macvlan, true).obstacle(&a);
    assert_eq!(passthru, Some(Obstacle::Passthru("macvlan0".into())));
}

#[test]
fn what_ties_a_link_to_the_host_is_found() {
    let mut inventory = inventory(vec![link(1, "a", Kind::Physical), link(2, "b", Kind::Veth)]);
    let a = link(1, "a", Kind::Physical);
    assert_eq!(inventory.tie(&a), None);
    let mut vlan = link(3, "a.5", Kind::Vlan);
    vlan.lower = Some(1);
    assert_eq!(inventory.apply(vlan), Change::Something);
    assert_eq!(inventory.tie(&a), Some(Tie::Upper("a.5".into())));
    assert_eq!(inventory.set_addressed([1].into()), Change::Something);
    assert_eq!(inventory.tie(&a), Some(Tie::HostAddress));
    assert_eq!(inventory.set_default_routes([1].into()), Change::Something);
    assert_eq!(inventory.tie(&a), Some(Tie::DefaultRoute));
}

#[test]
fn the_other_end_of_a_veth_and_our_own_devices_tie_nothing() {
    let (mut peer, mut tap) =
        (link(2, "peer", Kind::Veth), link(IFINDEX_FIRST, "mvt01000000", Kind::Macvtap));
    (peer.lower, tap.lower) = (Some(1), Some(1));
    let a = link(1, "a", Kind::Veth);
    assert_eq!(inventory(vec![a.clone(), peer, tap]).tie(&a), None);
}

#[test]
fn an_event_that_says_nothing_new_changes_nothing() {
    let mut inventory = inventory(vec![link(1, "a", Kind::Physical)]);
    assert_eq!(inventory.apply(link(1, "a", Kind::Physical)), Change::Nothing);
    assert_eq!(inventory.remove(2), Change::Nothing);
    assert_eq!(inventory.reset([link(1, "a", Kind::Physical)]), Change::Nothing);
    assert_eq!(inventory.apply(link(1, "b", Kind::Physical)), Change::Something);
    assert_eq!(
        (inventory.set_speed(2, 1000), inventory.set_speed(1, 1000)),
        (Change::Nothing, Change::Something)
    );
    assert_eq!(inventory.set_speed(1, 1000), Change::Nothing);
    assert_eq!(
        (inventory.set_macvtap(true), inventory.set_macvtap(false)),
        (Change::Nothing, Change::Something)
    );
    assert_eq!((inventory.set_macvtap(false), inventory.lacks_macvtap()), (Change::Nothing, true));
    assert_eq!(inventory.set_default_routes([1].into()), Change::Something);
    assert!(inventory.has_default_route(1) && !inventory.has_default_route(2));
}

#[test]
fn of_two_changes_one_is_enough() {
    let (nothing, something) = (Change::Nothing, Change::Something);
    assert_eq!((nothing | nothing, nothing | something), (nothing, something));
    assert_eq!((something | nothing, something | something), (something, something));
}

#[test]
fn a_nic_in_a_pod_is_still_a_port_of_its_card() {
    let mut inventory = inventory(vec![nic(3, "eth1", 0xa)]);
    assert_eq!(inventory.same_function(inventory.get(3).unwrap()), None);
    inventory.set_in_pods([nic(9, "eth2", 0xa)]);
    let other = inventory.same_function(inventory.get(3).unwrap());
    assert_eq!(other.map(|link| link.ifindex), Some(9));
    assert_eq!([3, 9, 12].map(|ifindex| inventory.is_in_pod(ifindex)), [false, true, false]);
}

proptest! {
    /// Links that come, change and go in any order leave what a fresh list shows.
    #[test]
    fn events_end_where_a_fresh_list_begins(
        events in prop::collection::vec((1..8_u32, prop::option::of((0..3_u32, any::<bool>()))), 0..60)
    ) {
        let mut followed = Inventory::default();
        let mut present: BTreeMap<u32, Link> = BTreeMap::new();
        for (ifindex, state) in events {
            let before = followed.clone();
            let change = if let Some((name, carrier)) = state {
                let mut link = link(ifindex, &format!("n{name}"), Kind::Veth);
                link.carrier = carrier;
                present.insert(ifindex, link.clone());
                followed.apply(link)
            } else {
                present.remove(&ifindex);
                followed.remove(ifindex)
            };
            prop_assert_eq!(change == Change::Something, before != followed);
        }
        let mut fresh = Inventory::default();
        let _ = fresh.reset(present.into_values());
        prop_assert_eq!(followed, fresh);
    }
}
