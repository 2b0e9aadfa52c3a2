//! The API server's question about a pod, and the answer: it is always admitted, sometimes with a patch.

use super::networks::{self, DEFAULT_NETWORK, NETWORKS, Wanted};
use super::pod::Pod;
use super::{inject, resource};
use crate::network::kind::NetworkAttachmentDefinition;
use crate::refusal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the networks of a pod may take to read: the API server waits two seconds for all of the answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// An `AdmissionReview` with a request.
#[derive(Debug, Deserialize)]
pub struct Question {
    request: Request,
}

#[derive(Debug, Deserialize)]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    object: Pod,
}

/// An `AdmissionReview` with a response.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(flatten)]
    patch: Option<PatchOfResponse>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PatchOfResponse {
    patch_type: &'static str,
    patch: String,
}

/// Answers a question.
pub async fn answer(client: &Client, question: Question) -> Answer {
    let Request { uid, namespace, object } = question.request;
    let (needed, warnings) = match tokio::time::timeout(PATIENCE, needed(client, &namespace, &object)).await {
        Ok(found) => found,
        Err(_) => (BTreeMap::new(), vec![incomplete("the API server did not give its networks in time")]),
    };
    for warning in &warnings {
        tracing::warn!(namespace, warning);
    }
    let patch = inject::patch(&object, &needed);
    let patch = (!patch.0.is_empty()).then(|| {
        tracing::debug!(namespace, ?needed, "adding devices to a pod");
        PatchOfResponse {
            patch_type: "JSONPatch",
            patch: STANDARD.encode(serde_json::to_vec(&patch).unwrap_or_default()),
        }
    });
    let response = Response { uid, allowed: true, warnings, patch };
    Answer { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response }
}

/// How often a pod names each network, by namespace and name, and what is wrong with those that could not be counted.
fn wanted(namespace: &str, pod: &Pod) -> (BTreeMap<(String, String), u64>, Vec<String>) {
    let (mut wanted, mut warnings) = (BTreeMap::new(), Vec::new());
    let Some(annotations) = &pod.metadata.annotations else { return (wanted, warnings) };
    for annotation in [DEFAULT_NETWORK, NETWORKS] {
        let list = networks::read(annotations, annotation).unwrap_or_else(|why| {
            warnings.push(incomplete(&why));
            Vec::new()
        });
        for Wanted { namespace: other, name, .. } in list {
            let place = match other {
                Some(other) => other,
                None if annotation == NETWORKS => namespace.to_owned(),
                None => {
                    let why = "names no namespace, and Multus looks for it in its own one";
                    warnings.push(incomplete(&format!("network {name:?} in annotation {annotation} {why}")));
                    continue;
                }
            };
            // Both become part of a path.
            if resource::is_subdomain(&place) && resource::is_subdomain(&name) {
                *wanted.entry((place, name)).or_default() += 1;
            } else {
                warnings.push(incomplete(&format!("{place:?}/{name:?} is not the name of a network")));
            }
        }
    }
    (wanted, warnings)
}

/// How many devices of each resource the networks of a pod need, and what is wrong with those that could not be counted.
async fn needed(client: &Client, namespace: &str, pod: &Pod) -> (BTreeMap<String, u64>, Vec<String>) {
    let mut needed = BTreeMap::new();
    let (wanted, mut warnings) = wanted(namespace, pod);
    for ((place, name), count) in wanted {
        // Whether a network of another namespace exists is not for everybody to know.
        let is_own = place == namespace;
        let api: Api<NetworkAttachmentDefinition> = Api::namespaced(client.clone(), &place);
        match api.get_opt(&name).await {
            Ok(Some(network)) => match resource::of(&network) {
                Ok(Some(resource)) => *needed.entry(resource.to_owned()).or_default() += count,
                Ok(None) => {}
                Err(value) => {
                    let why = "is not the name of an extended resource (domain/name)";
                    warnings.push(incomplete(&format!(
                        "the resourceName {value:?} of network {place}/{name} {why}"
                    )));
                }
            },
            Ok(None) if !is_own => {}
            Ok(None) => warnings.push(incomplete(&format!("network {place}/{name} does not exist"))),
            Err(error) => {
                let error = refusal::text(&error);
                warnings.push(incomplete(&format!("read network {place}/{name}: {error}")));
            }
        }
    }
    (needed, warnings)
}

