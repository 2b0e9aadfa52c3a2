use super::*;
use crate::links::inventory::tests::{link, nic};
use crate::links::link::Master;

/// A reader that never finds anything in sysfs by itself.
fn reader(dir: &tempfile::TempDir) -> Reader {
    Reader::of(dir.path().to_owned())
}

fn described(speed: Option<u32>) -> Link {
    let mut nic = nic(4, "eth1", 0xa);
    nic.hardware.driver = Some("mlx5_core".into());
    nic.hardware.vendor = Some("15b3".into());
    nic.hardware.numa_node = Some(1);
    nic.hardware.speed_mbps = speed;
    nic
}

/// The same NIC as an event has it: without what only sysfs reports.
fn announced(carrier: bool) -> Link {
    let mut nic = described(None);
    nic.carrier = carrier;
    nic.hardware = Hardware { parent: nic.hardware.parent, ..Hardware::default() };
    nic
}

#[test]
fn a_nic_without_carrier_keeps_its_last_speed_and_is_asked_again_when_carrier_returns() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&dir);
    assert_eq!(reader.complete(vec![described(Some(25_000))])[0].hardware.speed_mbps, Some(25_000));
    reader.take_outdated();
    let down = reader.observe(announced(false));
    assert_eq!((down.carrier, down.hardware.speed_mbps), (false, Some(25_000)));
    assert!(!reader.has_outdated(), "without carrier there is no speed to read");
    reader.observe(announced(true));
    assert_eq!(reader.take_outdated(), [(4, "eth1".to_owned())]);
    assert_eq!(reader.learn_speed(4, Some(10_000)), Some(10_000), "renegotiated");
    assert_eq!(reader.learn_speed(4, None), None);
    assert_eq!(reader.observe(announced(true)).hardware.speed_mbps, Some(10_000));
}

#[test]
fn a_list_reads_the_speed_again_and_loses_nothing_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&dir);
    reader.complete(vec![described(Some(10_000))]);
    // A list has no speeds: whoever holds the kernel's lock would hold up all links.
    assert_eq!(reader.complete(vec![described(None)])[0].hardware.speed_mbps, Some(10_000));
    assert_eq!(reader.take_outdated(), [(4, "eth1".to_owned())]);
    assert_eq!(reader.learn_speed(4, Some(25_000)), Some(25_000));
    let mut unreadable = announced(false);
    unreadable.permanent_mac = None;
    let kept = reader.complete(vec![unreadable]).remove(0);
    let mut expected = described(Some(25_000));
    expected.carrier = false;
    assert_eq!(kept, expected);
}

#[test]
fn another_device_under_the_same_index_inherits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&dir);
    reader.complete(vec![described(Some(10_000))]);
    let mut other = announced(true);
    other.hardware.parent = Some("0000:3b:00.0".into());
    assert_eq!(reader.observe(other.clone()), other);
}

#[test]
fn a_bond_follows_its_members() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = reader(&dir);
    let bond = || link(7, "bond0", Kind::Bond);
    let member = |carrier| {
        let mut member = announced(carrier);
        member.master = Some(Master { ifindex: 7, kind: "bond".into() });
        member
    };
    reader.complete(vec![bond(), member(false)]);
    reader.take_outdated();
    reader.observe(bond());
    assert!(!reader.has_outdated(), "nothing changed");
    reader.observe(member(true));
    assert_eq!(reader.take_outdated(), [(4, "eth1".to_owned()), (7, "bond0".to_owned())]);
    assert_eq!(reader.learn_speed(7, Some(50_000)), Some(50_000));
    // One that leaves the bond takes its share along.
    reader.observe(announced(true));
    assert_eq!(reader.take_outdated(), [(7, "bond0".to_owned())]);
}
