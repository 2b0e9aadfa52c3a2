//! Caches of the cluster, and what a change of each object makes us look at.
//!
//! An event reaches the cache before anybody is told about it, so what is looked at is never older than the event.

use crate::context::{Guarded, NetworkKind};
use crate::network::kind::NetworkAttachmentDefinition;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, NodeStatus};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::sync::{mpsc, watch};

/// Asks for a look at a pool.
pub type PoolQueue = mpsc::Sender<ReconcileRequest<Guarded<MacvtapResourcePool>>>;

/// Asks for a look at a node's state.
pub type NodeQueue = mpsc::Sender<ReconcileRequest<Node>>;

/// Whom to tell.
#[derive(Clone)]
pub struct Queues {
    /// Pools.
    pub pools: PoolQueue,
    /// Nodes.
    pub nodes: NodeQueue,
    /// The cache of pools.
    pub all_pools: Store<Guarded<MacvtapResourcePool>>,
    /// The cache of nodes.
    pub all_nodes: Store<Node>,
}

impl Queues {
    async fn pool(&self, name: &str) {
        // An error means that the operator is ending.
        let _ = self.pools.send(ObjectRef::new(name).into()).await;
    }

    async fn every_pool(&self) {
        for pool in self.all_pools.state() {
            self.pool(&pool.name_any()).await;
        }
    }

    async fn node(&self, name: &str) {
        let _ = self.nodes.send(ObjectRef::new(name).into()).await;
    }

    async fn every_node(&self) {
        for node in self.all_nodes.state() {
            self.node(&node.name_any()).await;
        }
    }
}

/// What happens to objects of a kind.
pub type Events<K> = futures::stream::BoxStream<'static, watcher::Result<Event<K>>>;

/// A cache and the events that have reached it.
pub struct Watched<K>
where
    K: Resource + 'static,
    K::DynamicType: Hash + Eq,
{
    /// The cache.
    pub store: Store<K>,
    /// Its events.
    pub events: Events<K>,
}

/// All pools.
pub fn pools(client: &Client) -> Watched<Guarded<MacvtapResourcePool>> {
    watched(watch_objects(Api::all(client.clone()), watcher::Config::default()), |pool: &mut Guarded<_>| {
        pool.meta_mut().managed_fields = None;
    })
}

/// All nodes, without what we never look at: a Node is mostly a list of images.
pub fn nodes(client: &Client) -> Watched<Node> {
    watched(watch_objects(Api::all(client.clone()), watcher::Config::default()), |node: &mut Node| {
        node.metadata.managed_fields = None;
        node.metadata.annotations = None;
        node.spec = None;
        let conditions = node.status.take().and_then(|status| status.conditions);
        let ready =
            conditions.map(|all| all.into_iter().filter(|condition| condition.type_ == "Ready").collect());
        node.status = Some(NodeStatus { conditions: ready, ..Default::default() });
    })
}

/// All node states, with the time of our last write as the only managed field.
pub fn states(client: &Client) -> Watched<Guarded<MacvtapNodeState>> {
    watched(watch_objects(Api::all(client.clone()), watcher::Config::default()), |state: &mut Guarded<_>| {
        if let Some(fields) = &mut state.meta_mut().managed_fields {
            fields.retain(|entry| {
                entry.manager.as_deref() == Some(OPERATOR_FIELD_MANAGER) && entry.subresource.is_none()
            });
            for entry in fields {
                entry.fields_v1 = None;
            }
        }
    })
}

/// All namespaces' names and labels.
pub fn namespaces(client: &Client) -> Watched<PartialObjectMeta<Namespace>> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    watched(watch_objects(api, watcher::Config::default()), |namespace: &mut PartialObjectMeta<Namespace>| {
        namespace.metadata.managed_fields = None;
        namespace.metadata.annotations = None;
    })
}

/// Networks that carry our label.
pub fn networks(client: &Client) -> Watched<NetworkAttachmentDefinition> {
    let config = watcher::Config::default().labels(POOL_LABEL);
    watched(watch_objects(Api::all(client.clone()), config), |network: &mut NetworkAttachmentDefinition| {
        network.metadata.managed_fields = None;
    })
}

fn watched<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = store();
    let events = events.default_backoff().modify(prune).reflect(writer);
    Watched { store, events: events.boxed() }
}

/// Tells of pools. A pool's acceptance depends on the others, and every node's state on all of them; its own status
/// concerns nobody.
pub async fn follow_pools(mut events: Events<Guarded<MacvtapResourcePool>>, queues: Queues) {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("pools", event) else {
            continue;
        };
        let changed = seen.changed(&event, |pool| {
            let meta = pool.meta();
            fingerprint(&(&meta.uid, meta.generation, meta.deletion_timestamp.is_some(), &meta.finalizers))
        });
        if changed {
            queues.every_pool().await;
            queues.every_node().await;
        }
    }
}

