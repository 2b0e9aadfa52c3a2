//! One node: its pools before and after, by the operator's and the agent's own decisions.

use super::links;
use crate::advice::{self, anchor};
use crate::facts::Facts;
use crate::report::{Diagnostic, Level};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use macvtap_crds::v1alpha1::{LinkKind, MacvtapNodeState, MacvtapNodeStateStatus, NodePool};
use macvtap_node_agent::devices::{assignment, offer};
use macvtap_node_agent::links::inventory::Inventory;
use macvtap_node_agent::pools::pool::{Naming, Pool};
use macvtap_node_agent::pools::selection::{self, Holding, Holdings, Selection};
use macvtap_operator::catalog::Catalog;
use macvtap_operator::clock;
use macvtap_operator::node_state::render::{Target, render};
use macvtap_operator::states::{Interner, KnownState};
use std::collections::BTreeSet;

/// What would become of a node.
pub(super) struct NodePlan {
    /// Its name.
    pub(super) node: String,
    /// Pool by pool.
    pub(super) diagnostics: Vec<Diagnostic>,
    /// What its state does not contain.
    pub(super) unknown: Vec<String>,
    links: usize,
    devices: u32,
    losers: BTreeSet<String>,
}

/// All nodes together.
#[derive(Default)]
pub(super) struct Sums {
    /// Nodes that would get the pools.
    pub(super) nodes: usize,
    serving: usize,
    links: usize,
    devices: u64,
    losers: BTreeSet<String>,
}

/// Pools of a node, and the pool of each link.
struct World {
    pools: Vec<Pool>,
    selection: Selection,
}

impl NodePlan {
    /// The worst level of its diagnostics.
    pub(super) fn worst(&self) -> Option<Level> {
        self.diagnostics.iter().map(|diagnostic| diagnostic.level).max()
    }
}

impl Sums {
    /// Adds a node.
    pub(super) fn add(&mut self, plan: &NodePlan) {
        self.nodes += 1;
        self.serving += usize::from(plan.links > 0);
        self.links += plan.links;
        self.devices += u64::from(plan.devices);
        self.losers.extend(plan.losers.iter().cloned());
    }

    /// In one sentence.
    pub(super) fn conclusion(&self, names: &[String]) -> String {
        let losers: Vec<&str> = self.losers.iter().map(String::as_str).collect();
        let losers = if losers.is_empty() {
            "no pool loses a link".to_owned()
        } else {
            format!("pools that lose links: {}", losers.join(", "))
        };
        let plural = if names.len() == 1 { "pool" } else { "pools" };
        format!(
            "{plural} {}: {} links on {} of {} nodes, {} devices; {losers}",
            names.join(", "),
            self.links,
            self.serving,
            self.nodes,
            self.devices
        )
    }
}

/// Plans a node; nothing if none of the planned pools, by these names, concerns it.
pub(super) fn plan(facts: &Facts, node: &Node, catalog: &Catalog, names: &[String]) -> Option<NodePlan> {
    let name = node.name_any();
    let state = facts.state(&name)?;
    let status = state.status.clone().unwrap_or_default();
    let sent = sent_pools(node, state, catalog);
    let planned = |pool: &NodePool| names.contains(&pool.name);
    if !sent.iter().any(planned) && !state.spec.pools().iter().any(planned) {
        return None;
    }
    let inventory = links::inventory(&status);
    let holdings = holdings(state.spec.pools(), &status);
    let before = world(state.spec.pools().to_vec(), &inventory, &holdings).ok()?;
    let mut found = NodePlan {
        node: name,
        diagnostics: Vec::new(),
        unknown: Vec::new(),
        links: 0,
        devices: 0,
        losers: BTreeSet::new(),
    };
    match world(sent, &inventory, &holdings) {
        Err(problem) => found.diagnostics.push(
            Diagnostic::failed(format!("the agent could not serve it: {problem}")).because("NotSupported"),
        ),
        Ok(after) => {
            for name in names {
                taken(&mut found, &after, &inventory, name);
                unknown(&mut found, &after, &status, name);
            }
            lost(&mut found, &before, &after, &inventory, names);
        }
    }
    if status.observed_hash.is_none() {
        found.unknown.push(format!("node {} has not reported its links yet", found.node));
    }
    Some(found)
}

