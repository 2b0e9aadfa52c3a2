//! First and last values, and the moments at which waits end.

use super::*;

#[test]
fn an_empty_table_begins_with_the_first_index() {
    let table = empty("one", true);
    assert_eq!((table.version, table.boot_id.as_str()), (VERSION, "one"));
    assert_eq!((table.next_ifindex, table.standalone), (IFINDEX_FIRST, true));
}

#[test]
fn nothing_runs_out_while_nothing_is_missing() {
    let mut node = EvolvingNode::new().with(2, known("eth0"));
    for _ in 0..2 {
        assert!(!node.evolve(&[(2, 2)]).exhausted);
    }
}

#[test]
fn a_device_that_another_link_gets_is_honoured_for_a_whole_minute_again() {
    let mut node = EvolvingNode::new().with(2, known("eth0")).with(3, known("eth1"));
    node.evolve(&[(2, 3)]);
    node.evolve(&[(2, 2)]);
    node.pass(30);
    node.evolve(&[(2, 1)]);
    node.pass(30);
    node.evolve(&[(2, 1), (3, 1)]);
    assert_eq!(node.table.macvtap(&device("aMvp2")).unwrap().link.ifindex, 3, "its minute is over");
    node.pass(10);
    node.evolve(&[(2, 1)]);
    assert!(node.ifindex("aMvp2").is_some(), "it was withdrawn a moment ago");
    node.pass(20);
    node.evolve(&[(2, 1)]);
    assert_eq!(node.ifindex("aMvp1"), None, "its minute did not begin again");
}

#[test]
fn slots_end_at_the_highest_number_of_a_device() {
    let gap = |count| slots::first_gap([SlotRange { first_slot: 0, count, first_ifindex: 1 }].iter());
    assert_eq!((gap(SLOT_MAX), gap(SLOT_MAX + 1)), (Some((SLOT_MAX, 1)), None));
}

#[test]
fn a_nic_that_is_away_keeps_its_index_until_a_reboot_or_until_another_link_has_it() {
    let [address, other] = ["0000:00:0a.0", "0000:00:0b.0"].map(|address| address.parse().unwrap());
    let identity = nic("eth1", 1).identity;
    let away = macvtap::table::WholeNic { address, number: 0, ifindex: 5, name: "eth1".into(), identity };
    let index = |links: &[(u32, Known)], same_boot| {
        let links = links.iter().cloned().collect();
        let in_use = BTreeSet::new();
        let now = Instant::now();
        let around = Surroundings { boot_id: "one", links: &links, in_use: &in_use, standalone: false, now };
        nics::adopt(std::slice::from_ref(&away), around, same_boot)[0].ifindex
    };
    let at = |pci| Known { pci: Some(pci), ..nic("eth1", 1) };
    assert_eq!((index(&[], true), index(&[], false)), (5, 0));
    assert_eq!(index(&[(5, nic("eth2", 2))], true), 0);
    assert_eq!(index(&[(7, at(address))], true), 7);
    assert_eq!(index(&[(7, at(other))], true), 5);
}
