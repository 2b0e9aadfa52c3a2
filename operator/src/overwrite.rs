//! Writes of what is the operator's in an object, also where the object is not as its schema has it.

use crate::states::version;
use kube::api::{Api, Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::{PartialObjectMeta, Request};
use kube::{Error, Resource};
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use serde::Serialize;
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

/// Writes the part of the object that `body` has, whichever other manager claims it.
///
/// Spec and status have one writer each, which knows them whole, so they are replaced as a whole. That also works where
/// a value is of another type than the schema's, with which the API server could not compare anything, and costs it
/// less than a server-side apply. If `body` has a UID, only the object with this UID is written: another one of its name
/// may have come in its place. Returns the version that the object has now.
pub async fn apply<K>(api: &Api<K>, name: &str, part: Part, body: &Value) -> Result<u64, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    replace(api, name, part, body, None).await
}

/// The same, refused where the schema lacks a field of it.
pub async fn apply_strictly<K>(api: &Api<K>, name: &str, part: Part, body: &Value) -> Result<u64, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    replace(api, name, part, body, Some(ValidationDirective::Strict)).await
}

async fn replace<K>(
    api: &Api<K>,
    name: &str,
    part: Part,
    body: &Value,
    field_validation: Option<ValidationDirective>,
) -> Result<u64, Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let operations = serde_json::from_value(replacement(part, body)).map_err(Error::SerdeError)?;
    let params = PatchParams {
        field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()),
        field_validation,
        ..Default::default()
    };
    let patch = Patch::<&Value>::Json(operations);
    // What is there then comes by the watch. Its spec may be one that cannot be read, and is none of the write's business.
    match part {
        Part::Spec => api.patch_metadata(name, &params, &patch).await.map(|now| version(now.meta())),
        Part::Status => {
            let request = Request::new(api.resource_url()).patch_subresource("status", name, &params, &patch);
            let request = request.map_err(Error::BuildRequest)?;
            let now: PartialObjectMeta = api.clone().into_client().request(request).await?;
            Ok(version(&now.metadata))
        }
    }
}

/// Writes the spec of an object that may not exist yet. `exists` is what the cache says; where it is wrong, the other
/// request follows. Returns the version that the object has now.
pub async fn put<K>(api: &Api<K>, name: &str, body: &Value, exists: bool) -> Result<u64, Error>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug,
{
    let object = || serde_json::from_value(body.clone()).map_err(Error::SerdeError);
    let params = PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
    if exists {
        match apply(api, name, Part::Spec, body).await {
            Err(Error::Api(status)) if status.code == 404 => {
                api.create(&params, &object()?).await.map(|now| version(now.meta()))
            }
            applied => applied,
        }
    } else {
        match api.create(&params, &object()?).await {
            Err(Error::Api(status)) if status.code == 409 => apply(api, name, Part::Spec, body).await,
            created => created.map(|now| version(now.meta())),
        }
    }
}

/// The part as a JSON patch: `add` replaces what is there, and `test` refuses the whole patch.
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
    use axum::http;
    use kube::Client;
    use kube::client::Body;
    use macvtap_crds::v1alpha1::MacvtapResourcePool;
    use std::sync::{Arc, Mutex};
    use tower::{BoxError, service_fn};

    /// An API server that answers with these codes, and notes what it was asked. Nobody can read the spec of its object.
    fn server(codes: &[u16], asked: &Arc<Mutex<Vec<String>>>) -> Api<MacvtapResourcePool> {
        let (codes, asked) = (Arc::new(Mutex::new(codes.to_vec())), Arc::clone(asked));
        let service = service_fn(move |request: http::Request<Body>| {
            asked.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
            let code = codes.lock().unwrap().remove(0);
            let answer = if code < 300 {
                json!({
                    "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
                    "metadata": {"name": "n", "resourceVersion": "7"}, "spec": {"mode": "Teleport"},
                })
            } else {
                json!({"kind": "Status", "status": "Failure", "code": code})
            };
            let body = Body::from(answer.to_string().into_bytes());
            let answer = http::Response::builder().status(code).body(body);
            async move { Ok::<_, BoxError>(answer?) }
        });
        Api::all(Client::new(service, "default"))
    }

    #[tokio::test]
    async fn a_write_succeeds_whatever_else_the_object_has_by_then() {
        let (asked, body) = (Arc::default(), json!({"spec": {}, "status": {}}));
        let api = server(&[200, 200, 422], &asked);
        assert_eq!(apply(&api, "n", Part::Spec, &body).await.unwrap(), 7);
        assert_eq!(apply_strictly(&api, "n", Part::Status, &body).await.unwrap(), 7);
        let refused = apply(&api, "n", Part::Status, &body).await.unwrap_err();
        assert!(matches!(refused, Error::Api(status) if status.code == 422));
        let asked = asked.lock().unwrap();
        let path = "PATCH /apis/macvtap.network.kubevirt.io/v1alpha1/macvtapresourcepools/n";
        assert!(asked[0].starts_with(&format!("{path}?")), "{asked:?}");
        assert!(asked[1].starts_with(&format!("{path}/status?")), "{asked:?}");
        let manager = format!("fieldManager={OPERATOR_FIELD_MANAGER}");
        assert!(asked.iter().all(|asked| asked.contains(&manager)), "{asked:?}");
        let strict = asked.iter().map(|asked| asked.contains("fieldValidation=Strict"));
        assert_eq!(strict.collect::<Vec<_>>(), [false, true, false]);
    }

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
