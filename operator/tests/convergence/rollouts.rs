//! Staged rollouts, step by step.

use crate::event::{Event, STAGED, Wish};
use crate::world::{Cluster, Health, NAMES, node_name, pool_name};
use macvtap_crds::condition::{self, ConditionType};
use proptest::test_runner::TestCaseError;

/// Condition Progressing of the pool, in one word.
fn progress(cluster: &Cluster) -> String {
    let server = cluster.server();
    let status = server.pools[&pool_name(STAGED.name)].status.as_ref().unwrap();
    condition::find(&status.conditions, ConditionType::Progressing).unwrap().reason.clone()
}

fn nodes(numbers: &[u8]) -> Vec<String> {
    numbers.iter().map(|number| node_name(*number)).collect()
}

/// The nodes that were told of the pool with this MTU.
fn told(cluster: &Cluster, mtu: u32) -> Vec<String> {
    let says = |spec: &serde_json::Value| spec["pools"][0]["macvtap"]["mtu"] == 1400 + mtu;
    let server = cluster.server();
    let is_told = |name: &&String| server.resolved(name).is_some_and(|state| says(&state.spec));
    server.states.keys().filter(is_told).cloned().collect()
}

#[test]
fn a_rollout_stops_at_a_node_that_is_not_well_and_goes_on_when_it_is() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    (0..NAMES).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    cluster.happen(&Event::Pool(STAGED));
    cluster.settle()?;
    assert_eq!((told(&cluster, 0).len(), &*progress(&cluster)), (usize::from(NAMES), "UpToDate"));

    cluster.harm.insert((node_name(1), 1401), Health::Degraded);
    cluster.happen(&Event::Pool(Wish { mtu: 1, ..STAGED }));
    cluster.settle()?;
    assert_eq!((told(&cluster, 1), &*progress(&cluster)), (nodes(&[0, 1]), "RolloutHalted"));
    cluster.happen(&Event::Leader);
    assert_eq!(cluster.settle()?, 0, "another leader must not go on either");

    cluster.heal();
    cluster.settle()?;
    assert_eq!((told(&cluster, 1).len(), &*progress(&cluster)), (usize::from(NAMES), "UpToDate"));
    assert_eq!(cluster.judge.faults, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_node_that_was_bad_before_stops_neither_a_rollout_nor_the_way_back() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    (0..NAMES).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    cluster.happen(&Event::Pool(STAGED));
    cluster.settle()?;
    cluster.happen(&Event::Health { node: 0, health: Health::NotReady });
    cluster.settle()?;
    cluster.happen(&Event::Pool(Wish { mtu: 1, ..STAGED }));
    cluster.settle()?;
    assert_eq!((told(&cluster, 1).len(), &*progress(&cluster)), (usize::from(NAMES), "UpToDate"));

    cluster.harm.insert((node_name(1), 1402), Health::NotReady);
    cluster.happen(&Event::Pool(Wish { mtu: 2, ..STAGED }));
    cluster.settle()?;
    assert_eq!((told(&cluster, 2), &*progress(&cluster)), (nodes(&[0, 1]), "RolloutHalted"));
    cluster.happen(&Event::Health { node: 3, health: Health::NotReady });
    cluster.happen(&Event::Pool(Wish { mtu: 1, ..STAGED }));
    cluster.settle()?;
    assert_eq!((told(&cluster, 1).len(), &*progress(&cluster)), (usize::from(NAMES), "UpToDate"));
    assert_eq!(cluster.judge.faults, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_rollout_goes_on_beside_a_node_that_is_being_deleted_for_ever() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    (0..NAMES).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    cluster.happen(&Event::Pool(STAGED));
    cluster.settle()?;
    cluster.happen(&Event::NodeEnding(0));
    cluster.happen(&Event::Pool(Wish { mtu: 1, ..STAGED }));
    cluster.settle()?;
    assert_eq!((told(&cluster, 1), &*progress(&cluster)), (nodes(&[1, 2, 3]), "UpToDate"));

    // The pool can go nevertheless: the node hears of the drain.
    cluster.happen(&Event::PoolGone(STAGED.name));
    cluster.settle()?;
    assert!(cluster.server().pools.is_empty() && cluster.server().nodes.len() == usize::from(NAMES));
    Ok(())
}

#[test]
fn a_node_that_comes_back_waits_for_its_turn_like_others() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    (0..NAMES).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    cluster.happen(&Event::Pool(Wish { zone: 0, ..STAGED }));
    cluster.settle()?;
    (0..NAMES).for_each(|name| cluster.happen(&Event::Node { name, zone: 1 }));
    cluster.settle()?;
    assert_eq!(told(&cluster, 0), Vec::<String>::new());
    (0..NAMES).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    cluster.happen(&Event::Hear(None));
    for _ in 0..2 {
        (0..NAMES).for_each(|name| cluster.look_at_node(&node_name(name)));
        cluster.look_at_pool(&pool_name(STAGED.name));
    }
    assert_eq!(told(&cluster, 0), ["node-0"]);
    Ok(())
}
