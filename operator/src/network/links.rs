//! Pure: the links that nodes report for pools with `resourcePer: Link`.

use crate::states::{KnownPool, KnownState};
use jiff::Timestamp;
use macvtap_crds::v1alpha1::reason::NodePoolReason;
use std::collections::BTreeSet;

/// Returns the resources that nodes report for the pool with this name and UID, and whether these are all: a node that
/// has the pool may have more links than its state shows now.
pub fn link_resources<'s>(
    states: impl Iterator<Item = &'s KnownState>,
    pool: &str,
    uid: &str,
    now: Timestamp,
) -> (BTreeSet<String>, bool) {
    let (mut resources, mut is_complete) = (BTreeSet::new(), true);
    for state in states {
        is_complete &= shows_links(state, pool, uid, now);
        resources.extend(state.pool(pool).iter().flat_map(|pool| &pool.resources).map(ToString::to_string));
    }
    (resources, is_complete)
}

/// Whether the state shows all links that the node has for the pool. After a status was removed, and while the agent does
/// not report the pool, links are where they were.
fn shows_links(state: &KnownState, pool: &str, uid: &str, now: Timestamp) -> bool {
    if state.entry(uid).is_none() && !state.spec_unreadable {
        return true;
    }
    if !state.answered() {
        return !state.was_answered(now);
    }
    !state.status_unreadable && state.pool(pool).is_some_and(|pool| !is_refused(pool))
}

/// Whether the agent cannot serve the pool as its spec has it: it may still serve it with former settings.
fn is_refused(pool: &KnownPool) -> bool {
    pool.ready.as_ref().is_some_and(|ready| &*ready.reason == NodePoolReason::NotSupported.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::entry_of;
    use crate::states::{KnownStatus, Verdict};
    use crate::testing::pool;
    use serde_json::json;
    use std::sync::Arc;

    /// A state whose agent has answered and reports these pools, each with the link eth0.
    fn reporting(pools: &[&str]) -> KnownState {
        let reported = |name: &&str| KnownPool {
            name: (*name).into(),
            resources: vec!["eth0".into()],
            ..KnownPool::default()
        };
        let status = KnownStatus {
            observed_hash: Some("h".to_owned()),
            pools: pools.iter().map(reported).collect(),
            ..KnownStatus::default()
        };
        let entry = Arc::new(entry_of(&pool("dp", json!({"resourcePer": "Link"}))));
        KnownState { pools: vec![entry], status: Some(status), ..KnownState::default() }
    }

    fn links(states: &[&KnownState]) -> (BTreeSet<String>, bool) {
        link_resources(states.iter().copied(), "dp", "uid-dp", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn links_of_a_node_whose_status_was_removed_are_unknown_and_not_gone() {
        let reports = reporting(&["dp"]);
        let since = Some(Timestamp::UNIX_EPOCH);
        let new = KnownState { status: None, ..reports.clone() };
        let silenced = KnownState { answer_missing_since: since, ..new.clone() };
        let eth0 = BTreeSet::from(["eth0".to_owned()]);
        assert_eq!(links(&[&reports, &new]), (eth0.clone(), true));
        assert_eq!(links(&[&reports, &silenced]), (eth0, false));
        assert_eq!(links(&[&silenced]), (BTreeSet::new(), false));
        let elsewhere = KnownState { pools: Vec::new(), ..silenced };
        assert_eq!(links(&[&elsewhere]), (BTreeSet::new(), true), "the node does not have the pool");
    }

    #[test]
    fn links_of_a_pool_that_the_agent_does_not_report_are_unknown_and_not_gone() {
        let reports = reporting(&["dp"]);
        assert!(links(&[&reports]).1);
        assert!(!links(&[&reporting(&[])]).1, "the agent has not come to it");
        let unreadable = KnownState { status_unreadable: true, ..reports.clone() };
        assert!(!links(&[&unreadable]).1);
        let unreadable = KnownState { pools: Vec::new(), spec_unreadable: true, ..reporting(&[]) };
        assert!(!links(&[&unreadable]).1);
        let mut refused = reports;
        let ready = Verdict { holds: false, reason: "NotSupported".into(), message: "".into() };
        refused.status.as_mut().unwrap().pools[0].ready = Some(ready);
        assert!(!links(&[&refused]).1);
    }
}
