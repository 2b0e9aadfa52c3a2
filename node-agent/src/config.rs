//! Where the pools come from: the environment, a file, or the API server.

pub mod args;
mod cluster;
mod events;
mod file;
pub mod standalone;

use crate::attachments::Lost;
use crate::config::args::RunArguments;
use crate::config::standalone::{Standalone, StandaloneError};
use crate::pools::pool::Pool;
use crate::process::supervisor::Worker;
use macvtap::file::Durability;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::{MacvtapNodeStateStatus, NodePool};
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch};
use tracing::warn;

/// What the node should offer.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// The pools, in the order in which they choose links.
    pub pools: Vec<Pool>,
    /// Pools that this agent cannot serve as they are now.
    pub refused: Vec<RefusedPool>,
    /// The pools as the API has them; one that is refused with its former settings, if it has any.
    pub in_force: Vec<NodePool>,
    /// The hash the operator gave it; none standalone.
    pub hash: Option<String>,
    /// The generation of the node state it comes from; none standalone, and while it comes from the disk.
    pub generation: Option<i64>,
    /// Why a later configuration is not applied.
    pub problem: Option<String>,
}

/// A pool that cannot be served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPool {
    /// Its name.
    pub name: String,
    /// Its generation.
    pub generation: i64,
    /// Why.
    pub message: String,
}

/// Where the pools come from.
#[derive(Debug)]
pub enum Source {
    /// The environment: read once.
    Environment(Standalone),
    /// A file: read again when it changes.
    File(file::ConfigurationFile),
    /// The API server.
    Cluster(cluster::Cluster),
}

/// There is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing says what to serve.
    #[error(
        "neither {}, --config nor --node-name (NODE_NAME) is given; set the first to [] to offer every NIC and bond, or run the agent with the operator",
        standalone::VARIABLE
    )]
    Nothing,
    /// Two things say it.
    #[error("both {} and --config are given; keep one", standalone::VARIABLE)]
    Both,
    /// The environment variable is wrong.
    #[error("{}", standalone::VARIABLE)]
    Environment(#[source] StandaloneError),
    /// The file is wrong.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        #[source]
        source: StandaloneError,
    },
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// Whether trying again would end the same way.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Nothing | Self::Both | Self::Environment(_) | Self::File { .. } | Self::Read { .. } => true,
        }
    }
}

impl Source {
    /// Finds out where, and reads what can be read at once.
    pub fn open(arguments: &RunArguments, worker: Worker) -> Result<Self, SourceError> {
        match (&arguments.configuration, &arguments.config, &arguments.node_name) {
            (Some(_), Some(_), _) => Err(SourceError::Both),
            (Some(text), None, _) => {
                let standalone = Standalone::parse(text).map_err(SourceError::Environment)?;
                Ok(Self::Environment(warned(standalone)))
            }
            (None, Some(path), _) => {
                file::ConfigurationFile::open(path, &arguments.state_dir, worker).map(Self::File)
            }
            (None, None, Some(node)) if !node.is_empty() => {
                Ok(Self::Cluster(cluster::Cluster::new(node.clone(), &arguments.state_dir)))
            }
            (None, None, _) => Err(SourceError::Nothing),
        }
    }

    /// Whether no API server is needed.
    pub fn is_standalone(&self) -> bool {
        !matches!(self, Self::Cluster(_))
    }

    /// Sends the configuration, and again whenever it changes. Reports what comes back, if somebody reads it.
    pub async fn follow(
        self,
        pools: mpsc::Sender<Configuration>,
        status: watch::Receiver<Option<MacvtapNodeStateStatus>>,
        lost: watch::Receiver<Lost>,
    ) {
        match self {
            Self::Environment(standalone) => {
                let _ = pools.send(standalone.into()).await;
                pools.closed().await;
            }
            Self::File(file) => file.follow(pools).await,
            Self::Cluster(cluster) => cluster.follow(pools, status, lost).await,
        }
    }
}

impl From<Standalone> for Configuration {
    fn from(standalone: Standalone) -> Self {
        Self { pools: standalone.pools, ..Self::default() }
    }
}

impl Configuration {
    /// Checks every pool by itself: one that cannot be served does not stop the others. It keeps the settings that are in
    /// force, so that a slip of the hand takes no devices away.
    pub fn compile(pools: Vec<NodePool>, in_force: &[NodePool], hash: String) -> Self {
        let mut configuration = Self { hash: Some(hash), ..Self::default() };
        for pool in pools {
            let former = in_force.iter().find(|former| former.uid == pool.uid);
            let pool = match (pool.phase, former) {
                (PoolPhase::Active | PoolPhase::Draining, _) => pool,
                (PoolPhase::Unchanged, Some(former)) => former.clone(),
                (PoolPhase::Unchanged, None) => continue,
            };
            let error = match Pool::compile(pool.clone()) {
                Ok(compiled) => {
                    configuration.pools.push(compiled);
                    configuration.in_force.push(pool);
                    continue;
                }
                Err(error) => error,
            };
            let NodePool { name, generation, phase, .. } = pool;
            let message = crate::error_chain(&error);
            warn!(pool = %name, reason = %message, "pool cannot be served");
            let former = former.map(|former| NodePool { generation, phase, ..former.clone() });
            if let Some((former, compiled)) = former.and_then(|f| Some((f.clone(), Pool::compile(f).ok()?))) {
                configuration.pools.push(compiled);
                configuration.in_force.push(former);
            }
            configuration.refused.push(RefusedPool { name, generation, message });
        }
        configuration
    }
}

/// Puts a configuration where a later start finds it. That it cannot be saved is not a reason not to serve it.
async fn save(path: &Path, content: Vec<u8>) {
    let saved = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || macvtap::file::replace(&path, &content, Durability::Disk)
    });
    let reason = match saved.await {
        Ok(Ok(())) => return,
        Ok(Err(problem)) => crate::error_chain(&problem),
        Err(problem) => problem.to_string(),
    };
    warn!(path = %path.display(), reason, "configuration not saved for the next start");
}

fn warned(standalone: Standalone) -> Standalone {
    for warning in &standalone.warnings {
        warn!(%warning, "configuration");
    }
    standalone
}
