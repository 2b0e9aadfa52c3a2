//! An API server, as far as the operator uses one.

use crate::world::{End, World, at};
use axum::http::{Method, Request, Response};
use kube::client::Body;
use kube::{Client, ResourceExt};
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL};
use macvtap_operator::network::kind::{NetworkAttachmentDefinition, NetworkKey};
use macvtap_operator::states::RawState;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use tower::{BoxError, service_fn};

/// A refusal: its code.
type Refused = u16;

/// A client of the server that has this world.
pub(crate) fn client(world: &Arc<Mutex<World>>) -> Client {
    let world = Arc::clone(world);
    let service = service_fn(move |request: Request<Body>| {
        let world = Arc::clone(&world);
        async move {
            let (parts, body) = request.into_parts();
            let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
            let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
            let query = parts.uri.query().unwrap_or_default();
            let is_write = parts.method != Method::GET && path[1] != "events.k8s.io";
            let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
            let end = world.end(is_write);
            if end == Some(End::Before) {
                return Err(BoxError::from("the operator has ended"));
            }
            let (code, answer) = match world.answer(&parts.method, &path[1..], query, body) {
                Ok(answer) => {
                    world.writes += usize::from(is_write);
                    (200, answer)
                }
                Err(code) => (code, json!({"kind": "Status", "status": "Failure", "code": code})),
            };
            if end == Some(End::After) {
                return Err("the operator has ended".into());
            }
            let answer = Body::from(serde_json::to_vec(&answer)?);
            Ok::<_, BoxError>(Response::builder().status(code).body(answer)?)
        }
    });
    Client::new(service, "default")
}

impl World {
    /// Whether the operator ends at this request, or has ended before it.
    fn end(&mut self, is_write: bool) -> Option<End> {
        if self.ended {
            return Some(End::Before);
        }
        let (left, end) = self.ends.filter(|_| is_write)?;
        self.ends = left.checked_sub(1).map(|left| (left, end));
        self.ended = self.ends.is_none();
        self.ended.then_some(end)
    }

