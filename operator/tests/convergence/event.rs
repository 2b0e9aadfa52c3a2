//! What may happen to a cluster.

use crate::operator::{KINDS, Kind};
use crate::world::{
    Cluster, End, Health, NAMES, Release, World, at, network_key, node_name, pool_name, touch, zone,
};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::network::kind::{
    NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec, NetworkKey,
};
use proptest::prelude::*;
use serde_json::json;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Node {
        name: u8,
        zone: u8,
    },
    NodeGone(u8),
    /// Somebody's finalizer keeps a node that is being deleted.
    NodeEnding(u8),
    /// Somebody deletes the state of a node.
    StateGone(u8),
    /// A state is restored from a backup, without its status.
    StatusGone(u8),
    /// A pool is made or edited.
    Pool(Wish),
    PoolGone(u8),
    Space {
        name: u8,
        zone: u8,
    },
    SpaceGone(u8),
    NetworkGone {
        space: u8,
        pool: u8,
    },
    NetworkEdited {
        space: u8,
        pool: u8,
    },
    NetworkUnlabelled {
        space: u8,
        pool: u8,
    },
    ForeignNetwork {
        space: u8,
        pool: u8,
    },
    Answer {
        node: u8,
        allocated: u32,
    },
    /// Pods start on a node. Its agent reports their devices when it answers next.
    Allocated(u8),
    /// Its agent will say so when it answers next.
    Health {
        node: u8,
        health: Health,
    },
    /// The agent of a node is away, or back.
    Agent {
        node: u8,
        away: bool,
    },
    /// The agent of a node is upgraded, or taken back.
    Release {
        node: u8,
        release: Release,
    },
    Collect,
    /// The operator hears of one kind, or of all.
    Hear(Option<Kind>),
    /// The operator receives everything and reconciles everything so often, before an agent answers.
    Passes(u8),
    LookAtNode(u8),
    LookAtNetworks(u8),
    LookAtPool(u8),
    /// Another operator leads.
    Leader,
    /// Somebody deletes what node states name: all of it, or what this node names.
    ConfigGone(Option<u8>),
    /// So many further reads of what node states name fail.
    ConfigFaults(u8),
    /// The operator compares what node states name with these, so many minutes later.
    Sweep(u8),
    /// The operator ends after so many writes, at the next one.
    Ends {
        writes: usize,
        end: End,
    },
}

/// A pool as somebody wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) name: u8,
    /// 2: every node.
    pub(crate) zone: u8,
    pub(crate) resource: u8,
    pub(crate) priority: u32,
    pub(crate) mtu: u32,
    /// 3: no network.
    pub(crate) spaces: u8,
    /// Batch and how many may be degraded, if it is staged.
    pub(crate) staged: Option<(Batch, u32)>,
}

/// A staged pool on every node, without networks.
pub(crate) const STAGED: Wish = Wish {
    name: 0,
    zone: 2,
    resource: 0,
    priority: 0,
    mtu: 0,
    spaces: 3,
    staged: Some((Batch::Nodes(1), 0)),
};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Batch {
    Nodes(u8),
    Percent(u8),
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let name = || 0..NAMES;
    let health = prop_oneof![Just(Health::Well), Just(Health::Degraded), Just(Health::NotReady)];
    prop_oneof![
        4 => (name(), 0u8..2).prop_map(|(name, zone)| Event::Node { name, zone }),
        1 => name().prop_map(Event::NodeGone),
        1 => name().prop_map(Event::NodeEnding),
        2 => name().prop_map(Event::StateGone),
        1 => name().prop_map(Event::StatusGone),
        6 => wish().prop_map(Event::Pool),
        2 => name().prop_map(Event::PoolGone),
        3 => (name(), 0u8..2).prop_map(|(name, zone)| Event::Space { name, zone }),
        1 => name().prop_map(Event::SpaceGone),
        1 => (name(), name()).prop_map(|(space, pool)| Event::NetworkGone { space, pool }),
        1 => (name(), name()).prop_map(|(space, pool)| Event::NetworkEdited { space, pool }),
        1 => (name(), name()).prop_map(|(space, pool)| Event::NetworkUnlabelled { space, pool }),
        1 => (name(), name()).prop_map(|(space, pool)| Event::ForeignNetwork { space, pool }),
        6 => (name(), 0u32..3).prop_map(|(node, allocated)| Event::Answer { node, allocated }),
        3 => name().prop_map(Event::Allocated),
        2 => (name(), health).prop_map(|(node, health)| Event::Health { node, health }),
        2 => (name(), any::<bool>()).prop_map(|(node, away)| Event::Agent { node, away }),
        2 => (name(), prop_oneof![Just(Release::First), Just(Release::Later)])
            .prop_map(|(node, release)| Event::Release { node, release }),
        2 => Just(Event::Collect),
        6 => Just(Event::Hear(None)),
        8 => proptest::sample::select(&KINDS[..]).prop_map(|kind| Event::Hear(Some(kind))),
        3 => (1u8..4).prop_map(Event::Passes),
        8 => name().prop_map(Event::LookAtNode),
        4 => name().prop_map(Event::LookAtNetworks),
        8 => name().prop_map(Event::LookAtPool),
        1 => Just(Event::Leader),
        2 => proptest::option::of(name()).prop_map(Event::ConfigGone),
        1 => (1u8..10).prop_map(Event::ConfigFaults),
        2 => (0u8..25).prop_map(Event::Sweep),
        2 => (0usize..4, prop_oneof![Just(End::Before), Just(End::After)])
            .prop_map(|(writes, end)| Event::Ends { writes, end }),
    ]
}

