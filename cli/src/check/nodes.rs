//! What the agents report of their nodes, and what the Nodes have of the pools' resources.

use super::installation;
use crate::advice::{self, anchor};
use crate::facts::resource::{self, Made};
use crate::facts::{Facts, items};
use crate::report::Diagnostic;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::MacvtapNodeState;
use macvtap_crds::v1alpha1::nodestate::NodeLink;

/// Checks the nodes.
pub(super) fn check(facts: &Facts) -> Vec<Diagnostic> {
    let states = match &facts.states {
        Err(unread) => {
            return vec![Diagnostic::skipped(format!("the node states cannot be read: {}", unread.text()))];
        }
        Ok(states) => states,
    };
    let mut found = Vec::new();
    for state in states {
        found.extend(of_state(state, installation::release(facts)));
    }
    found.extend(resources(facts));
    if found.is_empty() && !states.is_empty() {
        found.push(Diagnostic::ok(format!(
            "{} nodes report, and nothing is wrong with their links",
            states.len()
        )));
    }
    found
}

/// What is wrong with a node as a whole, and with its links.
pub(crate) fn of_state(state: &MacvtapNodeState, release: Option<&str>) -> Vec<Diagnostic> {
    let node = state.name_any();
    let Some(status) = state.status.as_ref().filter(|status| status.observed_hash.is_some()) else {
        let fact = format!("node {node} has not reported yet");
        return vec![
            Diagnostic::warning(fact)
                .because("NotReported")
                .remedy("check the agent's pod on this node")
                .see(anchor::INSTALLATION),
        ];
    };
    let mut found = Vec::new();
    // What is wrong with pools is reported with them.
    let of_pools = ["PoolsNotReady", "PoolsDegraded"];
    let wrong = status.conditions.iter().filter(|condition| !condition::is_normal(condition));
    found.extend(wrong.filter(|condition| !of_pools.contains(&condition.reason.as_str())).map(|condition| {
        advice::condition(
            &format!("node {node}"),
            condition,
            advice::of_node(&condition.reason),
            anchor::NODES,
        )
    }));
    if status.observed_hash.as_deref() != Some(state.spec.config_hash.as_str()) {
        found.push(
            Diagnostic::warning(format!("node {node} has not applied its last configuration yet"))
                .because("Updating")
                .remedy("wait; if it stays so, read the log of the node's agent"),
        );
    }
    if let (Some(agent), Some(operator)) = (&status.agent_version, release)
        && agent != operator
    {
        let fact = format!("the agent of node {node} is release {agent}, the operator {operator}");
        found.push(
            Diagnostic::warning(fact)
                .because("VersionSkew")
                .remedy("wait for the end of the upgrade, or repeat it"),
        );
    }
    found.extend(kernel(&node, &status.links));
    found.extend(
        status.links.iter().filter(|link| !link.pools.is_empty()).filter_map(|link| of_link(&node, link)),
    );
    found
}

/// A kernel without macvtap is one fact, however many links it has.
fn kernel(node: &str, links: &[NodeLink]) -> Option<Diagnostic> {
    let reason = "KernelWithoutMacvtap";
    let lacking = links.iter().find(|link| link.reason.as_deref() == Some(reason))?;
    let message = lacking.message.as_deref().unwrap_or("the kernel has no macvtap");
    let remedy = advice::of_link(reason).unwrap_or_default();
    Some(
        Diagnostic::failed(format!("node {node}: {message}"))
            .because(reason)
            .remedy(remedy)
            .see(anchor::NODES),
    )
}

/// What is wrong with a link that a pool holds.
pub(crate) fn of_link(node: &str, link: &NodeLink) -> Option<Diagnostic> {
    let reason =
        link.reason.as_deref().filter(|reason| !["InPod", "KernelWithoutMacvtap"].contains(reason))?;
    let message = link.message.as_deref().unwrap_or(reason);
    let fact = format!("node {node}, link {} of pool {}: {message}", link.name, link.pools.join(", "));
    let found =
        if advice::breaks_link(reason) { Diagnostic::failed(fact) } else { Diagnostic::warning(fact) };
    let found = found.because(reason).see(anchor::NODES);
    Some(match advice::of_link(reason) {
        Some(remedy) => found.remedy(remedy.replace("LINK", &link.name)),
        None => found,
    })
}

