//! What a reconcile may use: the client, the caches, and the pace of writing.

use crate::agents::Agents;
use crate::catalog::Catalog;
use crate::clock;
use crate::metrics::Metrics;
use crate::network::former::is_of_former;
use crate::network::kind::NetworkAttachmentDefinition;
use crate::network::links;
use crate::network::plan::is_ours;
use crate::network::reports::Reports;
use crate::node::{NodeView, SILENCE};
use crate::node_config::Configs;
use crate::pace::Pace;
use crate::pool::published::Published;
use crate::queue::Queue;
use crate::refusal;
use crate::relevance::Change;
use crate::rollout::Grants;
use crate::states::{KnownState, States};
use crate::trouble;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference};
use kube::api::ObjectMeta;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::{Event, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::settings::ResourcePer;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// An object of ours, or what is wrong with it: one that cannot be read must not stop a watch.
pub type Guarded<K> = DeserializeGuard<K>;

/// Whether the cluster has Multus' kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Nobody has answered yet.
    Unknown,
    /// It has not.
    Missing,
    /// It has, and the cache is filled.
    Present,
}

/// What waits to be looked at.
#[derive(Debug, Default)]
pub struct Queues {
    /// Pools by name.
    pub pools: Queue,
    /// Nodes by name.
    pub nodes: Queue,
    /// Pools by name, whose networks wait.
    pub networks: Queue,
}

impl Queues {
    fn all(&self) -> [&Queue; 3] {
        [&self.pools, &self.nodes, &self.networks]
    }

    /// Begins to take keys.
    pub fn open(&self) {
        self.all().into_iter().for_each(Queue::open);
    }

    /// Forgets everything and takes no more.
    pub fn close(&self) {
        self.all().into_iter().for_each(Queue::close);
    }
}

/// What a reconcile may use.
pub struct Context {
    /// Talks to the API server, and writes only while this operator leads.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What waits.
    pub queues: Queues,
    /// All pools.
    pub pools: Store<Guarded<MacvtapResourcePool>>,
    /// All nodes, reduced to what we use.
    pub nodes: Store<Node>,
    /// All node states.
    pub states: States,
    /// Configurations that node states name.
    pub configs: Configs,
    /// All agents.
    pub agents: Agents,
    /// Nodes that are not Ready.
    pub nodes_not_ready: trouble::UnreadyNodes,
    /// All namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// Network attachment definitions with our label.
    pub networks: Store<NetworkAttachmentDefinition>,
    /// Whether they can exist.
    pub network_kind: watch::Receiver<NetworkKind>,
    /// How often things are done.
    pub pace: Pace,
    /// What became of pools' networks.
    pub reports: Reports,
    /// What was written of pools.
    pub published: Published,
    /// Turns in staged rollouts.
    pub grants: RwLock<Arc<Grants>>,
    /// What the pools come to.
    pub catalog: RwLock<Arc<Catalog>>,
}

impl Context {
    /// What the pools come to.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Recomputes the catalog from the cached pools.
    pub fn refresh_catalog(&self) {
        // The cache is read under the lock, so that of two callers the one that read the older pools never stores last.
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        let pools = self.pools.state();
        let unreadable =
            pools.iter().filter_map(|pool| pool.0.as_ref().err()).map(|invalid| &invalid.metadata);
        *catalog = Arc::new(Catalog::new(readable(&pools)).with_unreadable(unreadable));
        let uids: HashSet<&str> = pools.iter().filter_map(|pool| pool.meta().uid.as_deref()).collect();
        self.change_grants(|grants| grants.retain(&uids));
    }

