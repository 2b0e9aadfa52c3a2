//! `prune`: removes resources of former pools from Nodes, which the kubelet keeps there with the value 0.

use crate::args::Prune;
use crate::cluster::{Cluster, Read, Unread};
use crate::facts::resource::{self, Made};
use crate::facts::{Facts, Scope};
use crate::output;
use anyhow::{Result, anyhow, bail};
use json_patch::Patch as Operations;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use macvtap_crds::GROUP;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The lists of a Node's status that name resources.
const LISTS: [&str; 2] = ["capacity", "allocatable"];

/// Removes them, and returns whether all could be removed.
pub(crate) async fn run(cluster: &Cluster, args: &Prune) -> Result<bool> {
    let scope =
        Scope { installation: "macvtap-system".to_owned(), namespace: Some(cluster.namespace.clone()) };
    let facts = Facts::read(cluster, &scope).await;
    let pools = needed("pools", absent_is_none(facts.pools))?;
    let states = needed("node states", absent_is_none(facts.states))?;
    let nodes = needed("nodes", facts.nodes)?;
    // It may make what nobody else makes.
    if let Some(object) = facts.unreadable.first() {
        bail!("{object}; nothing was removed");
    }
    let api: Api<Node> = Api::all(cluster.client.clone());
    let (mut removed, mut refused) = (0_usize, 0_usize);
    for node in &nodes {
        let stale = stale(node, &pools, &states);
        if stale.is_empty() {
            continue;
        }
        let (name, what) = (node.name_any(), stale.join(", "));
        if args.dry_run {
            output::write(&format!("node {name}: would remove {what}\n"))?;
            continue;
        }
        let patch: Patch<()> = Patch::Json(operations(node, &stale)?);
        match api.patch_status(&name, &PatchParams::default(), &patch).await {
            Ok(_) => {
                removed += stale.len();
                output::write(&format!("node {name}: removed {what}\n"))?;
            }
            Err(error) => {
                refused += 1;
                let why = macvtap_operator::refusal::text(&error);
                output::write(&format!("node {name}: could not remove {what}: {why}\n"))?;
            }
        }
    }
    if !args.dry_run {
        output::write(&format!("{removed} resources removed, {refused} nodes refused\n"))?;
    }
    Ok(refused == 0)
}

/// A cluster whose kinds are gone has no pools.
fn absent_is_none<T>(list: Read<Vec<T>>) -> Read<Vec<T>> {
    match list {
        Err(Unread::Absent) => Ok(Vec::new()),
        other => other,
    }
}

fn needed<T>(what: &str, list: Read<Vec<T>>) -> Result<Vec<T>> {
    list.map_err(|unread| anyhow!("read the {what}: {}; nothing was removed", unread.text()))
}

/// The resources with the value 0 that no pool makes, and that the node was not asked to drain either.
fn stale(node: &Node, pools: &[MacvtapResourcePool], states: &[MacvtapNodeState]) -> Vec<String> {
    let made = Made::by(pools, states);
    let state = states.iter().find(|state| state.name_any() == node.name_any());
    let wanted = |resource: &str| {
        let entries = state.map_or(&[][..], |state| state.spec.pools());
        entries.iter().any(|entry| {
            let (prefix, name) = resource.split_once('/').unwrap_or_default();
            // A resource for each link: which they are, only the agent knows.
            entry.settings.resource_prefix == prefix && entry.resource().is_none_or(|entry| entry == name)
        })
    };
    // Under another prefix they may be another plugin's.
    let zeros = resource::zeros(node, &BTreeSet::from([GROUP.to_owned()])).into_iter();
    zeros.filter(|resource| made.pool_of(resource).is_none() && !wanted(resource)).collect()
}

/// Removes them only while they still have the value 0: an agent may have come back meanwhile.
fn operations(node: &Node, stale: &[String]) -> Result<Operations> {
    let status = serde_json::to_value(&node.status)?;
    let mut operations = Vec::new();
    for list in LISTS {
        for resource in stale.iter().filter(|resource| status[list].get(resource.as_str()).is_some()) {
            let path = format!("/status/{list}/{}", resource.replace('~', "~0").replace('/', "~1"));
            operations.push(json!({"op": "test", "path": path, "value": "0"}));
            operations.push(json!({"op": "remove", "path": path}));
        }
    }
    Ok(serde_json::from_value(Value::Array(operations))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pool};

    #[test]
    fn only_resources_of_ours_that_nobody_makes_are_removed_and_only_while_they_are_zero() {
        let listed = json!({
            "cpu": "0", "macvtap.network.kubevirt.io/dp": "0", "macvtap.network.kubevirt.io/old": "0",
            "macvtap.network.kubevirt.io/used": "3", "example.com/x": "0",
        });
        let node = node("n1", json!({"capacity": listed, "allocatable": listed}));
        let stale = stale(&node, &[pool("dp", json!({}))], &[]);
        assert_eq!(stale, ["macvtap.network.kubevirt.io/old"]);
        let patch = serde_json::to_value(operations(&node, &stale).unwrap()).unwrap();
        let place = "/status/capacity/macvtap.network.kubevirt.io~1old";
        assert_eq!(patch[0], json!({"op": "test", "path": place, "value": "0"}));
        assert_eq!(patch[1], json!({"op": "remove", "path": place}));
        assert_eq!(patch.as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_pool_that_is_still_drained_keeps_its_resource() {
        let listed = json!({"macvtap.network.kubevirt.io/old": "0"});
        let node = node("n1", json!({"capacity": listed, "allocatable": listed}));
        let state: MacvtapNodeState = crate::testing::object(json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeState", "metadata": {"name": "n1"},
            "spec": {"configHash": "h", "pools": [{"name": "old", "uid": "u", "generation": 1, "phase": "Draining", "links": [{"names": ["a"]}]}]},
        }));
        assert!(stale(&node, &[], &[state]).is_empty());
    }
}
