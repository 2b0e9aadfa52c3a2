//! Whatever happens to pools, nodes, namespaces and networks, in whatever order and however late the operator hears of
//! it: once nothing more happens, everything is as an operator would make it that sees the cluster for the first time,
//! and nobody writes any more.
//!
//! Pure: the decisions are the product's, what an API server and agents would do is played.

#![allow(clippy::unwrap_used, reason = "a test's own objects are what it wrote")]

use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use macvtap_crds::POOL_FINALIZER;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_operator::catalog::Catalog;
use macvtap_operator::network::kind::{NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec};
use macvtap_operator::network::plan::{self, Key};
use macvtap_operator::node_state::apply::unchanged;
use macvtap_operator::node_state::entry::{Entry, config_hash};
use macvtap_operator::node_state::render::{Target, render};
use macvtap_operator::states::{Interner, KnownState, RawState};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Rounds after which everything must be quiet: a pool goes in four, and one under its name comes in as many more.
const ROUNDS: usize = 20;

const NAMES: u8 = 4;

/// What the API server has, or what the operator has heard of it.
#[derive(Clone, Debug, Default)]
struct World {
    pools: BTreeMap<String, MacvtapResourcePool>,
    nodes: BTreeMap<String, Node>,
    states: BTreeMap<String, RawState>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    networks: BTreeMap<Key, NetworkAttachmentDefinition>,
}

/// The API server, what the operator knows of it, and the clock.
#[derive(Debug, Default)]
struct Cluster {
    server: World,
    cache: World,
    shared: Interner,
    second: i64,
    writes: usize,
}

#[derive(Clone, Debug)]
enum Event {
    Node { name: u8, zone: u8 },
    NodeGone(u8),
    Pool { name: u8, zone: u8, resource: u8, priority: u32, mtu: u32, spaces: u8 },
    PoolGone(u8),
    Space { name: u8, zone: u8 },
    SpaceGone(u8),
    NetworkGone { space: u8, pool: u8 },
    NetworkEdited { space: u8, pool: u8 },
    NetworkUnlabelled { space: u8, pool: u8 },
    ForeignNetwork { space: u8, pool: u8 },
    Answer { node: u8, allocated: u32 },
    Collect,
    Hear,
    LookAtNode(u8),
    LookAtPool(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let name = || 0..NAMES;
    prop_oneof![
        3 => (name(), 0u8..2).prop_map(|(name, zone)| Event::Node { name, zone }),
        1 => name().prop_map(Event::NodeGone),
        6 => (name(), 0u8..3, name(), 0u32..3, 0u32..3, 0u8..4).prop_map(|(name, zone, resource, priority, mtu, spaces)| {
            Event::Pool { name, zone, resource, priority, mtu, spaces }
        }),
        2 => name().prop_map(Event::PoolGone),
        3 => (name(), 0u8..2).prop_map(|(name, zone)| Event::Space { name, zone }),
        1 => name().prop_map(Event::SpaceGone),
        1 => (name(), name()).prop_map(|(space, pool)| Event::NetworkGone { space, pool }),
        1 => (name(), name()).prop_map(|(space, pool)| Event::NetworkEdited { space, pool }),
        1 => (name(), name()).prop_map(|(space, pool)| Event::NetworkUnlabelled { space, pool }),
        1 => (name(), name()).prop_map(|(space, pool)| Event::ForeignNetwork { space, pool }),
        6 => (name(), 0u32..3).prop_map(|(node, allocated)| Event::Answer { node, allocated }),
        2 => Just(Event::Collect),
        8 => Just(Event::Hear),
        8 => name().prop_map(Event::LookAtNode),
        8 => name().prop_map(Event::LookAtPool),
    ]
}

fn zone(zone: u8) -> BTreeMap<String, String> {
    BTreeMap::from([("zone".to_owned(), format!("z{zone}"))])
}

fn node_name(number: u8) -> String {
    format!("node-{number}")
}

fn pool_name(number: u8) -> String {
    format!("pool-{number}")
}

fn network_key(space: u8, pool: u8) -> Key {
    (format!("space-{space}"), format!("net-pool-{pool}"))
}

impl Cluster {
    fn happen(&mut self, event: &Event) {
        self.second += 1;
        let second = self.second;
        match *event {
            Event::Node { name, zone: place } => {
                let name = node_name(name);
                let node = self.server.nodes.entry(name.clone()).or_insert_with(|| Node {
                    metadata: ObjectMeta {
                        uid: Some(format!("{name}-{second}")),
                        name: Some(name),
                        ..ObjectMeta::default()
                    },
                    ..Node::default()
                });
                node.metadata.labels = Some(zone(place));
            }
            Event::NodeGone(name) => {
                self.server.nodes.remove(&node_name(name));
            }
            Event::Pool { .. } => self.pool(event),
            Event::PoolGone(name) => {
                if let Some(pool) = self.server.pools.get_mut(&pool_name(name)) {
                    if pool.finalizers().is_empty() {
                        self.server.pools.remove(&pool_name(name));
                    } else {
                        pool.metadata.deletion_timestamp.get_or_insert_with(|| at(second));
                        touch(pool, second);
                    }
                }
            }
            Event::Space { name, zone: place } => {
                self.server.namespaces.insert(format!("space-{name}"), zone(place));
            }
            Event::SpaceGone(name) => {
                let space = format!("space-{name}");
                self.server.networks.retain(|(namespace, _), _| *namespace != space);
                self.server.namespaces.remove(&space);
            }
            Event::NetworkGone { space, pool } => {
                self.server.networks.remove(&network_key(space, pool));
            }
            Event::NetworkEdited { space, pool } => {
                if let Some(network) = self.server.networks.get_mut(&network_key(space, pool)) {
                    "{}".clone_into(&mut network.spec.config);
                }
            }
            Event::NetworkUnlabelled { space, pool } => {
                if let Some(network) = self.server.networks.get_mut(&network_key(space, pool)) {
                    network.metadata.labels = None;
                }
            }
            Event::ForeignNetwork { space, pool } => self.foreign(&network_key(space, pool)),
            Event::Answer { node, allocated } => self.answer(&node_name(node), allocated),
            Event::Collect => self.collect(),
            Event::Hear => self.cache = self.server.clone(),
            Event::LookAtNode(name) => self.look_at_node(&node_name(name)),
            Event::LookAtPool(name) => self.look_at_pool(&pool_name(name)),
        }
    }

