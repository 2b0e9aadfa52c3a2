//! Reconciles node states: one key is one node.

use crate::catalog::Catalog;
use crate::clock;
use crate::context::{Context, pool_reference};
use crate::controller::{Again, Controller, ReconcileError};
use crate::entry::{Entry, Form, config_hash};
use crate::node::silent;
use crate::node_state::{apply, render};
use crate::queue::{Key, Lane, Queue};
use crate::refusal;
use crate::relevance::Change;
use crate::rollout::Grants;
use crate::states::{Content, KnownState, Spec};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use macvtap_crds::RELEASE_ANNOTATION;
use macvtap_crds::v1alpha1::reason::EventReason;
use std::sync::Arc;
use std::time::Duration;

/// How soon at least a drain that no agent answers is considered again: the watch may have fallen behind meanwhile.
const RECHECK_MIN: Duration = Duration::from_secs(1);

/// Reconciles node states.
#[derive(Debug)]
pub struct NodeStates;

/// What to do about a node.
#[derive(Debug)]
pub enum NodeAction {
    /// Write this spec.
    Write(Spec),
    /// Reconcile it again after this time.
    Recheck(Duration),
}

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
    /// Until when the watch has surely shown every answer, by the operator's own clock.
    pub seen_until: Timestamp,
}

impl Controller for NodeStates {
    const NAME: &'static str = "nodes";
    type Snapshot = NodeSnapshot;
    type Action = NodeAction;

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
        let seen_until = context.seen_until();
        let view = context.view(node, seen_until);
        let silent = silent(&view).is_ok();
        Ok(NodeSnapshot {
            node: view.node,
            current: view.state,
            deleted: context.states.deleted(name, clock::now()),
            silent,
            catalog,
            grants: context.grants(),
            seen_until,
        })
    }

    fn decide(snapshot: &NodeSnapshot) -> Vec<NodeAction> {
        let NodeSnapshot { node, current, deleted, silent, catalog, grants, seen_until } = snapshot;
        let (current, deleted) = (current.as_deref(), deleted.as_deref());
        // Pods may run on a Node that is being deleted, so it receives drains and changes as long as it has a state. A new
        // one would be deleted again where what depends on a Node is deleted before it.
        if node.metadata.deletion_timestamp.is_some() && current.is_none() {
            return Vec::new();
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        // Pods keep what they use, whatever becomes of the state: a new one begins with what the node had.
        let before = current.or(deleted);
        let target = render::Target {
            name,
            labels: node.labels(),
            silent: *silent,
            current: before,
            seen_until: *seen_until,
        };
        let entries = render::render(target, catalog, |pool| grants.has(&pool.entry, name));
        let spec = Spec {
            owner: node.metadata.uid.clone(),
            config_hash: config_hash(&entries),
            pools: entries,
            // A spec that the agent can read stays as it is, full or brief, until something else changes.
            form: before.map(KnownState::reads).unwrap_or_default(),
            config: None,
        };
        match current.filter(|current| current.is_as(&spec)) {
            None => vec![NodeAction::Write(spec)],
            // No event announces that a drain was not answered in time.
            Some(current) => {
                let wait = current.drains_given_up_in(*seen_until).filter(|wait| !wait.is_zero());
                wait.map(NodeAction::Recheck).into_iter().collect()
            }
        }
    }

    /// Writes a spec, and notifies the pools, which would otherwise wait for the watch.
    async fn perform(
        action: NodeAction,
        snapshot: &NodeSnapshot,
        context: &Context,
    ) -> Result<Again, ReconcileError> {
        let mut spec = match action {
            NodeAction::Write(spec) => spec,
            NodeAction::Recheck(wait) => return Ok(Some(wait.max(RECHECK_MIN))),
        };
        let (name, before) = (snapshot.node.name_any(), snapshot.current.as_deref());
        let common = common(&spec, before, context);
        spec.share(common.as_deref());
        context.states.send(&name, spec.clone());
        // A pool that is being deleted waits for specs on their way, but only for those that it can see.
        if !Arc::ptr_eq(&snapshot.catalog, &context.catalog()) {
            context.states.withdraw(&name);
            return Ok(Some(Duration::ZERO));
        }
        if let Some(common) = common
            && !context.configs.ensure(&context.client, &common).await
        {
            spec.share(None);
            context.states.send(&name, spec.clone());
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
                announce_released(snapshot, before, &spec.pools, context).await;
            }
            None => context.every_pool_by_nodes(),
        }
        Ok(None)
    }
}

/// The content of the configuration that a spec should name: its agent is known to read that, and many nodes have the same.
fn common(spec: &Spec, before: Option<&KnownState>, context: &Context) -> Option<Arc<Content>> {
    let nodes = context.states.nodes_with(&spec.config_hash) + 1;
    let is_shared = spec.form == Form::Shared && before.is_some() && !spec.pools.is_empty();
    if is_shared && context.configs.is_worth(nodes) { context.configs.content_of(&spec.pools) } else { None }
}

/// Publishes an event for each pool whose devices on an unreachable node were not waited for.
async fn announce_released(
    snapshot: &NodeSnapshot,
    before: &KnownState,
    entries: &[Arc<Entry>],
    context: &Context,
) {
    let gone = before.pools.iter().filter(|old| !entries.iter().any(|new| new.uid == old.uid));
    for old in gone.filter(|old| !render::drained(before, old, snapshot.seen_until)) {
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
            secondary: Some(snapshot.node.object_ref(&())),
        };
        context.announce_on(&event, &pool_reference(pool.meta())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{deleted, known, labels, node, pool, spec, state};
    use macvtap_crds::v1alpha1::MacvtapResourcePool;
    use serde_json::json;

    /// What is decided about a node with this state when this pool is the only one: what it is sent, if anything, and when it
    /// is considered again.
    fn decided(
        pool: &MacvtapResourcePool,
        current: Option<&KnownState>,
        second: i64,
    ) -> (Option<Vec<Arc<Entry>>>, Option<Duration>) {
        let snapshot = NodeSnapshot {
            node: Arc::new(node("n1", labels(&[]))),
            current: current.cloned().map(Arc::new),
            deleted: None,
            silent: false,
            catalog: Arc::new(Catalog::new([pool].into_iter())),
            grants: Arc::default(),
            seen_until: Timestamp::from_second(second).unwrap(),
        };
        let (mut sent, mut wait) = (None, None);
        for action in NodeStates::decide(&snapshot) {
            match action {
                NodeAction::Write(spec) => sent = Some(spec.pools),
                NodeAction::Recheck(after) => wait = Some(after),
            }
        }
        (sent, wait)
    }

    #[test]
    fn a_drain_that_no_agent_answers_ends_without_an_event() {
        let (active, gone) = (pool("a", json!({})), deleted(pool("a", json!({}))));
        let (sent, wait) = decided(&active, None, 0);
        assert_eq!(wait, None);
        let stored = |pools: &[Arc<Entry>], second| KnownState {
            form: Form::Full,
            ..known(&state("n1", spec(pools), second))
        };
        let sent = stored(&sent.unwrap(), 0);
        let (drains, _) = decided(&gone, Some(&sent), 100);
        let drains = drains.unwrap();
        assert_eq!(drains.len(), 1, "its agent may have applied the pool just now");
        let mut draining = stored(&drains, 100);
        assert_eq!(decided(&gone, Some(&draining), 104), (None, Some(Duration::from_secs(6))));
        assert_eq!(decided(&gone, Some(&draining), 110), (Some(vec![]), None));
        draining.drains_shown_since = None;
        assert_eq!(decided(&gone, Some(&draining), 900), (None, None), "an event will show the drain");
    }
}
