//! The operator: the product's own reconcilers and caches, which hear of the cluster when the test says so, one kind
//! before the other.

use crate::server;
use crate::world::{Cluster, World};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{Lookup, ObjectRef, store};
use kube::runtime::watcher::Event;
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::agents::Agents;
use macvtap_operator::catalog::ActivePool;
use macvtap_operator::clock;
use macvtap_operator::context::{Context, Guarded, NetworkKind, Queues};
use macvtap_operator::controller::reconcile;
use macvtap_operator::controllers::{Networks, NodeStates, Pools};
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use macvtap_operator::network::reports::Reports;
use macvtap_operator::node_config::Configs;
use macvtap_operator::pace::Pace;
use macvtap_operator::pool::published::Published;
use macvtap_operator::states::{KnownState, RawState, States};
use macvtap_operator::{trouble, watches};
use serde_json::json;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;

/// A kind of objects, which has a watch of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Pools,
    Nodes,
    States,
    Agents,
    Namespaces,
    Networks,
}

/// All kinds, in the order in which they are heard of when nothing is late.
pub(crate) const KINDS: [Kind; 6] =
    [Kind::Namespaces, Kind::Networks, Kind::Agents, Kind::States, Kind::Nodes, Kind::Pools];

/// A node as the operator knows it.
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) is_terminating: bool,
    pub(crate) state: Option<Arc<KnownState>>,
}

pub(crate) struct Operator {
    runtime: Runtime,
    pub(crate) context: Arc<Context>,
    pools: Writer<Guarded<MacvtapResourcePool>>,
    nodes: Writer<Node>,
    namespaces: Writer<PartialObjectMeta<Namespace>>,
    networks: Writer<NetworkAttachmentDefinition>,
    kind: watch::Sender<NetworkKind>,
    /// What it has heard.
    pub(crate) heard: World,
}

impl Operator {
    pub(crate) fn new(world: &Arc<Mutex<World>>) -> Self {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let client = runtime.block_on(async { server::client(world) });
        let (pool_store, pools) = store();
        let (node_store, nodes) = store();
        let (namespace_store, namespaces) = store();
        let (network_store, networks) = store();
        let (kind, network_kind) = watch::channel(NetworkKind::Present);
        let context = Arc::new(Context {
            recorder: Recorder::new(client.clone(), Reporter::from(OPERATOR_FIELD_MANAGER)),
            client,
            metrics: Arc::default(),
            queues: Queues::default(),
            pools: pool_store,
            nodes: node_store,
            states: States::default(),
            configs: Configs::new(2).impatient(),
            agents: Agents::default(),
            nodes_not_ready: trouble::UnreadyNodes::default(),
            namespaces: namespace_store,
            networks: network_store,
            network_kind,
            pace: Pace::default(),
            reports: Reports::default(),
            published: Published::default(),
            grants: RwLock::default(),
            catalog: RwLock::default(),
        });
        let heard = World::default();
        let mut operator = Self { runtime, context, pools, nodes, namespaces, networks, kind, heard };
        // The first, empty lists.
        begin(&mut operator.pools);
        begin(&mut operator.nodes);
        begin(&mut operator.namespaces);
        begin(&mut operator.networks);
        for event in [Event::Init, Event::InitDone] {
            operator.context.states.take(event, clock::now());
        }
        operator
    }