    /// The turns that were given in staged rollouts.
    pub fn grants(&self) -> Arc<Grants> {
        Arc::clone(&self.grants.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes them.
    pub fn change_grants(&self, change: impl FnOnce(&mut Grants)) {
        change(Arc::make_mut(&mut self.grants.write().unwrap_or_else(PoisonError::into_inner)));
    }

    /// Forgets what was known of a pool that is gone.
    pub fn forget_pool(&self, name: &str) {
        self.pace.forget(name);
        self.published.forget(name);
        self.reports.forget(name);
        self.metrics.forget(name);
    }

    /// Forgets what it has done itself: another operator leads now.
    pub fn forget_own(&self) {
        self.change_grants(|grants| *grants = Grants::default());
        self.states.forget_own(clock::now());
        self.configs.forget_existing();
        self.published.forget_all();
        self.reports.forget_all();
    }

    /// Until when the watch has surely shown every change of node states, by the operator's own clock.
    pub fn seen_until(&self) -> Timestamp {
        let now = clock::now();
        now.checked_sub(self.states.lag(now)).unwrap_or(now)
    }

    /// What is known of a node, by a watch that has shown everything until `seen_until`.
    pub fn view(&self, node: Arc<Node>, seen_until: Timestamp) -> NodeView {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let now = clock::now();
        NodeView {
            unstarted_since: self.agents.unstarted_since(name, now),
            state: self.states.get(name),
            not_ready_since: self.nodes_not_ready.not_ready_since(&node),
            agent_down: self.agents.down(name),
            runs_agent: self.agents.runs_on(name),
            now,
            seen_until,
            node,
        }
    }

    /// Takes it that every node whose agent has not answered, as far as the operator knows, holds what it may have been sent
    /// before the operator led: its state may have been deleted, or its status or its configuration removed, meanwhile.
    pub fn assume_past(&self) {
        let (catalog, now) = (self.catalog(), clock::now());
        for node in self.nodes.state() {
            let name = node.name_any();
            let is_unknown = || self.states.get(&name).is_some_and(|state| state.spec_unknown);
            if !self.agents.is_without(&name) || is_unknown() {
                self.states.assume(&name, || catalog.assumed(node.labels()), now);
            }
        }
    }

    /// Asks for a look at every pool.
    pub fn every_pool(&self) {
        for pool in self.pools.state() {
            self.queues.pools.add(&pool.name_any());
        }
    }

    /// Asks for a look at the networks of every pool.
    pub fn every_network(&self) {
        for pool in self.pools.state() {
            self.queues.networks.add(&pool.name_any());
        }
    }

    /// Asks for a look at every pool, and at the networks of those that have one for each link that nodes report.
    pub fn every_pool_by_nodes(&self) {
        self.every_pool();
        for pool in self.pools.state().iter().filter(|pool| is_per_link(pool)) {
            self.queues.networks.add(&pool.name_any());
        }
    }

    /// Asks for a look at the pools that a change of a node's state concerns, and at the others in time to notice that its
    /// agent does not answer.
    pub fn pools_of(&self, change: &Change<'_>) {
        for pool in self.pools.state() {
            let name = pool.name_any();
            if change.concerns(&name, pool.meta().uid.as_deref().unwrap_or_default()) {
                self.queues.pools.add(&name);
                if is_per_link(&pool) {
                    self.queues.networks.add(&name);
                }
            } else if change.awaits() {
                self.queues.pools.add_within(&name, SILENCE + Duration::from_secs(1));
            }
        }
    }

    /// Asks for a look at pools that were looked at before and are gone, so that they are forgotten.
    pub fn pools_that_are_gone(&self) {
        for name in self.pace.pools() {
            if self.pools.get(&ObjectRef::new(&name)).is_none() {
                self.queues.pools.add(&name);
            }
        }
    }

    /// Queues every node: at once those that offer devices of a pool being deleted, the others after what is urgent.
    pub fn every_node(&self) {
        let pools = self.pools.state();
        let ending: HashSet<&str> = pools
            .iter()
            .filter(|pool| pool.meta().deletion_timestamp.is_some())
            .filter_map(|pool| pool.meta().uid.as_deref())
            .collect();
        for node in self.nodes.state() {
            let name = node.name_any();
            let state = if ending.is_empty() { None } else { self.states.get(&name) };
            if state.is_some_and(|state| state.offers_any(&ending)) {
                self.queues.nodes.add(&name);
            } else {
                self.queues.nodes.add_later(&name);
            }
        }
    }

    /// The networks the pool has made; none while nobody knows, or when the cluster has no such kind.
    pub fn networks_of(&self, pool: &MacvtapResourcePool) -> Option<Vec<Arc<NetworkAttachmentDefinition>>> {
        let present = *self.network_kind.borrow() == NetworkKind::Present;
        let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
        present.then(|| self.networks.state_filter(|network| is_ours(network, &name, &uid)))
    }

    /// The networks of earlier pools of this name.
    pub fn networks_of_former(&self, pool: &str) -> Vec<Arc<NetworkAttachmentDefinition>> {
        let pools = self.pool_uids();
        self.networks.state_filter(|network| is_of_former(network, pool, &pools))
    }

    /// The UIDs of all pools.
    pub fn pool_uids(&self) -> BTreeSet<String> {
        self.pools.state().iter().filter_map(|pool| pool.meta().uid.clone()).collect()
    }

    /// With `resourcePer: Link`, the resources that nodes report for the pool, and whether these are all.
    pub fn link_resources(&self, pool: &MacvtapResourcePool) -> (BTreeSet<String>, bool) {
        match pool.spec.settings.resource_per {
            ResourcePer::Pool => (BTreeSet::new(), true),
            ResourcePer::Link => {
                let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
                let (states, now) = (self.states.all(), clock::now());
                let (resources, is_complete) =
                    links::link_resources(states.iter().map(Arc::as_ref), &name, &uid, now);
                let deleted = self.states.all_deleted(now);
                let may_hold = |state: &Arc<KnownState>| {
                    state.entry(&uid).is_some() && self.nodes.get(&ObjectRef::new(&state.name)).is_some()
                };
                (resources, is_complete && !deleted.iter().any(may_hold))
            }
        }
    }

    /// Publishes an event about a pool; a failure is logged, for nothing depends on it.
    pub async fn announce(&self, event: &Event, pool: &MacvtapResourcePool) {
        self.announce_on(event, &pool_reference(&pool.metadata)).await;
    }

    /// Publishes an event about any object.
    pub async fn announce_on(&self, event: &Event, object: &ObjectReference) {
        if let Err(error) = self.recorder.publish(event, object).await {
            let error = refusal::text(&error);
            tracing::warn!(object = object.name, reason = %event.reason, error, "event not published");
        }
    }
}

fn is_per_link(pool: &Guarded<MacvtapResourcePool>) -> bool {
    pool.0.as_ref().is_ok_and(|pool| pool.spec.settings.resource_per == ResourcePer::Link)
}

/// A pool as events refer to it, also one that cannot be read.
pub fn pool_reference(meta: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(MacvtapResourcePool::api_version(&()).into_owned()),
        kind: Some(MacvtapResourcePool::kind(&()).into_owned()),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Those of the objects that can be read.
pub fn readable<K>(objects: &[Arc<Guarded<K>>]) -> impl Iterator<Item = &K> + Clone {
    objects.iter().filter_map(|object| object.0.as_ref().ok())
}
