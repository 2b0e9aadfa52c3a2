//! Pure but for `apply`: what each node should offer, from pools and nodes to node states.

pub mod apply;
pub mod render;

use crate::catalog::Catalog;
use crate::entry::config_hash;
use crate::rollout::Grants;
use crate::states::{KnownState, Spec};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

/// What a node's spec depends on.
#[derive(Debug)]
pub struct Snapshot<'s> {
    /// The Node.
    pub node: &'s Node,
    /// Its state as it is known, with what was written last.
    pub current: Option<&'s KnownState>,
    /// The state that it had until it was deleted, if it has none.
    pub deleted: Option<&'s KnownState>,
    /// Whether its agent is unreachable.
    pub silent: bool,
    /// All pools.
    pub catalog: &'s Catalog,
    /// The turns that were given in staged rollouts.
    pub grants: &'s Grants,
    /// The time, by the operator's own clock.
    pub now: Timestamp,
}

/// Decides which spec must be written, if any.
pub fn decide(snapshot: &Snapshot<'_>) -> Option<Spec> {
    let Snapshot { node, current, deleted, silent, catalog, grants, now } = *snapshot;
    // Pods may run on a Node that is being deleted, so it hears of drains and changes as long as it has a state. A new one
    // would be deleted again where what depends on a Node is deleted before it.
    if node.metadata.deletion_timestamp.is_some() && current.is_none() {
        return None;
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    // What pods use they use on, whatever becomes of the state: a new one begins with what the node had.
    let before = current.or(deleted);
    let target = render::Target { name, labels: node.labels(), silent, current: before, now };
    let entries = render::render(target, catalog, |pool| grants.has(&pool.entry, name));
    let spec = Spec {
        owner: node.metadata.uid.clone(),
        config_hash: config_hash(&entries),
        pools: entries,
        // A spec that the agent can read stays as it is, full or brief, until something else changes.
        form: before.map(KnownState::reads).unwrap_or_default(),
    };
    (!current.is_some_and(|current| current.is_as(&spec))).then_some(spec)
}