/// The pools that the operator would send to the node, once a staged rollout has reached it.
fn sent_pools(node: &Node, state: &MacvtapNodeState, catalog: &Catalog) -> Vec<NodePool> {
    let raw = serde_json::to_value(state).and_then(serde_json::from_value).unwrap_or_default();
    let known = KnownState::read(&raw, &mut Interner::default());
    let name = node.name_any();
    let target = Target {
        name: &name,
        labels: node.labels(),
        silent: false,
        current: Some(&known),
        seen_until: clock::now(),
    };
    render(target, catalog, |_| true).iter().map(|entry| NodePool::clone(entry)).collect()
}

fn world(pools: Vec<NodePool>, inventory: &Inventory, holdings: &Holdings) -> Result<World, String> {
    let pools: Result<Vec<Pool>, _> = pools.into_iter().map(Pool::compile).collect();
    let pools = pools.map_err(|error| macvtap_node_agent::error_chain(&error))?;
    let selection = selection::select(&pools, inventory, holdings);
    Ok(World { pools, selection })
}

/// Devices in use. The status counts them by pool: each link of such a pool is taken as one with devices in use.
fn holdings(entries: &[NodePool], status: &MacvtapNodeStateStatus) -> Holdings {
    let mut holdings = Holdings::new();
    for of_pool in status.pools.iter().filter(|pool| pool.allocated > 0) {
        let Some(entry) = entries.iter().find(|entry| entry.name == of_pool.name) else { continue };
        let Ok(pool) = Pool::compile(entry.clone()) else { continue };
        for (index, link) in (1..).zip(&status.links).filter(|(_, link)| of_pool.links.contains(&link.name)) {
            let resource = match &pool.naming {
                Naming::Fixed(resource) => Some(resource.clone()),
                Naming::AfterLink => link.name.parse().ok(),
            };
            if let Some(resource) = resource {
                let holding = Holding { resource, mode: pool.mode(), pool: Some(pool.name.clone()) };
                holdings.entry(index).or_default().push(holding);
            }
        }
    }
    holdings
}

impl World {
    fn index(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| pool.name == name)
    }

    fn links(&self, name: &str) -> &[u32] {
        self.index(name)
            .and_then(|index| self.selection.pools.get(index))
            .map_or(&[], |outcome| &outcome.links)
    }

    /// How many devices a pool would offer on so many links.
    fn devices(&self, name: &str) -> u32 {
        let Some(pool) = self.index(name).map(|index| &self.pools[index]) else { return 0 };
        let listed = match &pool.naming {
            Naming::Fixed(resource) => Some(offer::devices_max(resource)),
            Naming::AfterLink => None,
        };
        let per_node = pool.settings.per_node().into_iter().chain(listed).min();
        let shares = assignment::share(pool.settings.per_link(), per_node, self.links(name).len());
        shares.into_iter().map(|count| if pool.gives_nics() { count.min(1) } else { count }).sum()
    }
}

fn names_of(inventory: &Inventory, links: &[u32]) -> String {
    let names: Vec<&str> =
        links.iter().filter_map(|index| Some(inventory.get(*index)?.name.as_str())).collect();
    names.join(", ")
}

/// What a planned pool takes, and what it is refused.
fn taken(found: &mut NodePlan, after: &World, inventory: &Inventory, name: &str) {
    let Some(index) = after.index(name) else { return };
    let (pool, links) = (&after.pools[index], after.links(name));
    if let Some(owner) = after.selection.pools[index].name_taken_by {
        let fact = format!("pool {name}: pool {} has its resource name", after.pools[owner].name);
        let remedy = advice::of_node("ResourceNameTaken").unwrap_or_default();
        found
            .diagnostics
            .push(Diagnostic::failed(fact).because("ResourceNameTaken").remedy(remedy).see(anchor::NODES));
        return;
    }
    if links.is_empty() {
        let why = selection::why_empty(&after.pools, inventory, &after.selection, index).unwrap_or_default();
        let fact = format!("pool {name} would have no link: {why}");
        found.diagnostics.push(
            Diagnostic::failed(fact)
                .because("NoMatchingLink")
                .remedy("correct links of the pool")
                .see(anchor::NODES),
        );
        return;
    }
    let devices = after.devices(name);
    let verb = if pool.is_dry_run() { "would match (DryRun)" } else { "takes" };
    found.diagnostics.push(Diagnostic::ok(format!(
        "pool {name} {verb} {}: {devices} devices",
        names_of(inventory, links)
    )));
    found.links += links.len();
    found.devices = found.devices.saturating_add(devices);
    for outcome in after.selection.links.values() {
        for (_, refusal) in outcome.refusals.iter().filter(|(refused, _)| *refused == index) {
            let diagnostic =
                Diagnostic::warning(format!("pool {name} does not get a link: {}", refusal.message));
            found.diagnostics.push(diagnostic.because(refusal.reason.as_str()));
        }
    }
}

