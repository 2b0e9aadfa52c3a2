//! The story of a pool: its conditions, then node by node.

use super::concluded;
use crate::advice::{self, anchor};
use crate::check::{agent_trouble, kinds, link_trouble, network_trouble, pool_state};
use crate::cluster::Unread;
use crate::facts::resource::Made;
use crate::facts::{Facts, items};
use crate::report::{Diagnostic, Report, Section};
use kube::ResourceExt as _;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::{MacvtapResourcePool, NodePoolStatus};
use macvtap_operator::catalog::Nodes;

/// The most nodes that are listed one by one.
const NODES_MAX: usize = 20;

/// Explains a pool.
pub(super) fn story(facts: &Facts, name: &str) -> Report {
    let title = format!("pool {name}");
    let pool = match (&facts.pools, facts.pool(name)) {
        (_, Some(pool)) => pool,
        (Err(Unread::Absent), None) => {
            return concluded(&title, vec![Section::new(&title, kinds(facts))], "");
        }
        (Err(unread), None) => {
            let found = Diagnostic::failed(format!("the pools cannot be read: {}", unread.text()))
                .see(anchor::INSTALLATION);
            return concluded(&title, vec![Section::new(&title, vec![found])], "");
        }
        (Ok(pools), None) => {
            let names: Vec<String> = pools.iter().map(kube::ResourceExt::name_any).collect();
            let found = Diagnostic::failed("the pool does not exist")
                .remedy(format!("pools are: {}", names.join(", ")));
            return concluded(&title, vec![Section::new(&title, vec![found])], "");
        }
    };
    let mut sections = vec![Section::new(&title, pool_state(facts, pool))];
    let selected = selected(facts, pool);
    for node in selected.iter().take(NODES_MAX) {
        sections.push(Section::new(format!("node {node}"), on_node(facts, name, node)));
    }
    if selected.len() > NODES_MAX {
        let more = Diagnostic::skipped(format!(
            "and {} more nodes: `kubectl macvtap status`",
            selected.len() - NODES_MAX
        ));
        sections.push(Section::new("further nodes", vec![more]));
    }
    sections.push(Section::new("networks", networks(facts, pool)));
    concluded(&title, sections, "it is served")
}

/// The nodes that the pool selects.
fn selected(facts: &Facts, pool: &MacvtapResourcePool) -> Vec<String> {
    let Some(nodes) = Nodes::new(pool.spec.node_selector.as_ref()) else { return Vec::new() };
    let meant = items(&facts.nodes).iter().filter(|node| nodes.selects(node.labels()));
    meant.map(kube::ResourceExt::name_any).collect()
}

/// What is so with the pool on one node.
fn on_node(facts: &Facts, pool: &str, node: &str) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> = agent_trouble(facts, node).into_iter().collect();
    let Some(status) = facts.pool_status(node, pool) else {
        let is_sent =
            facts.state(node).is_some_and(|state| state.spec.pools().iter().any(|entry| entry.name == pool));
        let fact = if is_sent {
            "its agent has not reported on the pool yet"
        } else {
            "the operator has not sent it the pool"
        };
        found.push(Diagnostic::warning(fact));
        return found;
    };
    found.push(served(status));
    let links =
        facts.state(node).and_then(|state| state.status.as_ref()).map_or(&[][..], |status| &status.links);
    for link in links {
        if link.pools.iter().any(|holder| holder == pool) {
            found.push(
                link_trouble(node, link)
                    .unwrap_or_else(|| Diagnostic::ok(format!("link {}: the pool has it", link.name))),
            );
        } else if status.contested_links.contains(&link.name) {
            let fact =
                format!("link {}: the pool matches it, and pool {} has it", link.name, link.pools.join(", "));
            let contested =
                if status.links.is_empty() { Diagnostic::failed(fact) } else { Diagnostic::warning(fact) };
            let remedy = advice::of_link("LostToPool").unwrap_or_default();
            found.push(contested.because("LostToPool").remedy(remedy).see(anchor::NODES));
        } else if status.links.is_empty() {
            found.push(free(link));
        }
    }
    found
}

/// A link of a node on which the pool has none.
fn free(link: &macvtap_crds::v1alpha1::nodestate::NodeLink) -> Diagnostic {
    let reason = link.reason.clone().unwrap_or_default();
    let message = link.message.clone().unwrap_or_else(|| format!("in pool {}", link.pools.join(", ")));
    let found = Diagnostic::skipped(format!("link {}: {message}", link.name));
    if reason.is_empty() { found } else { found.because(reason) }
}

fn served(status: &NodePoolStatus) -> Diagnostic {
    let wrong =
        condition::find(&status.conditions, ConditionType::Ready).filter(|ready| ready.status != "True");
    match wrong {
        Some(ready) => {
            advice::condition("the pool there", ready, advice::of_node(&ready.reason), anchor::NODES)
        }
        None => Diagnostic::ok(format!(
            "{} of {} devices are healthy, {} in use, on {}",
            status.allocatable,
            status.capacity,
            status.allocated,
            status.links.join(", ")
        )),
    }
}

fn networks(facts: &Facts, pool: &MacvtapResourcePool) -> Vec<Diagnostic> {
    let made = Made::by(items(&facts.pools), items(&facts.states));
    let name = pool.name_any();
    let resources: Vec<&str> =
        made.iter().filter(|(_, of)| *of == name).map(|(resource, _)| resource).collect();
    let ours = items(&facts.networks).iter().filter(|network| {
        let by_resource = network.resource.as_deref().is_some_and(|resource| resources.contains(&resource));
        by_resource || network.pool.as_deref() == Some(&name)
    });
    ours.map(|network| {
        network_trouble(network, &made).unwrap_or_else(|| {
            Diagnostic::ok(format!("network {} gives its devices to pods", network.full_name()))
        })
    })
    .collect()
}
