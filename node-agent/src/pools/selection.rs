//! Which pool gets which link: a pure function of links, pools and what is in use.
//!
//! Pools choose in the order they are given. A link with devices in use stays with its pool, whatever the order says,
//! until the last of them is free.

mod obstacles;

use crate::links::inventory::Inventory;
use crate::links::link::{Kind, Link};
use crate::pools::pool::{Naming, Pool};
use macvtap::device_id::ResourceName;
use macvtap::mode::Mode;
use macvtap_crds::v1alpha1::reason::LinkReason;
use std::collections::{BTreeMap, BTreeSet};

pub use obstacles::{host_device_obstacle, macvtap_obstacle, obstacle, tie};

/// So many links are named where a pool has none.
const REASONS_MAX: usize = 16;

/// Devices in use, by the index of their lower link.
pub type Holdings = BTreeMap<u32, Vec<Holding>>;

/// A resource that has devices in use on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The resource.
    pub resource: ResourceName,
    /// The mode of these devices.
    pub mode: Mode,
    /// Name of the pool that had the resource last, if that is known.
    pub pool: Option<String>,
}

/// Who gets what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// What each resource is made of.
    pub resources: BTreeMap<ResourceName, Claim>,
    /// Every link of the node, by index.
    pub links: BTreeMap<u32, Outcome>,
    /// Every pool, in the order they were given.
    pub pools: Vec<PoolOutcome>,
}

/// The links of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The pool, as its place in the order.
    pub pool: usize,
    /// Indexes of its links, ascending.
    pub links: Vec<u32>,
}

/// What became of one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The pools that have it, as places in the order.
    pub pools: Vec<usize>,
    /// Why the pools that match it do not have it.
    pub refusals: Vec<(usize, Refusal)>,
}

/// Why a pool does not have a link it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One stable word.
    pub reason: LinkReason,
    /// With particulars, for people.
    pub message: String,
}

/// What became of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolOutcome {
    /// Indexes of the links it has, or would have (dry run).
    pub links: Vec<u32>,
    /// Indexes of links it matches and another pool has.
    pub contested: Vec<u32>,
    /// Pools that match a link it has, as places in the order.
    pub contenders: BTreeSet<usize>,
    /// The pool that has its resource name, if it is not the first one to ask for it.
    pub name_taken_by: Option<usize>,
}

/// Decides for all links.
pub fn select(pools: &[Pool], inventory: &Inventory, held: &Holdings) -> Selection {
    let mut selection =
        Selection { pools: vec![PoolOutcome::default(); pools.len()], ..Selection::default() };
    let mut names = reserved_names(pools, &mut selection.pools);
    for link in inventory.iter() {
        let holdings = held.get(&link.ifindex).map_or(&[][..], Vec::as_slice);
        let outcome = decide(pools, inventory, link, holdings, &mut names, &selection.pools);
        for &pool in &outcome.pools {
            selection.record(pool, &pools[pool], link);
            let others = outcome.refusals.iter().filter(|(_, r)| r.reason == LinkReason::LostToPool);
            selection.pools[pool].contenders.extend(others.map(|(other, _)| *other));
        }
        for (pool, refusal) in &outcome.refusals {
            if refusal.reason == LinkReason::LostToPool {
                selection.pools[*pool].contested.push(link.ifindex);
            }
        }
        dry_run(pools, inventory, link, &outcome, &mut selection.pools);
        selection.links.insert(link.ifindex, outcome);
    }
    selection
}

