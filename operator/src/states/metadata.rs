//! Metadata without its longest part: which fields each manager has is a third of a node state, and as a tree of values it
//! takes more memory and time than all the rest.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    managed_fields: Option<Vec<Writer>>,
    #[serde(flatten)]
    rest: ObjectMeta,
}

/// Who wrote last, and when.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Writer {
    api_version: Option<String>,
    manager: Option<String>,
    operation: Option<String>,
    subresource: Option<String>,
    time: Option<Time>,
}

/// Reads metadata, and of its managers everything but `fieldsV1`.
pub(super) fn without_fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let Metadata { managed_fields, rest } = Metadata::deserialize(deserializer)?;
    let managers =
        managed_fields.map(|managers| managers.into_iter().map(ManagedFieldsEntry::from).collect());
    Ok(ObjectMeta { managed_fields: managers, ..rest })
}

impl From<Writer> for ManagedFieldsEntry {
    fn from(Writer { api_version, manager, operation, subresource, time }: Writer) -> Self {
        Self { api_version, manager, operation, subresource, time, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_is_read_but_the_fields_of_each_manager() {
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
        for manager in wanted.managed_fields.iter_mut().flatten() {
            (manager.fields_type, manager.fields_v1) = (None, None);
        }
        assert_eq!(without_fields(&full).unwrap(), wanted);
        assert_eq!(without_fields(&json!({})).unwrap(), ObjectMeta::default());
    }
}
