//! What each node shall offer: pools and nodes to node states.

pub mod apply;
pub mod render;

use crate::context::{Context, readable};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use std::sync::Arc;

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
    /// The pools cannot be written as JSON.
    #[error("encode the node state of {node}")]
    Encode {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Brings the spec of one node's state up to date; writes only when it differs.
pub async fn reconcile(node: Arc<Node>, context: Arc<Context>) -> Result<Action, NodeStateError> {
    let name = node.name_any();
    if node.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let pools = context.pools.state();
    let active = render::active(readable(&pools));
    let current = context.states.get(&ObjectRef::new(&name));
    let current = current.as_ref().and_then(|state| state.0.as_ref().ok());
    let spec = render::render(node.labels(), &active, current);
    if let Some(state) = apply::wanted(&node, spec, current) {
        apply::apply(&context.client, &name, &state).await?;
        tracing::info!(node = %name, pools = state.spec.pools.len(), hash = %state.spec.config_hash, "node state written");
    }
    Ok(Action::await_change())
}
