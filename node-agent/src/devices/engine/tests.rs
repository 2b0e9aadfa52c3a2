mod bounds;
mod nics;

use super::*;
use crate::devices::offer::{self, Counts, LinkState};
use crate::links::inventory::tests::{link, nic};
use crate::links::link::Kind;
use crate::pools::selection::tests::pool;
use macvtap::device_id::DeviceId;
use macvtap::link::IfName;
use macvtap_crds::v1alpha1::reason::LinkReason;
use proptest::prelude::*;
use serde_json::json;
use std::time::Duration;

fn engine(pools: Vec<Pool>) -> Engine {
    let mut engine = Engine::new(assignment::empty("boot", false), "boot".into(), false);
    engine.world.pools = pools;
    engine
}

/// An agent that starts with what the last one left: table, pods, and the same pools.
fn restarted(last: &Engine, boot_id: &str, links: impl IntoIterator<Item = Link>) -> Engine {
    let mut engine = Engine::new(last.table().clone(), boot_id.to_owned(), false);
    engine.world.pools.clone_from(&last.world.pools);
    engine.world.in_use.clone_from(&last.world.in_use);
    engine.world.in_pods.clone_from(&last.world.in_pods);
    let _ = engine.world.inventory.reset(links);
    engine
}

fn step(engine: &mut Engine, now: Instant) -> Step {
    let step = engine.step(now);
    engine.stored(step.evolution.table.clone());
    step
}

fn counts(step: &Step, resource: &str) -> Counts {
    step.offers[&resource.parse().unwrap()].counts()
}

#[test]
fn a_resource_without_links_is_offered_empty() {
    let mut engine = engine(vec![pool("a", &json!({"links": [{"names": ["dp0"]}]}))]);
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a"), Counts::default());
}

#[test]
fn a_link_that_comes_and_goes_brings_and_takes_its_devices_at_once() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 10}}))]);
    let now = Instant::now();
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    assert_eq!(counts(&step(&mut engine, now), "a"), Counts { capacity: 10, allocatable: 10 });
    assert!(!engine.step(now).table_changed);
    let _ = engine.world.inventory.remove(3);
    assert_eq!(counts(&step(&mut engine, now), "a"), Counts::default());
    let _ = engine.world.inventory.apply(link(9, "dp0", Kind::Veth));
    assert_eq!(counts(&step(&mut engine, now), "a"), Counts { capacity: 10, allocatable: 10 });
}

#[test]
fn devices_in_use_on_a_link_that_is_gone_are_listed_unhealthy() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 10}}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    step(&mut engine, Instant::now());
    engine.world.in_use.insert("aMvp4".parse().unwrap());
    let _ = engine.world.inventory.remove(3);
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a"), Counts { capacity: 1, allocatable: 0 });
}

#[test]
fn a_loss_of_carrier_counts_after_its_delay_and_asks_to_be_woken() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 2}}))]);
    let now = Instant::now();
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    step(&mut engine, now);
    let mut down = link(3, "dp0", Kind::Veth);
    down.carrier = false;
    let _ = engine.world.inventory.apply(down);
    let first = step(&mut engine, now);
    assert_eq!(counts(&first, "a").allocatable, 2);
    assert_eq!(first.wake, Some(now + Duration::from_secs(3)));
    let then = step(&mut engine, now + Duration::from_secs(3));
    assert_eq!(counts(&then, "a"), Counts { capacity: 2, allocatable: 0 });
    let offer = &then.offers[&"a".parse().unwrap()];
    assert_eq!(offer.runs[0].state, LinkState::Unhealthy(LinkReason::NoCarrier));
}

