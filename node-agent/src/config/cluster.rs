//! The node's own `MacvtapNodeState`: its spec is what to serve, its status is where to report.
//!
//! The last spec stays on the disk, and is served from the start when the API server cannot be reached: a node that
//! comes up while the control plane is down still admits its pods.

use super::events::{self, Announcer};
use super::{Configuration, save};
use crate::attachments::Lost;
use futures::StreamExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use macvtap_crds::AGENT_FIELD_MANAGER;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateSpec, MacvtapNodeStateStatus};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// The last spec.
const FILE: &str = "nodestate.json";

/// Between tries to find the API server.
const RETRY: Duration = Duration::from_secs(1);

/// Numbers of allocated devices change with every pod, and carrier may come and go many times a second; they are written
/// this often at most. What carrier means for devices is written at once, and has its own delays.
const COUNTS_PERIOD: Duration = Duration::from_secs(30);

/// Everything else is written at once, but not more often than this.
const PERIOD: Duration = Duration::from_millis(250);

/// Waits after failed writes, doubled each time.
const WRITE_RETRY: Duration = Duration::from_secs(1);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(30);

/// How long an API server may be silent on a connection in use. It sends a bookmark on every watch about once a minute, so
/// longer silence is a connection that nobody ended and nobody hears.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Which node, and where its last spec is.
#[derive(Clone, Debug)]
pub struct Cluster {
    node: String,
    saved: PathBuf,
}

type State = DeserializeGuard<MacvtapNodeState>;

/// What is served.
#[derive(Debug, Default)]
struct Served {
    spec: Option<MacvtapNodeStateSpec>,
    /// The generation of the state that said it; none while it comes from the disk.
    generation: Option<i64>,
    /// Why it is not what the state says now, if so.
    problem: Option<String>,
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
        let served = Served { spec: self.load(), ..Served::default() };
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
        served: Served,
        pools: mpsc::Sender<Configuration>,
        status: watch::Receiver<Option<MacvtapNodeStateStatus>>,
        lost: watch::Receiver<Lost>,
    ) {
        let reported = report(client.clone(), self.node.clone(), status);
        let announced = events::announce_lost(client.clone(), self.node.clone(), lost);
        // Parts of this future: whoever ends it knows that nothing is written any more.
        tokio::select! {
            () = self.serve(client, served, pools) => {}
            ((), ()) = futures::future::join(reported, announced) => {}
        }
    }

    /// Sends what the node state says, and every later one.
    async fn serve(&self, client: Client, mut served: Served, pools: mpsc::Sender<Configuration>) {
        let api: Api<State> = Api::all(client);
        let seen = watcher::watch_object(api, &self.node).default_backoff();
        futures::pin_mut!(seen);
        let mut told = false;
        while let Some(state) = seen.next().await {
            let wanted = match state {
                Ok(state) => {
                    told = false;
                    state
                }
                Err(problem) => {
                    if !std::mem::replace(&mut told, true) {
                        let reason = crate::error_chain(&problem);
                        warn!(%reason, "node state not read, the last configuration stays in force");
                    }
                    continue;
                }
            };
            let Some(next) = served.next(wanted) else { continue };
            if pools.send(next).await.is_err() {
                return;
            }
            // Afterwards: the kubelet does not wait for the disk.
            if served.problem.is_none() {
                self.save(served.spec.as_ref()).await;
            }
        }
    }

    fn load(&self) -> Option<MacvtapNodeStateSpec> {
        let text = std::fs::read(&self.saved).ok()?;
        match serde_json::from_slice(&text) {
            Ok(spec) => Some(spec),
            Err(problem) => {
                warn!(path = %self.saved.display(), %problem, "last configuration not readable");
                None
            }
        }
    }

    /// None is saved too, as one that wants nothing.
    async fn save(&self, spec: Option<&MacvtapNodeStateSpec>) {
        match serde_json::to_vec(&spec.cloned().unwrap_or_default()) {
            Ok(json) => save(&self.saved, json).await,
            Err(problem) => warn!(%problem, "configuration not saved for the next start"),
        }
    }
}

impl Served {
    /// What to serve from now on; nothing when that is what is served.
    fn next(&mut self, state: Option<State>) -> Option<Configuration> {
        let (spec, generation) = match state {
            // Nobody wants anything of this node: what is in use drains, and there is nowhere to report.
            None => {
                *self = Self::default();
                return Some(Configuration::default());
            }
            Some(DeserializeGuard(Ok(state))) => (state.spec, state.metadata.generation),
            Some(DeserializeGuard(Err(invalid))) => {
                if self.problem.as_ref() == Some(&invalid.error) {
                    return None;
                }
                error!(
                    reason = invalid.error,
                    "node state of another release, the last configuration stays in force"
                );
                self.problem = Some(invalid.error.clone());
                return Some(Configuration { problem: Some(invalid.error), ..self.configuration() });
            }
        };
        // Also what is served already must be told when it could not be read meanwhile.
        let served = self.spec.as_ref() == Some(&spec) && self.generation == generation;
        if self.problem.take().is_none() && served {
            return None;
        }
        (self.spec, self.generation) = (Some(spec), generation);
        Some(self.configuration())
    }