/// Whether the Nodes have the resources that the agents offer, and none that nobody makes any more.
fn resources(facts: &Facts) -> Vec<Diagnostic> {
    let pools = items(&facts.pools);
    let made = Made::by(pools, items(&facts.states));
    let prefixes = resource::prefixes(pools);
    let mut found = Vec::new();
    for node in items(&facts.nodes) {
        found.extend(missing(facts, node, &made));
        let stale: Vec<String> = resource::zeros(node, &prefixes)
            .into_iter()
            .filter(|name| made.pool_of(name).is_none())
            .collect();
        if !stale.is_empty() {
            let fact = format!(
                "node {} still lists resources that no pool makes: {}",
                node.name_any(),
                stale.join(", ")
            );
            let remedy = "`kubectl macvtap prune` removes them";
            found.push(Diagnostic::warning(fact).because("ResourceLeftOver").remedy(remedy));
        }
    }
    found
}

/// Resources that the agent offers and the kubelet does not.
fn missing(facts: &Facts, node: &Node, made: &Made) -> Vec<Diagnostic> {
    let name = node.name_any();
    let Some(status) = facts.state(&name).and_then(|state| state.status.as_ref()) else { return Vec::new() };
    let offers = |pool: &str| {
        let of_node = status.pools.iter().find(|of_node| of_node.name == pool)?;
        // A pool without conditions offers healthy devices.
        let ready = condition::find(&of_node.conditions, ConditionType::Ready)
            .is_none_or(|ready| ready.status == "True");
        (ready && of_node.capacity > 0).then_some(of_node)
    };
    let lacks = |(resource, pool): (&str, &str)| {
        let of_node = offers(pool)?;
        let bare = resource.split_once('/').map_or(resource, |(_, bare)| bare);
        let here = of_node.resources.is_empty() || of_node.resources.iter().any(|name| name == bare);
        if !here || resource::of_node(node, resource).is_some_and(|(capacity, _)| capacity > 0) {
            return None;
        }
        let fact = format!(
            "node {name} does not list resource {resource}, of which its agent offers {}",
            of_node.capacity
        );
        let remedy = "wait half a minute; if it stays so, check that agent.devicePluginDir is this kubelet's directory and restart the kubelet";
        Some(Diagnostic::failed(fact).because("ResourceMissing").remedy(remedy).see(anchor::NODES))
    };
    made.iter().filter_map(lacks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{condition, node, nothing, pool, state};
    use serde_json::json;

    #[test]
    fn a_wrong_cni_directory_and_a_kernel_without_macvtap_are_named_once() {
        let lacking = |name: &str| json!({"name": name, "kind": "Physical", "reason": "KernelWithoutMacvtap", "message": "no macvtap can be made on it"});
        let status = json!({
            "observedHash": "h",
            "links": [lacking("eth1"), lacking("eth2")],
            "conditions": [condition("Ready", "False", "NoOtherPlugin", "no other plugin is in /opt/cni/bin")],
        });
        let found = of_state(&state("n1", status), None);
        let reasons: Vec<_> = found.iter().filter_map(|found| found.reason.as_deref()).collect();
        assert_eq!(reasons, ["NoOtherPlugin", "KernelWithoutMacvtap"]);
        assert!(found.iter().all(|found| found.remedy.is_some() && found.see.is_some()));
    }

    #[test]
    fn a_link_that_is_off_fails_with_the_command_that_switches_it_on() {
        let link = json!({"name": "eth1", "kind": "Physical", "pools": ["dp"], "reason": "AdminDown", "message": "eth1 is switched off"});
        let found = of_state(&state("n1", json!({"observedHash": "h", "links": [link]})), None);
        assert_eq!(found[0].remedy.as_deref(), Some("switch the link on: `ip link set eth1 up`"));
        assert!(of_state(&state("n1", json!({"observedHash": "h"})), None).is_empty());
        assert_eq!(of_state(&state("n1", json!({})), None)[0].reason.as_deref(), Some("NotReported"));
    }

    #[test]
    fn what_the_agent_offers_must_be_on_the_node_and_nothing_else() {
        let mut facts = nothing();
        facts.pools = Ok(vec![pool("dp", json!({}))]);
        facts.states = Ok(vec![state(
            "n1",
            json!({"observedHash": "h", "pools": [{"name": "dp", "generation": 1, "capacity": 5}]}),
        )]);
        let listed = json!({"macvtap.network.kubevirt.io/old": "0"});
        facts.nodes = Ok(vec![node("n1", json!({"capacity": listed, "allocatable": listed}))]);
        let reasons: Vec<_> = check(&facts).into_iter().filter_map(|found| found.reason).collect();
        assert_eq!(reasons, ["ResourceMissing", "ResourceLeftOver"]);
        let listed = json!({"macvtap.network.kubevirt.io/dp": "5"});
        facts.nodes = Ok(vec![node("n1", json!({"capacity": listed, "allocatable": listed}))]);
        assert_eq!(check(&facts)[0].level, crate::report::Level::Ok);
    }
}