/// Why a pool has no link, for people; nothing when it has one.
pub fn why_empty(
    pools: &[Pool],
    inventory: &Inventory,
    selection: &Selection,
    index: usize,
) -> Option<String> {
    if selection.pools.get(index).is_none_or(|outcome| !outcome.links.is_empty()) {
        return None;
    }
    let refusals = selection.links.values().flat_map(|outcome| &outcome.refusals);
    let ours = refusals.filter(|(pool, _)| *pool == index);
    let mut reasons: Vec<String> =
        ours.map(|(_, refusal)| format!("{} ({})", refusal.message, refusal.reason)).collect();
    let by_kind = pools.get(index).is_some_and(|pool| pool.naming == Naming::AfterLink);
    if reasons.is_empty() && by_kind {
        // Nobody named a link, so each that could be meant deserves an answer. Pods' links come and go with every pod.
        let links = inventory.iter().filter(|link| !is_of_pods(link) && link.kind != Kind::Loopback);
        reasons.extend(links.map(|link| {
            let kind = if link.kind.rtnetlink().is_empty() {
                link.kind.api().as_str()
            } else {
                link.kind.rtnetlink()
            };
            format!("{} is {kind} ({})", link.name, LinkReason::KindNotSupported)
        }));
    }
    if reasons.is_empty() {
        let has_any =
            inventory.iter().any(|link| matches!(link.kind, Kind::Physical | Kind::Bond | Kind::Vlan));
        let why = if has_any { "" } else { ": it has neither a NIC nor a bond or VLAN" };
        return Some(format!(
            "no link of this node matches{why}; `macvtap-node-agent links` lists every link with the reason"
        ));
    }
    let more = reasons.len().saturating_sub(REASONS_MAX);
    reasons.truncate(REASONS_MAX);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    Some(reasons.join("; "))
}

/// Whether the link is of a kind that the networks of pods are made of on a node.
pub fn is_of_pods(link: &Link) -> bool {
    match &link.kind {
        Kind::Veth | Kind::Macvlan | Kind::Macvtap => true,
        Kind::Other(kind) => matches!(kind.as_str(), "netkit" | "ipvlan" | "ipvtap"),
        Kind::Physical
        | Kind::Bond
        | Kind::Vlan
        | Kind::Dummy
        | Kind::Bridge
        | Kind::Team
        | Kind::Loopback
        | Kind::NotEthernet(_) => false,
    }
}

impl Selection {
    fn record(&mut self, index: usize, pool: &Pool, link: &Link) {
        self.pools[index].links.push(link.ifindex);
        if let Ok(resource) = pool.resource_for(link) {
            let claim = self.resources.entry(resource).or_insert(Claim { pool: index, links: Vec::new() });
            claim.links.push(link.ifindex);
        }
    }
}

/// Names of resources, each with the pool that has it. A pool's own name counts before any link's.
fn reserved_names(pools: &[Pool], outcomes: &mut [PoolOutcome]) -> BTreeMap<ResourceName, usize> {
    let mut names = BTreeMap::new();
    for (index, pool) in pools.iter().enumerate() {
        if let Naming::Fixed(name) = &pool.naming {
            let owner = *names.entry(name.clone()).or_insert(index);
            outcomes[index].name_taken_by = Some(owner).filter(|owner| *owner != index);
        }
    }
    names
}

fn decide(
    pools: &[Pool],
    inventory: &Inventory,
    link: &Link,
    holdings: &[Holding],
    names: &mut BTreeMap<ResourceName, usize>,
    outcomes: &[PoolOutcome],
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut eligible: Vec<(usize, bool)> = Vec::new();
    // Of pools that name resources after links, the one whose devices are in use keeps the name.
    for holding in holdings {
        let had = pools.iter().position(|pool| holding.pool.as_ref() == Some(&pool.name));
        let had = had.filter(|index| !pools[*index].is_dry_run() && outcomes[*index].name_taken_by.is_none());
        let has = had.filter(|index| {
            let resource = consider(&pools[*index], inventory, link).and_then(Result::ok);
            resource.as_ref() == Some(&holding.resource)
        });
        if let Some(index) = has {
            names.entry(holding.resource.clone()).or_insert(index);
        }
    }
    for (index, pool) in pools.iter().enumerate() {
        if pool.is_dry_run() || outcomes[index].name_taken_by.is_some() {
            continue;
        }
        let holds = |pool: &Pool| {
            let resource = pool.resource_for(link).ok();
            holdings.iter().any(|holding| Some(&holding.resource) == resource.as_ref())
        };
        match consider(pool, inventory, link) {
            None => {}
            Some(Err(refusal)) => outcome.refusals.push((index, refusal)),
            Some(Ok(_)) if pool.draining && !holds(pool) => outcome.refusals.push((index, draining(pool))),
            Some(Ok(resource)) => {
                let owner = *names.entry(resource).or_insert(index);
                if owner == index {
                    eligible.push((index, holds(pool)));
                } else {
                    outcome.refusals.push((index, name_taken(link, &pools[owner])));
                }
            }
        }
    }
    // Who has devices in use comes first; among those, and after them, the given order.
    eligible.sort_by_key(|(_, holds)| !holds);
    share_out(pools, link, holdings, &eligible, &mut outcome);
    outcome
}

