//! Objects for tests.

use crate::entry::{Entry, config_hash};
use crate::states::{Interner, KnownState, RawState};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, Time};
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateSpec, MacvtapResourcePool, NodePool};
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_FINALIZER};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A pool as the API server would give it to the operator, with `spec` merged into a minimal one.
pub(crate) fn pool(name: &str, spec: Value) -> MacvtapResourcePool {
    let mut full = json!({"links": [{"names": ["dp0"]}]});
    if let (Value::Object(full), Value::Object(spec)) = (&mut full, spec) {
        full.extend(spec);
    }
    let mut pool: MacvtapResourcePool = serde_json::from_value(json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapResourcePool",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 1, "finalizers": [POOL_FINALIZER]},
        "spec": full,
    }))
    .unwrap();
    pool.metadata.creation_timestamp = Some(at(0));
    pool
}

pub(crate) fn created(mut pool: MacvtapResourcePool, second: i64) -> MacvtapResourcePool {
    pool.metadata.creation_timestamp = Some(at(second));
    pool
}

pub(crate) fn deleted(mut pool: MacvtapResourcePool) -> MacvtapResourcePool {
    pool.metadata.deletion_timestamp = Some(at(100));
    pool
}

pub(crate) fn at(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(second).unwrap())
}

pub(crate) fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A Node with these labels.
pub(crate) fn node(name: &str, labels: BTreeMap<String, String>) -> Node {
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() };
    Node { metadata, ..Node::default() }
}

/// A spec of these entries.
pub(crate) fn spec(entries: &[Arc<Entry>]) -> MacvtapNodeStateSpec {
    let pools = entries.iter().map(|entry| NodePool::clone(entry)).collect();
    MacvtapNodeStateSpec { config_hash: config_hash(entries), pools: Some(pools), config: None }
}

/// A node state with this spec, written by the operator at that second.
pub(crate) fn state(node: &str, spec: MacvtapNodeStateSpec, written: i64) -> MacvtapNodeState {
    let mut state = MacvtapNodeState::new(node, spec);
    state.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
        manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
        time: Some(at(written)),
        fields_v1: Some(FieldsV1(Value::Null)),
        ..Default::default()
    }]);
    state
}

/// A node state as it comes over the wire.
pub(crate) fn raw(state: &MacvtapNodeState) -> RawState {
    serde_json::from_value(serde_json::to_value(state).unwrap()).unwrap()
}

/// A node state as the operator keeps it, when it saw the spec as soon as it was written.
pub(crate) fn known(state: &MacvtapNodeState) -> KnownState {
    let mut known = KnownState::read(&raw(state), &mut Interner::default());
    let written = state.metadata.managed_fields.iter().flatten().find_map(|entry| entry.time.as_ref());
    known.unanswered_since = written.filter(|_| !known.applied()).map(|time| time.0);
    known.drains_shown_since = written.map(|time| time.0);
    known
}
