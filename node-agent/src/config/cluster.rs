//! The node's own `MacvtapNodeState`: its spec is what to serve, or names what to serve; its status is where to report.
//!
//! The last spec stays on the disk, and is served from the start when the API server cannot be reached: a node that
//! comes up while the control plane is down still admits its pods.

mod reporter;
mod shared;

use super::{Configuration, events, save};
use crate::attachments::Lost;
use futures::StreamExt;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, DefaultBackoff};
use kube::{Client, Config};
use macvtap_crds::v1alpha1::{MacvtapNodeStateSpec, MacvtapNodeStateStatus, NodePool};
use reporter::{NodeStateObject, Stored};
use shared::{Found, Shared};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

/// The last spec.
const FILE: &str = "nodestate.json";

/// Far above what a state with every pool takes, in bytes.
const SAVED_MAX: u64 = 64 << 20;

/// Between tries to find the API server.
const RETRY: Duration = Duration::from_secs(1);

/// By how much the waits of the library's back-off are shortened, which grow to a minute: an agent reads one object, and the
/// operator counts a node whose agent does not answer as unreachable. They grow from a tenth of a second to ten.
const EAGERNESS: u32 = 6;

/// How long an API server may be silent on a connection in use. It sends a bookmark on every watch about once a minute, so
/// longer silence is a connection that nobody ended and nobody hears.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Which node, and where its last spec is.
#[derive(Clone, Debug)]
pub struct Cluster {
    node: String,
    saved: PathBuf,
}

/// What is served.
#[derive(Debug, Default)]
struct LastServed {
    spec: Option<MacvtapNodeStateSpec>,
    /// The generation of the state that said it; none while it comes from the disk.
    generation: Option<i64>,
    /// Why it is not what the state says now, if so.
    problem: Option<String>,
    /// Its pools, with the former settings of those that cannot be served.
    in_force: Vec<NodePool>,
}

impl Cluster {
    pub(super) fn new(node: String, state: &Path) -> Self {
        Self { node, saved: state.join(FILE) }
    }

    pub(super) async fn follow(
        self,
        pools: mpsc::Sender<Configuration>,
        status: watch::Receiver<Option<MacvtapNodeStateStatus>>,
        lost: watch::Receiver<Lost>,
    ) {
        let mut served = LastServed { spec: self.load(), ..LastServed::default() };
        if let Some(spec) = &served.spec {
            info!(hash = spec.config_hash, "last configuration served until the API server answers");
            let _ = pools.send(served.configuration()).await;
        }
        self.follow_through(client().await, served, pools, status, lost).await;
    }

    /// The rest, once there is a way to the API server.
    async fn follow_through(
        self,
        client: Client,
        served: LastServed,
        pools: mpsc::Sender<Configuration>,
        status: watch::Receiver<Option<MacvtapNodeStateStatus>>,
        lost: watch::Receiver<Lost>,
    ) {
        let (stored, seen) = watch::channel(None);
        let reported = Box::pin(reporter::report(client.clone(), self.node.clone(), status, seen));
        let announced = events::announce_lost(client.clone(), self.node.clone(), lost);
        // Parts of this future: once it has ended, nothing is written any more.
        tokio::select! {
            () = self.serve(client, served, pools, stored) => {}
            ((), ()) = futures::future::join(reported, announced) => {}
        }
    }

    /// Sends what the node state says, and every later one.
    async fn serve(
        &self,
        client: Client,
        mut served: LastServed,
        pools: mpsc::Sender<Configuration>,
        stored: watch::Sender<Option<Stored>>,
    ) {
        let api: Api<NodeStateObject> = Api::all(client.clone());
        let mut shared = Shared::new(client);
        let (mut backoff, mut logged) = (DefaultBackoff::default(), false);
        loop {
            // Every time with a list first. A watch that goes on at the last version waits for ever after etcd was restored
            // from a backup: its versions are lower.
            let since = Instant::now();
            let mut seen = std::pin::pin!(watcher::watch_object(api.clone(), &self.node));
            loop {
                let found = tokio::select! {
                    state = seen.next() => match state {
                        Some(Ok(state)) => {
                            logged = false;
                            stored.send_replace(state.as_ref().map(|state| Stored::of(state, since)));
                            shared.resolve(state)
                        }
                        Some(Err(problem)) => {
                            if !std::mem::replace(&mut logged, true) {
                                let reason = crate::error_chain(&problem);
                                warn!(%reason, "node state not read, the last configuration stays in force");
                            }
                            break;
                        }
                        None => break,
                    },
                    found = shared.read() => found,
                };
                if !self.take(found, &mut served, &pools).await {
                    return;
                }
            }
            tokio::time::sleep(backoff.next().map_or(RETRY, |pause| pause / EAGERNESS)).await;
        }
    }

