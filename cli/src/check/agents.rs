//! The agents: their `DaemonSet`, and the pod of each node.

use crate::advice::anchor;
use crate::facts::{Agent, Facts, items, pod};
use crate::report::Diagnostic;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use macvtap_crds::v1alpha1::MacvtapNodeState;

/// So many nodes are named one by one.
const NAMED_MAX: usize = 10;

/// Checks the agents.
pub(super) fn check(facts: &Facts) -> Vec<Diagnostic> {
    let mut found = match &facts.daemon_sets {
        Err(unread) => {
            return vec![Diagnostic::skipped(format!("the agents cannot be seen: {}", unread.text()))];
        }
        Ok(sets) if sets.is_empty() => vec![
            Diagnostic::failed("no DaemonSet of agents is installed")
                .because("AgentsMissing")
                .remedy("install the chart macvtap-operator")
                .see(anchor::INSTALLATION),
        ],
        Ok(sets) => sets.iter().map(complete).collect(),
    };
    found.extend(by_node(facts));
    found
}

fn complete(set: &DaemonSet) -> Diagnostic {
    let name = format!("DaemonSet {}/{}", set.namespace().unwrap_or_default(), set.name_any());
    let Some(status) = &set.status else {
        return Diagnostic::failed(format!("{name} has no status")).see(anchor::INSTALLATION);
    };
    let (desired, current, ready) =
        (status.desired_number_scheduled, status.current_number_scheduled, status.number_ready);
    if desired == 0 {
        let remedy = "correct the chart's agent.nodeSelector and agent.tolerations";
        let fact = format!("{name} selects no node");
        return Diagnostic::failed(fact).because("NoNodeSelected").remedy(remedy).see(anchor::INSTALLATION);
    }
    if current < desired {
        let fact = format!("{name}: {current} of {desired} pods exist; the others cannot be created");
        let remedy = "read the DaemonSet's events; where pod security is enforced, \
                      label its namespace pod-security.kubernetes.io/enforce=privileged";
        return Diagnostic::failed(fact).because("PodsNotCreated").remedy(remedy).see(anchor::INSTALLATION);
    }
    let fact = format!("{name}: {ready} of {desired} agents are ready");
    if ready < desired { Diagnostic::warning(fact) } else { Diagnostic::ok(fact) }
}

/// The nodes that have answered, or have an agent's pod, and no agent that is ready.
fn by_node(facts: &Facts) -> Vec<Diagnostic> {
    let with_pod = items(&facts.agents).iter().filter_map(pod::node);
    // The operator makes a state for every node; one that never answered may not be meant to run an agent.
    let answered = |state: &&MacvtapNodeState| {
        state.status.as_ref().is_some_and(|status| status.observed_hash.is_some())
    };
    let states =
        items(&facts.states).iter().filter(answered).filter_map(|state| state.metadata.name.as_deref());
    let mut nodes: Vec<&str> = with_pod.chain(states).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let mut found: Vec<_> = nodes.into_iter().filter_map(|node| trouble(facts, node)).collect();
    let pending = items(&facts.agents).iter().filter(|pod| pod::node(pod).is_none());
    found.extend(pending.map(|pod| {
        Diagnostic::failed(format!("agent pod {} has no node: {}", pod.name_any(), pod::why_not_ready(pod)))
            .because("AgentNotScheduled")
            .remedy("read the message: taints, resources or priority of the agent's pod")
            .see(anchor::INSTALLATION)
    }));
    let more = found.len().saturating_sub(NAMED_MAX);
    found.truncate(NAMED_MAX);
    if more > 0 {
        found.push(Diagnostic::failed(format!("and {more} more nodes without a ready agent")));
    }
    found
}

/// Why the agent of a node does not run, if so.
pub(crate) fn trouble(facts: &Facts, node: &str) -> Option<Diagnostic> {
    let (fact, remedy) = match facts.agent(node) {
        Agent::Ready | Agent::Unknown => return None,
        Agent::Missing => {
            let remedy = "check the DaemonSet's node selector, the node's taints and the DaemonSet's events";
            (format!("node {node} has no agent pod: its devices cannot be allocated to new pods"), remedy)
        }
        Agent::NotReady(agent) => {
            (not_ready(node, agent), "read the pod's events and log: `kubectl describe pod`, `kubectl logs`")
        }
    };
    Some(Diagnostic::failed(fact).because("AgentNotRunning").remedy(remedy).see(anchor::INSTALLATION))
}

fn not_ready(node: &str, agent: &Pod) -> String {
    let place = format!("{}/{}", agent.namespace().unwrap_or_default(), agent.name_any());
    format!("the agent of node {node} is not ready (pod {place}): {}", pod::why_not_ready(agent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{condition, nothing, object, state};
    use serde_json::{Value, json};

    fn agent(node: &str, ready: &str) -> Value {
        json!({
            "metadata": {"name": format!("agent-{node}"), "namespace": "s"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [condition("Ready", ready, "r", "")]},
        })
    }

    #[test]
    fn a_node_whose_agent_is_missing_or_not_ready_is_named() {
        let mut facts = nothing();
        // The last one is of a node without an agent, such as a virtual node.
        let states = ["n1", "n2", "n3"].map(|node| state(node, json!({"observedHash": "h"})));
        facts.states = Ok([&states[..], &[state("n4", json!({}))]].concat());
        facts.agents = Ok(vec![object(agent("n1", "True")), object(agent("n2", "False"))]);
        let found: Vec<_> = by_node(&facts).into_iter().map(|found| found.fact).collect();
        assert_eq!(
            found,
            [
                "the agent of node n2 is not ready (pod s/agent-n2): its phase is Running",
                "node n3 has no agent pod: its devices cannot be allocated to new pods",
            ]
        );
    }

    #[test]
    fn a_daemon_set_whose_pods_cannot_be_created_is_told_from_one_that_starts() {
        let set = |current, ready| -> DaemonSet {
            object(json!({
                "metadata": {"name": "macvtap-node-agent", "namespace": "s"},
                "status": {"desiredNumberScheduled": 2, "currentNumberScheduled": current, "numberReady": ready, "numberMisscheduled": 0},
            }))
        };
        assert_eq!(complete(&set(1, 1)).reason.as_deref(), Some("PodsNotCreated"));
        assert_eq!(complete(&set(2, 2)).reason, None);
    }
}
