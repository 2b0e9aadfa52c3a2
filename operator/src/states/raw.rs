//! A node state as the API server sends it, without the longest part of its metadata: which fields each manager has is a third
//! of a node state, and as a tree of values it takes more memory and time than all the rest.

use super::content::Content;
use crate::entry::Entry;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// A node state as it comes over the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Resource)]
#[resource(inherit = "MacvtapNodeState")]
pub struct RawState {
    /// Metadata, without managers.
    #[serde(default, deserialize_with = "without_managers")]
    pub metadata: ObjectMeta,
    /// What the operator wrote, most likely.
    #[serde(default)]
    pub spec: Value,
    /// What the agent wrote, most likely.
    #[serde(default)]
    pub status: Value,
    /// The pools that it has in common with other states.
    #[serde(skip)]
    pub shared: Shared,
}

/// The pools that a node state has in common with other states.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Shared {
    /// The state has its pools itself.
    #[default]
    Not,
    /// Those of the configuration that it names.
    Known(Arc<Content>),
    /// The configuration that it names cannot be read.
    Unknown {
        /// Why.
        why: String,
        /// What its node may have been sent.
        assumed: Vec<Arc<Entry>>,
    },
}

impl RawState {
    /// The configuration that has its pools. Who writes pools beside the name of one does not know what that is for.
    pub fn config(&self) -> Option<&str> {
        let has_pools = self.spec.get("pools").is_some();
        self.spec.get("config").and_then(Value::as_str).filter(|_| !has_pools)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(rename = "managedFields")]
    _managed_fields: Option<IgnoredAny>,
    #[serde(flatten)]
    rest: ObjectMeta,
}

/// Reads metadata without its managers.
fn without_managers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    Metadata::deserialize(deserializer).map(|metadata| metadata.rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_is_read_but_the_managers() {
        let full = json!({
            "name": "n1", "uid": "u", "resourceVersion": "7", "generation": 3, "labels": {"a": "b"},
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "o"}],
            "managedFields": [{
                "apiVersion": "v1", "manager": "m", "operation": "Apply", "subresource": "status",
                "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {}},
            }],
        });
        let mut wanted: ObjectMeta = serde_json::from_value(full.clone()).unwrap();
        wanted.managed_fields = None;
        assert_eq!(without_managers(&full).unwrap(), wanted);
        assert_eq!(without_managers(&json!({})).unwrap(), ObjectMeta::default());
    }
}
