//! NICs that are given to pods as a whole.

mod fates;

use super::*;
use crate::devices::nics::NicNames;
use crate::devices::nics::tests::in_pod;

const A: &str = "0000:00:0a.0";
const B: &str = "0000:00:0b.0";

/// An agent with a pool of whole NICs and two of them: `eth1` (3) and `eth2` (4).
fn agent() -> Engine {
    let mut engine = engine(vec![pool("nics", &json!({"type": "HostDevice"}))]);
    let _ = engine.world.inventory.reset([nic(3, "eth1", 0xa), nic(4, "eth2", 0xb)]);
    engine
}

/// The list for the kubelet.
fn list(engine: &mut Engine) -> Vec<(String, bool)> {
    let offer = decided(engine);
    let devices = offer.devices().into_iter();
    devices.map(|device| (device.id, device.health == offer::HEALTHY)).collect()
}

fn decided(engine: &mut Engine) -> Offer {
    let offer = step(engine, Instant::now()).offers[&"nics".parse().unwrap()].clone();
    // What is written must be readable.
    DeviceTable::parse(&serde_json::to_vec(engine.table()).unwrap()).unwrap();
    offer
}

fn healthy(addresses: &[&str]) -> Vec<(String, bool)> {
    addresses.iter().map(|address| ((*address).to_owned(), true)).collect()
}

fn device(engine: &Engine, address: &str) -> DeviceId {
    engine.table().nic(address.parse().unwrap()).unwrap().0
}

fn ifindex(engine: &Engine, address: &str) -> u32 {
    engine.table().nic(address.parse().unwrap()).unwrap().1.nic.ifindex
}

/// A pod takes a NIC: Allocate, record, and the NIC leaves the node.
fn take(engine: &mut Engine, address: &str) -> Link {
    let device = device(engine, address);
    engine.world.in_use.insert(device.clone());
    let taken = engine.world.inventory.get(ifindex(engine, address)).unwrap().clone();
    engine.world.in_pods.insert(device, in_pod(&taken));
    let _ = engine.world.inventory.remove(taken.ifindex);
    taken
}

/// The pod is gone, and its NIC is on the node again.
fn bring_back(engine: &mut Engine, nic: Link, address: &str) {
    let device = device(engine, address);
    engine.world.in_pods.remove(&device);
    engine.world.in_use.remove(&device);
    let _ = engine.world.inventory.apply(nic);
}

#[test]
fn each_nic_is_one_device_that_the_kubelet_knows_by_its_pci_address() {
    let mut engine = agent();
    assert_eq!(list(&mut engine), healthy(&[A, B]));
    assert_eq!(engine.table().nic(B.parse().unwrap()).unwrap().1.nic.name, "eth2");
    engine.world.pools = vec![pool("nics", &json!({"type": "HostDevice", "capacity": {"perLink": 7}}))];
    assert_eq!(list(&mut engine), healthy(&[A, B]), "more than one device of one NIC");
}

#[test]
fn a_nic_in_a_pod_stays_in_list_and_table_and_the_same_comes_back_under_another_index() {
    let mut engine = agent();
    list(&mut engine);
    let before = (device(&engine, A), engine.table().clone());
    let on_node = |engine: &Engine| {
        let nic = engine.table().nic(A.parse().unwrap()).unwrap().1.nic.clone();
        engine.nic_on_node(&nic).map(|link| link.ifindex)
    };
    assert_eq!(on_node(&engine), Some(3));
    assert_eq!(engine.memory.nics.len(), 2, "how they look is noted for the time when they are away");
    let mut taken = take(&mut engine, A);
    assert_eq!(on_node(&engine), None);
    assert_eq!(list(&mut engine), healthy(&[A, B]));
    assert_eq!(*engine.table(), before.1, "a pod's start changes no table");
    taken.ifindex = 9;
    bring_back(&mut engine, taken, A);
    assert_eq!(list(&mut engine), healthy(&[A, B]));
    assert_eq!((device(&engine, A), ifindex(&engine, A)), (before.0, 9));
}

#[test]
fn a_nic_in_a_pod_is_still_the_one_its_pool_chose_by_another_name() {
    let mut engine =
        engine(vec![pool("nics", &json!({"type": "HostDevice", "links": [{"names": ["enp0s10"]}]}))]);
    let named = Link { altnames: vec!["enp0s10".into()], ..nic(3, "eth1", 0xa) };
    let _ = engine.world.inventory.reset([named, nic(4, "eth2", 0xb)]);
    assert_eq!(list(&mut engine), healthy(&[A]));
    take(&mut engine, A);
    assert_eq!(list(&mut engine), healthy(&[A]));
}

