//! The worker: joins what watches (links, configuration, kubelet, pods) to the engine, and what the engine decides to
//! what acts (device table, sockets, status).

mod problems;
mod recovery;
mod serving;
#[cfg(test)]
mod simulation;
mod table_writer;
mod usage;

use crate::config::args::RunArguments;
use crate::config::{Source, SourceError};
use crate::devices::assignment;
use crate::devices::engine::Engine;
use crate::devices::nics::NicNames;
use crate::kubelet::{Shared, directory, socket};
use crate::links::netlink::{self, News};
use crate::pods::{PodAges, PodName};
use crate::process::install::PluginName;
use crate::process::install::keep::{Keeper, Plugin, Presence};
use crate::process::lock::{self, NodeLock, NodeLockError};
use crate::process::log::Log;
use crate::process::probe::{self, Readiness};
use crate::process::sockets;
use crate::process::supervisor::{self, Worker};
use macvtap::boot::{self, BootIdError};
use macvtap::paths::Paths;
use macvtap::records::RecordError;
use macvtap::table_file::{self, TableFileError};
use serving::Serving;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use table_writer::TableWriter;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use tracing_appender::non_blocking::ErrorCounter;

/// Why the worker ends.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No runtime.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// A log level nobody knows.
    #[error("--log-level {0:?} is no level; write error, warn, info, debug or trace")]
    LogLevel(String),
    /// No lock.
    #[error(transparent)]
    Lock(#[from] NodeLockError),
    /// The boot is unknown.
    #[error(transparent)]
    BootId(#[from] BootIdError),
    /// The device table is missing, and the records from which it would be rebuilt cannot be listed.
    #[error("rebuild the device table")]
    Records(#[from] RecordError),
    /// The configuration is wrong.
    #[error("configuration")]
    Source(#[from] SourceError),
}

impl WorkerError {
    /// Whether starting again would end the same way.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::LogLevel(_) => true,
            Self::Source(error) => error.is_final(),
            Self::Runtime(_) | Self::Lock(_) | Self::BootId(_) | Self::Records(_) => false,
        }
    }
}

/// News are small and handled in microseconds; what comes while more than this wait is made up for by a full list.
const NEWS: usize = 1024;

/// Threads for what may block, each there only while it is needed. Five may wait for the kernel's lock of links at a time
/// (links, routes, orphans, two for taps of pods); the device table has a thread of its own.
const BLOCKING: usize = 8;

/// How long allocations are answered after a hand-over.
const LINGER: Duration = Duration::from_secs(3);

/// After SIGTERM the process is gone within this time, whatever still hangs, a hand-over apart.
const SHUTDOWN: Duration = Duration::from_millis(1500);

/// Serves until it is asked to end.
pub fn run(arguments: RunArguments, worker: Worker) -> Result<(), WorkerError> {
    let level = || WorkerError::LogLevel(arguments.log_level.clone());
    let log = Log::start(arguments.log_format, &arguments.log_level).map_err(|_| level())?;
    // Before anything is touched: a mistake is reported within milliseconds, and nothing has happened.
    let source = Source::open(&arguments, worker)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(256 << 10)
        .build()
        .map_err(WorkerError::Runtime)?;
    let done = runtime.block_on(serve(arguments, source, log.lost()));
    // A thread that waits for a lock or a disk does not hold up the end.
    runtime.shutdown_background();
    done
}

async fn serve(arguments: RunArguments, source: Source, lost: ErrorCounter) -> Result<(), WorkerError> {
    let mut end = signal(SignalKind::terminate()).map_err(WorkerError::Runtime)?;
    // Before anything is waited for: what leads to the directory now is what this container mounted.
    let keeper = keeper(&arguments);
    let (readiness, asked) = watch::channel(Readiness::NotReady("starting".to_owned()));
    tokio::spawn(probe::serve(arguments.run_dir.clone(), asked));
    let served = tokio::select! {
        held = hold_node(&arguments, &readiness) => {
            let lock = held?;
            lead(&arguments, source, keeper, &readiness, &mut end, lock, lost).await
        }
        _ = end.recv() => Ok(()),
    };
    let _ = std::fs::remove_file(probe::socket(&arguments.run_dir));
    info!("ended");
    served
}

/// What keeps the CNI plugin in its place, if this agent should.
fn keeper(arguments: &RunArguments) -> Option<Keeper> {
    let plugin = Plugin {
        file: arguments.cni_plugin.clone(),
        names: PluginName::wanted(arguments.ehost_device),
        directory: arguments.cni_bin_dir.clone()?,
        node_root: arguments.node_root.clone(),
    };
    Some(Keeper::new(plugin, supervisor::memory().as_deref()))
}

/// Waits until no other agent serves this node.
async fn hold_node(
    arguments: &RunArguments,
    readiness: &watch::Sender<Readiness>,
) -> Result<NodeLock, WorkerError> {
    if let Some(lock) = lock::try_take(&arguments.state_dir)? {
        return Ok(lock);
    }
    let (known, waiting) = oneshot::channel();
    let state = arguments.state_dir.clone();
    let waited = tokio::task::spawn_blocking(move || {
        lock::wait(&state, || {
            let _ = known.send(());
        })
    });
    // Not before: an agent that ends now must know that it has a successor.
    if waiting.await.is_ok() {
        info!("another agent serves this node, standing by");
        readiness.send_replace(Readiness::Standby);
    }
    let waited = waited.await;
    readiness.send_replace(Readiness::NotReady("taking over".to_owned()));
    Ok(waited.map_err(|error| WorkerError::Runtime(io::Error::other(error)))??)
}

/// Serves as the only agent of the node.
async fn lead(
    arguments: &RunArguments,
    source: Source,
    keeper: Option<Keeper>,
    readiness: &watch::Sender<Readiness>,
    end: &mut Signal,
    lock: NodeLock,
    lost: ErrorCounter,
) -> Result<(), WorkerError> {
    let paths = Paths::new(&arguments.state_dir, &arguments.run_dir);
    let boot_id = boot::boot_id()?;
    let mut engine = engine(&paths, &arguments.device_plugin_dir, boot_id, source.is_standalone())?;
    let nics = NicNames::of(engine.table());
    let own_pod = arguments.pod_name.clone().zip(arguments.pod_namespace.clone());
    let own_pod = own_pod.map(|(name, namespace)| PodName { namespace, name });
    let node = arguments.node_name.clone().filter(|name| !name.is_empty());
    let ages = PodAges::new(own_pod, node);
    let (pod_resources, plugins) =
        (arguments.pod_resources_socket.clone(), arguments.device_plugin_dir.clone());
    let shared = Arc::new(Shared::new(paths, pod_resources, plugins, ages, nics));
    shared.metrics.watch_log(lost);
    sockets::remove_dead(&arguments.device_plugin_dir, socket::PREFIX).await;
    let (happened_sender, happened) = watch::channel(directory::Happened::default());
    tokio::spawn(directory::watch(arguments.device_plugin_dir.clone(), happened_sender));
    // What only the holder of the node's lock may do.
    let mut tasks = JoinSet::new();
    let (news_sender, news) = mpsc::channel::<News>(NEWS);
    tasks.spawn(netlink::follow(news_sender, Arc::clone(&shared.metrics)));
    let (pools_sender, pools) = mpsc::channel(1);
    let (status_sender, status) = watch::channel(None);
    tasks.spawn(source.follow(pools_sender, status, shared.lost.subscribe()));
    let (usage_sender, used) = mpsc::channel(1);
    tasks.spawn(usage::follow(arguments.clone(), Arc::clone(&shared), happened.clone(), usage_sender));
    tasks.spawn(crate::report::admin::serve(
        arguments.listen,
        Arc::clone(&shared.metrics),
        readiness.subscribe(),
    ));
    let (presence, plugin) = watch::channel(Presence::default());
    if let Some(keeper) = keeper {
        tasks.spawn(keeper.keep(presence));
    }
    let names = Arc::clone(&shared.nics.borrow());
    engine.world.in_use =
        usage::at_start(&shared.paths, &shared.plugins, &names, &shared.ledger, Instant::now());
    let directory = arguments.device_plugin_dir.clone();
    let table = TableWriter::start(shared.paths.clone(), Some(lock)).map_err(WorkerError::Runtime)?;
    let (shared, readiness) = (Arc::clone(&shared), readiness.clone());
    let mut serving = Serving::new(engine, directory, happened, shared, table, readiness, status_sender);
    tokio::select! {
        () = serving.run(news, pools, used, plugin) => {}
        _ = end.recv() => {}
    }
    end_serving(arguments, serving, tasks).await;
    Ok(())
}

/// Makes room for the successor, if one waits, and ends.
async fn end_serving(arguments: &RunArguments, mut serving: Serving, mut tasks: JoinSet<()>) {
    if lock::successor_waits(&arguments.state_dir) {
        info!("handing over to the agent that stands by");
        serving.hand_over().await;
        // The successor begins as soon as it has the lock. It listens at the same address, it looks for orphans, and what
        // this agent has not reported yet would replace what that one reports.
        tasks.shutdown().await;
        if serving.release_node().await {
            // The kubelet asks here until the successor has registered.
            tokio::time::sleep(LINGER).await;
        } else {
            warn!(
                "the disk does not take the device table; the successor begins when this process has ended"
            );
        }
    }
    // Whatever hangs from here on, a file system or a peer, the kubelet's patience is not ours to spend.
    std::thread::spawn(|| {
        std::thread::sleep(SHUTDOWN);
        #[expect(clippy::exit, reason = "what hangs cannot be asked to end")]
        std::process::exit(0);
    });
    serving.stop().await;
}

/// An engine with the stored table, or the best substitute.
fn engine(paths: &Paths, plugins: &Path, boot_id: String, standalone: bool) -> Result<Engine, RecordError> {
    let rebuilt = match table_file::load(paths) {
        Ok(Some(table)) => return Ok(Engine::new(table, boot_id, standalone)),
        Ok(None) => {
            let rebuilt = recovery::rebuild(paths, plugins, &boot_id, standalone)?;
            // Nothing was ever given out: this is the first start.
            if rebuilt.resources.is_empty() {
                return Ok(Engine::new(assignment::empty(&boot_id, standalone), boot_id, standalone));
            }
            error!("no device table although pods have devices, rebuilding it from what they have");
            rebuilt
        }
        Err(error) => {
            let reason = crate::error_chain(&error);
            error!(%reason, "device table lost, rebuilding it from what pods have");
            // A start that fails because of the records must find the table as it is now.
            let rebuilt = recovery::rebuild(paths, plugins, &boot_id, standalone)?;
            set_aside(paths, &error);
            rebuilt
        }
    };
    Ok(Engine::rebuilt(rebuilt, boot_id, standalone))
}

/// Keeps a damaged table so that it can be examined.
fn set_aside(paths: &Paths, error: &TableFileError) {
    if matches!(error, TableFileError::Content { .. }) {
        let table = paths.table();
        if let Err(error) = std::fs::rename(&table, table.with_extension("json.damaged")) {
            warn!(%error, "damaged device table not set aside");
        }
    }
}