fn share_out(
    pools: &[Pool],
    link: &Link,
    holdings: &[Holding],
    eligible: &[(usize, bool)],
    outcome: &mut Outcome,
) {
    let has = |index: usize, holding: &Holding| {
        pools[index].resource_for(link).is_ok_and(|resource| resource == holding.resource)
    };
    // Devices in use whose pool is gone, or no longer matches: nobody else's until they are free.
    let orphan = holdings.iter().find(|holding| !eligible.iter().any(|(index, _)| has(*index, holding)));
    for &(index, _) in eligible {
        let pool = &pools[index];
        let foreign_passthru =
            holdings.iter().find(|holding| holding.mode == Mode::Passthru && !has(index, holding));
        let blocked = orphan.filter(|_| !pool.shares()).or(foreign_passthru);
        match outcome.pools.first() {
            _ if blocked.is_some() => {
                let resource = blocked.map(|holding| holding.resource.to_string()).unwrap_or_default();
                let message = format!(
                    "devices of resource {resource} on {} are in use; their pods must end first",
                    link.name
                );
                outcome.refusals.push((index, Refusal { reason: LinkReason::LostToPool, message }));
            }
            None => outcome.pools.push(index),
            Some(&first) if pools[first].shares() && pool.shares() => outcome.pools.push(index),
            Some(&first) => outcome.refusals.push((index, lost(link, &pools[first]))),
        }
    }
}

/// What a pool says of a link, were it alone: nothing, when it does not match.
fn consider(pool: &Pool, inventory: &Inventory, link: &Link) -> Option<Result<ResourceName, Refusal>> {
    let refuse = |reason, message| Some(Err(Refusal { reason, message }));
    if !pool.selects(link) {
        return None;
    }
    if pool.excludes(link) {
        return refuse(LinkReason::Excluded, format!("pool {} excludes {}", pool.name, link.name));
    }
    let obstacle = if pool.gives_nics() {
        obstacles::not_a_nic(inventory, link).or_else(|| obstacle(inventory, link))
    } else {
        macvtap_obstacle(inventory, link)
    };
    if let Some(refusal) = obstacle {
        return Some(Err(refusal));
    }
    if pool.settings.exclude_default_route && inventory.has_default_route(link.ifindex) {
        return refuse(LinkReason::DefaultRoute, format!("a default route of the node uses {}", link.name));
    }
    let tie = if pool.settings.takes_whole_links() { tie(inventory, link) } else { None };
    if let Some(refusal) = tie {
        return Some(Err(refusal));
    }
    match pool.resource_for(link) {
        Ok(resource) => Some(Ok(resource)),
        Err(error) => refuse(LinkReason::NameNotUsable, error.to_string()),
    }
}

/// A dry run takes nothing from anybody; it reports what it would have.
fn dry_run(
    pools: &[Pool],
    inventory: &Inventory,
    link: &Link,
    outcome: &Outcome,
    outcomes: &mut [PoolOutcome],
) {
    for (index, pool) in pools.iter().enumerate().filter(|(_, pool)| pool.is_dry_run()) {
        if !matches!(consider(pool, inventory, link), Some(Ok(_))) {
            continue;
        }
        let free = outcome.pools.iter().all(|other| pools[*other].shares() && pool.shares());
        let list = if free { &mut outcomes[index].links } else { &mut outcomes[index].contested };
        list.push(link.ifindex);
    }
}

fn lost(link: &Link, winner: &Pool) -> Refusal {
    Refusal { reason: LinkReason::LostToPool, message: format!("pool {} has {}", winner.name, link.name) }
}

fn draining(pool: &Pool) -> Refusal {
    Refusal { reason: LinkReason::Draining, message: format!("pool {} is being deleted", pool.name) }
}

fn name_taken(link: &Link, owner: &Pool) -> Refusal {
    let message = format!("pool {} has the resource name {}", owner.name, link.name);
    Refusal { reason: LinkReason::NameNotUsable, message }
}

#[cfg(test)]
pub(crate) mod tests;
