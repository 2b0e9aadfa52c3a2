//! Writes node states by server-side apply.

use super::NodeStateError;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateSpec};

/// The object to apply; none when it is there as it should be.
pub fn wanted(
    node: &Node,
    spec: MacvtapNodeStateSpec,
    current: Option<&MacvtapNodeState>,
) -> Option<MacvtapNodeState> {
    let owner = OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: node.name_any(),
        uid: node.uid().unwrap_or_default(),
        // Not blocking: a node must never wait for us to disappear.
        block_owner_deletion: None,
        controller: None,
    };
    let unchanged =
        current.is_some_and(|current| current.spec == spec && current.owner_references().contains(&owner));
    if unchanged {
        return None;
    }
    let mut state = MacvtapNodeState::new(&node.name_any(), spec);
    state.metadata.owner_references = Some(vec![owner]);
    Some(state)
}

/// Applies the spec of a node's state; its status is the agent's and is never sent.
pub async fn apply(client: &Client, node: &str, state: &MacvtapNodeState) -> Result<(), NodeStateError> {
    let mut body = serde_json::to_value(state)
        .map_err(|source| NodeStateError::Encode { node: node.to_owned(), source })?;
    if let Some(fields) = body.as_object_mut() {
        fields.remove("status");
    }
    Api::<MacvtapNodeState>::all(client.clone())
        .patch(node, &PatchParams::apply(OPERATOR_FIELD_MANAGER).force(), &Patch::Apply(body))
        .await
        .map_err(|source| NodeStateError::Apply { node: node.to_owned(), source: Box::new(source) })?;
    Ok(())
}
