//! The nodes' agents, all in one process. Each lists its own node state consistently, watches it from there, reads the
//! configuration that it names, and writes a status for each new spec, as the real ones do. So no agent ever answers a
//! spec from before its list, and their watches are as many as a cluster's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use kube::Client;
use kube::api::{Api, GetParams, ListParams, Patch, PatchParams, WatchParams};
use kube::core::{Request, WatchEvent};
use macvtap_crds::AGENT_FIELD_MANAGER;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateStatus};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long an agent waits after an error.
const PAUSE: Duration = Duration::from_secs(1);

const STATES: &str = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodestates";

const CONFIGS: &str = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodeconfigs";

/// How an agent's answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As the agents of this checkout write it.
    Brief,
    /// With every condition, as the agents of the first release wrote it.
    Full,
}

/// As much of a node state as an agent's answer needs: reading all of it 10,000 times would measure this program.
#[derive(Clone, Deserialize)]
struct Slim {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
    #[serde(default)]
    generation: i64,
}

/// A list of one node state, or of none.
#[derive(Deserialize)]
struct SlimList {
    metadata: ListMetadata,
    items: Vec<Slim>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    config_hash: String,
    config: Option<String>,
    pools: Vec<Pool>,
}

#[derive(Clone, Deserialize)]
struct Pool {
    name: String,
    generation: i64,
    #[serde(default)]
    macvtap: Settings,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Settings {
    mtu: Option<u32>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    observed_hash: Option<String>,
}

/// What one node was told and has answered.
#[derive(Clone, Debug)]
struct Told {
    hash: String,
    pools: usize,
    mtu: u32,
    answered: bool,
}

/// What all nodes were told.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    nodes: HashMap<String, Told>,
    by_mtu: BTreeMap<u32, usize>,
    by_pools: BTreeMap<usize, usize>,
    unanswered: usize,
    /// When the last new spec was seen.
    pub(crate) last_spec: Option<Instant>,
}

impl Tally {
    /// How many nodes have the edited pool with this MTU.
    pub(crate) fn with_mtu(&self, mtu: u32) -> usize {
        self.by_mtu.get(&mtu).copied().unwrap_or_default()
    }

    /// How many nodes have so many pools.
    pub(crate) fn with_pools(&self, pools: usize) -> usize {
        self.by_pools.get(&pools).copied().unwrap_or_default()
    }

    /// How many nodes have a state.
    pub(crate) fn states(&self) -> usize {
        self.nodes.len()
    }

    /// Whether every agent has answered.
    pub(crate) fn all_answered(&self) -> bool {
        self.unanswered == 0
    }

    /// Takes in what a node was told.
    fn put(&mut self, name: String, new: Told) {
        let old = self.take(&name);
        if old.is_none_or(|old| old.hash != new.hash) {
            self.last_spec = Some(Instant::now());
        }
        *self.by_mtu.entry(new.mtu).or_default() += 1;
        *self.by_pools.entry(new.pools).or_default() += 1;
        self.unanswered += usize::from(!new.answered);
        self.nodes.insert(name, new);
    }

    fn take(&mut self, name: &str) -> Option<Told> {
        let old = self.nodes.remove(name)?;
        for count in [self.by_mtu.get_mut(&old.mtu), self.by_pools.get_mut(&old.pools)].into_iter().flatten()
        {
            *count -= 1;
        }
        self.unanswered -= usize::from(!old.answered);
        Some(old)
    }
}

/// The agents at work.
pub(crate) struct Fleet {
    /// They end with this value.
    _agents: JoinSet<()>,
    tally: watch::Receiver<Tally>,
    answers: Arc<Mutex<Answers>>,
}

/// The agents' answers since the last reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    /// From when an agent saw a spec to when its answer was stored.
    pub(crate) took: Vec<Duration>,
    /// Answers to a spec that was not the last one any more when they were stored.
    pub(crate) stale: usize,
}

