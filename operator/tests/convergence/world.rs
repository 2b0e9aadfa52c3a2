//! The API server, what the operator has heard of it, and the agents that nobody sees.

use crate::judge::Judge;
use crate::operator::Operator;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::catalog::Catalog;
use macvtap_operator::network::kind::{NetworkAttachmentDefinition, NetworkKey};
use macvtap_operator::states::{Interner, KnownState, RawState};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Rounds after which everything must be quiet: a pool goes in four, one under its name comes in as many more, and a
/// staged one reaches a node in three.
const ROUNDS: usize = 40;

/// How many names of each kind there are.
pub(crate) const NAMES: u8 = 4;

/// What the API server has, or what the operator has heard of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) pools: BTreeMap<String, MacvtapResourcePool>,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) states: BTreeMap<String, RawState>,
    /// What states name to have the pools of: objects by name.
    pub(crate) configs: BTreeMap<String, Value>,
    /// So many further reads of one fail.
    pub(crate) config_faults: u8,
    /// The configuration that each agent has read last: its name and its pools.
    pub(crate) read: BTreeMap<String, (String, Value)>,
    /// Those that were deleted, in order: a watch shows each, also one that was made and deleted between two looks.
    pub(crate) deleted: Vec<RawState>,
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) networks: BTreeMap<NetworkKey, NetworkAttachmentDefinition>,
    /// Nodes whose agents have been away for long.
    pub(crate) down: BTreeSet<String>,
    /// The UIDs of the pools whose devices pods have, by node: as the agents know, whatever stands in their states.
    pub(crate) in_use: BTreeMap<String, BTreeSet<String>>,
    /// The UIDs of the pools whose devices a pod may get, by node: those that its agent has applied and does not drain.
    pub(crate) offered: BTreeMap<String, BTreeSet<String>>,
    /// The agents that the operator has heard of, and whether each is away.
    pub(crate) agents: BTreeMap<String, bool>,
    /// The time, and the version of whatever was changed last.
    pub(crate) second: i64,
    /// How often the operator has written.
    pub(crate) writes: usize,
    /// The operator ends after so many further writes, at the next one.
    pub(crate) ends: Option<(usize, End)>,
    /// It has ended: what it still asks for is not done.
    pub(crate) ended: bool,
}

/// When an operator ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Before its write reaches the API server.
    Before,
    /// When that is done, before it receives the result.
    After,
}

/// How a node's devices are, as its agent says when it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    #[default]
    Well,
    Degraded,
    NotReady,
}

/// The release of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Release {
    /// 0.1.0, which reads entries in full only.
    First,
    #[default]
    Later,
}

/// The API server, the operator, and the agents.
pub(crate) struct Cluster {
    server: Arc<Mutex<World>>,
    pub(crate) operator: Operator,
    pub(crate) health: BTreeMap<String, Health>,
    /// How a node is with a pool of this MTU, whatever it is else.
    pub(crate) harm: BTreeMap<(String, u64), Health>,
    pub(crate) releases: BTreeMap<String, Release>,
    pub(crate) judge: Judge,
}

impl Default for Cluster {
    fn default() -> Self {
        let server = Arc::default();
        Self {
            operator: Operator::new(&server),
            server,
            health: BTreeMap::new(),
            harm: BTreeMap::new(),
            releases: BTreeMap::new(),
            judge: Judge::default(),
        }
    }
}

impl World {
    pub(crate) fn catalog(&self) -> Catalog {
        Catalog::new(self.pools.values())
    }

    /// The spec of a node with the pools that its agent finds for it; none while it cannot read what the spec names.
    fn spec_for(&mut self, node: &str, release: Release) -> Option<Value> {
        let mut spec = self.states.get(node)?.spec.clone();
        let Some(name) = spec["config"].as_str().filter(|_| release != Release::First) else {
            return Some(spec);
        };
        let name = name.to_owned();
        let pools = match self.read.get(node).filter(|(read, _)| *read == name) {
            Some((_, pools)) => pools.clone(),
            None => self.configs.get(&name)?["spec"]["pools"].clone(),
        };
        self.read.insert(node.to_owned(), (name, pools.clone()));
        spec["pools"] = pools;
        Some(spec)
    }

