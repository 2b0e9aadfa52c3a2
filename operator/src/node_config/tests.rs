//! Configurations on an API server that is played.

use super::*;
use crate::clock;
use crate::entry::{Entry, entry_of};
use crate::states::{RawState, Shared, Spec, States};
use crate::testing::pool;
use axum::http::{Method, Request, Response};
use kube::client::Body;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tower::{BoxError, service_fn};

/// What the API server has, and what was asked of it.
#[derive(Default)]
struct Server {
    objects: Mutex<BTreeMap<String, Value>>,
    asked: Mutex<Vec<String>>,
    /// The code with which it answers so many next requests.
    refusal: Mutex<Option<(u16, usize)>>,
    /// The code with which it answers each deletion.
    undeletable: Mutex<Option<u16>>,
}

impl Server {
    fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                let (parts, body) = request.into_parts();
                let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
                let name = parts.uri.path().rsplit('/').next().unwrap_or_default();
                let named = (name != "macvtapnodeconfigs").then_some(name);
                let is_rest = parts.uri.query().is_some_and(|query| query.contains("continue="));
                let (code, answer) = match &parts.method {
                    &Method::GET if named.is_none() => server.list(is_rest),
                    method => server.answer(method, named, body),
                };
                let answer = Body::from(serde_json::to_vec(&answer)?);
                Ok::<_, BoxError>(Response::builder().status(code).body(answer)?)
            }
        });
        Client::new(service, "default")
    }

    /// The refusal of this request, if it is refused.
    fn refused(&self) -> Option<(u16, Value)> {
        let mut refusal = self.refusal.lock().unwrap();
        let (code, left) = (*refusal)?;
        *refusal = Some((code, left - 1)).filter(|(_, left)| *left > 0);
        Some((code, json!({"kind": "Status", "status": "Failure", "code": code, "message": "refused"})))
    }

    /// The last object alone, and the others where the list is continued.
    fn list(&self, is_rest: bool) -> (u16, Value) {
        self.asked.lock().unwrap().push("GET ".to_owned());
        if let Some(refused) = self.refused() {
            return refused;
        }
        let objects = self.objects.lock().unwrap();
        let items = objects.values().rev().map(|object| json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]}));
        let items: Vec<_> = if is_rest { items.skip(1).collect() } else { items.take(1).collect() };
        let metadata = if is_rest { json!({"continue": ""}) } else { json!({"continue": "rest"}) };
        let kind = "PartialObjectMetadataList";
        (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": kind, "metadata": metadata, "items": items}))
    }

    fn answer(&self, method: &Method, name: Option<&str>, mut body: Value) -> (u16, Value) {
        self.asked.lock().unwrap().push(format!("{method} {}", name.unwrap_or_default()));
        if let Some(refused) = self.refused() {
            return refused;
        }
        let failure = |code: u16| (code, json!({"kind": "Status", "status": "Failure", "code": code}));
        let mut objects = self.objects.lock().unwrap();
        match (method.as_str(), name) {
            ("POST", _) => {
                let name = body["metadata"]["name"].as_str().unwrap().to_owned();
                if objects.contains_key(&name) {
                    return failure(409);
                }
                body["metadata"]["uid"] = format!("uid-{name}").into();
                objects.insert(name, body.clone());
                (201, body)
            }
            ("GET", Some(name)) => {
                objects.get(name).map_or_else(|| failure(404), |object| (200, object.clone()))
            }
            ("DELETE", Some(name)) => {
                let is_same = objects
                    .get(name)
                    .is_some_and(|object| object["metadata"]["uid"] == body["preconditions"]["uid"]);
                let refused = *self.undeletable.lock().unwrap();
                if let Some(code) = refused.or((!is_same).then_some(409)) {
                    return failure(code);
                }
                objects.remove(name);
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => failure(405),
        }
    }

    fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn refuse(&self, code: u16, requests: usize) {
        *self.refusal.lock().unwrap() = Some((code, requests));
    }
}

fn entries(name: &str) -> Vec<Arc<Entry>> {
    vec![Arc::new(entry_of(&pool(name, json!({}))))]
}

/// A state that names a configuration, as the watch shows it.
fn naming(content: &Arc<Content>) -> Event<RawState> {
    naming_at(content, 7)
}

