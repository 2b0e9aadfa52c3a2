//! Caches of the cluster, and what a change of each object makes us look at.
//!
//! An event reaches the cache before it is passed on, so a reconciliation never sees anything older than the event.
//! A standby follows everything too, so that it can lead at once; its queues are closed.

mod filter;
mod shared;

use crate::agents;
use crate::clock;
use crate::context::{Context, Guarded, NetworkKind};
use crate::metrics::Metrics;
use crate::network::kind::NetworkAttachmentDefinition;
use crate::refresh::{Events, Need, Refresh, kind_is_missing};
use crate::refusal;
use crate::relevance::Change;
use crate::states::RawState;
use filter::{Seen, Unreadable, fingerprint};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node, NodeStatus, Pod};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{Store, store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL, RELEASE_ANNOTATION};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::watch;

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
pub fn pools(client: &Client, refresh: &Refresh) -> Watched<Guarded<MacvtapResourcePool>> {
    watched(
        (refresh, Need::Vital),
        Api::all(client.clone()),
        watcher::Config::default(),
        |pool: &mut Guarded<_>| {
            pool.meta_mut().managed_fields = None;
        },
    )
}

/// All nodes, without what we never look at: a Node is mostly a list of images.
pub fn nodes(client: &Client, refresh: &Refresh) -> Watched<Node> {
    watched(
        (refresh, Need::Vital),
        Api::all(client.clone()),
        watcher::Config::default(),
        |node: &mut Node| {
            node.metadata.managed_fields = None;
            node.metadata.annotations = None;
            node.spec = None;
            let conditions = node.status.take().and_then(|status| status.conditions);
            let ready = conditions
                .map(|all| all.into_iter().filter(|condition| condition.type_ == "Ready").collect());
            node.status = Some(NodeStatus { conditions: ready, ..Default::default() });
        },
    )
}

/// All node states; [`crate::states::States`] keeps what matters of them.
pub fn states(client: &Client, refresh: &Refresh) -> Events<RawState> {
    let api: Api<RawState> = Api::all(client.clone());
    // A page holds whole objects until each is read, and these are the largest.
    let config = watcher::Config::default().page_size(100);
    refresh.watch(Need::Vital, move || watch_objects(api.clone(), config.clone()).default_backoff().boxed())
}

/// The pods of our agents.
pub fn agents(client: &Client, refresh: &Refresh, namespace: &str, selector: &str) -> Events<Pod> {
    let config = watcher::Config::default().labels(selector);
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let begin = move || watch_objects(api.clone(), config.clone()).default_backoff().boxed();
    refresh.watch(Need::Useful, begin).modify(agents::prune).boxed()
}

/// All namespaces' names and labels.
pub fn namespaces(client: &Client, refresh: &Refresh) -> Watched<PartialObjectMeta<Namespace>> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    watched(
        (refresh, Need::Vital),
        api,
        watcher::Config::default(),
        |namespace: &mut PartialObjectMeta<Namespace>| {
            namespace.metadata.managed_fields = None;
            namespace.metadata.annotations = None;
        },
    )
}

/// Networks that carry our label.
pub fn networks(client: &Client, refresh: &Refresh) -> Watched<NetworkAttachmentDefinition> {
    let config = watcher::Config::default().labels(POOL_LABEL);
    watched(
        (refresh, Need::Useful),
        Api::all(client.clone()),
        config,
        |network: &mut NetworkAttachmentDefinition| {
            // They prove whether the operator wrote the network; which fields does not matter.
            if let Some(managers) = &mut network.metadata.managed_fields {
                managers.retain(|entry| entry.manager.as_deref() == Some(OPERATOR_FIELD_MANAGER));
                for entry in managers {
                    entry.fields_v1 = None;
                }
            }
        },
    )
}

fn watched<K>(
    (refresh, need): (&Refresh, Need),
    api: Api<K>,
    config: watcher::Config,
    prune: impl FnMut(&mut K) + Send + 'static,
) -> Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = store();
    let begin = move || watch_objects(api.clone(), config.clone()).default_backoff().boxed();
    let events = refresh.watch(need, begin);
    Watched { store, events: events.modify(prune).reflect(writer).boxed() }
}

/// Watches pools. A pool's acceptance depends on the others, and every node's state on all of them; its status concerns
/// itself only, for somebody else may have written it.
pub async fn follow_pools(mut events: Events<Guarded<MacvtapResourcePool>>, context: Arc<Context>) {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("pools", event, &context.metrics) else {
            continue;
        };
        let changed = seen.changed(&event, |pool| {
            let meta = pool.meta();
            fingerprint(&(
                &meta.uid,
                meta.generation,
                meta.deletion_timestamp.is_some(),
                &meta.finalizers,
                pool.annotations().get(RELEASE_ANNOTATION),
            ))
        });
        if changed {
            context.refresh_catalog();
            context.every_pool();
            context.every_network();
            context.pools_that_are_gone();
            context.every_node();
        } else if let Event::Apply(pool) = &event {
            context.queues.pools.add(&pool.name_any());
        }
    }
}

