//! Reconciles node states: one key is one node.

use crate::catalog::Catalog;
use crate::clock;
use crate::context::{Context, pool_reference};
use crate::entry::Entry;
use crate::node::silent;
use crate::node_state::{Snapshot, apply, decide, render};
use crate::refusal;
use crate::relevance::Change;
use crate::states::{KnownState, Spec};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use macvtap_crds::RELEASE_ANNOTATION;
use macvtap_crds::v1alpha1::reason::EventReason;
use std::sync::Arc;
use std::time::Duration;

/// Why a node's state could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum NodeStateError {
    /// The API server refused or did not answer.
    #[error("apply the node state of {node}")]
    Apply {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Brings the spec of one node's state up to date; writes only when it differs.
pub async fn reconcile(name: &str, context: &Context) -> Result<Option<Duration>, NodeStateError> {
    let Some(node) = context.nodes.get(&ObjectRef::new(name)) else {
        return Ok(None);
    };
    let (spec, catalog, current) = decide_now(&node, context);
    let Some(spec) = spec else {
        return Ok(None);
    };
    context.states.send(name, spec.clone());
    // A pool that is being deleted waits for specs on their way, but only for those that it can see.
    if !Arc::ptr_eq(&catalog, &context.catalog()) {
        context.states.withdraw(name);
        return Ok(Some(Duration::ZERO));
    }
    perform(&node, &spec, current.as_deref(), context).await?;
    Ok(None)
}

fn decide_now(node: &Node, context: &Context) -> (Option<Spec>, Arc<Catalog>, Option<Arc<KnownState>>) {
    let catalog = context.catalog();
    let current = context.states.get(&node.name_any());
    let now = clock::now();
    let deleted = context.states.deleted(&node.name_any(), now);
    let view = context.view(node, current.as_deref(), context.seen_until());
    let silent = silent(&view).is_ok();
    let grants = &context.grants;
    let (known, deleted) = (current.as_deref(), deleted.as_deref());
    let snapshot = Snapshot { node, current: known, deleted, silent, catalog: &catalog, grants, now };
    (decide(&snapshot), catalog, current)
}

/// Writes a spec, and lets everybody know of it who would else wait for the watch.
async fn perform(
    node: &Node,
    spec: &Spec,
    before: Option<&KnownState>,
    context: &Context,
) -> Result<(), NodeStateError> {
    let name = node.name_any();
    let version = match apply::apply(&context.client, &name, spec, before.is_some()).await {
        Ok(version) => version,
        Err(source) => {
            // Whatever else went wrong, the API server may have stored it.
            if refusal::is_refused(&source) {
                context.states.withdraw(&name);
            } else {
                context.states.lost(&name, clock::now());
            }
            return Err(NodeStateError::Apply { node: name, source: Box::new(source) });
        }
    };
    let now = clock::now();
    let after = context.states.stored(&name, spec, version, now);
    tracing::debug!(node = name, pools = spec.pools.len(), hash = spec.config_hash, "node state written");
    match before {
        Some(before) => {
            context.pools_of(&Change::new(before, &after, now));
            announce_released(node, before, &spec.pools, context).await;
        }
        None => context.every_pool_by_nodes(),
    }
    Ok(())
}

/// Says that devices of an unreachable node were not waited for.
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