/// What all agents share.
#[derive(Clone)]
struct Shared {
    client: Client,
    api: Api<MacvtapNodeState>,
    edited: Arc<str>,
    form: Form,
    tally: Arc<watch::Sender<Tally>>,
    answers: Arc<Mutex<Answers>>,
}

/// One agent.
struct Agent {
    name: String,
    shared: Shared,
    /// Where its watch goes on; none: it must list.
    version: Option<String>,
    /// The last spec that it answered.
    reported: Option<String>,
    /// The last configuration that it read, and the pools of that.
    config: Option<(String, Vec<Pool>)>,
}

impl Fleet {
    /// Has the agents of these nodes answer every spec. `edited` is the pool whose MTU tells edits apart.
    pub(crate) fn start(client: &Client, nodes: &[String], edited: &str, form: Form) -> Self {
        let (sender, tally) = watch::channel(Tally::default());
        let answers = Arc::default();
        let shared = Shared {
            client: client.clone(),
            api: Api::all(client.clone()),
            edited: edited.into(),
            form,
            tally: Arc::new(sender),
            answers: Arc::clone(&answers),
        };
        let mut agents = JoinSet::new();
        for name in nodes {
            let (name, shared) = (name.clone(), shared.clone());
            let agent = Agent { name, shared, version: None, reported: None, config: None };
            agents.spawn(agent.run());
        }
        Self { _agents: agents, tally, answers }
    }

    /// The answers since the last call.
    pub(crate) fn take_answers(&self) -> Answers {
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the tally is as wanted; says when the last spec was seen.
    pub(crate) async fn until(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl FnMut(&Tally) -> bool,
    ) -> Result<Instant> {
        let mut tally = self.tally.clone();
        let found = tokio::time::timeout(deadline, tally.wait_for(wanted)).await;
        let Ok(found) = found else {
            let tally = self.tally.borrow();
            anyhow::bail!(
                "waited {deadline:?} for {what}; specs by MTU {:?}, by pools {:?}, {} unanswered",
                tally.by_mtu,
                tally.by_pools,
                tally.unanswered
            );
        };
        let last = found.context("the watches of the agents ended")?.last_spec;
        Ok(last.unwrap_or_else(Instant::now))
    }
}

impl Agent {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.follow().await {
                eprintln!("the agent of {} lists again: {error:#}", self.name);
                self.version = None;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Lists if need be, then watches until the server ends the watch.
    async fn follow(&mut self) -> Result<()> {
        let field = format!("metadata.name={}", self.name);
        let version = if let Some(version) = self.version.clone() {
            version
        } else {
            let request = Request::new(STATES).list(&ListParams::default().fields(&field))?;
            let list: SlimList = self.shared.client.request(request).await?;
            for state in list.items {
                self.take(state).await?;
            }
            list.metadata.resource_version
        };
        self.version = Some(version.clone());
        let request = Request::new(STATES).watch(&WatchParams::default().fields(&field), &version)?;
        let mut events = std::pin::pin!(self.shared.client.clone().request_events::<Slim>(request).await?);
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(state) | WatchEvent::Modified(state) => {
                    self.version = Some(state.metadata.resource_version.clone());
                    self.take(state).await?;
                }
                WatchEvent::Deleted(state) => {
                    self.version = Some(state.metadata.resource_version);
                    self.reported = None;
                    self.shared.tally.send_modify(|tally| drop(tally.take(&self.name)));
                }
                WatchEvent::Bookmark(bookmark) => self.version = Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => anyhow::bail!("{status:?}"),
            }
        }
        Ok(())
    }

    /// The pools of a configuration, which each agent reads for itself, once.
    async fn pools_of(&mut self, name: &str) -> Result<Vec<Pool>> {
        if let Some((_, pools)) = self.config.as_ref().filter(|(known, _)| known == name) {
            return Ok(pools.clone());
        }
        let get = async |params: GetParams| -> Result<Slim> {
            Ok(self.shared.client.request(Request::new(CONFIGS).get(name, &params)?).await?)
        };
        let cached = get(GetParams::any()).await;
        let config = if cached.is_ok() { cached? } else { get(GetParams::default()).await? };
        self.config = Some((name.to_owned(), config.spec.pools.clone()));
        Ok(config.spec.pools)
    }

