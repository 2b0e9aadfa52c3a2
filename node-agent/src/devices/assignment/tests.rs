mod bounds;

use super::*;
use macvtap::table::{Owner, TapOnly};
use proptest::prelude::*;

fn name(text: &str) -> ResourceName {
    text.parse().unwrap()
}

fn device(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn entry() -> Resource {
    Resource {
        pool: None,
        prefix: "example.com".into(),
        mtu: None,
        promiscuous: false,
        all_multicast: true,
        owner: Owner::default(),
        tap_only: TapOnly::Forbidden,
        devices: Devices::none(DeviceType::Macvtap),
    }
}

fn known(link: &str) -> Known {
    Known {
        name: link.into(),
        identity: LinkIdentity::Name { kind: "veth".into(), name: link.into() },
        pci: None,
    }
}

fn nic(link: &str, number: u8) -> Known {
    let mac = [2, 0, 0, 0, 0, number].try_into().unwrap();
    Known { name: link.into(), identity: LinkIdentity::Hardware { mac, parent: "virtio1".into() }, pci: None }
}

/// A node whose table evolves step by step.
struct EvolvingNode {
    table: DeviceTable,
    boot: String,
    links: BTreeMap<u32, Known>,
    in_use: BTreeSet<DeviceId>,
    withdrawals: Withdrawals,
    now: Instant,
}

impl EvolvingNode {
    fn new() -> Self {
        Self {
            table: empty("one", false),
            boot: "one".into(),
            links: BTreeMap::new(),
            in_use: BTreeSet::new(),
            withdrawals: Withdrawals::new(),
            now: Instant::now(),
        }
    }

    fn with(mut self, ifindex: u32, known: Known) -> Self {
        self.links.insert(ifindex, known);
        self
    }

    fn uses(&mut self, devices: &[&str]) {
        self.in_use = devices.iter().map(|text| device(text)).collect();
    }

    fn evolve(&mut self, demand: &[(u32, u32)]) -> Evolution {
        self.evolve_in(Mode::Bridge, demand)
    }

    fn evolve_in(&mut self, mode: Mode, demand: &[(u32, u32)]) -> Evolution {
        let links = demand.iter().map(|&(ifindex, count)| DemandedLink { ifindex, count }).collect();
        let demands = BTreeMap::from([(name("a"), Demand { entry: entry(), mode, links })]);
        self.evolve_to(&demands)
    }

    fn evolve_to(&mut self, demands: &BTreeMap<ResourceName, Demand>) -> Evolution {
        let links = self.links.clone().into_iter().collect();
        let around = Surroundings {
            boot_id: &self.boot,
            links: &links,
            in_use: &self.in_use,
            standalone: false,
            now: self.now,
        };
        let evolution = evolve(&self.table, demands, around, &mut self.withdrawals);
        self.table = evolution.table.clone();
        // What is written must be readable.
        DeviceTable::parse(&serde_json::to_vec(&self.table).unwrap()).unwrap();
        evolution
    }

    fn ifindex(&self, id: &str) -> Option<u32> {
        self.table.macvtap(&device(id)).map(|d| d.ifindex)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

fn advertised(evolution: &Evolution) -> Vec<u32> {
    let runs = evolution.offers.get(&name("a")).map_or(&[][..], Vec::as_slice);
    let runs = runs.iter().map(|offered| offered.run).filter(|run| run.advertised);
    let mut slots: Vec<u32> = runs.flat_map(|run| run.range().unwrap().slots()).collect();
    slots.sort_unstable();
    slots
}

#[test]
fn growing_adds_a_range_and_moves_nothing() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    assert_eq!(advertised(&node.evolve(&[(3, 2)])), [0, 1]);
    let before = node.ifindex("aMvp1");
    assert_eq!(advertised(&node.evolve(&[(3, 4)])), [0, 1, 2, 3]);
    assert_eq!(node.ifindex("aMvp1"), before);
    assert_eq!(node.ifindex("aMvp3"), Some(IFINDEX_FIRST + 3));
}

#[test]
fn shrinking_takes_free_devices_from_the_top_and_honours_them_for_a_minute() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 5)]);
    node.uses(&["aMvp4"]);
    assert_eq!(advertised(&node.evolve(&[(3, 2)])), [0, 4]);
    assert!(node.ifindex("aMvp2").is_some(), "an Allocate under way must end well");
    node.pass(59);
    let soon = node.evolve(&[(3, 2)]);
    assert_eq!(soon.next_deadline, Some(node.now + Duration::from_secs(1)));
    node.pass(1);
    assert_eq!(advertised(&node.evolve(&[(3, 2)])), [0, 4]);
    assert!(node.ifindex("aMvp2").is_none());
    assert_eq!(node.ifindex("aMvp4"), Some(IFINDEX_FIRST + 4));
}