#[test]
fn a_device_whose_index_another_link_of_the_node_has_is_unhealthy_until_that_goes() {
    let mut engine =
        engine(vec![pool("a", &json!({"links": [{"names": ["dp0"]}], "capacity": {"perLink": 10}}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    let first = step(&mut engine, Instant::now()).offers[&"a".parse().unwrap()].runs[0]
        .run
        .range()
        .unwrap()
        .first_ifindex;
    for (slot, counted) in [(0, 9), (4, 8), (9, 7), (10, 7)] {
        let _ = engine.world.inventory.apply(link(first + slot, &format!("stranger{slot}"), Kind::Veth));
        let step = step(&mut engine, Instant::now());
        assert_eq!(counts(&step, "a"), Counts { capacity: 10, allocatable: counted }, "slot {slot}");
        assert!(!step.table_changed);
    }
    let offer = &step(&mut engine, Instant::now()).offers[&"a".parse().unwrap()];
    let listed = offer.devices();
    let sick: Vec<&str> = listed
        .iter()
        .filter(|device| device.health == "Unhealthy")
        .map(|device| device.id.as_str())
        .collect();
    assert_eq!(sick, ["aMvp0", "aMvp4", "aMvp9"]);
    let granted = offer.grant(&["aMvp5".to_owned()]).unwrap();
    let index = |granted: &offer::Granted| match granted {
        offer::Granted::Macvtap { ifindex, .. } => Some(*ifindex),
        offer::Granted::Nic { .. } => None,
    };
    assert_eq!(index(&granted[0]), Some(first + 5), "a cut moved an index");
    for slot in [0, 4, 9] {
        let _ = engine.world.inventory.remove(first + slot);
    }
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a").allocatable, 10);
}

#[test]
fn the_tap_of_a_pod_without_network_takes_no_index() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 10}}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    let first = step(&mut engine, Instant::now()).offers[&"a".parse().unwrap()].runs[0]
        .run
        .range()
        .unwrap()
        .first_ifindex;
    let mut tap = link(first + 4, IfName::tap_only(first + 4).as_str(), Kind::Macvtap);
    tap.lower = Some(3);
    let _ = engine.world.inventory.apply(tap.clone());
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a").allocatable, 10);
    tap.lower = Some(4);
    let _ = engine.world.inventory.apply(tap);
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a").allocatable, 9, "on another link");
}

#[test]
fn an_mtu_the_link_cannot_have_and_a_master_make_its_devices_unhealthy() {
    let mut engine = engine(vec![pool("a", &json!({"macvtap": {"mtu": 9000}}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    let step = step(&mut engine, Instant::now());
    let offer = &step.offers[&"a".parse().unwrap()];
    assert_eq!(offer.runs[0].state, LinkState::Unhealthy(LinkReason::MtuTooSmall));
}

#[test]
fn devices_carry_the_memory_node_of_their_link_unless_the_pool_says_none() {
    for (topology, told) in [("Hint", Some(1)), ("None", None)] {
        for device_type in ["Macvtap", "HostDevice"] {
            let fields = json!({"topology": topology, "type": device_type, "capacity": {"perLink": 1}});
            let mut engine = engine(vec![pool("a", &fields)]);
            let (mut near, far) = (nic(3, "eth1", 0xa), nic(4, "eth2", 0xb));
            near.hardware.numa_node = Some(1);
            let _ = engine.world.inventory.reset([near, far]);
            let devices = step(&mut engine, Instant::now()).offers[&"a".parse().unwrap()].devices();
            let nodes = devices.into_iter().map(|device| {
                device.topology.map(|topology| topology.nodes.iter().map(|node| node.id).collect::<Vec<_>>())
            });
            let nodes: Vec<_> = nodes.collect();
            assert_eq!(nodes, [told.map(|node| vec![node]), None], "{topology} {device_type}");
        }
    }
}

#[test]
fn a_pool_that_is_gone_keeps_its_devices_in_use_and_offers_no_other() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 5}}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    step(&mut engine, Instant::now());
    engine.world.in_use.insert("aMvp4".parse().unwrap());
    engine.world.pools.clear();
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a"), Counts { capacity: 1, allocatable: 1 });
    engine.world.in_use.clear();
    let now = Instant::now();
    step(&mut engine, now);
    let later = step(&mut engine, now + assignment::GRACE);
    assert!(later.offers.is_empty() || counts(&later, "a") == Counts::default());
    assert!(engine.step(now + assignment::GRACE).offers.is_empty());
}

#[test]
fn a_pool_that_comes_before_another_one_does_not_get_its_resources_while_they_are_in_use() {
    let per_link = |name: &str| pool(name, &json!({"resourcePer": "Link", "resourcePrefix": name}));
    let mut engine = engine(vec![per_link("old")]);
    let _ = engine.world.inventory.reset([link(1, "eth1", Kind::Physical)]);
    let now = Instant::now();
    step(&mut engine, now);
    engine.world.in_use = ["eth1Mvp0".parse().unwrap()].into();
    engine.world.pools.insert(0, per_link("new"));
    let name = |step: &Step| step.offers[&"eth1".parse().unwrap()].full_name.clone();
    assert_eq!(name(&step(&mut engine, now)), "old/eth1");
    // The link goes and comes again.
    let _ = engine.world.inventory.reset([]);
    step(&mut engine, now);
    let _ = engine.world.inventory.reset([link(1, "eth1", Kind::Physical)]);
    assert_eq!(name(&step(&mut engine, now)), "old/eth1");
    // An agent that starts has the table alone.
    engine.memory.owners.clear();
    assert_eq!(name(&step(&mut engine, now)), "old/eth1");
    engine.world.in_use.clear();
    assert_eq!(name(&step(&mut engine, now)), "new/eth1");
}

#[test]
fn an_agent_that_starts_knows_whose_resource_it_is_although_two_pools_are_alike() {
    let per_link = |name: &str| pool(name, &json!({"resourcePer": "Link"}));
    let mut engine = engine(vec![per_link("old")]);
    let eth1 = || [link(1, "eth1", Kind::Physical)];
    let _ = engine.world.inventory.reset(eth1());
    step(&mut engine, Instant::now());
    engine.world.in_use = ["eth1Mvp0".parse().unwrap()].into();
    engine.world.pools.insert(0, per_link("new"));
    let name: ResourceName = "eth1".parse().unwrap();
    let mut next = restarted(&engine, "boot", eth1());
    let owner = |engine: &mut Engine| {
        let claimed = step(engine, Instant::now()).selection.resources[&name].pool;
        let told = engine.table().resources[&name].pool.clone();
        assert_eq!(
            told.as_ref(),
            Some(&engine.world.pools[claimed].name),
            "the next agent would be told another"
        );
        told.unwrap()
    };
    assert_eq!(owner(&mut next), "old");
    next.world.in_use.clear();
    assert_eq!(owner(&mut next), "new");
}

#[test]
fn a_limit_for_the_node_holds_over_all_links() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 10, "perNode": 15}}))]);
    for ifindex in 1..=3 {
        let _ = engine.world.inventory.apply(link(ifindex, &format!("e{ifindex}"), Kind::Physical));
    }
    assert_eq!(counts(&step(&mut engine, Instant::now()), "a").capacity, 15);
}