    fn configuration(&self) -> Configuration {
        let Some(spec) = self.spec.clone() else { return Configuration::default() };
        let compiled = Configuration::compile(spec.pools, spec.config_hash);
        Configuration { generation: self.generation, ..compiled }
    }
}

async fn client() -> Client {
    let mut told = false;
    loop {
        let problem =
            match Config::infer().await.map(|config| attentive(config, SILENCE_MAX)).map(Client::try_from) {
                Ok(Ok(client)) => return client,
                Ok(Err(problem)) => crate::error_chain(&problem),
                Err(problem) => crate::error_chain(&problem),
            };
        if !std::mem::replace(&mut told, true) {
            error!(reason = problem, "no way to the API server");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Gives up a connection in use on which the API server says nothing for so long.
fn attentive(mut config: Config, silence_max: Duration) -> Config {
    config.read_timeout = Some(silence_max);
    // A pooled connection is idle by right.
    config.reset_reader_on_write = true;
    config
}

/// Writes the status whenever it changes.
async fn report(client: Client, node: String, mut status: watch::Receiver<Option<MacvtapNodeStateStatus>>) {
    let announcer = Announcer::new(client.clone(), &node);
    let api = Api::all(client);
    let mut written: Option<MacvtapNodeStateStatus> = None;
    // What an earlier agent announced, this one need not say again.
    let mut told = None;
    let mut wrote_at = Instant::now();
    let mut retry = WRITE_RETRY;
    loop {
        let wanted = status.borrow_and_update().clone();
        if wanted.is_none() {
            // An object that comes later knows nothing of what its predecessor was told.
            written = None;
        }
        let wait = match &wanted {
            Some(wanted) if written.as_ref() != Some(wanted) => {
                let only_counts =
                    written.as_ref().is_some_and(|before| differ_in_details_only(before, wanted));
                let period = if only_counts { COUNTS_PERIOD } else { PERIOD };
                let first = written.is_none();
                Some(if first { Duration::ZERO } else { period.saturating_sub(wrote_at.elapsed()) })
            }
            _ => None,
        };
        let Some(wait) = wait else {
            if status.changed().await.is_err() {
                return;
            }
            continue;
        };
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Something more important may have come.
                changed = status.changed() => if changed.is_err() { return },
            }
            continue;
        }
        wrote_at = Instant::now();
        if written.is_none() {
            told = reported(&api, &node).await;
        }
        match write(&api, &node, wanted.as_ref()).await {
            Ok(()) => {
                debug!("status written");
                if let Some(after) = &wanted {
                    announcer.announce(told.as_ref(), after).await;
                }
                told.clone_from(&wanted);
                (written, retry) = (wanted, WRITE_RETRY);
            }
            Err(problem) => {
                let reason = crate::error_chain(&problem);
                warn!(%reason, "status not written, trying again");
                tokio::select! {
                    () = tokio::time::sleep(retry) => {}
                    changed = status.changed() => if changed.is_err() { return },
                }
                retry = retry.saturating_mul(2).min(WRITE_RETRY_MAX);
            }
        }
    }
}

/// What the node state says so far; nothing when it cannot be read.
async fn reported(api: &Api<MacvtapNodeState>, node: &str) -> Option<MacvtapNodeStateStatus> {
    api.get_opt(node).await.ok()??.status
}

async fn write(
    api: &Api<MacvtapNodeState>,
    node: &str,
    status: Option<&MacvtapNodeStateStatus>,
) -> Result<(), kube::Error> {
    // The agent is the only writer and knows the status whole, so it replaces what is there, even if that is not as the
    // schema has it. To apply it would need an object that the API server can compare with its schema.
    let status = status.cloned().map(MacvtapNodeStateStatus::brief);
    let operations = json!([{"op": "add", "path": "/status", "value": status}]);
    let operations = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
    let parameters =
        PatchParams { field_manager: Some(AGENT_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_status(node, &parameters, &Patch::<()>::Json(operations)).await.map(drop)
}

/// Whether nothing changed but numbers of devices in use, and carrier and speed of links whose state is as before.
fn differ_in_details_only(one: &MacvtapNodeStateStatus, other: &MacvtapNodeStateStatus) -> bool {
    let without = |status: &MacvtapNodeStateStatus| {
        let mut status = status.clone();
        status.totals.allocated = 0;
        for link in &mut status.links {
            (link.carrier, link.speed_mbps) = (false, None);
        }
        for pool in &mut status.pools {
            pool.allocated = 0;
        }
        status
    };
    without(one) == without(other)
}

#[cfg(test)]
mod tests;