    /// The state with the pools that it has, or that what it names has.
    pub(crate) fn resolved(&self, node: &str) -> Option<RawState> {
        let mut state = self.states.get(node)?.clone();
        if let Some(config) = state.config().and_then(|name| self.configs.get(name)) {
            state.spec["pools"] = config["spec"]["pools"].clone();
            drop(state.spec.as_object_mut()?.remove("config"));
        }
        Some(state)
    }

    pub(crate) fn remove_state(&mut self, name: &str) {
        if let Some(mut state) = self.states.remove(name) {
            state.metadata.resource_version = Some(self.second.to_string());
            self.deleted.push(state);
        }
    }
}

impl Cluster {
    /// What the API server has.
    pub(crate) fn server(&self) -> MutexGuard<'_, World> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's agent has applied what it was told, and so many devices of each pool are in use.
    pub(crate) fn answer(&mut self, node: &str, allocated: u32) {
        let mut server = self.server();
        let second = server.second;
        if server.down.contains(node) {
            return;
        }
        let release = self.releases.get(node).copied().unwrap_or_default();
        // It keeps what it has until it can read what its state names.
        let Some(spec) = server.spec_for(node, release) else { return };
        let Some(state) = server.states.get_mut(node) else { return };
        let status = self.status(node, &spec, allocated);
        let uids = |wanted: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
            let entries = spec["pools"].as_array().into_iter().flatten().filter(|pool| wanted(pool));
            entries.filter_map(|pool| pool["uid"].as_str().map(str::to_owned)).collect()
        };
        let (mut in_use, offered) = (uids(&|_| allocated > 0), uids(&|pool| pool["phase"] != "Draining"));
        if state.status != status {
            state.status = status;
            state.metadata.resource_version = Some(second.to_string());
        }
        if state.spec["config"].is_string() && release == Release::First {
            // What it does not know of it cannot release.
            in_use = server.in_use.get(node).cloned().unwrap_or_default();
        }
        let state = &server.states[node];
        // A node that is gone holds nothing, even if its agent answers once more.
        if state.status["observedHash"].is_string() && server.nodes.contains_key(node) {
            server.in_use.insert(node.to_owned(), in_use);
            server.offered.insert(node.to_owned(), offered);
        }
    }

    /// Pods of a node get devices of what its agent offers, which its state reports later.
    pub(crate) fn allocate(&mut self, node: &str) {
        let mut server = self.server();
        let offered = server.offered.get(node).cloned().unwrap_or_default();
        server.in_use.entry(node.to_owned()).or_default().extend(offered);
    }

    fn status(&self, node: &str, spec: &Value, allocated: u32) -> Value {
        let health = self.health.get(node).copied().unwrap_or_default();
        let release = self.releases.get(node).copied().unwrap_or_default();
        let entries = spec["pools"].as_array().cloned().unwrap_or_default();
        if release == Release::First && !entries.iter().all(is_full) {
            // It cannot read its spec, and has nothing that it could read on its disk.
            return json!({"agentVersion": "0.1.0", "pools": []});
        }
        let pools: Vec<Value> = entries
            .iter()
            .map(|pool| {
                let with_mtu = pool["macvtap"]["mtu"].as_u64().map(|mtu| (node.to_owned(), mtu));
                let health = with_mtu.and_then(|key| self.harm.get(&key)).copied().unwrap_or(health);
                json!({
                    "name": pool["name"], "generation": pool["generation"], "allocated": allocated,
                    "conditions": conditions(pool["phase"] == "Draining", health),
                })
            })
            .collect();
        let version = if release == Release::First { "0.1.0" } else { "0.2.0" };
        json!({"observedHash": spec["configHash"], "agentVersion": version, "pools": pools})
    }

    /// The garbage collector removes states whose Node is gone.
    pub(crate) fn collect(&mut self) {
        let mut server = self.server();
        let alive: BTreeSet<String> = server.nodes.values().filter_map(ResourceExt::uid).collect();
        let is_owned = |state: &RawState| {
            state.metadata.owner_references.iter().flatten().all(|owner| alive.contains(&owner.uid))
        };
        let orphans = server.states.iter().filter(|(_, state)| !is_owned(state));
        let orphans: Vec<String> = orphans.map(|(name, _)| name.clone()).collect();
        for name in orphans {
            server.remove_state(&name);
        }
    }

    /// The operator starts again, knows nothing of what it saw before, and leads once it has listed everything.
    pub(crate) fn restart(&mut self) {
        self.operator = Operator::new(&self.server);
        // It lists what exists: no event reports what was deleted before.
        let deleted = self.server().deleted.clone();
        self.operator.heard.deleted = deleted;
        self.hear_all();
        self.operator.context.assume_past();
    }

    /// What a node's state really is.
    pub(crate) fn real(&self, node: &str) -> Option<KnownState> {
        Some(KnownState::read(&self.server().resolved(node)?, &mut Interner::default()))
    }

    /// Everybody hears of everything and does what is to be done, until there is nothing to do. Gives how many rounds
    /// had something to do.
    pub(crate) fn settle(&mut self) -> Result<usize, TestCaseError> {
        for round in 0..ROUNDS {
            self.server().writes = 0;
            self.server().second += 1;
            self.collect();
            self.sweep(0);
            let states: Vec<String> = self.server().states.keys().cloned().collect();
            for state in &states {
                self.answer(state, 0);
            }
            self.pass();
            if !self.is_restarted() && self.server().writes == 0 {
                return Ok(round);
            }
        }
        Err(TestCaseError::fail(format!("round {ROUNDS} still writes: {:#?}", self.server())))
    }

    /// The operator receives everything and reconciles everything once.
    pub(crate) fn pass(&mut self) {
        self.hear_all();
        (0..NAMES).for_each(|name| self.look_at_networks(&pool_name(name)));
        (0..NAMES).for_each(|name| self.look_at_pool(&pool_name(name)));
        (0..NAMES).for_each(|name| self.look_at_node(&node_name(name)));
    }

    /// Starts an operator in place of one that has ended.
    pub(crate) fn is_restarted(&mut self) -> bool {
        let ended = std::mem::take(&mut self.server().ended);
        if ended {
            self.restart();
            self.judge.forget();
        }
        ended
    }

    /// Every node is well again or gone, and every agent answers.
    pub(crate) fn heal(&mut self) {
        let mut server = self.server();
        server.nodes.retain(|_, node| node.metadata.deletion_timestamp.is_none());
        // A node that is gone holds nothing.
        let nodes: BTreeSet<String> = server.nodes.keys().cloned().collect();
        server.in_use.retain(|node, _| nodes.contains(node));
        server.offered.retain(|node, _| nodes.contains(node));
        server.down.clear();
        drop(server);
        self.health.clear();
        self.harm.clear();
        self.server().config_faults = 0;
    }

    /// The operator compares configurations with states, so many minutes after it began.
    pub(crate) fn sweep(&mut self, minutes: u8) {
        self.operator.sweep(minutes);
    }
}