#[test]
fn no_more_devices_are_offered_than_a_kubelet_reads() {
    let mut engine = engine(vec![pool("a", &json!({"capacity": {"perLink": 4096}}))]);
    let links = (1..=30).map(|ifindex| link(ifindex, &format!("e{ifindex}"), Kind::Physical));
    let _ = engine.world.inventory.reset(links);
    let offered = counts(&step(&mut engine, Instant::now()), "a").capacity;
    assert_eq!(offered, offer::devices_max(&"a".parse().unwrap()));
    assert!(offered < 30 * 4096);
}

/// What happens to links, as the kernel tells it.
#[derive(Clone, Debug)]
enum Happening {
    /// A link appears, or changes name, carrier, MTU, membership or what it is built on.
    Link(Box<Link>),
    /// It goes.
    Gone(u32),
    /// The host gives addresses and default routes to these links.
    Ties(BTreeSet<u32>, BTreeSet<u32>),
}

fn happening() -> impl Strategy<Value = Happening> {
    let name = prop::sample::select(vec!["e1", "e2", "e3", "w1", "w2", "other"]);
    let kind =
        prop::sample::select(vec![Kind::Physical, Kind::Veth, Kind::Vlan, Kind::Bridge, Kind::Macvlan]);
    let master = prop::option::weighted(0.2, (1..6_u32, prop::sample::select(vec!["bridge", "vrf"])));
    let mtu = prop::sample::select(vec![1400_u32, 1500]);
    let altname = prop::option::weighted(0.2, prop::sample::select(vec!["e1", "w1"]));
    let lower = prop::option::weighted(0.3, 1..6_u32);
    let parts = (1..6_u32, name, kind, master, mtu, (altname, lower, any::<bool>(), any::<bool>()));
    let changed =
        parts.prop_map(|(ifindex, name, kind, master, mtu, (altname, lower, carrier, passthru))| {
            let mut link = link(ifindex, name, kind);
            link.master =
                master.map(|(ifindex, kind)| crate::links::link::Master { ifindex, kind: kind.into() });
            link.altnames.extend(altname.map(str::to_owned));
            (link.mtu, link.lower, link.carrier) = (mtu, lower, carrier);
            link.passthru = passthru && link.kind == Kind::Macvlan;
            Happening::Link(Box::new(link))
        });
    let some = || prop::collection::btree_set(1..6_u32, 0..3);
    prop_oneof![
        6 => changed,
        3 => (1..6_u32).prop_map(Happening::Gone),
        1 => (some(), some()).prop_map(|(addressed, routes)| Happening::Ties(addressed, routes)),
    ]
}

