//! The nodes' agents, all in one process: one watch on every node state, and a status for each spec that is new.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, WatchParams};
use kube::core::{Request, WatchEvent};
use macvtap_crds::AGENT_FIELD_MANAGER;
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// How many agents write at the same time. In a cluster each writes when it likes; with as few as the operator has under
/// way, their answers queue up here until nodes count as unreachable.
const AGENTS_AT_ONCE: usize = 256;

/// How long an agent waits after an error.
const PAUSE: Duration = Duration::from_secs(1);

const STATES: &str = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodestates";

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
struct Metadata {
    name: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    config_hash: String,
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

    /// Takes in what a node was told; says whether it is new.
    fn put(&mut self, name: String, new: Told) -> bool {
        let old = self.take(&name);
        let news = old.is_none_or(|old| old.hash != new.hash);
        if news {
            self.last_spec = Some(Instant::now());
        }
        *self.by_mtu.entry(new.mtu).or_default() += 1;
        *self.by_pools.entry(new.pools).or_default() += 1;
        self.unanswered += usize::from(!new.answered);
        self.nodes.insert(name, new);
        news
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
#[derive(Clone)]
pub(crate) struct Fleet {
    tally: watch::Receiver<Tally>,
}

impl Fleet {
    /// Has agents answer to every spec. `edited` is the pool whose MTU tells edits apart.
    pub(crate) fn start(client: &Client, edited: &str) -> Self {
        let (sender, tally) = watch::channel(Tally::default());
        let (work, queue) = mpsc::unbounded_channel();
        tokio::spawn(follow(client.clone(), edited.to_owned(), sender, work));
        tokio::spawn(answer(client.clone(), queue));
        Self { tally }
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
        let last = found.context("the watch of the agents ended")?.last_spec;
        Ok(last.unwrap_or_else(Instant::now))
    }
}

async fn follow(
    client: Client,
    edited: String,
    tally: watch::Sender<Tally>,
    work: mpsc::UnboundedSender<Slim>,
) {
    let mut version = "0".to_owned();
    loop {
        if let Err(error) = follow_once(&client, &edited, &tally, &work, &mut version).await {
            eprintln!("the agents' watch begins anew: {error:#}");
            "0".clone_into(&mut version);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn follow_once(
    client: &Client,
    edited: &str,
    tally: &watch::Sender<Tally>,
    work: &mpsc::UnboundedSender<Slim>,
    version: &mut String,
) -> Result<()> {
    let request = Request::new(STATES).watch(&WatchParams::default(), version)?;
    let mut events = std::pin::pin!(client.request_events::<Slim>(request).await?);
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(state) | WatchEvent::Modified(state) => {
                let hash = state.spec.config_hash.clone();
                let answered = state.status.observed_hash.as_deref() == Some(hash.as_str());
                let mtu = state.spec.pools.iter().find(|pool| pool.name == edited);
                let mtu = mtu.and_then(|pool| pool.macvtap.mtu).unwrap_or_default();
                let told = Told { hash, pools: state.spec.pools.len(), mtu, answered };
                let mut news = false;
                tally.send_modify(|tally| news = tally.put(state.metadata.name.clone(), told));
                if news && !answered {
                    work.send(state).context("nobody answers")?;
                }
            }
            WatchEvent::Deleted(state) => tally.send_modify(|tally| {
                tally.take(&state.metadata.name);
            }),
            WatchEvent::Bookmark(bookmark) => version.clone_from(&bookmark.metadata.resource_version),
            WatchEvent::Error(status) => anyhow::bail!("{status:?}"),
        }
    }
    // The server ends a watch after some minutes; bookmarks were the last thing it said.
    Ok(())
}

async fn answer(client: Client, queue: mpsc::UnboundedReceiver<Slim>) {
    let api: Arc<Api<MacvtapNodeState>> = Arc::new(Api::all(client));
    let queue = futures::stream::unfold(queue, async |mut queue| Some((queue.recv().await?, queue)));
    queue
        .for_each_concurrent(AGENTS_AT_ONCE, |state| {
            let api = Arc::clone(&api);
            async move {
                let name = &state.metadata.name;
                while let Err(error) = report(&api, &state).await {
                    if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                        break;
                    }
                    eprintln!("the agent of {name} tries again: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        })
        .await;
}

/// Replaces the status as a whole, as agents do.
async fn report(api: &Api<MacvtapNodeState>, state: &Slim) -> Result<(), kube::Error> {
    let params = PatchParams { field_manager: Some(AGENT_FIELD_MANAGER.to_owned()), ..Default::default() };
    let replaced = json!([{"op": "add", "path": "/status", "value": status(state)}]);
    let patch = serde_json::from_value(replaced).map_err(kube::Error::SerdeError)?;
    api.patch_status(&state.metadata.name, &params, &Patch::<()>::Json(patch)).await.map(drop)
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
        "observedHash": state.spec.config_hash, "agentVersion": "simulated",
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
