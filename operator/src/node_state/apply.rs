//! Writes the specs of node states.

use crate::entry::Form;
use crate::overwrite::{self, Part};
use crate::states::Spec;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, Resource};
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde_json::{Value, json};

/// Writes the spec of a node's state; its status is the agent's and is never sent. `exists` says whether the cache has the
/// state. Returns the version it became.
///
/// The kind of release 0.1.0 requires what a brief form leaves out. It may be older than operator and agents, where CRDs are
/// installed apart from them.
pub async fn apply(client: &Client, name: &str, spec: &Spec, exists: bool) -> Result<u64, kube::Error> {
    if let Some(config) = &spec.config {
        match name_config(client, name, spec, config).await {
            // The kind does not know the field, or there is no state.
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404 | 422) => {}
            named => return named,
        }
    }
    let mut spec = spec.clone();
    spec.share(None);
    match write(client, name, &spec, spec.form, exists).await {
        Err(kube::Error::Api(status)) if status.code == 422 && spec.form == Form::Brief => {
            write(client, name, &spec, Form::Full, exists).await
        }
        written => written,
    }
}

/// Writes the spec with the name of the configuration that has its pools. A kind that does not know the field would drop it
/// and leave a spec without pools, so such a write must be refused.
async fn name_config(client: &Client, name: &str, spec: &Spec, config: &str) -> Result<u64, kube::Error> {
    let body = object(name, spec, &json!({"configHash": spec.config_hash, "config": config}));
    overwrite::apply_strictly(&api(client), name, Part::Spec, &body).await
}

async fn write(
    client: &Client,
    name: &str,
    spec: &Spec,
    form: Form,
    exists: bool,
) -> Result<u64, kube::Error> {
    let pools: serde_json::Result<Vec<_>> = spec.pools.iter().map(|entry| entry.json(form)).collect();
    let pools = pools.map_err(kube::Error::SerdeError)?;
    let body = object(name, spec, &json!({"configHash": spec.config_hash, "pools": pools}));
    overwrite::put(&api(client), name, &body, exists).await
}

/// As it is: the type leaves out what is brief.
fn api(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<MacvtapNodeState>(&()))
}

/// The node state with this spec.
fn object(name: &str, spec: &Spec, written: &Value) -> Value {
    json!({
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
        "spec": written,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::entry_of;
    use crate::testing::pool;
    use axum::http::{Request, Response};
    use kube::client::Body;
    use std::sync::Arc;
    use tower::{BoxError, service_fn};

    /// Answers as an API server with the kind of release 0.1.0.
    async fn old_kind(request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let object: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?)?;
        let invalid = json!({"kind": "Status", "apiVersion": "v1", "code": 422, "status": "Failure",
            "reason": "Invalid", "message": "spec.pools[0].phase: Required value"});
        let mut stored = object.clone();
        stored["metadata"]["resourceVersion"] = "7".into();
        let is_whole = object.pointer("/spec/pools/0/phase").is_some();
        let (code, answer) = if is_whole { (201, stored) } else { (422, invalid) };
        Ok(Response::builder().status(code).body(Body::from(serde_json::to_vec(&answer)?))?)
    }

    #[tokio::test]
    async fn a_kind_of_the_first_release_receives_the_full_form() {
        let client = Client::new(service_fn(old_kind), "default");
        let entry = Arc::new(entry_of(&pool("dp", json!({}))));
        let spec = Spec { pools: vec![entry], form: Form::Brief, ..Spec::default() };
        assert_eq!(apply(&client, "n1", &spec, false).await.unwrap(), 7);
    }
}