#[test]
fn a_withdrawn_device_is_not_honoured_again_because_the_table_without_it_was_not_stored() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 5)]);
    node.evolve(&[(3, 2)]);
    node.pass(60);
    let stored = node.table.clone();
    for _ in 0..3 {
        node.table = stored.clone();
        let next = node.evolve(&[(3, 2)]);
        assert_eq!((node.ifindex("aMvp4"), next.next_deadline), (None, None));
        node.pass(1);
    }
}

#[test]
fn a_withdrawn_device_that_is_allocated_after_all_stays() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 5)]);
    node.evolve(&[(3, 2)]);
    node.pass(30);
    node.uses(&["aMvp3"]);
    node.evolve(&[(3, 2)]);
    node.pass(90);
    assert_eq!(advertised(&node.evolve(&[(3, 2)])), [0, 3]);
}

#[test]
fn growing_back_within_the_minute_restores_the_same_devices_and_later_makes_new_indexes() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 3)]);
    node.evolve(&[(3, 1)]);
    node.pass(30);
    node.evolve(&[(3, 3)]);
    assert_eq!(node.ifindex("aMvp2"), Some(IFINDEX_FIRST + 2));
    node.evolve(&[(3, 1)]);
    node.pass(61);
    node.evolve(&[(3, 1)]);
    node.evolve(&[(3, 3)]);
    assert_eq!(node.ifindex("aMvp2"), Some(IFINDEX_FIRST + 4));
}

#[test]
fn a_renamed_link_keeps_its_devices() {
    let mut node = EvolvingNode::new().with(3, nic("eth0", 1));
    node.evolve(&[(3, 2)]);
    node.links.insert(3, nic("ens7", 1));
    let evolution = node.evolve(&[(3, 2)]);
    assert_eq!((advertised(&evolution), node.ifindex("aMvp0")), (vec![0, 1], Some(IFINDEX_FIRST)));
    assert_eq!(node.table.resources[&name("a")].links()[0].name, "ens7");
}

#[test]
fn another_nic_under_the_old_name_gets_devices_of_its_own_while_the_old_ones_drain() {
    let mut node = EvolvingNode::new().with(3, nic("eth0", 1));
    node.evolve(&[(3, 2)]);
    node.uses(&["aMvp0"]);
    node.links = BTreeMap::from([(9, nic("eth0", 2))]);
    let evolution = node.evolve(&[(9, 2)]);
    assert_eq!(evolution.replaced, [(name("a"), "eth0".to_owned())].into());
    assert_eq!(advertised(&evolution), [0, 2, 3]);
    node.uses(&[]);
    node.evolve(&[(9, 2)]);
    node.pass(60);
    assert_eq!(advertised(&node.evolve(&[(9, 2)])), [2, 3]);
    assert_eq!(node.table.resources[&name("a")].links().len(), 1);
}

#[test]
fn a_link_that_was_made_anew_gets_its_devices_back() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 2)]);
    node.links.clear();
    assert_eq!(advertised(&node.evolve(&[])), [0; 0]);
    node.links.insert(9, known("x"));
    assert_eq!(advertised(&node.evolve(&[(9, 2)])), [0, 1]);
    assert_eq!(node.ifindex("aMvp1"), Some(IFINDEX_FIRST + 1));
    assert_eq!(node.table.resources[&name("a")].links()[0].ifindex, 9);
}

