//! Writes the specs of node states.

use crate::overwrite;
use crate::states::Spec;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::{Client, Resource};
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde_json::json;

/// Writes the spec of a node's state; its status is the agent's and is never sent. `exists` says whether the cache has the
/// state. Returns the version it became.
pub async fn apply(client: &Client, name: &str, spec: &Spec, exists: bool) -> Result<u64, kube::Error> {
    let pools: serde_json::Result<Vec<_>> = spec.pools.iter().map(|entry| entry.json(spec.form)).collect();
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
    overwrite::put(&states, name, &body, exists).await
}