/// The same in another version.
fn naming_at(content: &Arc<Content>, version: u64) -> Event<RawState> {
    let state = json!({
        "metadata": {"name": "n1", "resourceVersion": version.to_string()},
        "spec": {"configHash": "h", "config": content.name},
    });
    let mut state: RawState = serde_json::from_value(state).unwrap();
    state.shared = Shared::Known(Arc::clone(content));
    Event::Apply(state)
}

#[tokio::test]
async fn a_configuration_is_created_once_for_many_writers_and_after_a_refusal_they_do_without() {
    let (server, configs) = (Arc::new(Server::default()), Configs::new(1).impatient());
    let client = server.client();
    let content = configs.content_of(&entries("a")).unwrap();
    let writers = (0..20).map(|_| configs.ensure(&client, &content));
    assert!(futures::future::join_all(writers).await.into_iter().all(|is_there| is_there));
    assert_eq!(server.asked(), ["POST "]);
    assert_eq!(server.names(), std::slice::from_ref(&content.name));
    configs.forget_existing();
    assert!(configs.ensure(&client, &content).await, "another operator has created it");
    assert_eq!(server.asked(), ["POST ".to_owned(), format!("GET {}", content.name)]);

    let other = configs.content_of(&entries("b")).unwrap();
    server.refuse(404, 1);
    let writers = (0..20).map(|_| configs.ensure(&client, &other));
    assert!(!futures::future::join_all(writers).await.into_iter().any(|is_there| is_there));
    assert_eq!(server.asked(), ["POST "], "it is not asked for each state");

    let until = |configs: &Configs, name: &str| *configs.lock().refused.get(name).unwrap();
    let third = configs.content_of(&entries("c")).unwrap();
    server.refuse(429, 1);
    assert!(!configs.ensure(&client, &third).await);
    let wait = until(&configs, &other.name).duration_since(until(&configs, &third.name));
    assert!(wait.as_secs() > 50, "an API server that is busy is asked again soon");
}

#[tokio::test]
async fn a_configuration_that_has_other_content_than_its_name_stands_for_is_not_named() {
    let (server, configs) = (Arc::new(Server::default()), Configs::new(1).impatient());
    let client = server.client();
    let content = configs.content_of(&entries("a")).unwrap();
    let mut forged = object(&content);
    forged["spec"]["pools"] = json!([]);
    server.objects.lock().unwrap().insert(content.name.clone(), forged);
    assert!(!configs.ensure(&client, &content).await);
    Configs::new(1).content(&client, &content.name).await.unwrap_err();
}

#[tokio::test]
async fn a_configuration_is_read_once_and_again_where_that_fails() {
    let (server, configs) = (Arc::new(Server::default()), Configs::new(1).impatient());
    let client = server.client();
    let content = Content::of(&entries("a")).unwrap();
    configs.content(&client, &content.name).await.unwrap_err();
    server.objects.lock().unwrap().insert(content.name.clone(), object(&content));
    server.refuse(500, 3);
    server.asked();
    for _ in 0..2 {
        assert_eq!(*configs.content(&client, &content.name).await.unwrap(), content);
    }
    assert_eq!(server.asked().len(), 4);
}

#[tokio::test]
async fn many_states_that_name_what_cannot_be_read_do_not_each_wait_for_it() {
    let server = Arc::new(Server::default());
    let configs = Configs { pause: std::time::Duration::from_mins(1), ..Configs::new(1) };
    for _ in 0..9 {
        configs.content(&server.client(), "missing").await.unwrap_err();
    }
    assert_eq!(server.asked(), ["GET missing"]);
}

