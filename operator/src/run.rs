//! Wires everything up and runs it.

use crate::admin::{self, Probes};
use crate::agents::Agents;
use crate::args::Serve;
use crate::context::{Context, NetworkKind, Queues};
use crate::controller::{Controller, work};
use crate::controllers::{Networks, NodeStates, Pools};
use crate::gate::Gate;
use crate::leader::Elector;
use crate::leader::term::Term;
use crate::metrics::Metrics;
use crate::network::reports::Reports;
use crate::node_config::Configs;
use crate::pace::Pace;
use crate::pool::published::Published;
use crate::queue::Lane;
use crate::refresh::Refresh;
use crate::states::States;
use crate::trouble;
use crate::watches;
use crate::{refusal, takeover};
use anyhow::Context as _;
use futures::StreamExt;
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::Store;
use kube::{Client, Config};
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How many nodes' states are written at once; how many of an edit may be under way sets [`States::room`].
const NODES_AT_ONCE: usize = 28;

/// How many more of them do only what is urgent, so that it never waits for an edit of the whole fleet.
const URGENT_NODES_AT_ONCE: usize = 4;

/// How many pools are looked at at once.
const POOLS_AT_ONCE: usize = 4;

/// The networks of how many pools are made at once.
const NETWORKS_AT_ONCE: usize = 8;

/// How long is waited for what the operator can do without: networks, whose kind may be missing, and agents.
const BRIEFLY: Duration = Duration::from_secs(10);

/// How long writes in flight may take when the operator is asked to end.
const FINISH: Duration = Duration::from_secs(5);

/// How long an API server may be silent on a connection in use. It sends a bookmark on every watch about once a minute, so
/// longer silence is a connection that nobody ended and nobody hears.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Where a pod finds the certificates of the API server's authority, unless it has a kubeconfig.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Runs until the shutdown; an error is one that a restart may cure.
pub async fn run(args: Serve, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = admin::listen(args.listen).await?;
    let config = cluster().await?;
    let (address, certificates) = (&config.cluster_url, config.root_cert.as_ref().map(Vec::len));
    tracing::info!(%address, certificates, from = source(), "API server");
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let (term, metrics) = (Arc::new(Term::default()), Arc::new(Metrics::default()));
    let gate = Gate::new(Arc::clone(&term), Arc::clone(&metrics));
    let client = client(config, &gate)?;
    let (elector, beat) =
        Elector::new(client.clone(), &namespace, &args.lease, identity(&args), Arc::clone(&term));

    let mut tasks: JoinSet<anyhow::Result<&str>> = JoinSet::new();
    let refresh = Refresh::new(BRIEFLY);
    let context = follow(client, metrics, &refresh, &args, &namespace, &shutdown, &mut tasks);
    let (filled_sender, filled) = watch::channel(false);
    let health = Probes { filled, beat, term };
    let admin = admin::serve(listener, health, Arc::clone(&context), shutdown.clone());
    tasks.spawn(async move { admin.await.map(|()| "probes").map_err(Into::into) });
    let lead = elect_and_lead(context, refresh, elector, filled_sender, shutdown.clone());
    tasks.spawn(async move { lead.await.map(|()| "reconcilers") });

    while let Some(ended) = tasks.join_next().await {
        let ended = ended.context("a task died")?;
        let name = ended?;
        if !shutdown.is_cancelled() {
            anyhow::bail!("{name} ended unasked");
        }
        // A scraper or watcher may be slow; nothing is lost by that.
        if name == "reconcilers" {
            break;
        }
    }
    Ok(())
}

/// Finds the cluster by the kubeconfig, or by the pod's service account.
pub async fn cluster() -> anyhow::Result<Config> {
    Config::infer().await.map_err(|error| {
        let why = refusal::not_found(&error);
        anyhow::anyhow!(
            "find the cluster: {why}; set KUBECONFIG to a kubeconfig that can be read with all files that it names, or run in a pod that has {SERVICE_ACCOUNT}"
        )
    })
}

/// Returns where the address of the API server and the certificates of its authority come from.
fn source() -> String {
    let files = std::env::var("KUBECONFIG").unwrap_or_default();
    if files.is_empty() { SERVICE_ACCOUNT.to_owned() } else { files }
}

