//! Whatever happens to pools, nodes, namespaces and networks, in whatever order and however late the operator hears of
//! it: once nothing more happens, everything is as an operator would make it that sees the cluster for the first time,
//! and nobody writes any more. A staged rollout gets there by batches, and stops while nodes are not well.
//!
//! The operator is the product: its watches' handlers, caches and reconcilers. Played are the API server, which answers its
//! requests, and the agents.

#![allow(clippy::unwrap_used, reason = "a test's own objects are what it wrote")]

mod event;
mod judge;
mod operator;
mod rollouts;
mod server;
mod shared;
mod world;

use event::{Event, STAGED, Wish, event};
use kube::ResourceExt;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::reason::PoolReason;
use macvtap_crds::v1alpha1::settings::ResourcePer;
use macvtap_operator::clock;
use macvtap_operator::network::plan;
use macvtap_operator::node_state::render::{Target, render};
use operator::{Kind, namespace};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use world::{Cluster, End, Release, node_name, pool_name};

/// Every node that is meant has every pool as it is now, and nothing else.
fn nodes_are_as_a_fresh_operator_makes_them(cluster: &mut Cluster) -> Result<(), TestCaseError> {
    let world = cluster.operator.heard.clone();
    prop_assert_eq!(world.nodes.keys().collect::<Vec<_>>(), world.states.keys().collect::<Vec<_>>());
    for (name, node) in &world.nodes {
        let found = cluster.operator.state(name).unwrap();
        let target =
            Target { name, labels: node.labels(), silent: false, current: None, seen_until: clock::now() };
        let fresh = render(target, &world.catalog(), |_| true);
        prop_assert!(found.applied(), "{} cannot read its spec", name);
        prop_assert_eq!(found.pools.len(), fresh.len());
        for (found, fresh) in found.pools.iter().zip(&fresh) {
            prop_assert!(found.says_the_same(fresh), "{:?} is not {:?}", found, fresh);
            prop_assert_eq!(found.phase, PoolPhase::Active);
        }
    }
    Ok(())
}

/// Every network that a pool asks for is there, and none of ours besides.
fn networks_are_as_a_fresh_operator_makes_them(cluster: &Cluster) -> Result<(), TestCaseError> {
    let world = &cluster.operator.heard;
    let catalog = world.catalog();
    let mut owned = BTreeSet::new();
    let namespaces: Vec<_> = world.namespaces.iter().map(|(name, labels)| namespace(name, labels)).collect();
    for pool in world.pools.values().filter(|pool| catalog.verdict(&pool.name_any()).is_ok()) {
        let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
        for (key, network) in &plan::desired(pool, namespaces.iter(), &BTreeSet::new()).networks {
            let there = world.networks.get(key);
            prop_assert!(there.is_some(), "{:?} is missing", key);
            if let Some(there) = there.filter(|there| plan::is_ours(*there, &name, &uid)) {
                prop_assert!(plan::same(there, network), "{:?} is not as it should be", key);
                owned.insert(key.clone());
            }
        }
        let ours = world.networks.iter().filter(|(_, network)| plan::is_ours(*network, &name, &uid));
        for (key, _) in ours {
            prop_assert!(owned.contains(key), "{:?} is left over", key);
        }
    }
    Ok(())
}