/// What other pools lose.
fn lost(found: &mut NodePlan, before: &World, after: &World, inventory: &Inventory, names: &[String]) {
    for pool in before.pools.iter().filter(|pool| !pool.draining) {
        let keeps = after.links(&pool.name);
        let lost: Vec<u32> =
            before.links(&pool.name).iter().filter(|link| !keeps.contains(link)).copied().collect();
        if lost.is_empty() {
            continue;
        }
        let (had, has) = (before.devices(&pool.name), after.devices(&pool.name));
        let fact = format!(
            "pool {} loses {}: {has} devices instead of {had}",
            pool.name,
            names_of(inventory, &lost)
        );
        let own = names.contains(&pool.name);
        let diagnostic =
            if keeps.is_empty() && !own { Diagnostic::failed(fact) } else { Diagnostic::warning(fact) };
        found.diagnostics.push(
            diagnostic
                .because("LostToPool")
                .remedy("give that pool a higher priority, or narrow links of the planned one"),
        );
        found.losers.insert(pool.name.clone());
    }
}

/// What the agent will know and the node state does not contain.
fn unknown(found: &mut NodePlan, after: &World, status: &MacvtapNodeStateStatus, name: &str) {
    let Some(index) = after.index(name) else { return };
    let (settings, node) = (&after.pools[index].settings, found.node.clone());
    let reported =
        |link: &u32| usize::try_from(*link).ok().and_then(|index| status.links.get(index.checked_sub(1)?));
    let taken: Vec<_> = after.links(name).iter().filter_map(reported).collect();
    let fresh: Vec<&str> =
        taken.iter().filter(|link| link.pools.is_empty()).map(|link| link.name.as_str()).collect();
    let has_groups = status.links.iter().any(|link| ["Bond", "Bridge", "Team"].contains(&link.kind.as_str()));
    let mut add = |text: String| found.unknown.push(text);
    if !fresh.is_empty() && (settings.takes_whole_links() || settings.exclude_default_route) {
        add(format!(
            "node {node}: whether the host itself uses {} (default route, address, link built on it); the pool would not get such a link",
            fresh.join(", ")
        ));
    }
    let ports: Vec<&str> = taken
        .iter()
        .filter(|link| link.pools.is_empty() && link.kind == "Physical")
        .map(|link| link.name.as_str())
        .collect();
    if has_groups && !ports.is_empty() {
        add(format!(
            "node {node}: whether {} is a port of a bond, bridge or team; the pool would not get such a link",
            ports.join(", ")
        ));
    }
    let named = |entry: &macvtap_crds::v1alpha1::LinkSelector| match &entry.kinds {
        Some(kinds) => {
            kinds.iter().any(|kind| !matches!(kind, LinkKind::Physical | LinkKind::Bond | LinkKind::Vlan))
        }
        None => entry.names.is_some() || entry.mac_addresses.is_some(),
    };
    if settings.links.iter().any(named) {
        add(format!("node {node}: links that are neither NIC, bond nor VLAN and that no pool matches yet"));
    }
    if status.truncated_links > 0 {
        add(format!("node {node}: {} links that its status has no room for", status.truncated_links));
    }
    if status.pools.iter().any(|pool| pool.allocated > 0 && pool.links.len() > 1) {
        add(format!(
            "node {node}: on which of a pool's links devices are in use; each is taken as if some were"
        ));
    }
}

#[cfg(test)]
mod tests;
