//! Objects for unit tests.

#![expect(clippy::needless_pass_by_value, reason = "calls hand over what `json!` makes")]

use crate::cluster::Unread;
use crate::facts::Facts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Reads an object of this kind.
pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A pool on links dp0, with these further fields.
pub(crate) fn pool(name: &str, spec: Value) -> MacvtapResourcePool {
    let mut full = json!({"links": [{"names": ["dp0"]}]});
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    object(json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapResourcePool",
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["macvtap.network.kubevirt.io/drain"],
        },
        "spec": full,
    }))
}

/// A node state with this status.
pub(crate) fn state(node: &str, status: Value) -> MacvtapNodeState {
    object(json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapNodeState",
        "metadata": {"name": node},
        "spec": {"configHash": "h", "pools": []},
        "status": status,
    }))
}

/// A node with this status.
pub(crate) fn node(name: &str, status: Value) -> Node {
    object(json!({"metadata": {"name": name}, "status": status}))
}

/// A condition.
pub(crate) fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    let time = "2026-01-01T00:00:00Z";
    json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time})
}

/// A cluster of which nothing is known.
pub(crate) fn nothing() -> Facts {
    Facts {
        version: Err(Unread::Absent),
        kinds: Ok(Vec::new()),
        deployments: Ok(Vec::new()),
        leases: Ok(Vec::new()),
        daemon_sets: Ok(Vec::new()),
        agents: Ok(Vec::new()),
        nodes: Ok(Vec::new()),
        pools: Ok(Vec::new()),
        states: Ok(Vec::new()),
        networks: Ok(Vec::new()),
        quotas: Ok(Vec::new()),
        unreadable: Vec::new(),
        now: Timestamp::UNIX_EPOCH,
    }
}