/// Devices offered of each resource on each link, and how they are.
fn offered(step: &Step) -> BTreeMap<(ResourceName, u32, String), u32> {
    let mut offered = BTreeMap::new();
    for (resource, offer) in &step.offers {
        for run in offer.runs.iter().filter(|run| run.run.advertised) {
            let key = (resource.clone(), run.run.lower, format!("{:?}", run.state));
            *offered.entry(key).or_default() += run.run.count();
        }
    }
    offered
}

proptest! {
    /// Offers depend on what there is, not on how it came to be.
    #[test]
    fn any_order_of_events_offers_what_a_fresh_start_would(
        happenings in prop::collection::vec((happening(), any::<bool>()), 0..40)
    ) {
        let at_once = json!({"downDelaySeconds": 0, "upDelaySeconds": 0});
        let pools = || vec![
            pool("a", &json!({"links": [{"names": ["e1", "e2"]}], "capacity": {"perLink": 3}, "health": at_once})),
            pool("b", &json!({"links": [{"names": ["e*"], "kinds": ["Physical", "Veth"]}],
                              "capacity": {"perLink": 3, "perNode": 4}, "health": at_once, "macvtap": {"mtu": 1500}})),
            pool("s", &json!({"links": [{"names": ["other"]}], "overlap": "Shared", "capacity": {"perLink": 2}, "health": at_once})),
            pool("t", &json!({"links": [{"names": ["o*"]}], "overlap": "Shared", "capacity": {"perLink": 5}, "health": at_once})),
            pool("w", &json!({"links": [{"names": ["w*"]}], "macvtap": {"mode": "Passthru"}, "health": at_once})),
        ];
        let (mut followed, now) = (engine(pools()), Instant::now());
        for (happening, noticed) in happenings {
            let _ = match happening {
                Happening::Link(link) => followed.world.inventory.apply(*link),
                Happening::Gone(ifindex) => followed.world.inventory.remove(ifindex),
                Happening::Ties(addressed, routes) => {
                    followed.world.inventory.set_addressed(addressed) | followed.world.inventory.set_default_routes(routes)
                }
            };
            // Several events may be one step.
            if noticed {
                step(&mut followed, now);
            }
        }
        let mut fresh = engine(pools());
        fresh.world.inventory = followed.world.inventory.clone();
        let (followed, fresh) = (step(&mut followed, now), step(&mut fresh, now));
        prop_assert_eq!(&followed.selection, &fresh.selection);
        prop_assert_eq!(offered(&followed), offered(&fresh));
    }
}
