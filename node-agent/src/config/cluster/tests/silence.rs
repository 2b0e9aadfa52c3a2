//! A connection to the API server that dies without a word: nobody closes it, and nobody hears what is said on it.

use super::*;
use axum::Router;
use axum::body::Body;
use axum::extract::{self, RawQuery};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Nothing here takes this long, also on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Which version of the node state there is.
type Version = watch::Receiver<u64>;

/// An API server that has one node state, and tells of each new version.
async fn api_server(version: Version) -> SocketAddr {
    let path = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodestates";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(
        axum::serve(listener, Router::new().route(path, get(answer)).with_state(version)).into_future(),
    );
    address
}

fn state(version: u64) -> Value {
    json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeState",
        "metadata": {"name": "n1", "resourceVersion": version.to_string()},
        "spec": {"configHash": format!("h{version}"), "pools": []},
    })
}

async fn answer(extract::State(version): extract::State<Version>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let content = [(header::CONTENT_TYPE, "application/json")];
    if !query.contains("watch=true") {
        let version = *version.borrow();
        let list = json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeStateList",
            "metadata": {"resourceVersion": version.to_string()}, "items": [state(version)],
        });
        return (content, list.to_string()).into_response();
    }
    let seen = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok());
    let news = futures::stream::unfold((version, seen.unwrap_or(0)), |(mut version, seen)| async move {
        let now = *version.wait_for(|now| *now > seen).await.ok()?;
        let line = format!("{}\n", json!({"type": "MODIFIED", "object": state(now)}));
        Some((Ok::<_, Infallible>(line), (version, now)))
    });
    (content, Body::from_stream(news)).into_response()
}

/// Passes connections on. Those with a number up to `deaf` stay open, and what is said on them goes nowhere.
async fn relay(
    server: SocketAddr,
    deaf: watch::Receiver<u64>,
    connections: watch::Sender<u64>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(server).await.unwrap();
            connections.send_modify(|count| *count += 1);
            let number = *connections.borrow();
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(pass(from_client, to_server, number, deaf.clone()));
            tokio::spawn(pass(from_server, to_client, number, deaf.clone()));
        }
    });
    address
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    number: u64,
    deaf: watch::Receiver<u64>,
) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if *deaf.borrow() < number && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    // The other side of a connection that died hears nothing of its end either.
    if *deaf.borrow() >= number {
        std::future::pending::<()>().await;
    }
}

/// An agent behind a relay, and the configurations that it applies.
struct Scene {
    version: watch::Sender<u64>,
    deaf: watch::Sender<u64>,
    connections: watch::Receiver<u64>,
    configurations: mpsc::Receiver<Configuration>,
    _inputs: (watch::Sender<Option<MacvtapNodeStateStatus>>, watch::Sender<Lost>, tempfile::TempDir),
    agent: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn new(first: u64) -> Self {
        let (version, served) = watch::channel(first);
        let (deaf, is_deaf) = watch::channel(0);
        let (count, connections) = watch::channel(0);
        let address = relay(api_server(served).await, is_deaf, count).await;
        // The agent waits for SILENCE_MAX, whose length does not matter here.
        let config =
            attentive(Config::new(format!("http://{address}").parse().unwrap()), Duration::from_secs(1));
        let client = Client::try_from(config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (pools, configurations) = mpsc::channel(1);
        let ((status_sender, status), (lost_sender, lost)) =
            (watch::channel(None), watch::channel(Lost::new()));
        let cluster = Cluster::new("n1".into(), dir.path());
        let agent = tokio::spawn(cluster.follow_through(client, LastServed::default(), pools, status, lost));
        Self { version, deaf, connections, configurations, _inputs: (status_sender, lost_sender, dir), agent }
    }

    async fn serves(&mut self, hash: &str) {
        let next = tokio::time::timeout(DEADLINE, self.configurations.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("{hash} was not served in {DEADLINE:?}"));
        assert_eq!(next.unwrap().hash.as_deref(), Some(hash));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

#[tokio::test]
async fn a_silent_connection_is_given_up_and_a_later_configuration_is_served_over_another() {
    let mut scene = Scene::new(1).await;
    scene.serves("h1").await;
    scene.version.send_replace(2);
    scene.serves("h2").await;
    let before = *scene.connections.borrow();
    scene.deaf.send_replace(before);
    scene.version.send_replace(3);
    scene.serves("h3").await;
    assert!(*scene.connections.borrow() > before, "the agent made a connection of its own accord");
}

#[tokio::test]
async fn a_configuration_of_a_restored_etcd_is_served_although_its_version_is_lower() {
    let mut scene = Scene::new(5).await;
    scene.serves("h5").await;
    let before = *scene.connections.borrow();
    scene.deaf.send_replace(before);
    scene.version.send_replace(2);
    scene.serves("h2").await;
    scene.version.send_replace(3);
    scene.serves("h3").await;
}
