//! The story of a node: its agent, its pools, its links, its resources.

use super::concluded;
use crate::advice::{self, anchor};
use crate::check::{agent_trouble, link_trouble, node_state};
use crate::facts::{Agent, Facts, items, resource};
use crate::report::{Diagnostic, Report, Section};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use macvtap_crds::v1alpha1::MacvtapNodeState;
use std::collections::BTreeMap;

/// Explains a node.
pub(super) fn story(facts: &Facts, name: &str) -> Report {
    let title = format!("node {name}");
    let node = items(&facts.nodes).iter().find(|node| node.name_any() == name);
    if node.is_none() && facts.nodes.is_ok() {
        let names: Vec<String> = items(&facts.nodes).iter().map(kube::ResourceExt::name_any).collect();
        let found =
            Diagnostic::failed("the node does not exist").remedy(format!("nodes are: {}", names.join(", ")));
        return concluded(&title, vec![Section::new(&title, vec![found])], "");
    }
    let mut about = match facts.agent(name) {
        Agent::Ready => vec![Diagnostic::ok("its agent runs and is ready")],
        Agent::Unknown => vec![Diagnostic::skipped("its agent's pod cannot be read with your rights")],
        Agent::NotReady(_) | Agent::Missing => agent_trouble(facts, name).into_iter().collect(),
    };
    let Some(state) = facts.state(name) else {
        let fact = "it has no MacvtapNodeState: the operator has seen no agent on it";
        about.push(
            Diagnostic::failed(fact)
                .remedy("check operator and agents: `kubectl macvtap check`")
                .see(anchor::INSTALLATION),
        );
        return concluded(&title, vec![Section::new(&title, about)], "");
    };
    about.extend(node_state(state, None));
    let sections = vec![
        Section::new(&title, about),
        Section::new("pools", pools(state)),
        Section::new("links", links(state)),
        Section::new("resources", node.map(|node| resources(facts, node)).unwrap_or_default()),
    ];
    concluded(&title, sections, "it serves its pools")
}

fn pools(state: &MacvtapNodeState) -> Vec<Diagnostic> {
    let status = state.status.as_ref().map_or(&[][..], |status| &status.pools);
    let mut found = Vec::new();
    for pool in status {
        let name = &pool.name;
        let wrong: Vec<_> = pool
            .conditions
            .iter()
            .filter(|condition| !macvtap_crds::condition::is_normal(condition))
            .collect();
        if wrong.is_empty() {
            found.push(Diagnostic::ok(format!(
                "pool {name}: {} of {} devices are healthy, {} in use, on {}",
                pool.allocatable,
                pool.capacity,
                pool.allocated,
                pool.links.join(", ")
            )));
        }
        found.extend(wrong.into_iter().map(|condition| {
            advice::condition(
                &format!("pool {name}"),
                condition,
                advice::of_node(&condition.reason),
                anchor::NODES,
            )
        }));
    }
    if status.is_empty() {
        found.push(Diagnostic::skipped("no pool selects it"));
    }
    found
}

fn links(state: &MacvtapNodeState) -> Vec<Diagnostic> {
    let Some(status) = &state.status else { return Vec::new() };
    let node = state.name_any();
    let mut found: Vec<_> = status
        .links
        .iter()
        .map(|link| match (link.pools.as_slice(), &link.message) {
            // What is wrong with it stands above already.
            ([_, ..], _) if link_trouble(&node, link).is_some() => {
                let reason = link.reason.as_deref().unwrap_or_default();
                Diagnostic::warning(format!("link {} of pool {}", link.name, link.pools.join(", ")))
                    .because(reason)
            }
            ([_, ..], _) => {
                Diagnostic::ok(format!("link {} is in pool {}", link.name, link.pools.join(", ")))
            }
            ([], message) => {
                let message = message.as_deref().unwrap_or("in no pool");
                let found = Diagnostic::skipped(format!("link {}: {message}", link.name));
                match &link.reason {
                    Some(reason) => found.because(reason),
                    None => found,
                }
            }
        })
        .collect();
    if status.truncated_links > 0 {
        found.push(Diagnostic::skipped(format!(
            "and {} more links that the status has no room for",
            status.truncated_links
        )));
    }
    found
}

fn resources(facts: &Facts, node: &Node) -> Vec<Diagnostic> {
    let prefixes = resource::prefixes(items(&facts.pools));
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    let names =
        capacity.into_iter().flat_map(BTreeMap::keys).filter(|name| resource::has_prefix(name, &prefixes));
    names
        .filter_map(|name| {
            let (capacity, allocatable) = resource::of_node(node, name)?;
            Some(Diagnostic::ok(format!("the Node lists {capacity} of {name}, {allocatable} allocatable")))
        })
        .collect()
}