/// A rollout has reached every node that answers, or says why it has not: more nodes are not well than may be.
fn rollouts_are_through_or_say_why_not(cluster: &Cluster) -> Result<(), TestCaseError> {
    let catalog = cluster.operator.heard.catalog();
    for pool in cluster.operator.heard.pools.values() {
        let Some(active) = catalog.active(&pool.uid().unwrap_or_default()) else { continue };
        let status = pool.status.as_ref().unwrap();
        let progress = condition::find(&status.conditions, ConditionType::Progressing).unwrap();
        let allowed = pool.spec.rollout.staged.as_ref().map_or(0, |staged| staged.max_degraded);
        if progress.reason == PoolReason::RolloutHalted.as_str() {
            prop_assert!(active.staged && status.nodes.degraded + status.nodes.unreachable > allowed);
        } else {
            let answering = status.nodes.matched - status.nodes.unreachable;
            prop_assert_eq!(status.nodes.updated, answering, "{:?}", status);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_ends_as_a_fresh_operator_would_make_it(events in proptest::collection::vec(event(), 1..60)) {
        let mut cluster = Cluster::default();
        for event in &events {
            cluster.happen(event);
        }
        cluster.settle()?;
        rollouts_are_through_or_say_why_not(&cluster)?;
        cluster.heal();
        cluster.settle()?;
        let pools = &cluster.operator.heard.pools;
        prop_assert!(pools.values().all(|pool| pool.metadata.deletion_timestamp.is_none()), "a pool stays for ever");
        nodes_are_as_a_fresh_operator_makes_them(&mut cluster)?;
        networks_are_as_a_fresh_operator_makes_them(&cluster)?;
        rollouts_are_through_or_say_why_not(&cluster)?;
        cluster.happen(&Event::Leader);
        prop_assert_eq!(cluster.settle()?, 0, "another operator sees something to do");
        prop_assert!(cluster.judge.faults.is_empty(), "{:?}", cluster.judge.faults);
    }
}

#[test]
fn a_pool_that_is_deleted_before_a_first_answer_is_seen_waits_for_the_pods() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    cluster.happen(&Event::Node { name: 0, zone: 0 });
    cluster.happen(&Event::Pool(Wish { staged: None, ..STAGED }));
    cluster.happen(&Event::Passes(3));
    assert!(cluster.operator.state(&node_name(0)).is_some_and(|state| state.pools.len() == 1));
    // The agent applies it and a pod gets a device, while the operator receives that the pool is being deleted.
    cluster.happen(&Event::Answer { node: 0, allocated: 1 });
    cluster.happen(&Event::PoolGone(STAGED.name));
    cluster.happen(&Event::Hear(Some(Kind::Pools)));
    for event in [Event::LookAtNode(0), Event::LookAtPool(STAGED.name), Event::Passes(2)] {
        cluster.happen(&event);
        assert!(cluster.server().pools.contains_key(&pool_name(STAGED.name)), "released by {event:?}");
    }
    cluster.settle()?;
    assert!(cluster.server().pools.is_empty(), "the pod has ended");
    assert_eq!(cluster.judge.faults, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_agent_taken_back_alone_gets_a_spec_that_it_can_read() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    cluster.happen(&Event::Node { name: 0, zone: 0 });
    cluster.happen(&Event::Pool(Wish { staged: None, ..STAGED }));
    cluster.settle()?;
    cluster.happen(&Event::Pool(Wish { staged: None, mtu: 1, ..STAGED }));
    cluster.settle()?;
    let pool = |cluster: &Cluster| cluster.server().states["node-0"].spec["pools"][0].clone();
    assert!(pool(&cluster).get("phase").is_none(), "brief for an agent that can read it");
    cluster.happen(&Event::Release { node: 0, release: Release::First });
    cluster.settle()?;
    assert_eq!(pool(&cluster)["phase"], "Active");
    assert!(cluster.operator.state("node-0").is_some_and(|state| state.applied()));
    cluster.happen(&Event::Release { node: 0, release: Release::Later });
    assert_eq!(cluster.settle()?, 0, "a newer agent reads what it finds");
    Ok(())
}

#[test]
fn the_networks_of_links_are_compared_again_when_a_node_goes_after_its_state() {
    let mut cluster = Cluster::default();
    cluster.happen(&Event::Node { name: 0, zone: 0 });
    cluster.happen(&Event::Pool(STAGED));
    for pool in cluster.server().pools.values_mut() {
        pool.spec.settings.resource_per = ResourcePer::Link;
    }
    cluster.hear_all();
    let context = Arc::clone(&cluster.operator.context);
    context.queues.networks.open();
    cluster.server().nodes.clear();
    cluster.hear(Kind::Nodes);
    assert_eq!(context.queues.networks.depth(), 1);
}

#[test]
fn the_networks_of_links_stay_when_the_operator_restarts_while_a_state_is_missing() {
    let mut cluster = Cluster::default();
    for event in [Event::Node { name: 0, zone: 0 }, Event::Space { name: 0, zone: 0 }] {
        cluster.happen(&event);
    }
    cluster.happen(&Event::Pool(Wish { spaces: 0, staged: None, ..STAGED }));
    cluster.server().pools.values_mut().for_each(|pool| {
        pool.spec.settings.resource_per = ResourcePer::Link;
    });
    cluster.hear_all();
    cluster.look_at_pool(&pool_name(0));
    cluster.hear_all();
    cluster.look_at_node(&node_name(0));
    cluster.answer(&node_name(0), 0);
    cluster.server().states.values_mut().for_each(|state| {
        state.status["pools"][0]["resources"] = serde_json::json!(["dp0"]);
    });
    cluster.hear_all();
    cluster.look_at_networks(&pool_name(0));
    assert_eq!(cluster.server().networks.len(), 1);

    cluster.happen(&Event::StateGone(0));
    cluster.restart();
    let pod = serde_json::json!({
        "metadata": {"name": "agent"}, "status": {"phase": "Running"},
        "spec": {"nodeName": node_name(0), "containers": []},
    });
    let pod = kube::runtime::watcher::Event::Apply(serde_json::from_value(pod).unwrap());
    cluster.operator.context.agents.take(&pod, clock::now());
    cluster.look_at_networks(&pool_name(0));
    cluster.look_at_node(&node_name(0));
    cluster.hear_all();
    cluster.look_at_networks(&pool_name(0));
    assert_eq!(cluster.server().networks.len(), 1);
}

#[test]
fn a_pool_being_deleted_waits_for_nodes_whose_states_are_missing_when_the_operator_starts() {
    let mut cluster = Cluster::default();
    let (node, pool) = (node_name(0), pool_name(STAGED.name));
    cluster.happen(&Event::Node { name: 0, zone: 0 });
    cluster.happen(&Event::Pool(Wish { staged: None, ..STAGED }));
    let pass = |cluster: &mut Cluster| {
        cluster.hear_all();
        cluster.look_at_pool(&pool);
        cluster.hear_all();
        cluster.look_at_node(&node);
        cluster.hear_all();
    };
    (0..2).for_each(|_| pass(&mut cluster));
    cluster.answer(&node, 2);
    cluster.happen(&Event::PoolGone(STAGED.name));
    pass(&mut cluster);
    cluster.answer(&node, 2);
    cluster.happen(&Event::StateGone(0));
    cluster.restart();
    (0..2).for_each(|_| pass(&mut cluster));
    let left = |cluster: &Cluster| {
        let pools = cluster.server().pools.len();
        (pools, cluster.real(&node_name(0)).and_then(|state| Some(state.pools.first()?.phase)))
    };
    assert_eq!(left(&cluster), (1, Some(PoolPhase::Draining)));
    cluster.answer(&node, 2);
    pass(&mut cluster);
    assert_eq!(left(&cluster), (1, Some(PoolPhase::Draining)));
    cluster.answer(&node, 0);
    (0..2).for_each(|_| pass(&mut cluster));
    assert_eq!(left(&cluster), (0, None));
}

#[test]
fn a_pool_that_only_a_deleted_state_holds_is_checked_again() -> Result<(), TestCaseError> {
    let mut cluster = Cluster::default();
    cluster.happen(&Event::Node { name: 0, zone: 0 });
    cluster.happen(&Event::Pool(STAGED));
    cluster.settle()?;
    for event in [Event::NodeEnding(0), Event::StateGone(0), Event::PoolGone(STAGED.name), Event::Hear(None)]
    {
        cluster.happen(&event);
    }
    let context = Arc::clone(&cluster.operator.context);
    context.queues.nodes.open();
    cluster.look_at_pool(&pool_name(STAGED.name));
    assert_eq!((cluster.server().pools.len(), context.queues.nodes.depth()), (1, 1));
    Ok(())
}

/// Pools that are created, sent to nodes, edited, repaired and deleted, so that an operator makes every kind of write.
fn life_of_pools(cluster: &mut Cluster) -> Result<(), TestCaseError> {
    let staged = Wish { spaces: 0, ..STAGED };
    let other = Wish { name: 1, resource: 1, staged: None, ..staged };
    (0..2).for_each(|name| cluster.happen(&Event::Node { name, zone: 0 }));
    (0..2).for_each(|name| cluster.happen(&Event::Space { name, zone: 0 }));
    let chapters = [
        vec![Event::Pool(staged), Event::Pool(other)],
        vec![Event::Pool(Wish { mtu: 1, ..staged }), Event::Pool(Wish { mtu: 1, ..other })],
        vec![Event::StateGone(0), Event::StatusGone(1), Event::NetworkGone { space: 0, pool: 0 }],
        vec![Event::NetworkEdited { space: 1, pool: 1 }, Event::PoolGone(staged.name)],
    ];
    for chapter in &chapters {
        for event in chapter {
            cluster.happen(event);
        }
        cluster.settle()?;
    }
    Ok(())
}

#[test]
fn whichever_write_is_an_operators_last_the_next_operator_completes_it() -> Result<(), TestCaseError> {
    for end in [End::Before, End::After] {
        let mut writes = 0;
        loop {
            let mut cluster = Cluster::default();
            cluster.server().ends = Some((writes, end));
            life_of_pools(&mut cluster)?;
            let has_ended = cluster.server().ends.is_none();
            let what = format!("{end:?} write {writes}");
            assert_eq!(cluster.operator.heard.pools.keys().collect::<Vec<_>>(), [&pool_name(1)], "{what}");
            nodes_are_as_a_fresh_operator_makes_them(&mut cluster)?;
            networks_are_as_a_fresh_operator_makes_them(&cluster)?;
            rollouts_are_through_or_say_why_not(&cluster)?;
            assert_eq!(cluster.judge.faults, Vec::<String>::new(), "{what}");
            if !has_ended {
                break;
            }
            writes += 1;
        }
        println!("an operator ended {end:?} each of {writes} writes");
        assert!(writes > 25, "only {writes} writes");
    }
    Ok(())
}
