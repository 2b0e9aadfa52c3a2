//! Pure: pools and a node to the spec of its node state.

use crate::catalog::{ActivePool, Catalog};
use crate::entry::Entry;
use crate::states::KnownState;
use jiff::Timestamp;
use macvtap_crds::v1alpha1::NodePool;
use macvtap_crds::v1alpha1::nodestate::{POOLS_MAX, PoolPhase};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node as far as its spec depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    /// Its name.
    pub name: &'t str,
    /// Its labels.
    pub labels: &'t BTreeMap<String, String>,
    /// Whether its agent is unreachable, so that pools being deleted need not wait for it.
    pub silent: bool,
    /// Its state, or the one that it had until it was deleted.
    pub current: Option<&'t KnownState>,
    /// Until when the watch has surely shown every answer, by the operator's own clock.
    pub seen_until: Timestamp,
}

/// What the node should offer, given what it was sent before. `granted` says whether it is the node's turn to get a
/// staged pool as it is now.
///
/// What was sent of a pool that cannot be read stays as it is.
///
/// An entry that is no longer wanted stays as Draining until the node says that no device of it is in use, whether its
/// pool was deleted, changed, or lost its acceptance.
pub fn render(node: Target<'_>, catalog: &Catalog, granted: impl Fn(&ActivePool) -> bool) -> Vec<Arc<Entry>> {
    let before = node.current.map_or(&[][..], |state| &state.pools);
    let selected = catalog.active.iter().filter(|pool| pool.nodes.selects(node.labels));
    let mut wanted: Vec<(usize, Arc<Entry>)> =
        selected.filter_map(|pool| Some((pool.age, sent(pool, before, &granted)?))).collect();
    // The order is what a priority comes to, so one that is not the node's turn yet must not change it either.
    wanted.sort_by_key(|(age, entry)| (Reverse(entry.settings.priority), *age));
    let wanted: Vec<Arc<Entry>> = wanted.into_iter().map(|(_, entry)| entry).collect();
    let frozen: Vec<&Arc<Entry>> = before.iter().filter(|old| catalog.frozen(&old.uid)).collect();
    let mut draining: Vec<Arc<Entry>> = before
        .iter()
        .filter(|old| !catalog.frozen(&old.uid))
        .filter(|old| !wanted.iter().any(|new| new.uid == old.uid))
        .filter(|old| !node.current.is_some_and(|state| drained(state, old, node.seen_until)))
        .filter(|old| !(node.silent && catalog.released(&old.uid, node.name)))
        .map(Entry::draining)
        .collect();
    // A pool recreated under an old name, or with an old resource name, waits for the old one's last device.
    let taken = |new: &Entry| {
        draining
            .iter()
            .chain(frozen.iter().copied())
            .any(|old| old.name == new.name || (old.resource().is_some() && old.resource() == new.resource()))
    };
    let mut entries: Vec<_> = wanted.into_iter().filter(|new| !taken(new)).collect();
    let room = POOLS_MAX.saturating_sub(frozen.len());
    let held: Vec<&Arc<Entry>> = before
        .iter()
        .filter(|old| !node.current.is_some_and(|state| drained(state, old, node.seen_until)))
        .collect();
    fit(room, &mut entries, &mut draining, &held);
    // From the last, so that those of one priority stay in their order.
    for old in frozen.into_iter().rev() {
        let rank = |entry: &Arc<Entry>| entry.settings.priority > old.settings.priority;
        entries.insert(entries.iter().take_while(|entry| rank(entry)).count(), Arc::clone(old));
    }
    entries.extend(draining);
    entries
}

/// Whether it makes a difference to the node that it is its turn to hear of a staged pool. None while it has no room for
/// the pool and could not make any.
pub fn turn_matters(
    node: Target<'_>,
    catalog: &Catalog,
    staged: &ActivePool,
    granted: impl Fn(&ActivePool) -> bool,
) -> bool {
    let sent = |turn: bool| {
        render(node, catalog, |pool| if pool.entry.uid == staged.entry.uid { turn } else { granted(pool) })
    };
    sent(true) != sent(false)
}

/// Keeps to so many entries. The last in precedence go; one that the node still holds goes by draining, and until it
/// has, those that the node does not have yet wait.
fn fit(room: usize, entries: &mut Vec<Arc<Entry>>, draining: &mut Vec<Arc<Entry>>, held: &[&Arc<Entry>]) {
    let over = (entries.len() + draining.len()).saturating_sub(room);
    let has = |entry: &Entry| held.iter().find(|old| old.uid == entry.uid);
    let cut = entries.split_off(entries.len().saturating_sub(over));
    draining.extend(cut.iter().filter_map(|entry| has(entry)).map(|old| old.draining()));
    let mut over = (entries.len() + draining.len()).saturating_sub(room);
    while let Some(last) = entries.iter().rposition(|entry| over > 0 && has(entry).is_none()) {
        entries.remove(last);
        over -= 1;
    }
}

/// Whether the node holds no device of this entry any more: its agent has applied the drain and reports none, or has not
/// answered for so long that it never got the entry. One that answered not long ago and reports nothing now, because its
/// status was removed or its spec cannot be read, holds what it held.
pub fn drained(state: &KnownState, entry: &NodePool, seen_until: Timestamp) -> bool {
    let is_free = if state.answered() {
        state.applied()
            && !state.status_unreadable
            && state.pool(&entry.name).is_none_or(|pool| pool.allocated == 0)
    } else {
        state.drains_given_up_in(seen_until).is_some_and(|wait| wait.is_zero())
    };
    entry.phase == PoolPhase::Draining && is_free
}

/// What a node is sent of a pool that it should have: an edit that no node needs to know changes nothing, and one that
/// is not the node's turn yet changes nothing either.
fn sent(
    pool: &ActivePool,
    before: &[Arc<Entry>],
    granted: &impl Fn(&ActivePool) -> bool,
) -> Option<Arc<Entry>> {
    match before.iter().find(|old| old.uid == pool.entry.uid) {
        Some(old) if old.says_the_same(&pool.entry) => Some(Arc::clone(old)),
        old if pool.staged && !granted(pool) => old.cloned(),
        _ => Some(Arc::clone(&pool.entry)),
    }
}

#[cfg(test)]
mod tests;