    /// Makes or edits a pool. Its resource name cannot be changed.
    fn pool(&mut self, event: &Event) {
        let Event::Pool { name, zone, resource, priority, mtu, spaces } = *event else { return };
        let (pool, second) = (pool_name(name), self.second);
        let there = self.server.pools.get(&pool);
        let first = there.and_then(|pool| pool.spec.resource_name.clone());
        let resource = first.unwrap_or_else(|| format!("resource-{resource}"));
        let selector = (zone < 2).then(|| json!({"matchLabels": {"zone": format!("z{zone}")}}));
        let namespaces = match spaces {
            0 => json!({"names": ["space-0", "space-1"]}),
            1 => json!({"selector": {"matchLabels": {"zone": "z0"}}}),
            _ => json!({"names": ["space-2"], "selector": {"matchLabels": {"zone": "z1"}}}),
        };
        let networks =
            (spaces < 3).then(|| json!([{"name": format!("net-{pool}"), "namespaces": namespaces}]));
        let mut spec = json!({
            "links": [{"names": ["dp0"]}], "resourceName": resource, "priority": priority,
            "macvtap": {"mtu": 1400 + mtu},
        });
        for (field, value) in [("nodeSelector", selector), ("networks", networks)] {
            if let Some(value) = value {
                spec[field] = value;
            }
        }
        let mut made: MacvtapResourcePool = serde_json::from_value(json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
            "metadata": {"name": pool, "uid": format!("{pool}-{second}"), "generation": 1}, "spec": spec,
        }))
        .unwrap();
        match there {
            Some(there) => {
                made.metadata = there.metadata.clone();
                made.metadata.generation = there.metadata.generation.map(|generation| generation + 1);
            }
            None => made.metadata.creation_timestamp = Some(at(second)),
        }
        touch(&mut made, second);
        self.server.pools.insert(pool, made);
    }

    fn foreign(&mut self, key: &Key) {
        if self.server.namespaces.contains_key(&key.0) {
            self.server.networks.entry(key.clone()).or_insert_with(|| {
                let spec = NetworkAttachmentDefinitionSpec { config: "{\"type\": \"bridge\"}".to_owned() };
                let mut network = NetworkAttachmentDefinition::new(&key.1, spec);
                network.metadata.namespace = Some(key.0.clone());
                network
            });
        }
    }

    /// A node's agent has applied what it was told, and so many devices of each pool are in use.
    fn answer(&mut self, node: &str, allocated: u32) {
        let Some(state) = self.server.states.get_mut(node) else { return };
        let entries = state.spec["pools"].as_array().cloned().unwrap_or_default();
        let pools: Vec<Value> = entries
            .iter()
            .map(|pool| json!({"name": pool["name"], "generation": pool["generation"], "allocated": allocated}))
            .collect();
        state.status = json!({"observedHash": state.spec["configHash"], "pools": pools});
    }

    /// The garbage collector removes states whose Node is gone.
    fn collect(&mut self) {
        let alive: BTreeSet<String> = self.server.nodes.values().filter_map(ResourceExt::uid).collect();
        self.server.states.retain(|_, state| {
            state.metadata.owner_references.iter().flatten().all(|owner| alive.contains(&owner.uid))
        });
    }

    fn known(&mut self, node: &str) -> Option<KnownState> {
        let raw = self.cache.states.get(node)?;
        Some(KnownState::read(raw, &mut self.shared))
    }

    fn look_at_node(&mut self, name: &str) {
        let Some(node) = self.cache.nodes.get(name).cloned() else { return };
        let current = self.known(name);
        let entries = rendered(&self.cache, &node, current.as_ref());
        if unchanged(&node, &entries, current.as_ref()) {
            return;
        }
        self.writes += 1;
        let pools: Vec<Value> =
            entries.iter().map(|entry| serde_json::to_value(&***entry).unwrap()).collect();
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.uid()}]);
        let state = self.server.states.entry(name.to_owned()).or_default();
        state.metadata.name = Some(name.to_owned());
        state.metadata.owner_references = serde_json::from_value(owner).unwrap();
        state.spec = json!({"configHash": config_hash(&entries), "pools": pools});
    }

    fn look_at_pool(&mut self, name: &str) {
        let Some(pool) = self.cache.pools.get(name).cloned() else { return };
        let ending = pool.metadata.deletion_timestamp.is_some();
        let ours = pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER);
        match (ending, ours) {
            (false, false) => self.set_finalizers(&pool, vec![POOL_FINALIZER.to_owned()]),
            (true, false) => {}
            (true, true) => self.end_pool(&pool),
            (false, true) => self.serve_pool(&pool),
        }
    }

    /// As the API server does it: only if the pool is as it was read.
    fn set_finalizers(&mut self, read: &MacvtapResourcePool, finalizers: Vec<String>) {
        self.writes += 1;
        let name = read.name_any();
        let Some(pool) = self.server.pools.get_mut(&name) else { return };
        if pool.metadata.resource_version != read.metadata.resource_version {
            return;
        }
        if finalizers.is_empty() && pool.metadata.deletion_timestamp.is_some() {
            self.server.pools.remove(&name);
            return;
        }
        pool.metadata.finalizers = Some(finalizers);
        self.second += 1;
        touch(pool, self.second);
    }

    fn end_pool(&mut self, pool: &MacvtapResourcePool) {
        let uid = pool.uid().unwrap_or_default();
        let nodes: Vec<String> = self.cache.nodes.keys().cloned().collect();
        if nodes.iter().any(|node| self.known(node).is_some_and(|state| state.entry(&uid).is_some())) {
            return;
        }
        let name = pool.name_any();
        self.server.networks.retain(|_, network| !plan::is_ours(network, &name, &uid));
        self.set_finalizers(pool, Vec::new());
    }

    fn serve_pool(&mut self, pool: &MacvtapResourcePool) {
        let name = pool.name_any();
        if catalog(&self.cache).verdict(&name).is_err() {
            return;
        }
        let desired = wanted(&self.cache, pool);
        let uid = pool.uid().unwrap_or_default();
        let ours: Vec<_> = self
            .cache
            .networks
            .values()
            .filter(|network| plan::is_ours(*network, &name, &uid))
            .cloned()
            .collect();
        let plan = plan::plan(&desired, &ours);
        for (key, _) in &plan.delete {
            self.writes += 1;
            if self.server.networks.get(key).is_some_and(|there| plan::is_ours(there, &name, &uid)) {
                self.server.networks.remove(key);
            }
        }
        for key in plan.create.iter().chain(&plan.repair) {
            let foreign =
                self.server.networks.get(key).is_some_and(|there| !plan::is_ours(there, &name, &uid));
            if !foreign && self.server.namespaces.contains_key(&key.0) {
                self.writes += 1;
                self.server.networks.insert(key.clone(), desired.networks[key].clone());
            }
        }
    }

    /// Everybody hears of everything and does what is to be done, until there is nothing to do.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..ROUNDS {
            self.writes = 0;
            self.collect();
            let states: Vec<String> = self.server.states.keys().cloned().collect();
            for state in &states {
                self.answer(state, 0);
            }
            self.cache = self.server.clone();
            (0..NAMES).for_each(|name| self.look_at_pool(&pool_name(name)));
            (0..NAMES).for_each(|name| self.look_at_node(&node_name(name)));
            if self.writes == 0 {
                return Ok(());
            }
        }
        Err(TestCaseError::fail(format!("{} writes in round {ROUNDS}: {:#?}", self.writes, self.server)))
    }
}