    /// Hears of what has happened to the objects of a kind.
    pub(crate) fn hear(&mut self, kind: Kind, now: &World) {
        let Self { runtime, context, heard, .. } = self;
        let context = || Arc::clone(context);
        match kind {
            Kind::Pools => {
                let changes =
                    changes(&mut heard.pools, &now.pools, |_, pool| DeserializeGuard(Ok(pool.clone())));
                let events = tell(&mut self.pools, changes);
                runtime.block_on(watches::follow_pools(stream::iter(events).boxed(), context()));
            }
            Kind::Nodes => {
                let changes = changes(&mut heard.nodes, &now.nodes, |_, node| node.clone());
                let events = tell(&mut self.nodes, changes);
                runtime.block_on(watches::follow_nodes(stream::iter(events).boxed(), context()));
            }
            Kind::States => {
                let gone = now.deleted[heard.deleted.len()..].iter().cloned().map(Event::Delete);
                heard.deleted.clone_from(&now.deleted);
                let changed = changes(&mut heard.states, &now.states, |_, state: &RawState| state.clone());
                let changed = changed.into_iter().filter(|change| matches!(change, Event::Apply(_)));
                let events: Vec<_> = gone.chain(changed).map(Ok).collect();
                runtime.block_on(watches::follow_states(stream::iter(events).boxed(), context()));
            }
            Kind::Agents => {
                let agents = |world: &World| -> BTreeMap<String, bool> {
                    world.nodes.keys().map(|node| (node.clone(), world.down.contains(node))).collect()
                };
                let mut events = changes(&mut heard.agents, &agents(now), |node, down| agent(node, *down));
                for event in &mut events {
                    // Its pod that was ready went unseen, and the list has the one that has not been ready for long.
                    if let Event::Apply(pod) = event
                        && now.down.iter().any(|node| pod.name_any() == format!("agent-{node}"))
                    {
                        *event = Event::Delete(pod.clone());
                    }
                }
                let listed = heard.agents.iter().map(|(node, down)| Event::InitApply(agent(node, *down)));
                events.push(Event::Init);
                events.extend(listed);
                events.push(Event::InitDone);
                heard.down.clone_from(&now.down);
                let events = events.into_iter().map(Ok);
                runtime.block_on(watches::follow_agents(stream::iter(events).boxed(), context()));
            }
            Kind::Namespaces => {
                let changes = changes(&mut heard.namespaces, &now.namespaces, namespace);
                let events = tell(&mut self.namespaces, changes);
                runtime.block_on(watches::follow_namespaces(stream::iter(events).boxed(), context()));
            }
            Kind::Networks => {
                let changes = changes(&mut heard.networks, &now.networks, |_, network| network.clone());
                let events = tell(&mut self.networks, changes);
                let kind = self.kind.clone();
                runtime.block_on(watches::follow_networks(stream::iter(events).boxed(), context(), kind));
            }
        }
    }

    pub(crate) fn sweep(&self, minutes: u8) {
        let Context { configs, client, states, .. } = &*self.context;
        let later = clock::now() + Duration::from_secs(60 * u64::from(minutes));
        // One that fails is followed by another.
        let _ = self.runtime.block_on(configs.sweep(client, states, later));
    }

    pub(crate) fn state(&self, node: &str) -> Option<Arc<KnownState>> {
        self.context.states.get(node)
    }

    /// The nodes that it knows.
    pub(crate) fn views(&self) -> Vec<View> {
        let view = |node: &Arc<Node>| View {
            name: node.name_any(),
            labels: node.labels().clone(),
            is_terminating: node.metadata.deletion_timestamp.is_some(),
            state: self.state(&node.name_any()),
        };
        let mut views: Vec<_> = self.context.nodes.state().iter().map(view).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }
}

fn begin<K>(writer: &mut Writer<K>)
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
}

/// Puts changes into a cache.
fn tell<K, E>(writer: &mut Writer<K>, changes: Vec<Event<K>>) -> Vec<Result<Event<K>, E>>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    for change in &changes {
        writer.apply_watcher_event(change);
    }
    changes.into_iter().map(Ok).collect()
}

/// What separates the objects that were heard of from those that are there.
fn changes<N: Ord + Clone, T: PartialEq + Clone, K>(
    heard: &mut BTreeMap<N, T>,
    now: &BTreeMap<N, T>,
    object: impl Fn(&N, &T) -> K,
) -> Vec<Event<K>> {
    let gone = heard.iter().filter(|(name, _)| !now.contains_key(name));
    let gone: Vec<_> = gone.map(|(name, there)| Event::Delete(object(name, there))).collect();
    let new = now.iter().filter(|(name, there)| heard.get(name) != Some(there));
    let events = gone.into_iter().chain(new.map(|(name, there)| Event::Apply(object(name, there)))).collect();
    heard.clone_from(now);
    events
}