/// Tells of nodes: their labels, and whether they are ready.
pub async fn follow_nodes(mut events: Events<Node>, queues: Queues) {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("nodes", event) else {
            continue;
        };
        let changed = seen.changed(&event, |node| {
            let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let ready: Vec<&str> = conditions.map(|condition| condition.status.as_str()).collect();
            fingerprint(&(
                &node.metadata.uid,
                &node.metadata.labels,
                ready,
                node.metadata.deletion_timestamp.is_some(),
            ))
        });
        if !changed {
            continue;
        }
        match &event {
            Event::InitDone => queues.every_node().await,
            Event::Apply(node) | Event::Delete(node) => queues.node(&node.name_any()).await,
            Event::Init | Event::InitApply(_) => {}
        }
        queues.every_pool().await;
    }
}

/// Tells of node states: the node, whose spec may need repair, and the pools it is about.
pub async fn follow_states(mut events: Events<Guarded<MacvtapNodeState>>, queues: Queues) {
    while let Some(event) = events.next().await {
        match logged("node states", event) {
            Some(Event::InitDone) => {
                queues.every_node().await;
                queues.every_pool().await;
            }
            Some(Event::Apply(state) | Event::Delete(state)) => {
                queues.node(&state.name_any()).await;
                // Also pools the state no longer names wait for it: those being deleted.
                queues.every_pool().await;
            }
            Some(Event::Init | Event::InitApply(_)) | None => {}
        }
    }
}

/// Tells of namespaces: any pool may select them.
pub async fn follow_namespaces(mut events: Events<PartialObjectMeta<Namespace>>, queues: Queues) {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("namespaces", event) else {
            continue;
        };
        let changed = seen.changed(&event, |namespace| {
            fingerprint(&(&namespace.metadata.labels, namespace.metadata.deletion_timestamp.is_some()))
        });
        if changed {
            queues.every_pool().await;
        }
    }
}

/// Tells of networks: the pool they belong to. The kind itself may be missing, and may come later.
pub async fn follow_networks(
    mut events: Events<NetworkAttachmentDefinition>,
    queues: Queues,
    kind: watch::Sender<NetworkKind>,
) {
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::InitDone) => {
                if kind.send_replace(NetworkKind::Present) != NetworkKind::Present {
                    tracing::info!("NetworkAttachmentDefinitions are there");
                }
                queues.every_pool().await;
            }
            Ok(Event::Apply(network) | Event::Delete(network)) => {
                if let Some(pool) = network.labels().get(POOL_LABEL) {
                    queues.pool(pool).await;
                }
            }
            Ok(Event::Init | Event::InitApply(_)) => {}
            Err(error) if kind_is_missing(&error) => {
                if kind.send_replace(NetworkKind::Missing) != NetworkKind::Missing {
                    tracing::warn!(
                        "the cluster has no NetworkAttachmentDefinitions; pools get no networks until Multus is installed"
                    );
                    queues.every_pool().await;
                }
            }
            Err(error) => tracing::warn!(%error, "watch of networks interrupted"),
        }
    }
}

fn kind_is_missing(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

fn logged<K>(what: &str, event: watcher::Result<Event<K>>) -> Option<Event<K>> {
    event.inspect_err(|error| tracing::warn!(%error, "watch of {what} interrupted")).ok()
}

/// What was seen of each object, so that changes of what we do not use are no changes.
#[derive(Debug, Default)]
struct Seen {
    fingerprints: HashMap<(Option<String>, String), u64>,
}

impl Seen {
    /// Whether the event is worth telling. A list that was read anew always is.
    fn changed<K: Resource>(&mut self, event: &Event<K>, fingerprint: impl Fn(&K) -> u64) -> bool {
        let key =
            |object: &K| (object.meta().namespace.clone(), object.meta().name.clone().unwrap_or_default());
        match event {
            Event::Apply(object) => {
                let new = fingerprint(object);
                self.fingerprints.insert(key(object), new) != Some(new)
            }
            Event::Delete(object) => {
                self.fingerprints.remove(&key(object));
                true
            }
            Event::Init => {
                self.fingerprints.clear();
                false
            }
            Event::InitApply(object) => {
                self.fingerprints.insert(key(object), fingerprint(object));
                false
            }
            Event::InitDone => true,
        }
    }
}

fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use serde_json::json;

    #[test]
    fn only_changes_of_what_is_used_are_told() {
        let mut seen = Seen::default();
        let generation = |pool: &MacvtapResourcePool| fingerprint(&pool.metadata.generation);
        let first = pool("a", json!({}));
        let mut edited = first.clone();
        edited.metadata.generation = Some(2);
        assert!(!seen.changed(&Event::Init, generation));
        assert!(!seen.changed(&Event::InitApply(first.clone()), generation));
        assert!(seen.changed(&Event::InitDone, generation));
        assert!(!seen.changed(&Event::Apply(first.clone()), generation));
        assert!(seen.changed(&Event::Apply(edited), generation));
        assert!(seen.changed(&Event::Delete(first.clone()), generation));
        assert!(seen.changed(&Event::Apply(first), generation));
    }
}