#[test]
fn a_nic_that_comes_back_is_offered_without_a_gap() {
    let mut engine = agent();
    let before = decided(&mut engine);
    let mut taken = take(&mut engine, A);
    let away = decided(&mut engine);
    assert_eq!(away.common_with(Some(&before)), away);
    taken.ifindex = 9;
    bring_back(&mut engine, taken, A);
    let back = decided(&mut engine);
    assert_eq!(back.common_with(Some(&away)), back);
}

#[test]
fn a_nic_without_a_record_of_a_pod_was_unplugged() {
    let mut engine = agent();
    list(&mut engine);
    take(&mut engine, A);
    engine.world.in_pods.clear();
    assert_eq!(list(&mut engine), [(A.to_owned(), false), (B.to_owned(), true)]);
    let refused = decided(&mut engine).grant(&[A.to_owned()]).unwrap_err();
    assert_eq!(refused.to_string(), format!("link eth1 of device {A} does not exist any more"));
    engine.world.in_use.clear();
    assert_eq!(list(&mut engine), healthy(&[B]));
    assert!(engine.table().nic(A.parse().unwrap()).is_none());
}

#[test]
fn an_agent_that_starts_while_a_nic_is_away_lists_it_with_its_memory_node() {
    let mut engine = agent();
    let mut first = nic(3, "eth1", 0xa);
    first.hardware.numa_node = Some(1);
    let _ = engine.world.inventory.apply(first);
    let before = decided(&mut engine);
    take(&mut engine, A);
    let mut restarted = restarted(&engine, "boot", [nic(4, "eth2", 0xb)]);
    assert_eq!(decided(&mut restarted).devices(), before.devices());
    assert_eq!(restarted.table(), engine.table());
}

#[test]
fn another_link_may_get_the_index_of_a_nic_that_is_away() {
    let mut engine = agent();
    list(&mut engine);
    let mut taken = take(&mut engine, A);
    let second = nic(3, "eth2", 0xb);
    let _ = engine.world.inventory.remove(4);
    let _ = engine.world.inventory.apply(second);
    assert_eq!(list(&mut engine), healthy(&[A, B]));
    assert_eq!(ifindex(&engine, B), 3);
    assert_ne!(ifindex(&engine, A), 3);
    taken.ifindex = 4;
    bring_back(&mut engine, taken, A);
    assert_eq!(list(&mut engine), healthy(&[A, B]));
    assert_eq!((ifindex(&engine, A), ifindex(&engine, B)), (4, 3));
}

#[test]
fn another_nic_at_the_address_of_one_that_a_pod_lost_waits_for_the_pods_end() {
    let mut engine = agent();
    list(&mut engine);
    take(&mut engine, A);
    engine.world.in_pods.clear();
    let mut other = nic(9, "eth1", 0xa);
    other.permanent_mac = Some([2, 0, 0, 0, 0, 0x99].try_into().unwrap());
    let _ = engine.world.inventory.apply(other);
    assert_eq!(list(&mut engine), [(A.to_owned(), false), (B.to_owned(), true)]);
    assert!(engine.step(Instant::now()).evolution.replaced.iter().any(|(_, name)| name == "eth1"));
    engine.world.in_use.clear();
    let both = list(&mut engine);
    assert_eq!((both.len(), both.iter().all(|(_, healthy)| *healthy)), (2, true));
    assert_eq!(ifindex(&engine, A), 9);
}

#[test]
fn a_nic_the_node_begins_to_use_is_withdrawn_and_one_that_is_allocated_stays() {
    let mut engine = agent();
    list(&mut engine);
    let _ = engine.world.inventory.set_addressed([3].into());
    assert_eq!(list(&mut engine), healthy(&[B]));
    assert!(engine.table().nic(A.parse().unwrap()).is_none(), "two pods could get it");
    let _ = engine.world.inventory.set_addressed([].into());
    list(&mut engine);
    engine.world.in_use.insert(device(&engine, A));
    let _ = engine.world.inventory.set_addressed([3].into());
    assert!(list(&mut engine).contains(&(A.to_owned(), true)));
}