/// Whether an agent of release 0.1.0 can read an entry.
fn is_full(entry: &Value) -> bool {
    let has = |field: &str| entry[field].is_string();
    has("phase") && (has("resourceName") || entry["resourcePer"] == "Link")
}

fn conditions(draining: bool, health: Health) -> Value {
    let condition = |kind: &str, status: bool, reason: &str| json!({"type": kind, "status": if status { "True" } else { "False" }, "reason": reason});
    match (draining, health) {
        (true, _) => json!([condition("Ready", false, "Draining")]),
        (false, Health::Well) => json!([condition("Ready", true, "Serving")]),
        (false, Health::Degraded) => {
            json!([condition("Ready", true, "Serving"), condition("Degraded", true, "LinksUnhealthy")])
        }
        (false, Health::NotReady) => json!([condition("Ready", false, "NoHealthyLink")]),
    }
}

pub(crate) fn zone(zone: u8) -> BTreeMap<String, String> {
    BTreeMap::from([("zone".to_owned(), format!("z{zone}"))])
}

pub(crate) fn node_name(number: u8) -> String {
    format!("node-{number}")
}

pub(crate) fn pool_name(number: u8) -> String {
    format!("pool-{number}")
}

pub(crate) fn network_key(space: u8, pool: u8) -> NetworkKey {
    (format!("space-{space}"), format!("net-pool-{pool}"))
}

pub(crate) fn at(second: i64) -> Time {
    Time(jiff::Timestamp::from_second(second).unwrap())
}

pub(crate) fn touch(pool: &mut MacvtapResourcePool, version: i64) {
    pool.metadata.resource_version = Some(version.to_string());
}