fn at(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(second).unwrap())
}

fn touch(pool: &mut MacvtapResourcePool, version: i64) {
    pool.metadata.resource_version = Some(version.to_string());
}

fn catalog(world: &World) -> Catalog {
    Catalog::new(world.pools.values())
}

fn rendered(world: &World, node: &Node, current: Option<&KnownState>) -> Vec<Arc<Entry>> {
    let name = node.name_any();
    let target = Target { name: &name, labels: node.labels(), silent: false, current };
    render(target, &catalog(world), |_| true)
}

fn wanted(world: &World, pool: &MacvtapResourcePool) -> plan::Desired {
    let namespaces: Vec<PartialObjectMeta<Namespace>> = world
        .namespaces
        .iter()
        .map(|(name, labels)| PartialObjectMeta {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.clone()),
                ..ObjectMeta::default()
            },
            ..PartialObjectMeta::default()
        })
        .collect();
    plan::desired(pool, namespaces.iter(), &BTreeSet::new())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_ends_as_a_fresh_operator_would_make_it(events in proptest::collection::vec(event(), 1..60)) {
        let mut cluster = Cluster::default();
        for event in &events {
            cluster.happen(event);
        }
        cluster.settle()?;
        let world = cluster.cache.clone();
        prop_assert!(world.pools.values().all(|pool| pool.metadata.deletion_timestamp.is_none()), "a pool stays for ever");
        prop_assert_eq!(world.nodes.keys().collect::<Vec<_>>(), world.states.keys().collect::<Vec<_>>());
        for (name, node) in &world.nodes {
            let found = cluster.known(name).unwrap();
            let fresh = rendered(&world, node, None);
            prop_assert_eq!(found.pools.len(), fresh.len());
            for (found, fresh) in found.pools.iter().zip(&fresh) {
                prop_assert!(found.says_the_same(fresh), "{:?} is not {:?}", found, fresh);
                prop_assert_eq!(found.phase, PoolPhase::Active);
            }
        }
        let catalog = catalog(&world);
        let mut owned = BTreeSet::new();
        for pool in world.pools.values().filter(|pool| catalog.verdict(&pool.name_any()).is_ok()) {
            let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
            for (key, network) in &wanted(&world, pool).networks {
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
    }
}
