//! Writes of what is the operator's in an object, also where the object is not as its schema has it.

use kube::Error;
use kube::api::{Api, Patch, PatchParams};
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;

/// What of an object is the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its spec and its owners.
    Spec,
    /// Its status.
    Status,
}

/// Writes the part of the object that `body` has, whoever else claims it.
///
/// A status has one writer, which knows it whole, so it is replaced as a whole; if `body` has a UID, only that of the
/// object with this UID, for another one of its name may have come in its place. A spec is applied. Where a value of the
/// object is of another type than the schema's, the API server can compare nothing with it and answers 500 whatever is
/// applied: the spec is replaced as a whole then, which it takes also while another part is wrong, for a rule that was
/// broken before may stay broken. The lists of a spec are atomic: in others, what was once replaced could never again
/// be removed by applying.
pub async fn apply<K>(api: &Api<K>, name: &str, part: Part, body: &Value) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let refusal = match part {
        Part::Status => None,
        Part::Spec => {
            let params = PatchParams::apply(OPERATOR_FIELD_MANAGER).force();
            match write(api, name, part, &params, &Patch::Apply(body)).await {
                Err(Error::Api(refusal)) if refusal.code == 500 => Some(Error::Api(refusal)),
                applied => return applied,
            }
        }
    };
    let operations = serde_json::from_value(replacement(part, body)).map_err(Error::SerdeError)?;
    let params = PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
    match (write(api, name, part, &params, &Patch::<&Value>::Json(operations)).await, refusal) {
        (Err(Error::Api(status)), Some(refusal)) if status.code == 404 => Err(refusal),
        (replaced, _) => replaced,
    }
}

async fn write<K>(
    api: &Api<K>,
    name: &str,
    part: Part,
    params: &PatchParams,
    patch: &Patch<&Value>,
) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    match part {
        // What is there then comes by the watch.
        Part::Spec => api.patch_metadata(name, params, patch).await.map(drop),
        Part::Status => api.patch_status(name, params, patch).await.map(drop),
    }
}

/// The same as a JSON patch: `add` replaces what is there, and `test` refuses the whole patch.
fn replacement(part: Part, body: &Value) -> Value {
    let paths: &[&str] = match part {
        Part::Spec => &["/spec", "/metadata/ownerReferences"],
        Part::Status => &["/status"],
    };
    let same = ("test", "/metadata/uid");
    let all = std::iter::once(same).chain(paths.iter().map(|path| ("add", *path)));
    let operations = all.filter_map(|(op, path)| {
        let value = body.pointer(path)?;
        Some(json!({"op": op, "path": path, "value": value}))
    });
    operations.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_that_is_ours_is_replaced() {
        let body = json!({"metadata": {"name": "n1", "ownerReferences": [1]}, "spec": {"a": 2}, "status": 3});
        let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
        let spec = json!([add("/spec", json!({"a": 2})), add("/metadata/ownerReferences", json!([1]))]);
        assert_eq!(replacement(Part::Spec, &body), spec);
        assert_eq!(replacement(Part::Status, &body), json!([add("/status", json!(3))]));
    }

    #[test]
    fn what_is_meant_for_one_object_is_not_written_to_another_of_its_name() {
        let body = json!({"metadata": {"name": "dp", "uid": "u"}, "status": 3});
        let same = json!({"op": "test", "path": "/metadata/uid", "value": "u"});
        assert_eq!(replacement(Part::Status, &body)[0], same);
    }
}
