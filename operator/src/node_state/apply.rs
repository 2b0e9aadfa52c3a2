//! Writes the specs of node states.

use crate::entry::{Entry, config_hash};
use crate::overwrite;
use crate::states::{KnownState, Spec};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde_json::json;
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

/// The spec of a node's state with these entries.
pub fn spec(node: &Node, entries: Vec<Arc<Entry>>) -> Spec {
    Spec { owner: node.uid(), config_hash: config_hash(&entries), pools: entries }
}

/// Writes the spec of a node's state, in a form that its agent can read; its status is the agent's and is never sent.
/// Returns the version it became.
pub async fn apply(
    client: &Client,
    name: &str,
    spec: &Spec,
    before: Option<&KnownState>,
) -> Result<u64, kube::Error> {
    let is_brief = before.is_some_and(KnownState::reads_brief);
    let pools: serde_json::Result<Vec<_>> = spec.pools.iter().map(|entry| entry.json(is_brief)).collect();
    let pools = pools.map_err(kube::Error::SerdeError)?;
    let body = json!({
        "apiVersion": MacvtapNodeState::api_version(&()),
        "kind": MacvtapNodeState::kind(&()),
        "metadata": {
            "name": name,
            "ownerReferences": [{
                "apiVersion": Node::api_version(&()),
                "kind": Node::kind(&()),
                "name": name,
                "uid": spec.owner.as_deref().unwrap_or_default(),
                // No blockOwnerDeletion: a node must never wait for us to disappear.
            }],
        },
        "spec": {"configHash": spec.config_hash, "pools": pools},
    });
    let states: Api<MacvtapNodeState> = Api::all(client.clone());
    overwrite::put(&states, name, &body, before.is_some()).await
}
