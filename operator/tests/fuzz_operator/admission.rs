//! Admission reviews of pods, with an API server in memory for the networks that they name.

use axum::http;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use macvtap_operator::webhook::review;
use serde_json::{Value, json};
use std::convert::Infallible;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static SERVER: (Runtime, Client) = {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let client = { let _guard = runtime.enter(); client() };
        (runtime, client)
    };
}

/// A client whose API server knows the networks `dataplane` and `virt`, and `invalid`, whose resource is `memory`.
fn client() -> Client {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let resource = match request.uri().path().rsplit('/').next() {
            Some("dataplane") => Some("macvtap.network.kubevirt.io/dataplane"),
            Some("virt") => Some("kernel.org/virt"),
            Some("invalid") => Some("memory"),
            _ => None,
        };
        let (code, body) = match resource {
            Some(resource) => (
                200,
                json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                    "metadata": {"name": "n", "annotations": {"k8s.v1.cni.cncf.io/resourceName": resource}},
                    "spec": {"config": r#"{"type": "macvtap"}"#}}),
            ),
            None => (
                404,
                json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "x"}),
            ),
        };
        let body = kube::client::Body::from(body.to_string().into_bytes());
        Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap())
    });
    Client::new(service, "default")
}

/// The response to a review, if it can be read.
fn response(review: &[u8]) -> Option<Value> {
    let question = serde_json::from_slice(review).ok()?;
    let answer = SERVER.with(|(runtime, client)| runtime.block_on(review::answer(client, question)));
    Some(serde_json::to_value(answer).unwrap()["response"].take())
}

/// The review with the pod as the patch of the response leaves it, if there is a patch.
pub(super) fn patched(review: &[u8]) -> Option<Value> {
    let response = response(review)?;
    let patch = BASE64.decode(response["patch"].as_str()?).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut review: Value = serde_json::from_slice(review).unwrap();
    let object = &mut review["request"]["object"];
    // The parts of a pod may be lists, too.
    if let Err(error) = json_patch::patch(object, &patch) {
        assert!(serde_json::from_value::<Pod>(object.clone()).is_err(), "{error}");
        return None;
    }
    Some(review)
}

/// No pod is refused, and one that has its devices gets no more of them.
pub(super) fn review(bytes: &[u8]) {
    // What nobody reads of a review may be anything, also bytes that are not UTF-8; the API server writes JSON.
    let Ok(question) = serde_json::from_slice::<Value>(bytes) else { return };
    let Some(response) = response(bytes) else { return };
    assert_eq!(response["allowed"], true);
    // serde reads the fields of a struct from a list, too. The API server sends only what it has read as a pod itself.
    if !question["request"]["object"].is_object() {
        return;
    }
    assert_eq!(response["uid"], question["request"]["uid"]);
    let warnings = response["warnings"].as_array().into_iter().flatten();
    assert!(warnings.into_iter().all(|warning| !warning.as_str().unwrap().is_empty()));
    if let Some(patched) = patched(bytes) {
        let again = self::response(&serde_json::to_vec(&patched).unwrap()).unwrap();
        assert!(again.get("patch").is_none(), "devices are added twice: {again}");
    }
}