fn wish() -> impl Strategy<Value = Wish> {
    let name = || 0..NAMES;
    let batch = prop_oneof![
        (1u8..4).prop_map(Batch::Nodes),
        prop_oneof![Just(1), Just(50), Just(100)].prop_map(Batch::Percent),
    ];
    let staged = proptest::option::of((batch, 0u32..3));
    (name(), 0u8..3, name(), 0u32..3, 0u32..3, 0u8..4, staged).prop_map(
        |(name, zone, resource, priority, mtu, spaces, staged)| Wish {
            name,
            zone,
            resource,
            priority,
            mtu,
            spaces,
            staged,
        },
    )
}

impl Cluster {
    pub(crate) fn happen(&mut self, event: &Event) {
        let mut server = self.server();
        server.second += 1;
        let second = server.second;
        match *event {
            Event::Node { name, zone } => server.node(&node_name(name), zone),
            Event::NodeGone(name) => {
                server.nodes.remove(&node_name(name));
                server.in_use.remove(&node_name(name));
                server.offered.remove(&node_name(name));
            }
            Event::NodeEnding(name) => {
                if let Some(node) = server.nodes.get_mut(&node_name(name)) {
                    node.metadata.deletion_timestamp = Some(at(second));
                }
            }
            Event::StateGone(name) => server.remove_state(&node_name(name)),
            Event::StatusGone(name) => {
                if let Some(state) = server.states.get_mut(&node_name(name)) {
                    state.status = serde_json::Value::Null;
                    state.metadata.resource_version = Some(second.to_string());
                }
            }
            Event::Pool(wish) => server.pool(wish),
            Event::PoolGone(name) => server.delete(&pool_name(name)),
            Event::Space { name, zone: place } => {
                server.namespaces.insert(format!("space-{name}"), zone(place));
            }
            Event::SpaceGone(name) => {
                let space = format!("space-{name}");
                server.networks.retain(|(namespace, _), _| *namespace != space);
                server.namespaces.remove(&space);
            }
            Event::NetworkGone { space, pool } => {
                server.networks.remove(&network_key(space, pool));
            }
            Event::NetworkEdited { space, pool } => {
                if let Some(network) = server.networks.get_mut(&network_key(space, pool)) {
                    "{}".clone_into(&mut network.spec.config);
                }
            }
            Event::NetworkUnlabelled { space, pool } => {
                if let Some(network) = server.networks.get_mut(&network_key(space, pool)) {
                    network.metadata.labels = None;
                }
            }
            Event::ForeignNetwork { space, pool } => server.foreign(&network_key(space, pool)),
            Event::Ends { writes, end } => server.ends = Some((writes, end)),
            Event::ConfigGone(node) => server.remove_configs(node),
            Event::ConfigFaults(reads) => server.config_faults = reads,
            Event::Agent { node, away: true } => drop(server.down.insert(node_name(node))),
            Event::Agent { node, away: false } => drop(server.down.remove(&node_name(node))),
            _ => {
                drop(server);
                self.go_on(event);
            }
        }
    }

