//! Random events that can be had again, and what the operator made of a cluster.

use crate::api::Api;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const NETWORKS: &str = "network-attachment-definitions.k8s.cni.cncf.io";
const POOL_LABEL: &str = "macvtap.network.kubevirt.io/pool";

/// Numbers that depend on the seed alone (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub(crate) fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        let choice = self.below(words.len() as u64);
        usize::try_from(choice).ok().and_then(|choice| words.get(choice)).copied().unwrap_or_default()
    }
}

/// All objects of a kind.
pub(crate) fn list(api: &Api, kind: &str) -> Result<Vec<Value>> {
    let text = api.kubectl.run(&["get", kind, "-A", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text).with_context(|| format!("read {kind}"))?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// What the operator made of the cluster, without what depends on history: generations, hashes of them, times, and
/// whether a spec was written for an agent that needs defaults spelled out.
pub(crate) fn outcome(api: &Api) -> Result<BTreeMap<String, Value>> {
    let mut outcome = BTreeMap::new();
    let mut accepted = Vec::new();
    for pool in list(api, "mrp")? {
        let conditions = pool["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let facts: Vec<Value> =
            conditions.iter().map(|c| json!([c["type"], c["status"], c["reason"]])).collect();
        let mut networks = pool["status"]["networks"].clone();
        // A dry run keeps the networks that the pool had before; a fresh operator makes none.
        let is_dry_run = pool["spec"]["advertisement"] == "DryRun";
        if is_dry_run && networks.is_object() {
            networks["ready"] = Value::Null;
        }
        if !is_dry_run && facts.contains(&json!(["Accepted", "True", "Valid"])) {
            accepted.push(pool["metadata"]["name"].clone());
        }
        let status = json!({"conditions": facts, "nodes": pool["status"]["nodes"], "networks": networks});
        outcome.insert(format!("pool {}", pool["metadata"]["name"]), status);
    }
    let configs = list(api, "mnc")?;
    for state in list(api, "mns")? {
        let named = configs.iter().find(|config| config["metadata"]["name"] == state["spec"]["config"]);
        let mut pools = named.unwrap_or(&state)["spec"]["pools"].clone();
        for pool in pools.as_array_mut().into_iter().flatten() {
            pool["generation"] = Value::Null;
            let entry = pool.as_object_mut().context("an entry that is not an object")?;
            let name = entry["name"].clone();
            entry.entry("phase").or_insert_with(|| json!("Active"));
            entry.entry("resourceName").or_insert(name);
        }
        outcome.insert(format!("state {}", state["metadata"]["name"]), pools);
    }
    for network in list(api, NETWORKS)? {
        let meta = &network["metadata"];
        let owner = &meta["labels"][POOL_LABEL];
        // A pool that is not accepted, or in a dry run, keeps what it has.
        if owner.is_null() || accepted.contains(owner) {
            let about = json!([meta["labels"], meta["annotations"], network["spec"]]);
            outcome.insert(format!("network {}/{}", meta["namespace"], meta["name"]), about);
        }
    }
    Ok(outcome)
}