#[tokio::test]
async fn what_states_name_is_created_again_and_what_none_has_named_for_long_is_deleted() {
    let (server, configs, states) =
        (Arc::new(Server::default()), Configs::new(1).impatient(), States::default());
    let client = server.client();
    let start = clock::now();
    let minute = |minutes: i64| start + jiff::SignedDuration::from_mins(minutes);
    let content = configs.content_of(&entries("a")).unwrap();
    let foreign = json!({"metadata": {"name": "foreign", "labels": {macvtap_crds::CONFIG_LABEL: ""}}});
    server.objects.lock().unwrap().insert("foreign".to_owned(), foreign);
    assert!(configs.ensure(&client, &content).await);
    states.take(naming(&content), start);
    configs.lock().contents.clear();
    server.objects.lock().unwrap().remove(&content.name);
    configs.sweep(&client, &states, minute(0)).await.unwrap();
    assert_eq!(
        server.names(),
        [content.name.clone(), "foreign".to_owned()],
        "from what the state is known to have"
    );

    states.send("n1", Spec { config_hash: "h2".to_owned(), ..Spec::default() });
    states.stored("n1", &Spec { config_hash: "h2".to_owned(), ..Spec::default() }, 8, start);
    for (minutes, is_there) in [(1, true), (10, true), (11, false)] {
        configs.sweep(&client, &states, minute(minutes)).await.unwrap();
        assert_eq!(server.names().contains(&content.name), is_there, "minute {minutes}");
    }
    assert_eq!(server.names(), ["foreign"]);
    assert!(configs.ensure(&client, &content).await, "it may come back");

    let mut spec = Spec { config_hash: "h3".to_owned(), form: crate::entry::Form::Shared, ..Spec::default() };
    spec.share(Some(&content));
    states.send("n1", spec);
    for minutes in [12, 30] {
        configs.sweep(&client, &states, minute(minutes)).await.unwrap();
    }
    assert!(server.names().contains(&content.name), "a state that names it is on its way");
}

#[tokio::test]
async fn a_configuration_that_was_named_again_meanwhile_is_unused_since_then_only() {
    let (server, configs, states) =
        (Arc::new(Server::default()), Configs::new(1).impatient(), States::default());
    let client = server.client();
    let start = clock::now();
    let minute = |minutes: i64| start + jiff::SignedDuration::from_mins(minutes);
    let content = configs.content_of(&entries("a")).unwrap();
    assert!(configs.ensure(&client, &content).await);
    let is_there = async |minutes| {
        configs.sweep(&client, &states, minute(minutes)).await.unwrap();
        server.names().contains(&content.name)
    };
    assert!(is_there(0).await);
    states.take(naming_at(&content, 7), minute(1));
    assert!(is_there(1).await);
    states.send("n1", Spec { config_hash: "h2".to_owned(), ..Spec::default() });
    states.stored("n1", &Spec { config_hash: "h2".to_owned(), ..Spec::default() }, 8, minute(2));
    assert!(is_there(2).await && is_there(11).await);
    server.objects.lock().unwrap().remove(&content.name);
    assert!(!is_there(12).await);
    assert!(configs.lock().unused_since.is_empty(), "somebody else has deleted it");
}

#[tokio::test]
async fn what_keeps_a_configuration_from_being_deleted_is_an_error_unless_another_one_has_its_name() {
    let (server, configs, states) =
        (Arc::new(Server::default()), Configs::new(1).impatient(), States::default());
    let client = server.client();
    let start = clock::now();
    let content = configs.content_of(&entries("a")).unwrap();
    assert!(configs.ensure(&client, &content).await);
    for (code, is_fine) in [(404, true), (409, true), (500, false)] {
        *server.undeletable.lock().unwrap() = Some(code);
        configs.sweep(&client, &states, start).await.unwrap();
        let later = start + jiff::SignedDuration::from_mins(10);
        assert_eq!(configs.sweep(&client, &states, later).await.is_ok(), is_fine, "{code}");
    }
    for (code, is_fine) in [(404, true), (500, false)] {
        server.refuse(code, 1);
        let swept = configs.sweep(&client, &states, start).await;
        assert_eq!(swept.is_ok(), is_fine, "a cluster may not have the kind: {code}");
    }
}

#[tokio::test]
async fn configurations_are_swept_until_the_shutdown() {
    let (server, shutdown) = (Arc::new(Server::default()), tokio_util::sync::CancellationToken::new());
    shutdown.cancel();
    Configs::new(1).keep(&server.client(), &States::default(), &shutdown).await;
    assert_eq!(server.asked(), ["GET ", "GET "], "the list and its rest");
}

#[tokio::test]
async fn a_state_does_not_begin_to_name_what_is_being_deleted() {
    let (server, configs) = (Arc::new(Server::default()), Configs::new(1).impatient());
    let client = server.client();
    let content = configs.content_of(&entries("a")).unwrap();
    assert!(configs.ensure(&client, &content).await);
    configs.lock().doomed.insert(content.name.clone());
    assert!(!configs.ensure(&client, &content).await);
}

#[test]
fn only_what_many_nodes_have_is_written_once_for_all() {
    assert!(!Configs::new(0).is_worth(9) && !Configs::new(3).is_worth(2) && Configs::new(3).is_worth(3));
}