    /// Lets operator and agents do something.
    fn go_on(&mut self, event: &Event) {
        match *event {
            Event::Answer { node, allocated } => self.answer(&node_name(node), allocated),
            Event::Allocated(node) => self.allocate(&node_name(node)),
            Event::Health { node, health } => drop(self.health.insert(node_name(node), health)),
            Event::Release { node, release } => drop(self.releases.insert(node_name(node), release)),
            Event::Collect => self.collect(),
            Event::Hear(Some(kind)) => self.hear(kind),
            Event::Hear(None) => self.hear_all(),
            Event::Passes(passes) => (0..passes).for_each(|_| self.pass()),
            Event::LookAtNode(name) => self.look_at_node(&node_name(name)),
            Event::LookAtNetworks(name) => self.look_at_networks(&pool_name(name)),
            Event::LookAtPool(name) => self.look_at_pool(&pool_name(name)),
            Event::Leader => self.change_leader(),
            Event::Sweep(minutes) => self.sweep(minutes),
            _ => {}
        }
        self.is_restarted();
    }
}

impl World {
    /// Deletes what node states name: all of it, or what this node names.
    fn remove_configs(&mut self, node: Option<u8>) {
        let named = node.map(|node| self.states.get(&node_name(node)).and_then(|state| state.config()));
        let named = named.map(|name| name.unwrap_or_default().to_owned());
        self.configs.retain(|name, _| named.as_ref().is_some_and(|named| named != name));
    }

    /// Makes or relabels a node.
    fn node(&mut self, name: &str, place: u8) {
        let second = self.second;
        let node = self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            metadata: ObjectMeta {
                uid: Some(format!("{name}-{second}")),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        });
        node.metadata.labels = Some(zone(place));
    }

    /// Makes or edits a pool. Its resource name cannot be changed.
    fn pool(&mut self, wish: Wish) {
        let (pool, second) = (pool_name(wish.name), self.second);
        let there = self.pools.get(&pool);
        let first = there.and_then(|pool| pool.spec.resource_name.clone());
        let resource = first.unwrap_or_else(|| format!("resource-{}", wish.resource));
        let selector = (wish.zone < 2).then(|| json!({"matchLabels": zone(wish.zone)}));
        let namespaces = match wish.spaces {
            0 => json!({"names": ["space-0", "space-1"]}),
            1 => json!({"selector": {"matchLabels": {"zone": "z0"}}}),
            _ => json!({"names": ["space-2"], "selector": {"matchLabels": {"zone": "z1"}}}),
        };
        let networks =
            (wish.spaces < 3).then(|| json!([{"name": format!("net-{pool}"), "namespaces": namespaces}]));
        let rollout = wish.staged.map(|(batch, degraded)| {
            let batch = match batch {
                Batch::Nodes(nodes) => json!(nodes),
                Batch::Percent(share) => json!(format!("{share}%")),
            };
            json!({"type": "Staged", "staged": {"batch": batch, "maxDegraded": degraded}})
        });
        let mut spec = json!({
            "links": [{"names": ["dp0"]}], "resourceName": resource, "priority": wish.priority,
            "macvtap": {"mtu": 1400 + wish.mtu},
        });
        for (field, value) in [("nodeSelector", selector), ("networks", networks), ("rollout", rollout)] {
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
                made.status.clone_from(&there.status);
            }
            None => made.metadata.creation_timestamp = Some(at(second)),
        }
        touch(&mut made, second);
        self.pools.insert(pool, made);
    }

    fn delete(&mut self, name: &str) {
        let second = self.second;
        let Some(pool) = self.pools.get_mut(name) else { return };
        if pool.finalizers().is_empty() {
            self.pools.remove(name);
        } else {
            pool.metadata.deletion_timestamp.get_or_insert_with(|| at(second));
            touch(pool, second);
        }
    }

    fn foreign(&mut self, key: &NetworkKey) {
        if self.namespaces.contains_key(&key.0) {
            self.networks.entry(key.clone()).or_insert_with(|| {
                let spec = NetworkAttachmentDefinitionSpec { config: "{\"type\": \"bridge\"}".to_owned() };
                let mut network = NetworkAttachmentDefinition::new(&key.1, spec);
                network.metadata.namespace = Some(key.0.clone());
                network
            });
        }
    }
}