#[test]
fn between_allocate_and_add_no_other_pool_gets_the_nic() {
    let mut engine = agent();
    list(&mut engine);
    engine.world.in_use.insert(device(&engine, A));
    let shared = json!({"overlap": "Shared", "priority": 1000});
    engine.world.pools = vec![pool("macvtaps", &shared)];
    let step = step(&mut engine, Instant::now());
    assert_eq!(counts(&step, "nics"), Counts { capacity: 1, allocatable: 1 });
    let links: Vec<u32> =
        step.offers[&"macvtaps".parse().unwrap()].runs.iter().map(|run| run.run.lower).collect();
    assert_eq!(links, [4], "the NIC is a pod's, whatever its pool");
}

#[test]
fn a_nic_that_is_off_is_offered_and_one_without_a_partner_is_not() {
    let mut engine = agent();
    let mut off = nic(3, "eth1", 0xa);
    (off.admin_up, off.carrier) = (false, false);
    let mut alone = nic(4, "eth2", 0xb);
    alone.carrier = false;
    let _ = engine.world.inventory.reset([off, alone]);
    assert_eq!(list(&mut engine), [(A.to_owned(), true), (B.to_owned(), false)]);
}

#[test]
fn a_limit_for_the_node_counts_nics_that_are_in_pods() {
    let mut engine = agent();
    engine.world.pools = vec![pool("nics", &json!({"type": "HostDevice", "capacity": {"perNode": 1}}))];
    assert_eq!(list(&mut engine), healthy(&[A]));
    take(&mut engine, A);
    assert_eq!(list(&mut engine), healthy(&[A]));
}

#[test]
fn a_resource_that_becomes_another_type_waits_for_its_pods() {
    let mut engine = agent();
    let (nics, macvtaps) =
        (engine.world.pools.clone(), vec![pool("nics", &json!({"capacity": {"perLink": 2}}))]);
    engine.world.pools.clone_from(&macvtaps);
    decided(&mut engine);
    engine.world.in_use.insert("nicsMvp1".parse().unwrap());
    engine.world.pools = nics;
    assert_eq!(list(&mut engine), [("nicsMvp1".to_owned(), true)]);
    engine.world.in_use.clear();
    assert_eq!(list(&mut engine), healthy(&[A, B]));
    engine.world.in_use.insert(device(&engine, A));
    engine.world.pools = macvtaps;
    assert_eq!(list(&mut engine), healthy(&[A]));
    engine.world.in_use.clear();
    assert_eq!(list(&mut engine).len(), 4);
}

#[test]
fn devices_in_use_survive_a_reboot_whatever_index_their_nics_have() {
    let mut engine = agent();
    list(&mut engine);
    let before = device(&engine, B);
    engine.world.in_use.insert(before.clone());
    let mut next = restarted(&engine, "next boot", [nic(7, "eth2", 0xb), nic(4, "eth1", 0xa)]);
    let mut both = list(&mut next);
    both.sort();
    assert_eq!(both, healthy(&[A, B]));
    assert_eq!((device(&next, B), ifindex(&next, B), ifindex(&next, A)), (before, 7, 4));
}

#[test]
fn only_the_whole_name_of_the_resource_makes_a_pci_address_ours() {
    let mut engine = agent();
    list(&mut engine);
    let names = NicNames::of(engine.table());
    let ours = Some(device(&engine, A));
    assert_eq!(names.device("macvtap.network.kubevirt.io/nics", A), ours);
    for (resource, id) in [
        ("example.com/nics", A),
        ("macvtap.network.kubevirt.io/other", A),
        ("macvtap.network.kubevirt.io/nics", "0000:00:0c.0"),
    ] {
        assert_eq!(names.device(resource, id), None, "{resource} {id}");
    }
    assert_eq!(names.device("x/dataplane", "dataplaneMvp3"), "dataplaneMvp3".parse().ok());
    assert_eq!(names.device("x/dataplane", "otherMvp3"), None);
}

#[test]
fn what_is_wrong_with_a_nic_does_not_count_while_it_is_in_a_pod() {
    let at_once = json!({"downDelaySeconds": 0, "upDelaySeconds": 0});
    let mut engine = engine(vec![pool("nics", &json!({"type": "HostDevice", "health": at_once}))]);
    let unplugged = Link { carrier: false, ..nic(3, "eth1", 0xa) };
    let _ = engine.world.inventory.reset([unplugged]);
    assert_eq!(list(&mut engine), [(A.to_owned(), false)]);
    take(&mut engine, A);
    assert_eq!(list(&mut engine), healthy(&[A]));
}