    #[expect(clippy::panic, reason = "the test does not know what that request does")]
    fn answer(&mut self, method: &Method, path: &[&str], query: &str, body: Value) -> Result<Value, Refused> {
        if path[0] == "events.k8s.io" {
            return Ok(body);
        }
        self.second += 1;
        match (method.as_str(), &path[2..]) {
            ("POST", ["macvtapnodestates"]) => self.create_state(body),
            ("PATCH", ["macvtapnodestates", name]) => self.write_state(name, &body),
            (method, ["macvtapnodeconfigs", rest @ ..]) => self.config(method, rest.first().copied(), body),
            ("PATCH", ["macvtapresourcepools", name]) => self.write_finalizers(name, &body),
            ("PATCH", ["macvtapresourcepools", name, "status"]) => self.write_status(name, &body),
            ("GET", ["network-attachment-definitions"]) => {
                let pool = query.split("%3D").nth(1).and_then(|pool| pool.split('&').next());
                let is_asked_for = |network: &&NetworkAttachmentDefinition| {
                    network.labels().get(POOL_LABEL).map(String::as_str) == pool
                };
                let items: Vec<_> = self.networks.values().filter(is_asked_for).collect();
                Ok(json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
            }
            (method, ["namespaces", space, "network-attachment-definitions", rest @ ..]) => {
                let name =
                    rest.first().map_or_else(|| text(&body, "/metadata/name"), |name| (*name).to_owned());
                self.network(method, ((*space).to_owned(), name), &body)
            }
            (method, path) => panic!("nobody expects {method} {path:?}"),
        }
    }

    fn config(&mut self, method: &str, name: Option<&str>, body: Value) -> Result<Value, Refused> {
        match (method, name) {
            ("GET", None) => {
                let items: Vec<_> = self.configs.values().map(|config| json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": config["metadata"]})).collect();
                Ok(
                    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items}),
                )
            }
            ("GET", Some(_)) if self.config_faults > 0 => {
                self.config_faults -= 1;
                Err(500)
            }
            ("GET", Some(name)) => self.configs.get(name).cloned().ok_or(404),
            ("DELETE", Some(name)) => {
                self.configs.remove(name).ok_or(404u16)?;
                Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => {
                let name = text(&body, "/metadata/name");
                if self.configs.contains_key(&name) {
                    return Err(409);
                }
                self.configs.insert(name, body.clone());
                Ok(body)
            }
        }
    }

    fn create_state(&mut self, body: Value) -> Result<Value, Refused> {
        let name = text(&body, "/metadata/name");
        if self.states.contains_key(&name) {
            return Err(409);
        }
        let mut state: RawState = read(body);
        state.metadata.resource_version = Some(self.second.to_string());
        self.states.insert(name, state.clone());
        Ok(write(&state))
    }

    fn write_state(&mut self, name: &str, body: &Value) -> Result<Value, Refused> {
        let state = self.states.get_mut(name).ok_or(404u16)?;
        *state = patched(state, body)?;
        state.metadata.resource_version = Some(self.second.to_string());
        Ok(write(state))
    }

    /// Only if the pool is as it was read. The last finalizer of one that is being deleted takes it with it.
    fn write_finalizers(&mut self, name: &str, body: &Value) -> Result<Value, Refused> {
        let pool = self.pools.get_mut(name).ok_or(404u16)?;
        if pool.metadata.resource_version.as_deref() != body["metadata"]["resourceVersion"].as_str() {
            return Err(409);
        }
        pool.metadata.finalizers = read(body["metadata"]["finalizers"].clone());
        pool.metadata.resource_version = Some(self.second.to_string());
        let answer = write(pool);
        if pool.finalizers().is_empty() && pool.metadata.deletion_timestamp.is_some() {
            self.pools.remove(name);
        }
        Ok(answer)
    }

    fn write_status(&mut self, name: &str, body: &Value) -> Result<Value, Refused> {
        let pool = self.pools.get_mut(name).ok_or(404u16)?;
        pool.status = patched(pool, body)?.status;
        pool.metadata.resource_version = Some(self.second.to_string());
        Ok(write(pool))
    }

    fn network(&mut self, method: &str, key: NetworkKey, body: &Value) -> Result<Value, Refused> {
        let there = self.networks.get(&key);
        match method {
            "GET" => Ok(write(there.ok_or(404u16)?)),
            "DELETE" => {
                let uid = body.pointer("/preconditions/uid").and_then(Value::as_str);
                if there.ok_or(404u16)?.metadata.uid.as_deref() != uid {
                    return Err(409);
                }
                self.networks.remove(&key);
                Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            "POST" if there.is_some() => Err(409),
            "POST" | "PATCH" if !self.namespaces.contains_key(&key.0) => Err(404),
            _ => {
                let mut network: NetworkAttachmentDefinition = read(body.clone());
                let uid = there.and_then(|there| there.metadata.uid.clone());
                network.metadata.uid = Some(uid.unwrap_or_else(|| format!("network-{}", self.second)));
                network.metadata.creation_timestamp = Some(at(self.second));
                network.metadata.managed_fields = read(json!([{"manager": OPERATOR_FIELD_MANAGER}]));
                self.networks.insert(key, network.clone());
                Ok(write(&network))
            }
        }
    }
}

/// The object after a JSON patch of tests and whole parts.
fn patched<T: serde::Serialize + serde::de::DeserializeOwned>(
    there: &T,
    patch: &Value,
) -> Result<T, Refused> {
    let mut object = write(there);
    for operation in patch.as_array().into_iter().flatten() {
        let place = operation["path"].as_str().unwrap_or_default();
        match operation["op"].as_str() {
            Some("test") if object.pointer(place) != Some(&operation["value"]) => return Err(422),
            Some("test") => {}
            _ => {
                let (parent, field) = place.rsplit_once('/').unwrap_or_default();
                object.pointer_mut(parent).ok_or(422u16)?[field] = operation["value"].clone();
            }
        }
    }
    Ok(read(object))
}

fn text(value: &Value, place: &str) -> String {
    value.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn write(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}
