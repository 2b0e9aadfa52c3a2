//! The story of a link, on each node that has one of the name.

use super::concluded;
use crate::advice::{self, anchor};
use crate::check::link_trouble;
use crate::facts::{Facts, items};
use crate::report::{Diagnostic, Report, Section};
use kube::ResourceExt as _;
use macvtap_crds::v1alpha1::nodestate::NodeLink;
use std::collections::BTreeSet;

/// Explains a link, on one node or on all nodes that have one of that name.
pub(super) fn story(facts: &Facts, name: &str, node: Option<&str>) -> Report {
    let title = match node {
        Some(node) => format!("link {name} of node {node}"),
        None => format!("link {name}"),
    };
    let states = items(&facts.states).iter().filter(|state| node.is_none_or(|node| state.name_any() == node));
    let mut sections = Vec::new();
    let mut others = BTreeSet::new();
    for state in states {
        for link in state.status.as_ref().map_or(&[][..], |status| &status.links) {
            if link.name == name || link.alt_names.iter().any(|other| other == name) {
                let node = state.name_any();
                sections.push(Section::new(format!("node {node}"), about(facts, &node, link)));
            } else {
                others.insert(link.name.as_str());
            }
        }
    }
    if sections.is_empty() {
        let others: Vec<&str> = others.into_iter().take(30).collect();
        let fact = "no node reports a link of this name; NICs, bonds and VLANs are reported, and other links if a pool matches them";
        let found = Diagnostic::failed(fact)
            .because("LinkUnknown")
            .remedy(format!("correct the name, or that in the pool; links are: {}", others.join(", ")))
            .see(anchor::NODES);
        sections.push(Section::new(&title, vec![found]));
    }
    concluded(&title, sections, "it is as the pools want it")
}

fn about(facts: &Facts, node: &str, link: &NodeLink) -> Vec<Diagnostic> {
    let carrier = if link.carrier { "has carrier" } else { "has no carrier" };
    let mut known = vec![format!("{} {}", link.kind, link.name)];
    known.extend(link.driver.iter().map(|driver| format!("driver {driver}")));
    known.extend(link.pci_address.iter().map(|address| format!("PCI {address}")));
    known.extend(link.mac.iter().map(|mac| format!("MAC {mac}")));
    known.extend(link.mtu.iter().map(|mtu| format!("MTU {mtu}")));
    known.extend(link.speed_mbps.iter().map(|speed| format!("{speed} Mbit/s")));
    let mut found = vec![Diagnostic::ok(format!("{}; it {carrier}", known.join(", ")))];
    let status = facts.state(node).and_then(|state| state.status.as_ref());
    for pool in status.map_or(&[][..], |status| &status.pools) {
        if link.pools.contains(&pool.name) {
            found.push(Diagnostic::ok(format!("pool {} has it and gives devices on it to pods", pool.name)));
        } else if pool.contested_links.contains(&link.name) {
            let remedy = advice::of_link("LostToPool").unwrap_or_default();
            let fact = format!("pool {} matches it too, and does not have it", pool.name);
            found.push(Diagnostic::warning(fact).because("LostToPool").remedy(remedy).see(anchor::NODES));
        }
    }
    found.extend(trouble(node, link));
    found
}

fn trouble(node: &str, link: &NodeLink) -> Option<Diagnostic> {
    if !link.pools.is_empty() {
        return link_trouble(node, link);
    }
    let reason = link.reason.as_deref()?;
    let fact = format!("no pool has it: {}", link.message.as_deref().unwrap_or(reason));
    let found =
        if advice::breaks_link(reason) { Diagnostic::failed(fact) } else { Diagnostic::warning(fact) };
    let found = found.because(reason).see(anchor::NODES);
    Some(match advice::of_link(reason) {
        Some(remedy) => found.remedy(remedy.replace("LINK", &link.name)),
        None => found,
    })
}