    async fn take(&mut self, mut state: Slim) -> Result<()> {
        let seen = Instant::now();
        if let Some(name) = state.spec.config.take() {
            state.spec.pools = self.pools_of(&name).await?;
        }
        let hash = state.spec.config_hash.clone();
        let answered = state.status.observed_hash.as_deref() == Some(hash.as_str());
        let mtu = state.spec.pools.iter().find(|pool| *pool.name == *self.shared.edited);
        let mtu = mtu.and_then(|pool| pool.macvtap.mtu).unwrap_or_default();
        let told = Told { hash: hash.clone(), pools: state.spec.pools.len(), mtu, answered };
        self.shared.tally.send_modify(|tally| tally.put(state.metadata.name.clone(), told));
        if answered || self.reported.as_ref() == Some(&hash) {
            return Ok(());
        }
        let stored = match report(&self.shared.api, &state, self.shared.form).await {
            // Its node is gone.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            stored => stored.context("write the status")?,
        };
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.took.push(seen.elapsed());
        answers.stale += usize::from(stored.spec.config_hash != hash);
        self.reported = Some(hash);
        Ok(())
    }
}

/// Replaces the status as a whole, as agents do.
async fn report(
    api: &Api<MacvtapNodeState>,
    state: &Slim,
    form: Form,
) -> Result<MacvtapNodeState, kube::Error> {
    let params = PatchParams { field_manager: Some(AGENT_FIELD_MANAGER.to_owned()), ..Default::default() };
    let full = status(state);
    let value = match form {
        Form::Full => full,
        Form::Brief => serde_json::from_value::<MacvtapNodeStateStatus>(full)
            .and_then(|status| serde_json::to_value(status.brief()))
            .map_err(kube::Error::SerdeError)?,
    };
    let replaced = json!([{"op": "add", "path": "/status", "value": value}]);
    let patch = serde_json::from_value(replaced).map_err(kube::Error::SerdeError)?;
    api.patch_status(&state.metadata.name, &params, &Patch::<()>::Json(patch)).await
}

/// What an agent with two links in every pool would say.
fn status(state: &Slim) -> Value {
    let pools: Vec<Value> = state
        .spec
        .pools
        .iter()
        .map(|pool| {
            json!({
                "name": pool.name, "generation": pool.generation, "links": ["ens1f0", "ens1f1"],
                "capacity": 200, "allocatable": 200, "allocated": 7,
                "conditions": [
                    condition("Ready", "True", "Serving", "200 of 200 devices on 2 links"),
                    condition("Degraded", "False", "AsExpected", "nothing is wrong"),
                ],
            })
        })
        .collect();
    let count = pools.len();
    let names: Vec<&str> = state.spec.pools.iter().map(|pool| pool.name.as_str()).collect();
    let links: Vec<Value> = ["ens1f0", "ens1f1"]
        .iter()
        .map(|name| json!({"name": name, "kind": "Physical", "mac": "02:00:00:00:00:01", "mtu": 9000, "carrier": true, "pools": names}))
        .collect();
    json!({
        "observedHash": state.spec.config_hash, "observedGeneration": state.metadata.generation, "agentVersion": "simulated",
        "bootID": "5d4ff3a0-0000-4000-8000-000000000001",
        "totals": {"pools": format!("{count}/{count}"), "links": "2/2", "capacity": 200, "allocatable": 200, "allocated": 7, "dead": 0},
        "links": links, "pools": pools,
        "conditions": [
            condition("Ready", "True", "AsExpected", "every pool is ready"),
            condition("Degraded", "False", "AsExpected", "nothing is wrong"),
        ],
    })
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}
