//! Conditions of pools, and the nodes that do not serve them.

use crate::advice::{self, anchor};
use crate::facts::Facts;
use crate::report::Diagnostic;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::MacvtapResourcePool;

/// Checks the pools.
pub(super) fn check(facts: &Facts) -> Vec<Diagnostic> {
    match &facts.pools {
        Err(unread) => vec![Diagnostic::skipped(format!("the pools cannot be read: {}", unread.text()))],
        Ok(pools) if pools.is_empty() => {
            vec![Diagnostic::skipped(
                "no pool exists yet; `kubectl macvtap plan -f` shows what one would take",
            )]
        }
        Ok(pools) => pools.iter().flat_map(|pool| of_pool(facts, pool)).collect(),
    }
}

/// What is so with a pool.
pub(crate) fn of_pool(facts: &Facts, pool: &MacvtapResourcePool) -> Vec<Diagnostic> {
    let name = pool.name_any();
    let Some(status) = &pool.status else {
        let fact = format!("pool {name}: the operator has not reported on it");
        return vec![
            Diagnostic::failed(fact)
                .because("Pending")
                .remedy("check that the operator runs")
                .see(anchor::POOLS),
        ];
    };
    let mut found = Vec::new();
    if status.observed_generation != pool.metadata.generation {
        let fact = format!("pool {name}: the operator has not seen its last change yet");
        found.push(
            Diagnostic::warning(fact)
                .because("Pending")
                .remedy("if it stays so, check that the operator runs"),
        );
    }
    found.extend(wrong(&status.conditions).map(|condition| {
        advice::condition(
            &format!("pool {name}"),
            condition,
            advice::of_pool(&condition.reason),
            anchor::POOLS,
        )
    }));
    let accepted = condition::find(&status.conditions, ConditionType::Accepted);
    if accepted.is_none_or(|accepted| accepted.status != "False") {
        found.extend(samples(facts, pool));
    }
    if found.is_empty() {
        let (nodes, devices) = (&status.nodes.summary, &status.devices);
        found.push(Diagnostic::ok(format!(
            "pool {name}: {nodes} nodes ready, {} of {} devices allocated",
            devices.allocated, devices.allocatable
        )));
    }
    found
}

/// The conditions that are not as they should be, without those that only repeat another one.
fn wrong(conditions: &[Condition]) -> impl Iterator<Item = &Condition> {
    let is_wrong = |condition: &&Condition| match condition.type_.as_str() {
        "Accepted" | "Ready" | "NetworksReady" => condition.status != "True",
        "Degraded" | "Terminating" => condition.status == "True",
        "Stalled" => condition.status == "True" && condition.reason == "RolloutHalted",
        _ => false,
    };
    let refused =
        conditions.iter().any(|condition| condition.type_ == "Accepted" && condition.status == "False");
    conditions.iter().filter(is_wrong).filter(move |condition| !refused || condition.type_ == "Accepted")
}

/// The nodes that the operator names, each with the remedy for its reason.
fn samples(facts: &Facts, pool: &MacvtapResourcePool) -> Vec<Diagnostic> {
    let name = pool.name_any();
    let samples = pool.status.as_ref().map_or(&[][..], |status| &status.samples);
    let conditions = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let is_ready = condition::holds(conditions, ConditionType::Ready);
    let of_sample = |sample: &macvtap_crds::v1alpha1::pool::NodeSample| {
        let mut fact = format!("pool {name} on node {}: {}", sample.node, sample.message);
        if sample.reason == "NoMatchingLink" {
            fact.push_str(&free_links(facts, &sample.node));
        }
        let waiting =
            ["Updating", "Waiting", "Registering", "DryRun", "Draining", "Drained", "NodeTerminating"];
        // Not every node that a pool selects needs a link for it.
        let is_apart = is_ready && sample.reason == "NoMatchingLink";
        let found = if is_apart || waiting.contains(&sample.reason.as_str()) {
            Diagnostic::warning(fact)
        } else {
            Diagnostic::failed(fact)
        };
        let found = found.because(&sample.reason).see(anchor::NODES);
        match advice::of_node(&sample.reason) {
            Some(remedy) => found.remedy(remedy),
            None => found,
        }
    };
    samples.iter().map(of_sample).collect()
}

/// The links of a node that no pool holds: a misspelt name is one of them.
pub(crate) fn free_links(facts: &Facts, node: &str) -> String {
    let links =
        facts.state(node).and_then(|state| state.status.as_ref()).map_or(&[][..], |status| &status.links);
    let free: Vec<&str> =
        links.iter().filter(|link| link.pools.is_empty()).map(|link| link.name.as_str()).collect();
    match free.as_slice() {
        [] => String::new(),
        names => format!("; links of the node that no pool holds: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{condition, nothing, pool, state};
    use serde_json::{Value, json};

    fn reported(status: &Value) -> MacvtapResourcePool {
        let mut pool = pool("dp", json!({}));
        pool.status = Some(serde_json::from_value(status.clone()).unwrap());
        pool
    }

    #[test]
    fn a_wrong_link_name_is_answered_with_the_names_that_the_node_has() {
        let mut facts = nothing();
        facts.states = Ok(vec![state(
            "n1",
            json!({"links": [
                {"name": "eth1", "kind": "Physical", "reason": "NotSelected"}, {"name": "eth2", "kind": "Physical", "pools": ["other"]},
            ]}),
        )]);
        let pool = reported(&json!({
            "observedGeneration": 1,
            "conditions": [condition("Ready", "False", "NoMatchingLinks", "no node has a matching link")],
            "samples": [{"node": "n1", "reason": "NoMatchingLink", "message": "no link of this node matches"}],
        }));
        let found = of_pool(&facts, &pool);
        assert_eq!(found[0].reason.as_deref(), Some("NoMatchingLinks"));
        let wanted =
            "pool dp on node n1: no link of this node matches; links of the node that no pool holds: eth1";
        assert_eq!(found[1].fact, wanted);
    }

    #[test]
    fn a_pool_that_is_not_accepted_is_one_fact() {
        let pool = reported(&json!({
            "observedGeneration": 1,
            "conditions": [
                condition("Accepted", "False", "ResourceNameConflict", "resource name x belongs to pool old"),
                condition("Ready", "False", "NotAccepted", ""), condition("Stalled", "True", "ResourceNameConflict", ""),
            ],
        }));
        let found = of_pool(&nothing(), &pool);
        assert_eq!((found.len(), found[0].reason.as_deref()), (1, Some("ResourceNameConflict")));
    }

    #[test]
    fn a_pool_that_is_well_is_one_line() {
        let pool = reported(&json!({
            "observedGeneration": 1,
            "nodes": {"summary": "2/2"}, "devices": {"allocatable": 100, "allocated": 3},
            "conditions": [condition("Ready", "True", "AllNodesReady", ""), condition("Degraded", "False", "AsExpected", "")],
        }));
        assert_eq!(
            of_pool(&nothing(), &pool),
            [Diagnostic::ok("pool dp: 2/2 nodes ready, 3 of 100 devices allocated")]
        );
        assert_eq!(
            of_pool(&nothing(), &crate::testing::pool("dp", json!({})))[0].reason.as_deref(),
            Some("Pending")
        );
    }
}