/// The pod of a node's agent. One that is away has been away for long.
fn agent(node: &str, down: bool) -> Pod {
    let condition = json!({
        "type": "Ready", "status": if down { "False" } else { "True" },
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    });
    serde_json::from_value(json!({
        "metadata": {"name": format!("agent-{node}"), "namespace": "default"},
        "spec": {"nodeName": node, "containers": []}, "status": {"conditions": [condition]},
    }))
    .unwrap()
}

#[expect(clippy::ptr_arg, reason = "the key of a map")]
pub(crate) fn namespace(name: &String, labels: &BTreeMap<String, String>) -> PartialObjectMeta<Namespace> {
    let (name, labels) = (Some(name.clone()), Some(labels.clone()));
    PartialObjectMeta {
        metadata: ObjectMeta { name, labels, ..ObjectMeta::default() },
        ..PartialObjectMeta::default()
    }
}

impl Cluster {
    pub(crate) fn hear(&mut self, kind: Kind) {
        let now = self.server().clone();
        self.operator.hear(kind, &now);
    }

    pub(crate) fn hear_all(&mut self) {
        for kind in KINDS {
            self.hear(kind);
        }
    }

    pub(crate) fn look_at_node(&mut self, name: &str) {
        let states = &self.operator.context.states;
        let before = states.get(name).or_else(|| states.deleted(name, clock::now()));
        let catalog = self.operator.context.catalog();
        let context = &self.operator.context;
        // A write that is refused is tried again.
        let _ = self.operator.runtime.block_on(reconcile::<NodeStates>(name, context));
        let Some(after) = self.operator.state(name) else { return };
        for pool in catalog.active.iter().filter(|pool| pool.staged) {
            self.take_turn(pool, name, before.as_deref(), &after.pools);
        }
    }

    pub(crate) fn look_at_networks(&mut self, pool: &str) {
        let context = &self.operator.context;
        let _ = self.operator.runtime.block_on(reconcile::<Networks>(pool, context));
    }

    /// Looks at a pool so long after the last time that nothing need wait.
    pub(crate) fn look_at_pool(&mut self, name: &str) {
        if let Some(context) = Arc::get_mut(&mut self.operator.context) {
            context.pace = Pace::default();
        }
        let catalog = self.operator.context.catalog();
        let pool = self.operator.context.pools.get(&ObjectRef::new(name));
        let pool = pool.as_ref().and_then(|pool| pool.0.as_ref().ok());
        let wanted = pool.and_then(|pool| catalog.active(pool.metadata.uid.as_deref().unwrap_or_default()));
        let before = wanted.map(|wanted| self.turns(wanted)).unwrap_or_default();
        let is_there = pool.is_some_and(|pool| {
            self.server().pools.values().any(|there| there.metadata.uid == pool.metadata.uid)
        });
        // The first look of a pool with networks may wait for those.
        for _ in 0..2 {
            let context = &self.operator.context;
            let _ = self.operator.runtime.block_on(reconcile::<Pools>(name, context));
        }
        if let Some(pool) = pool.filter(|_| is_there) {
            self.judge_release(pool);
        }
        if let (Some(wanted), Some(pool)) = (wanted.filter(|wanted| wanted.staged), pool) {
            let mut next = self.turns(wanted);
            next.retain(|node| !before.contains(node));
            let views = self.operator.views();
            self.give_turns(pool, wanted, &views, &next);
        }
    }

    /// The nodes whose turn it is.
    fn turns(&self, pool: &ActivePool) -> Vec<String> {
        let mut nodes: Vec<_> = self.operator.views().into_iter().map(|view| view.name).collect();
        let grants = self.operator.context.grants();
        nodes.retain(|node| grants.has(&pool.entry, node));
        nodes
    }

    /// Another operator leads, which knows everything that the former one wrote, and nothing else of it.
    pub(crate) fn change_leader(&mut self) {
        self.hear_all();
        self.operator.context.forget_own();
        self.judge.forget();
    }
}