/// Builds a client whose every single attempt to write passes the gate.
fn client(mut config: Config, gate: &Gate) -> anyhow::Result<Client> {
    config.read_timeout = Some(SILENCE_MAX);
    // A pooled connection is idle by right.
    config.reset_reader_on_write = true;
    // The client's own retries are inside the gate: a write refused with 429 would be sent again without asking whether
    // this operator still leads, and a watch or a lease renewal would wait in them unseen.
    config.default_retry = false;
    Ok(ClientBuilder::try_from(config).context("make a client")?.with_layer(gate).build())
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

/// Who this is, different for every process: a container that starts again in the same pod is another candidate.
fn identity(args: &Serve) -> String {
    let host = args.identity.clone().unwrap_or_else(|| "macvtap-operator".to_owned());
    // The standard library seeds it from the kernel's random numbers.
    let random = RandomState::new().hash_one(std::process::id());
    format!("{host}_{random:016x}")
}

/// Starts to follow the cluster.
fn follow(
    client: Client,
    metrics: Arc<Metrics>,
    refresh: &Refresh,
    args: &Serve,
    namespace: &str,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<anyhow::Result<&'static str>>,
) -> Arc<Context> {
    let (kind_sender, network_kind) = watch::channel(NetworkKind::Unknown);
    let pools = watches::pools(&client, refresh);
    let nodes = watches::nodes(&client, refresh);
    let states = watches::states(&client, refresh);
    let agents_in = args.agent_namespace.as_deref().unwrap_or(namespace);
    let agents = watches::agents(&client, refresh, agents_in, &args.agent_selector);
    let namespaces = watches::namespaces(&client, refresh);
    let networks = watches::networks(&client, refresh);
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), Reporter::from(OPERATOR_FIELD_MANAGER)),
        client,
        metrics,
        queues: Queues::default(),
        pools: pools.store,
        nodes: nodes.store,
        states: States::default(),
        configs: Configs::new(args.share_configs_from),
        agents: Agents::default(),
        nodes_not_ready: trouble::UnreadyNodes::default(),
        namespaces: namespaces.store,
        networks: networks.store,
        network_kind,
        pace: Pace::default(),
        published: Published::default(),
        reports: Reports::default(),
        grants: RwLock::default(),
        catalog: RwLock::default(),
    });
    let (end, with) = (|| shutdown.clone().cancelled_owned(), || Arc::clone(&context));
    tasks.spawn(named(
        "watch of pools",
        watches::follow_pools(pools.events.take_until(end()).boxed(), with()),
    ));
    tasks.spawn(named(
        "watch of nodes",
        watches::follow_nodes(nodes.events.take_until(end()).boxed(), with()),
    ));
    tasks.spawn(named(
        "watch of node states",
        watches::follow_states(states.take_until(end()).boxed(), with()),
    ));
    tasks.spawn(named("watch of agents", watches::follow_agents(agents.take_until(end()).boxed(), with())));
    let follow = watches::follow_namespaces(namespaces.events.take_until(end()).boxed(), with());
    tasks.spawn(named("watch of namespaces", follow));
    let follow = watches::follow_networks(networks.events.take_until(end()).boxed(), with(), kind_sender);
    tasks.spawn(named("watch of networks", follow));
    context
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> anyhow::Result<&'static str> {
    task.await;
    Ok(name)
}

/// Leads whenever it may, until the shutdown.
async fn elect_and_lead(
    context: Arc<Context>,
    refresh: Refresh,
    mut elector: Elector,
    filled_sender: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        filled = filled(&context) => filled?,
        () = shutdown.cancelled() => return Ok(()),
    }
    elector.beat();
    filled_sender.send_replace(true);
    tracing::info!("caches are filled");
    let mut is_stale = false;
    loop {
        tokio::select! {
            () = elector.acquire() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        is_stale |= elector.was_cut_off();
        context.metrics.leading.set(1);
        let mut workers = JoinSet::new();
        let lead = async {
            let fresh = freshen(&context, &refresh, is_stale);
            if shutdown.run_until_cancelled(fresh).await.is_none() {
                return Ok(());
            }
            is_stale = false;
            start(&context, &shutdown, &mut workers);
            finish(&mut workers, &shutdown).await
        };
        let ended = tokio::select! {
            why = elector.keep() => Err(why),
            done = lead => Ok(done),
        };
        // Whatever is still at work ends before anybody else may take the lease.
        workers.shutdown().await;
        context.queues.close();
        context.forget_own();
        context.metrics.leading.set(0);
        context.metrics.forget_all();
        match ended {
            Ok(done) => {
                elector.release().await;
                return done;
            }
            Err(why) => tracing::error!(error = why, "leading no more"),
        }
    }
}