#[test]
fn devices_in_use_survive_a_reboot_with_their_indexes_whatever_index_their_link_has() {
    let mut node = EvolvingNode::new().with(3, nic("eth0", 1)).with(4, nic("eth1", 2));
    node.evolve(&[(3, 2), (4, 2)]);
    let eth1 = node.ifindex("aMvp2");
    node.uses(&["aMvp2"]);
    (node.boot, node.withdrawals) = ("two".into(), Withdrawals::new());
    node.links = BTreeMap::from([(3, nic("eth1", 2)), (4, nic("eth0", 1))]);
    node.evolve(&[(3, 2), (4, 2)]);
    assert_eq!(node.ifindex("aMvp2"), eth1);
    assert_eq!(node.table.macvtap(&device("aMvp2")).unwrap().link.ifindex, 3);
    assert_eq!(node.table.boot_id, "two");
}

#[test]
fn a_link_that_has_not_come_back_after_a_reboot_is_nobody_elses() {
    let mut node = EvolvingNode::new().with(3, nic("eth0", 1));
    node.evolve(&[(3, 1)]);
    node.uses(&["aMvp0"]);
    node.boot = "two".into();
    node.links = BTreeMap::from([(3, nic("eth5", 5))]);
    node.evolve(&[(3, 1)]);
    let device = node.table.macvtap(&device("aMvp0")).unwrap();
    assert_eq!((device.link.name.as_str(), device.link.ifindex), ("eth0", 0));
}

#[test]
fn a_changed_mode_waits_for_the_last_device() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 2)]);
    node.uses(&["aMvp0"]);
    assert_eq!(node.evolve_in(Mode::Private, &[(3, 2)]).mode_pending, [(name("a"), 3)].into());
    assert_eq!(node.table.resources[&name("a")].links()[0].mode, Mode::Bridge);
    node.uses(&[]);
    assert!(node.evolve_in(Mode::Private, &[(3, 2)]).mode_pending.is_empty());
    assert_eq!(node.table.resources[&name("a")].links()[0].mode, Mode::Private);
}

#[test]
fn a_resource_nobody_asks_for_drains_and_goes() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.evolve(&[(3, 2)]);
    node.uses(&["aMvp1"]);
    assert_eq!(advertised(&node.evolve_to(&BTreeMap::new())), [1]);
    node.uses(&[]);
    assert_eq!(advertised(&node.evolve_to(&BTreeMap::new())), [0; 0]);
    node.pass(60);
    node.evolve_to(&BTreeMap::new());
    assert!(node.table.resources.is_empty());
}

#[test]
fn running_out_of_indexes_is_told_and_breaks_nothing() {
    let mut node = EvolvingNode::new().with(3, known("x"));
    node.table.next_ifindex = IFINDEX_LAST;
    let evolution = node.evolve(&[(3, 3)]);
    assert!(evolution.exhausted);
    assert_eq!(advertised(&evolution), [0]);
}

#[test]
fn a_limit_for_the_node_is_shared_out_evenly() {
    assert_eq!(share(100, None, 2), [100, 100]);
    assert_eq!(share(100, Some(150), 2), [75, 75]);
    assert_eq!(share(100, Some(5), 3), [2, 2, 1]);
    assert_eq!(share(100, Some(1), 3), [1, 0, 0]);
    assert_eq!(share(10, Some(150), 2), [10, 10]);
    assert_eq!(share(10, Some(150), 0), [0; 0]);
}

#[test]
fn devices_whose_link_is_not_known_are_on_the_only_link_there_is() {
    let stray = |node: &mut EvolvingNode| {
        let ranges = vec![SlotRange { first_slot: 5, count: 1, first_ifindex: IFINDEX_FIRST + 5 }];
        let link =
            LowerLink { ifindex: 0, name: String::new(), identity: nowhere(), mode: Mode::Bridge, ranges };
        let devices = Devices::Macvtaps(vec![link]);
        node.table.resources.insert(name("a"), Resource { devices, ..entry() });
        node.table.next_ifindex = IFINDEX_FIRST + 100;
        node.uses(&["aMvp5"]);
    };
    let mut node = EvolvingNode::new().with(3, known("x"));
    stray(&mut node);
    assert_eq!(advertised(&node.evolve(&[(3, 3)])), [0, 1, 5]);
    let found = node.table.macvtap(&device("aMvp5")).unwrap();
    assert_eq!((found.link.ifindex, found.ifindex), (3, IFINDEX_FIRST + 5));
    let mut node = EvolvingNode::new().with(3, known("x")).with(4, known("y"));
    stray(&mut node);
    node.evolve(&[(3, 1), (4, 1)]);
    assert_eq!(node.table.macvtap(&device("aMvp5")).unwrap().link.ifindex, 0);
}