fn incomplete(why: &str) -> String {
    format!("macvtap did not add a device to the pod's limits: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http;
    use serde_json::{Value, json};
    use std::convert::Infallible;

    /// A client whose API server knows networks `ns/a` and `other/b` of one resource, and `ns/invalid` with `memory`.
    fn client() -> Client {
        let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            let network = |resource: &str| {
                json!({
                    "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                    "metadata": {"name": "n", "annotations": {"k8s.v1.cni.cncf.io/resourceName": resource}},
                    "spec": {"config": r#"{"type": "macvtap"}"#},
                })
            };
            let (code, body) = match request.uri().path() {
                path if path.ends_with("/namespaces/ns/network-attachment-definitions/a")
                    || path.ends_with("/namespaces/other/network-attachment-definitions/b") =>
                {
                    (200, network("x.io/r"))
                }
                path if path.ends_with("/namespaces/ns/network-attachment-definitions/invalid") => {
                    (200, network("memory"))
                }
                _ => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "x"}),
                ),
            };
            let body = kube::client::Body::from(body.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap())
        });
        Client::new(service, "ns")
    }

    async fn asked(annotation: &str) -> Value {
        asked_about(NETWORKS, annotation).await
    }

    async fn asked_about(annotation: &str, text: &str) -> Value {
        let pod = json!({
            "metadata": {"annotations": {annotation: text}}, "spec": {"containers": [{"name": "a"}]},
        });
        let question = json!({"request": {"uid": "u", "namespace": "ns", "object": pod}});
        let answer = answer(&client(), serde_json::from_value(question).unwrap()).await;
        serde_json::to_value(answer).unwrap()
    }

    fn patch_of(answer: &Value) -> Value {
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        serde_json::from_slice(&patch).unwrap()
    }

    #[tokio::test]
    async fn networks_of_both_namespaces_are_counted_each_time_they_are_named() {
        let answer = asked("a, a, other/b").await;
        assert_eq!(answer["response"]["uid"], "u");
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(patch_of(&answer)[0]["value"]["limits"], json!({"x.io/r": "3"}));
    }

    #[tokio::test]
    async fn an_empty_namespace_is_that_of_the_pod() {
        let answer = asked(r#"[{"name": "a", "namespace": ""}]"#).await;
        assert_eq!(patch_of(&answer)[0]["value"]["limits"], json!({"x.io/r": "1"}));
    }

    #[tokio::test]
    async fn a_default_network_without_a_namespace_is_not_looked_for_in_that_of_the_pod() {
        for text in ["a", r#"[{"name": "a", "namespace": ""}]"#] {
            let answer = asked_about(DEFAULT_NETWORK, text).await;
            assert_eq!(answer["response"].get("patch"), None);
            let warning = answer["response"]["warnings"][0].as_str().unwrap();
            assert!(warning.contains("default-network names no namespace"), "{warning}");
        }
        let answer = asked_about(DEFAULT_NETWORK, "ns/a").await;
        assert_eq!(patch_of(&answer)[0]["value"]["limits"], json!({"x.io/r": "1"}));
    }

    #[tokio::test]
    async fn only_names_become_part_of_a_path() {
        for text in ["ns/../ns/network-attachment-definitions/a", "../a", "a?watch=1"] {
            let answer = asked(text).await;
            assert_eq!(answer["response"].get("patch"), None, "{text}");
            let warning = answer["response"]["warnings"][0].as_str().unwrap();
            assert!(warning.contains("is not the name of a network"), "{warning}");
        }
    }

    #[tokio::test]
    async fn only_extended_resources_of_networks_reach_a_pod() {
        let answer = asked("invalid").await;
        assert_eq!(answer["response"].get("patch"), None);
        let warning = answer["response"]["warnings"][0].as_str().unwrap();
        assert!(warning.contains(r#"resourceName "memory" of network ns/invalid"#), "{warning}");
        let answer = asked("a, invalid").await;
        assert_eq!(patch_of(&answer)[0]["value"]["limits"], json!({"x.io/r": "1"}));
    }

    #[tokio::test]
    async fn nothing_is_said_of_networks_of_other_namespaces() {
        let answer = asked("other/missing").await;
        assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
    }

    #[tokio::test]
    async fn a_pod_is_admitted_whatever_its_annotation_is() {
        for (annotation, words) in [("missing", "ns/missing does not exist"), ("[{", "not JSON")] {
            let answer = asked(annotation).await;
            assert_eq!(answer["response"]["allowed"], true);
            assert_eq!(answer["response"].get("patch"), None);
            assert!(answer["response"]["warnings"][0].as_str().unwrap().contains(words), "{answer}");
        }
    }
}
