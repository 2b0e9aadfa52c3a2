//! What matters to the engine and what does not, and who owns a resource.

use super::*;
use macvtap::table::{Devices, LowerLink};

#[test]
fn no_run_is_empty_although_the_first_and_the_last_index_are_taken() {
    let mut engine =
        engine(vec![pool("a", &json!({"links": [{"names": ["dp0"]}], "capacity": {"perLink": 3}}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
    let ranges = |engine: &mut Engine| {
        let offer = &step(engine, Instant::now()).offers[&"a".parse().unwrap()];
        offer.runs.iter().map(|offered| offered.run.range().unwrap()).collect::<Vec<_>>()
    };
    let first = ranges(&mut engine)[0].first_ifindex;
    for slot in [0, 2] {
        let _ = engine.world.inventory.apply(link(first + slot, &format!("stranger{slot}"), Kind::Veth));
    }
    assert_eq!(ranges(&mut engine).iter().map(|range| range.count).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn a_pods_link_matters_if_the_table_has_its_index_or_its_name() {
    let veth = |ifindex, name: &str| link(ifindex, name, Kind::Veth);
    let mut of_taps = engine(vec![pool("a", &json!({"capacity": {"perLink": 2}}))]);
    let _ = of_taps.world.inventory.apply(veth(3, "dp0"));
    let mut of_nics = engine(vec![pool("nics", &json!({"type": "HostDevice"}))]);
    let _ = of_nics.world.inventory.apply(nic(3, "dp0", 0xa));
    for engine in [&mut of_taps, &mut of_nics] {
        step(engine, Instant::now());
        engine.world.pools.clear();
        assert!(engine.concerns(&veth(3, "other")) && engine.concerns(&veth(9, "dp0")));
        assert!(!engine.concerns(&veth(9, "other")));
    }
}

#[test]
fn a_pods_link_matters_if_it_is_on_a_link_of_the_node_and_no_veth() {
    let mut engine = engine(Vec::new());
    let _ = engine.world.inventory.apply(link(3, "eth1", Kind::Physical));
    let on = |lower, kind| Link { lower: Some(lower), ..link(9, "pods", kind) };
    assert!(engine.concerns(&on(3, Kind::Macvlan)));
    assert!(!engine.concerns(&on(3, Kind::Veth)), "its other end has an index of another namespace");
    assert!(!engine.concerns(&on(4, Kind::Macvlan)));
    assert_eq!(engine.boot_id(), "boot");
}

#[test]
fn a_dry_run_gives_the_kubelet_no_resource() {
    let mut engine = engine(vec![pool("a", &json!({"advertisement": "DryRun"}))]);
    let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Physical));
    assert!(step(&mut engine, Instant::now()).offers.is_empty());
}

#[test]
fn the_owner_of_a_resource_is_remembered_or_is_the_only_pool_with_its_entry() {
    let pools = [pool("a", &json!({})), pool("b", &json!({"macvtap": {"mtu": 9000}}))];
    let resource: ResourceName = "dp".parse().unwrap();
    let mut agent = engine(Vec::new());
    let devices = Devices::Macvtaps(vec![LowerLink {
        ifindex: 3,
        name: "dp0".into(),
        identity: assignment::nowhere(),
        mode: macvtap::mode::Mode::default(),
        ranges: Vec::new(),
    }]);
    let stored = Resource { pool: None, devices, ..pools[0].table_entry() };
    let owner = |engine: &Engine, pools: &[Pool]| engine.memory.owner(pools, &resource, &stored);
    assert_eq!(owner(&agent, &pools).as_deref(), Some("a"));
    assert_eq!(owner(&agent, &[pools[0].clone(), pools[0].clone()]), None, "two are alike");
    assert_eq!(owner(&agent, &pools[1..]), None);
    agent.world.pools = vec![pool("dp", &json!({}))];
    let _ = agent.world.inventory.apply(link(3, "dp0", Kind::Physical));
    step(&mut agent, Instant::now());
    assert_eq!(owner(&agent, &pools).as_deref(), Some("dp"), "the last step has shown it");
}

#[test]
fn a_pool_that_has_no_link_still_has_the_resource_of_its_name() {
    let mut engine = engine(["a", "b"].map(|name| pool(name, &json!({}))).into());
    let selection = engine.step(Instant::now()).selection;
    let pool_of = |resource: &str| engine.world.pool_of(&resource.parse().unwrap(), &selection);
    assert_eq!(pool_of("b").map(|pool| pool.name.as_str()), Some("b"));
    assert!(pool_of("c").is_none());
}

#[test]
fn a_link_with_exactly_the_mtu_of_its_pool_is_large_enough() {
    for (mtu, state) in [(1500, LinkState::Healthy), (1501, LinkState::Unhealthy(LinkReason::MtuTooSmall))] {
        let mut engine = engine(vec![pool("a", &json!({"macvtap": {"mtu": mtu}}))]);
        let _ = engine.world.inventory.apply(link(3, "dp0", Kind::Veth));
        assert_eq!(step(&mut engine, Instant::now()).offers[&"a".parse().unwrap()].runs[0].state, state);
    }
}