/// Waits until the caches show everything that was written before this operator led. Where watches do not, or may have
/// been cut off, everything is listed again.
async fn freshen(context: &Context, refresh: &Refresh, is_stale: bool) {
    if !is_stale {
        match takeover::catch_up(context).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                let error = refusal::text(&error);
                tracing::warn!(error, "caches cannot be compared with the API server");
            }
        }
    }
    tracing::info!("listing everything again before leading");
    refresh.all().await;
}

/// Starts the workers, with everything to be looked at.
fn start(context: &Arc<Context>, shutdown: &CancellationToken, workers: &mut JoinSet<()>) {
    context.queues.open();
    // The cache may be filled before anybody has worked out what the pools come to.
    context.refresh_catalog();
    context.assume_past();
    context.every_pool();
    context.every_network();
    context.every_node();
    spawn::<NodeStates>(workers, Lane::Later, NODES_AT_ONCE, context, shutdown);
    spawn::<NodeStates>(workers, Lane::Urgent, URGENT_NODES_AT_ONCE, context, shutdown);
    spawn::<Pools>(workers, Lane::Later, POOLS_AT_ONCE, context, shutdown);
    spawn::<Networks>(workers, Lane::Later, NETWORKS_AT_ONCE, context, shutdown);
    let (context, shutdown) = (Arc::clone(context), shutdown.clone());
    workers.spawn(async move {
        context.configs.keep(&context.client, &context.states, &shutdown).await;
    });
}

fn spawn<C: Controller>(
    workers: &mut JoinSet<()>,
    last: Lane,
    count: usize,
    context: &Arc<Context>,
    shutdown: &CancellationToken,
) {
    for _ in 0..count {
        workers.spawn(work::<C>(last, Arc::clone(context), shutdown.clone()));
    }
}

/// Waits for the workers to end after the shutdown, but not for ever.
async fn finish(workers: &mut JoinSet<()>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let limit = async {
        shutdown.cancelled().await;
        tokio::time::sleep(FINISH).await;
    };
    let all = async {
        while let Some(ended) = workers.join_next().await {
            ended.context("a worker died")?;
            anyhow::ensure!(shutdown.is_cancelled(), "a worker ended unasked");
        }
        Ok(())
    };
    tokio::select! {
        ended = all => ended,
        () = limit => {
            tracing::warn!("writes were still under way");
            Ok(())
        }
    }
}

/// Waits for the first complete list of everything: what is not in a half-filled cache would look deleted.
async fn filled(context: &Context) -> anyhow::Result<()> {
    wait("pools", &context.pools).await?;
    wait("nodes", &context.nodes).await?;
    context.states.filled().await;
    wait("namespaces", &context.namespaces).await?;
    let mut kind = context.network_kind.clone();
    let answered = kind.wait_for(|kind| *kind != NetworkKind::Unknown);
    // Pools work without networks; they say what is missing.
    let _ = tokio::time::timeout(BRIEFLY, answered).await;
    Ok(())
}

async fn wait<K>(what: &str, store: &Store<K>) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    store.wait_until_ready().await.with_context(|| format!("fill the cache of {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::{Api, Patch, PatchParams};
    use macvtap_crds::v1alpha1::MacvtapResourcePool;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    /// An API server that answers every request with 429 and takes the lease away before it does.
    async fn overloaded(term: Arc<Term>, requests: Arc<AtomicUsize>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                requests.fetch_add(1, Ordering::SeqCst);
                term.end();
                let _ = stream.read(&mut [0; 4096]).await;
                let answer =
                    "HTTP/1.1 429 Too Many Requests\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_write_that_the_api_server_refuses_for_now_is_not_sent_again_after_loss_of_the_lease() {
        let (term, requests) = (Arc::new(Term::default()), Arc::new(AtomicUsize::new(0)));
        term.hold(Instant::now() + Duration::from_mins(1));
        let address = overloaded(Arc::clone(&term), Arc::clone(&requests)).await;
        let config = Config::new(format!("http://{address}").parse().unwrap());
        let gate = Gate::new(Arc::clone(&term), Arc::default());
        let pools: Api<MacvtapResourcePool> = Api::all(client(config, &gate).unwrap());
        let patch = Patch::Merge(serde_json::json!({}));
        let refused = pools.patch("dp", &PatchParams::default(), &patch).await.unwrap_err();
        assert!(matches!(&refused, kube::Error::Api(status) if status.code == 429), "{refused}");
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    }
}