/// Watches nodes: their labels, and whether they are ready.
pub async fn follow_nodes(mut events: Events<Node>, context: Arc<Context>) {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("nodes", event, &context.metrics) else {
            continue;
        };
        context.nodes_not_ready.take(&event, clock::now());
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
            Event::InitDone => context.every_node(),
            Event::Apply(node) | Event::Delete(node) => context.queues.nodes.add(&node.name_any()),
            Event::Init | Event::InitApply(_) => {}
        }
        // The links of a node are held until it is gone, which it may be later than its state.
        if matches!(event, Event::Delete(_) | Event::InitDone) {
            context.every_pool_by_nodes();
        } else {
            context.every_pool();
        }
    }
}

/// Watches node states and keeps them. Their events concern the node, whose spec may need repair, and the pools in it.
pub async fn follow_states(mut events: Events<RawState>, context: Arc<Context>) {
    let mut unreadable = Unreadable::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("node states", event, &context.metrics) else {
            continue;
        };
        let before = match &event {
            Event::Apply(state) => context.states.get(&state.name_any()),
            Event::Init | Event::InitApply(_) | Event::InitDone | Event::Delete(_) => None,
        };
        let event = shared::resolve(&context, event).await;
        let now = clock::now();
        let taken = context.states.take(event, now);
        if let Some(lag) = taken.lag {
            context.metrics.watch_lag.observe(lag.as_secs_f64());
        }
        match taken.event {
            Event::InitDone => {
                for state in context.states.all() {
                    unreadable.report(
                        "node state",
                        &state.name,
                        state.unreadable.as_deref(),
                        &context.metrics,
                    );
                }
                context.every_node();
                context.every_pool_by_nodes();
            }
            Event::Apply(state) => {
                unreadable.report("node state", &state.name, state.unreadable.as_deref(), &context.metrics);
                context.queues.nodes.add(&state.name);
                match before {
                    Some(before) => {
                        context.pools_of(&Change::new(&before, &state, now));
                    }
                    None => context.every_pool_by_nodes(),
                }
            }
            Event::Delete(state) => {
                unreadable.report("node state", &state.name, None, &context.metrics);
                context.queues.nodes.add(&state.name);
                // Also pools that the state does not name wait for it: those being deleted.
                context.every_pool_by_nodes();
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }
}

/// Watches agents and keeps them: a pool's nodes may become unreachable.
pub async fn follow_agents(mut events: Events<Pod>, context: Arc<Context>) {
    while let Some(event) = events.next().await {
        let Some(event) = logged("agents", event, &context.metrics) else {
            continue;
        };
        let complete = matches!(event, Event::InitDone);
        if context.agents.take(&event, clock::now()).is_some() || complete {
            context.every_pool();
        }
    }
}

/// Watches namespaces: any pool may select them.
pub async fn follow_namespaces(mut events: Events<PartialObjectMeta<Namespace>>, context: Arc<Context>) {
    let mut seen = Seen::default();
    while let Some(event) = events.next().await {
        let Some(event) = logged("namespaces", event, &context.metrics) else {
            continue;
        };
        let changed = seen.changed(&event, |namespace| {
            fingerprint(&(&namespace.metadata.labels, namespace.metadata.deletion_timestamp.is_some()))
        });
        if changed {
            context.every_network();
        }
    }
}

/// Watches networks: the pool they belong to. The kind itself may be missing, and may come later.
pub async fn follow_networks(
    mut events: Events<NetworkAttachmentDefinition>,
    context: Arc<Context>,
    kind: watch::Sender<NetworkKind>,
) {
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::InitDone) => {
                if kind.send_replace(NetworkKind::Present) != NetworkKind::Present {
                    tracing::info!("NetworkAttachmentDefinitions are there");
                }
                context.every_network();
            }
            Ok(Event::Apply(network) | Event::Delete(network)) => {
                if let Some(pool) = network.labels().get(POOL_LABEL) {
                    context.queues.networks.add(pool);
                }
            }
            Ok(Event::Init | Event::InitApply(_)) => {}
            Err(error) if kind_is_missing(&error) => {
                if kind.send_replace(NetworkKind::Missing) != NetworkKind::Missing {
                    tracing::warn!(
                        "the cluster has no NetworkAttachmentDefinitions; pools get no networks until Multus is installed"
                    );
                    context.every_network();
                }
            }
            Err(error) => drop(logged("networks", Err::<Event<()>, _>(error), &context.metrics)),
        }
    }
}

/// Returns the event, or reports why there is none, with all causes: a wrong certificate and a closed port must not look
/// alike.
fn logged<K>(what: &'static str, event: watcher::Result<Event<K>>, metrics: &Metrics) -> Option<Event<K>> {
    event
        .inspect_err(|error| {
            metrics.watch_error(what);
            tracing::warn!(error = refusal::chain(error), "watch of {what} interrupted");
        })
        .ok()
}
