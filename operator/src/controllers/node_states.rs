//! Reconciles node states: one key is one node.

use crate::catalog::Catalog;
use crate::clock;
use crate::context::{Context, pool_reference};
use crate::controller::{Again, Controller, ReconcileError};
use crate::entry::{Entry, config_hash};
use crate::node::silent;
use crate::node_state::{apply, render};
use crate::queue::{Key, Lane, Queue};
use crate::refusal;
use crate::relevance::Change;
use crate::rollout::Grants;
use crate::states::{KnownState, Spec};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use macvtap_crds::RELEASE_ANNOTATION;
use macvtap_crds::v1alpha1::reason::EventReason;
use std::sync::Arc;
use std::time::Duration;

/// Reconciles node states. An action is a spec to write.
#[derive(Debug)]
pub struct NodeStates;

/// What a node's spec depends on.
#[derive(Debug)]
pub struct NodeSnapshot {
    /// The Node.
    pub node: Arc<Node>,
    /// Its state as it is known, with what was written last.
    pub current: Option<Arc<KnownState>>,
    /// The state that it had until it was deleted, if it has none.
    pub deleted: Option<Arc<KnownState>>,
    /// Whether its agent is unreachable.
    pub silent: bool,
    /// All pools.
    pub catalog: Arc<Catalog>,
    /// The turns that were given in staged rollouts.
    pub grants: Arc<Grants>,
    /// The time, by the operator's own clock.
    pub now: Timestamp,
}

impl Controller for NodeStates {
    const NAME: &'static str = "nodes";
    type Snapshot = NodeSnapshot;
    type Action = Spec;

    fn queue(context: &Context) -> &Queue {
        &context.queues.nodes
    }

    /// A node that has to wait until earlier specs are answered waits in the queue, where it may become urgent.
    async fn next(last: Lane, context: &Context) -> (Key, Lane) {
        match last {
            Lane::Later => Self::queue(context).next_when(context.states.room()).await,
            Lane::Urgent => Self::queue(context).next(last).await,
        }
    }

    async fn observe(name: &str, context: &Context) -> Result<NodeSnapshot, Again> {
        let node = context.nodes.get(&ObjectRef::new(name)).ok_or(None)?;
        let catalog = context.catalog();
        let view = context.view(node, context.seen_until());
        let silent = silent(&view).is_ok();
        let now = clock::now();
        Ok(NodeSnapshot {
            node: view.node,
            current: view.state,
            deleted: context.states.deleted(name, now),
            silent,
            catalog,
            grants: context.grants(),
            now,
        })
    }

    fn decide(snapshot: &NodeSnapshot) -> Vec<Spec> {
        let NodeSnapshot { node, current, deleted, silent, catalog, grants, now } = snapshot;
        let (current, deleted) = (current.as_deref(), deleted.as_deref());
        // Pods may run on a Node that is being deleted, so it receives drains and changes as long as it has a state. A new
        // one would be deleted again where what depends on a Node is deleted before it.
        if node.metadata.deletion_timestamp.is_some() && current.is_none() {
            return Vec::new();
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        // Pods keep what they use, whatever becomes of the state: a new one begins with what the node had.
        let before = current.or(deleted);
        let target =
            render::Target { name, labels: node.labels(), silent: *silent, current: before, now: *now };
        let entries = render::render(target, catalog, |pool| grants.has(&pool.entry, name));
        let spec = Spec {
            owner: node.metadata.uid.clone(),
            config_hash: config_hash(&entries),
            pools: entries,
            // A spec that the agent can read stays as it is, full or brief, until something else changes.
            form: before.map(KnownState::reads).unwrap_or_default(),
        };
        if current.is_some_and(|current| current.is_as(&spec)) { Vec::new() } else { vec![spec] }
    }

    /// Writes a spec, and notifies the pools, which would otherwise wait for the watch.
    async fn perform(
        spec: Spec,
        snapshot: &NodeSnapshot,
        context: &Context,
    ) -> Result<Again, ReconcileError> {
        let (name, before) = (snapshot.node.name_any(), snapshot.current.as_deref());
        context.states.send(&name, spec.clone());
        // A pool that is being deleted waits for specs on their way, but only for those that it can see.
        if !Arc::ptr_eq(&snapshot.catalog, &context.catalog()) {
            context.states.withdraw(&name);
            return Ok(Some(Duration::ZERO));
        }
        let version = match apply::apply(&context.client, &name, &spec, before.is_some()).await {
            Ok(version) => version,
            Err(source) => {
                // After any other error the API server may have stored it.
                if refusal::is_refused(&source) {
                    context.states.withdraw(&name);
                } else {
                    context.states.lost(&name, clock::now());
                }
                return Err(ReconcileError::new("apply the node state of", &name, source));
            }
        };
        let now = clock::now();
        let after = context.states.stored(&name, &spec, version, now);
        tracing::debug!(node = name, pools = spec.pools.len(), hash = spec.config_hash, "node state written");
        match before {
            Some(before) => {
                context.pools_of(&Change::new(before, &after, now));
                announce_released(&snapshot.node, before, &spec.pools, context).await;
            }
            None => context.every_pool_by_nodes(),
        }
        Ok(None)
    }
}

/// Publishes an event for each pool whose devices on an unreachable node were not waited for.
async fn announce_released(node: &Node, before: &KnownState, entries: &[Arc<Entry>], context: &Context) {
    let gone = before.pools.iter().filter(|old| !entries.iter().any(|new| new.uid == old.uid));
    for old in gone.filter(|old| !render::drained(before, old, clock::now())) {
        let Some(pool) = context.pools.get(&ObjectRef::new(&old.name)) else {
            continue;
        };
        let allocated = before.pool(&old.name).map_or(0, |pool| pool.allocated);
        let text = format!(
            "node {} is unreachable and was let go as annotation {RELEASE_ANNOTATION} asks; {allocated} devices were in use when it reported last",
            before.name
        );
        let event = Event {
            type_: EventType::Warning,
            reason: EventReason::ReleasedWithoutDrain.to_string(),
            note: Some(text),
            action: "Drain".to_owned(),
            // Events of a pool with one reason are one event, unless they are about different objects.
            secondary: Some(node.object_ref(&())),
        };
        context.announce_on(&event, &pool_reference(pool.meta())).await;
    }
}
