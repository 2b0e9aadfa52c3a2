//! Wires everything up and runs it.

use crate::admin;
use crate::context::{Context, Guarded, NetworkKind};
use crate::pace::Pace;
use crate::watches::{self, Queues};
use crate::{node_state, pool, refusal};
use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::runtime::controller::{self, Action, ReconcileRequest, applier};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::Store;
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// How many events may wait for a reconciler before their watch waits too.
const QUEUE: usize = 1024;

/// How many nodes' states are written at once.
const NODES_AT_ONCE: u16 = 8;

/// How many pools are looked at at once.
const POOLS_AT_ONCE: u16 = 4;

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How long the start waits for an answer about Multus' kind.
const NETWORK_KIND_WAIT: Duration = Duration::from_secs(10);

/// Runs until the shutdown; an error is one that a restart may cure.
pub async fn run(client: Client, listen: SocketAddr, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = admin::listen(listen).await?;
    let (ready_sender, ready) = watch::channel(false);
    let (kind_sender, network_kind) = watch::channel(NetworkKind::Unknown);
    let (pool_sender, pool_queue) = mpsc::channel(QUEUE);
    let (node_sender, node_queue) = mpsc::channel(QUEUE);

    let pools = watches::pools(&client);
    let nodes = watches::nodes(&client);
    let states = watches::states(&client);
    let namespaces = watches::namespaces(&client);
    let networks = watches::networks(&client);
    let queues = Queues {
        pools: pool_sender,
        nodes: node_sender,
        all_pools: pools.store.clone(),
        all_nodes: nodes.store.clone(),
    };
    let reporter = Reporter::from(OPERATOR_FIELD_MANAGER);
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        pools: pools.store,
        nodes: nodes.store,
        states: states.store,
        namespaces: namespaces.store,
        networks: networks.store,
        network_kind,
        pace: Pace::default(),
    });

    let mut tasks: JoinSet<anyhow::Result<&str>> = JoinSet::new();
    let admin = admin::serve(listener, ready, shutdown.clone());
    tasks.spawn(async move { admin.await.map(|()| "probes").map_err(Into::into) });
    let end = || shutdown.clone().cancelled_owned();
    let follow = watches::follow_pools(pools.events.take_until(end()).boxed(), queues.clone());
    tasks.spawn(named("watch of pools", follow));
    let follow = watches::follow_nodes(nodes.events.take_until(end()).boxed(), queues.clone());
    tasks.spawn(named("watch of nodes", follow));
    let follow = watches::follow_states(states.events.take_until(end()).boxed(), queues.clone());
    tasks.spawn(named("watch of node states", follow));
    let follow = watches::follow_namespaces(namespaces.events.take_until(end()).boxed(), queues.clone());
    tasks.spawn(named("watch of namespaces", follow));
    let follow = watches::follow_networks(networks.events.take_until(end()).boxed(), queues, kind_sender);
    tasks.spawn(named("watch of networks", follow));
    let reconcile = reconcile(Arc::clone(&context), pool_queue, node_queue, ready_sender, shutdown.clone());
    tasks.spawn(async move { reconcile.await.map(|()| "reconcilers") });

    while let Some(ended) = tasks.join_next().await {
        let ended = ended.context("a task died")?;
        let name = ended?;
        if !shutdown.is_cancelled() {
            anyhow::bail!("{name} ended unasked");
        }
    }
    Ok(())
}

/// Waits for the signal to end.
pub async fn signalled() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> anyhow::Result<&'static str> {
    task.await;
    Ok(name)
}

async fn reconcile(
    context: Arc<Context>,
    pools: mpsc::Receiver<ReconcileRequest<Guarded<macvtap_crds::v1alpha1::MacvtapResourcePool>>>,
    nodes: mpsc::Receiver<ReconcileRequest<Node>>,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        filled = filled(&context) => filled?,
        () = shutdown.cancelled() => return Ok(()),
    }
    ready.send_replace(true);
    tracing::info!("caches are filled");

    let config = |concurrency| controller::Config::default().concurrency(concurrency);
    let pools = applier(
        |pool, context| Box::pin(pool::reconcile(pool, context)),
        |_, error, _| retry(error),
        Arc::clone(&context),
        context.pools.clone(),
        ReceiverStream::new(pools).take_until(shutdown.clone().cancelled_owned()).map(Ok::<_, Infallible>),
        config(POOLS_AT_ONCE),
    );
    let nodes = applier(
        |node, context| Box::pin(node_state::reconcile(node, context)),
        |_, error, _| retry(error),
        Arc::clone(&context),
        context.nodes.clone(),
        ReceiverStream::new(nodes).take_until(shutdown.cancelled_owned()).map(Ok::<_, Infallible>),
        config(NODES_AT_ONCE),
    );
    // Outcomes are logged where they happen; what is gone from the cache needs no reconcile.
    futures::join!(pools.for_each(|_| async {}), nodes.for_each(|_| async {}));
    Ok(())
}

/// Waits for the first complete list of everything: what is not in a half-filled cache would look deleted.
async fn filled(context: &Context) -> anyhow::Result<()> {
    wait("pools", &context.pools).await?;
    wait("nodes", &context.nodes).await?;
    wait("node states", &context.states).await?;
    wait("namespaces", &context.namespaces).await?;
    let mut kind = context.network_kind.clone();
    let answered = kind.wait_for(|kind| *kind != NetworkKind::Unknown);
    // Pools work without networks; they say what is missing.
    let _ = tokio::time::timeout(NETWORK_KIND_WAIT, answered).await;
    Ok(())
}

async fn wait<K>(what: &str, store: &Store<K>) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    store.wait_until_ready().await.with_context(|| format!("fill the cache of {what}"))
}

fn retry(error: &(impl std::error::Error + 'static)) -> Action {
    tracing::warn!(error = %refusal::chain(error), "reconcile failed, trying again");
    Action::requeue(RETRY)
}
