//! Writes the specs of node states.

use super::NodeStateError;
use super::entry::{Entry, config_hash};
use crate::overwrite;
use crate::states::KnownState;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::v1alpha1::{MacvtapNodeState, NodePool};
use serde_json::json;
use std::ops::Deref;
use std::sync::Arc;

/// Whether the state is there as it should be.
pub fn unchanged(node: &Node, entries: &[Arc<Entry>], current: Option<&KnownState>) -> bool {
    current.is_some_and(|current| {
        current.pools == entries
            && !current.spec_unreadable
            && current.owner == node.uid()
            && current.config_hash == config_hash(entries)
    })
}

/// Writes the spec of a node's state; its status is the agent's and is never sent. Returns the name of the spec.
pub async fn apply(
    client: &Client,
    node: &Node,
    entries: &[Arc<Entry>],
    current: Option<&KnownState>,
) -> Result<String, NodeStateError> {
    let name = node.name_any();
    let hash = config_hash(entries);
    let pools: Vec<&NodePool> = entries.iter().map(|entry| entry.deref().deref()).collect();
    let body = json!({
        "apiVersion": MacvtapNodeState::api_version(&()),
        "kind": MacvtapNodeState::kind(&()),
        "metadata": {
            "name": name,
            "ownerReferences": [{
                "apiVersion": Node::api_version(&()),
                "kind": Node::kind(&()),
                "name": name,
                "uid": node.uid().unwrap_or_default(),
                // No blockOwnerDeletion: a node must never wait for us to disappear.
            }],
        },
        "spec": {"configHash": hash, "pools": pools},
    });
    let states: Api<MacvtapNodeState> = Api::all(client.clone());
    overwrite::put(&states, &name, &body, current.is_some())
        .await
        .map_err(|source| NodeStateError::Apply { node: name, source: Box::new(source) })?;
    Ok(hash)
}