    /// Sends what follows from a node state. Returns whether anybody receives it.
    async fn take(&self, found: Found, served: &mut LastServed, pools: &mpsc::Sender<Configuration>) -> bool {
        let next = match found {
            Found::State(state) => served.next(state.map(|state| *state)),
            Found::Problem(problem) => served.keep(problem),
            Found::Nothing => None,
        };
        let Some(next) = next else { return true };
        if pools.send(next).await.is_err() {
            return false;
        }
        // Afterwards: the kubelet does not wait for the disk.
        if let (Some(spec), None) = (&served.spec, &served.problem) {
            let (config_hash, pools) = (spec.config_hash.clone(), served.in_force.clone());
            self.save(&MacvtapNodeStateSpec { config_hash, pools: Some(pools), config: None }).await;
        }
        true
    }

    fn load(&self) -> Option<MacvtapNodeStateSpec> {
        let text = macvtap::file::read(&self.saved, SAVED_MAX).ok()??;
        match serde_json::from_slice(&text) {
            Ok(spec) => Some(spec),
            Err(problem) => {
                warn!(path = %self.saved.display(), %problem, "last configuration not readable");
                None
            }
        }
    }

    async fn save(&self, spec: &MacvtapNodeStateSpec) {
        match serde_json::to_vec(spec) {
            Ok(json) => save(&self.saved, json).await,
            Err(problem) => warn!(%problem, "configuration not saved for the next start"),
        }
    }
}

impl LastServed {
    /// What to serve from now on; nothing when that is what is served.
    fn next(&mut self, state: Option<NodeStateObject>) -> Option<Configuration> {
        let (spec, generation) = match state {
            // A slip of the hand must not take devices away: the operator writes the state again, and only it removes
            // pools from a node.
            None if self.spec.is_some() => {
                if self.generation.take().is_some() {
                    warn!(
                        "node state deleted, the last configuration stays in force until the operator writes another"
                    );
                }
                return None;
            }
            None => return Some(Configuration::default()),
            // A kind that is older than the operator drops the name of the configuration.
            Some(DeserializeGuard(Ok(state))) if state.spec.pools.is_none() => {
                return self.keep(
                    "spec has neither pools nor config: install the kinds (CRDs) of the operator's release"
                        .to_owned(),
                );
            }
            Some(DeserializeGuard(Ok(state))) => (state.spec, state.metadata.generation),
            Some(DeserializeGuard(Err(invalid))) => {
                return self.keep(invalid.error);
            }
        };
        // Also what is served already must be sent if it could not be read meanwhile.
        let served = self.spec.as_ref() == Some(&spec) && self.generation == generation;
        if self.problem.take().is_none() && served {
            return None;
        }
        (self.spec, self.generation) = (Some(spec), generation);
        Some(self.configuration())
    }

    /// What to serve while a problem keeps the agent from what the state says now; nothing when that is what is served.
    fn keep(&mut self, problem: String) -> Option<Configuration> {
        if self.problem.as_ref() == Some(&problem) {
            return None;
        }
        error!(reason = problem, "node state not usable, the last configuration stays in force");
        self.problem = Some(problem.clone());
        Some(Configuration { problem: Some(problem), ..self.configuration() })
    }

    fn configuration(&mut self) -> Configuration {
        let Some(spec) = self.spec.clone() else { return Configuration::default() };
        let compiled =
            Configuration::compile(spec.pools.unwrap_or_default(), &self.in_force, spec.config_hash);
        self.in_force.clone_from(&compiled.in_force);
        Configuration { generation: self.generation, ..compiled }
    }
}

async fn client() -> Client {
    let mut is_logged = false;
    loop {
        let problem =
            match Config::infer().await.map(|config| attentive(config, SILENCE_MAX)).map(Client::try_from) {
                Ok(Ok(client)) => return client,
                Ok(Err(problem)) => crate::error_chain(&problem),
                Err(problem) => crate::error_chain(&problem),
            };
        if !std::mem::replace(&mut is_logged, true) {
            error!(reason = problem, "no way to the API server");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Closes a connection in use on which the API server says nothing for so long.
fn attentive(mut config: Config, silence_max: Duration) -> Config {
    config.read_timeout = Some(silence_max);
    // A pooled connection is idle by right.
    config.reset_reader_on_write = true;
    config
}

#[cfg(test)]
mod tests;