#[derive(Clone, Debug)]
enum TableEvent {
    Demand(Vec<u32>),
    Link(u32, u32),
    Unlink(u32),
    Use(u32),
    Free(u32),
    Pass(u64),
    Reboot,
}

fn step() -> impl Strategy<Value = TableEvent> {
    prop_oneof![
        prop::collection::vec(0..5_u32, 4).prop_map(TableEvent::Demand),
        (1..5_u32, 0..4_u32).prop_map(|(ifindex, name)| TableEvent::Link(ifindex, name)),
        (1..5_u32).prop_map(TableEvent::Unlink),
        (0..12_u32).prop_map(TableEvent::Use),
        (0..12_u32).prop_map(TableEvent::Free),
        (1..100_u64).prop_map(TableEvent::Pass),
        Just(TableEvent::Reboot),
    ]
}

proptest! {
    /// Whatever happens: a device in use keeps slot and index, an index means one device only, the table is sound,
    /// and no link offers more than it should, devices in use apart.
    #[test]
    fn devices_keep_their_promises(steps in prop::collection::vec(step(), 1..60)) {
        let mut node = EvolvingNode::new().with(1, known("l0"));
        let mut wish = vec![3, 3, 3, 3];
        let mut owners: BTreeMap<u32, DeviceId> = BTreeMap::new();
        for step in steps {
            match step {
                TableEvent::Demand(counts) => wish = counts,
                TableEvent::Link(ifindex, name) => {
                    let known = known(&format!("l{name}"));
                    if !node.links.values().any(|other| *other == known) {
                        node.links.insert(ifindex, known);
                    }
                }
                TableEvent::Unlink(ifindex) => { node.links.remove(&ifindex); }
                TableEvent::Use(slot) => {
                    let id = device(&format!("aMvp{slot}"));
                    if node.table.macvtap(&id).is_some() {
                        node.in_use.insert(id);
                    }
                }
                TableEvent::Free(slot) => { node.in_use.remove(&device(&format!("aMvp{slot}"))); }
                TableEvent::Pass(seconds) => node.pass(seconds),
                TableEvent::Reboot => {
                    node.boot.push('x');
                    node.withdrawals.clear();
                }
            }
            let used: BTreeMap<DeviceId, u32> = node.in_use.iter()
                .filter_map(|id| Some((id.clone(), node.table.macvtap(id)?.ifindex))).collect();
            let demand: Vec<(u32, u32)> = node.links.keys().zip(&wish).map(|(l, c)| (*l, *c)).collect();
            let evolution = node.evolve(&demand);
            for (id, ifindex) in used {
                prop_assert_eq!(node.table.macvtap(&id).map(|d| d.ifindex), Some(ifindex));
            }
            let mut seen = BTreeSet::new();
            for LinkRun { run, .. } in evolution.offers.values().flatten() {
                for slot in run.range().unwrap().slots() {
                    let id = DeviceId::new(name("a"), slot);
                    prop_assert!(seen.insert(slot), "slot {} twice", slot);
                    let ifindex = run.range().unwrap().ifindex_of(slot).unwrap();
                    prop_assert_eq!(node.table.macvtap(&id).map(|d| d.ifindex), Some(ifindex));
                    prop_assert_eq!(owners.entry(ifindex).or_insert_with(|| id.clone()), &id);
                }
            }
            for (ifindex, count) in demand {
                let runs = &evolution.offers[&name("a")];
                let used = node.in_use.iter().filter(|id| {
                    node.table.macvtap(id).is_some_and(|d| d.link.ifindex == ifindex)
                }).count();
                let offered = slots::advertised(runs, ifindex);
                prop_assert_eq!(offered, count.max(u32::try_from(used).unwrap()));
            }
        }
    }
}
