//! What each node shall offer: pools and nodes to node states.

pub mod apply;
pub mod entry;
pub mod render;

use crate::context::{Context, pool_reference};
use crate::pool::assess;
use crate::states::KnownState;
use entry::Entry;
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
    let catalog = context.catalog();
    let current = context.states.get(name);
    // Pods may run on a Node that is being deleted, so it hears of drains and changes as long as it has a state. A new one
    // would be deleted again where what depends on a Node is deleted before it.
    if node.metadata.deletion_timestamp.is_some() && current.is_none() {
        return Ok(None);
    }
    let current = current.as_deref();
    let view = context.view(&node, current);
    let target = render::Target {
        name,
        labels: node.labels(),
        silent: assess::silent(&view, jiff::Timestamp::now()).is_ok(),
        current,
    };
    let entries = render::render(target, &catalog, |pool| context.grants.has(&pool.entry, name));
    if !apply::unchanged(&node, &entries, current) {
        let hash = apply::apply(&context.client, &node, &entries, current).await?;
        tracing::debug!(node = name, pools = entries.len(), hash, "node state written");
        if let Some(current) = current {
            announce_released(&node, current, &entries, context).await;
        }
    }
    Ok(None)
}

/// Says that devices of an unreachable node were not waited for.
async fn announce_released(node: &Node, before: &KnownState, entries: &[Arc<Entry>], context: &Context) {
    let gone = before.pools.iter().filter(|old| !entries.iter().any(|new| new.uid == old.uid));
    for old in gone.filter(|old| !render::drained(before, old)) {
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
