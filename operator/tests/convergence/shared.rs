//! Node states that name what has their pools, because other nodes have the same.

use crate::event::{Event, STAGED, Wish};
use crate::world::{Cluster, Release, node_name, pool_name};
use proptest::prelude::*;

const POOL: Wish = Wish { staged: None, ..STAGED };

/// Two nodes with a pool that was edited once; gives the node whose state names a configuration.
fn scene() -> Result<(Cluster, u8), TestCaseError> {
    let mut cluster = Cluster::default();
    (0..2).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    for mtu in 0..2 {
        cluster.happen(&Event::Pool(Wish { mtu, ..POOL }));
        cluster.settle()?;
    }
    let server = cluster.server();
    let named: Vec<u8> = (0..2).filter(|node| server.states[&node_name(*node)].config().is_some()).collect();
    let inline = server.states.values().filter(|state| state.spec["pools"].is_array()).count();
    assert_eq!((named.len(), inline), (1, 1), "the first node has its pools itself");
    assert_eq!(server.configs.len(), 2, "one of before the edit");
    drop(server);
    Ok((cluster, named[0]))
}

#[test]
fn what_somebody_deletes_is_written_again_and_no_state_is() -> Result<(), TestCaseError> {
    let (mut cluster, node) = scene()?;
    let before = cluster.server().states.clone();
    cluster.happen(&Event::ConfigGone(Some(node)));
    assert_eq!(cluster.server().configs.len(), 1);
    cluster.settle()?;
    assert_eq!(cluster.server().configs.len(), 2);
    assert_eq!(cluster.server().states, before);
    Ok(())
}

#[test]
fn an_operator_that_starts_without_it_waits_for_pods_and_writes_the_states_again() -> Result<(), TestCaseError>
{
    let (mut cluster, node) = scene()?;
    // The other node has its pools itself, and its drain would be waited for.
    for event in [Event::NodeGone(1 - node), Event::Collect, Event::Hear(None)] {
        cluster.happen(&event);
    }
    // Pods start, which the agent has not reported.
    for event in [Event::Allocated(node), Event::PoolGone(POOL.name), Event::ConfigGone(None)] {
        cluster.happen(&event);
    }
    cluster.restart();
    let is_there = |cluster: &Cluster| cluster.server().pools.contains_key(&pool_name(POOL.name));
    cluster.happen(&Event::LookAtPool(POOL.name));
    assert!(is_there(&cluster), "nobody has sent the drain");
    cluster.happen(&Event::Passes(3));
    assert!(is_there(&cluster), "nobody has answered the drain");
    cluster.happen(&Event::Answer { node, allocated: 1 });
    cluster.happen(&Event::Passes(3));
    assert!(is_there(&cluster), "a pod has a device");
    cluster.settle()?;
    assert!(!is_there(&cluster) && cluster.judge.faults.is_empty(), "{:?}", cluster.judge.faults);
    Ok(())
}

#[test]
fn an_operator_that_cannot_read_it_changes_no_node_before_its_turn() -> Result<(), TestCaseError> {
    let (mut cluster, _) = scene()?;
    cluster.happen(&Event::Pool(Wish { mtu: 2, ..STAGED }));
    cluster.happen(&Event::ConfigFaults(200));
    cluster.restart();
    cluster.hear_all();
    (0..2).for_each(|node| cluster.look_at_node(&node_name(node)));
    let phases: Vec<_> =
        (0..2).map(|node| cluster.operator.state(&node_name(node)).unwrap().pools[0].phase).collect();
    assert_eq!(phases.iter().filter(|phase| format!("{phase:?}") == "Unchanged").count(), 1, "{phases:?}");
    cluster.settle()?;
    assert!(cluster.judge.faults.is_empty(), "{:?}", cluster.judge.faults);
    Ok(())
}

#[test]
fn an_agent_taken_back_that_does_not_know_it_gets_its_pools_and_releases_none() -> Result<(), TestCaseError> {
    let (mut cluster, node) = scene()?;
    for event in [Event::Allocated(node), Event::PoolGone(POOL.name), Event::Passes(1)] {
        cluster.happen(&event);
    }
    assert!(cluster.server().states[&node_name(node)].config().is_some(), "its drain is shared");
    cluster.happen(&Event::Release { node, release: Release::First });
    (0..2).for_each(|node| cluster.happen(&Event::Answer { node, allocated: 0 }));
    cluster.happen(&Event::Passes(3));
    assert!(cluster.server().pools.contains_key(&pool_name(POOL.name)), "its answer was about no pools");
    let entry = cluster.server().states[&node_name(node)].spec["pools"][0].clone();
    assert_eq!((&entry["phase"], &entry["resourceName"]), (&"Draining".into(), &"resource-0".into()));
    cluster.settle()?;
    assert!(cluster.server().pools.is_empty() && cluster.judge.faults.is_empty());
    Ok(())
}

#[test]
fn what_no_state_has_named_for_ten_minutes_is_deleted() -> Result<(), TestCaseError> {
    let (mut cluster, _) = scene()?;
    cluster.happen(&Event::Pool(Wish { mtu: 2, ..POOL }));
    cluster.settle()?;
    assert_eq!(cluster.server().configs.len(), 3);
    cluster.happen(&Event::Sweep(20));
    assert_eq!(cluster.server().configs.len(), 1);
    assert_eq!(cluster.settle()?, 0);
    Ok(())
}
