//! Pure: which pools a change of a node's state concerns.
//!
//! An edit of one pool changes the state of every node twice, and each of these changes would have all pools look at all
//! nodes.

use crate::node::SILENCE;
use crate::states::KnownState;
use jiff::Timestamp;
use macvtap_crds::v1alpha1::nodestate::POOLS_MAX;

/// A change of a node's state.
#[derive(Debug)]
pub struct Change<'c> {
    before: &'c KnownState,
    after: &'c KnownState,
    of_all: bool,
}

impl<'c> Change<'c> {
    /// From `before` to `after`.
    pub fn new(before: &'c KnownState, after: &'c KnownState, now: Timestamp) -> Self {
        let of_all = of_all(before, now) != of_all(after, now) || crowded(before) || crowded(after);
        Self { before, after, of_all }
    }

    /// Whether what is said of the pool may be another now. The passing of time is not a change: see [`Self::awaits`].
    pub fn concerns(&self, name: &str, uid: &str) -> bool {
        let Self { before, after, of_all } = self;
        let of_pool = |state: &KnownState| {
            let applied = state.entry(uid).map(|entry| state.applied_entry(entry));
            (state.entry(uid).cloned(), applied, state.pool(name).cloned())
        };
        *of_all || of_pool(before) != of_pool(after)
    }

    /// Whether the node's agent has something to answer now: if it does not, each of its pools will say so.
    pub fn awaits(&self) -> bool {
        !self.after.applied()
    }
}

/// What every pool looks at.
fn of_all(state: &KnownState, now: Timestamp) -> impl PartialEq {
    let deadline = state.unanswered_since.and_then(|since| since.checked_add(SILENCE).ok());
    let is_unheard = !state.applied() && deadline.is_some_and(|deadline| deadline <= now);
    let entries: Vec<_> =
        state.pools.iter().map(|entry| (entry.uid.clone(), entry.name.clone(), entry.phase)).collect();
    let trouble = (state.unreadable.clone(), state.spec_unreadable, state.status_unreadable);
    // What cannot be read of a status matters once the spec is applied.
    let applied = state.status_unreadable && state.applied();
    let answers = (state.answered(), state.explains_unready());
    (is_unheard, answers, entries, trouble, applied, state.owner.clone())
}

/// Whether a pool may be waiting for room that others take.
fn crowded(state: &KnownState) -> bool {
    state.pools.len() >= POOLS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::entry::config_hash;
    use crate::entry::entry_of;
    use crate::node::NodeView;
    use crate::pool::assess::{Subject, assess};
    use crate::rollout::Grants;
    use crate::states::{KnownPool, KnownStatus, Verdict};
    use crate::testing::{at, node, pool};
    use macvtap_crds::v1alpha1::MacvtapResourcePool;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const NOW: i64 = 10_000;
    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn pools() -> Vec<MacvtapResourcePool> {
        let staged = json!({"rollout": {"type": "Staged"}});
        NAMES.iter().map(|name| pool(name, if *name == "c" { staged.clone() } else { json!({}) })).collect()
    }

    /// How one pool stands in a state.
    #[derive(Clone, Debug)]
    struct PoolPart {
        in_spec: Option<(i64, bool)>,
        in_status: Option<(i64, u32, bool)>,
    }

    fn part() -> impl Strategy<Value = PoolPart> {
        let in_spec = prop::option::weighted(0.8, (1i64..3, prop::bool::weighted(0.2)));
        let in_status = prop::option::weighted(0.8, (1i64..3, 0u32..2, any::<bool>()));
        (in_spec, in_status).prop_map(|(in_spec, in_status)| PoolPart { in_spec, in_status })
    }

    prop_compose! {
        fn state()(
            parts in prop::collection::vec(part(), NAMES.len()),
            seconds_ago in prop::sample::select(vec![1i64, 200]),
            observed in prop::option::weighted(0.9, any::<bool>()),
            unreadable in prop::bool::weighted(0.1),
        ) -> KnownState {
            build(&parts, seconds_ago, observed, unreadable)
        }
    }

    fn build(parts: &[PoolPart], seconds_ago: i64, observed: Option<bool>, unreadable: bool) -> KnownState {
        let all = pools();
        let entries = parts.iter().zip(&all).filter_map(|(part, pool)| {
            let (generation, draining) = part.in_spec?;
            let mut pool = pool.clone();
            pool.metadata.generation = Some(generation);
            let entry = Arc::new(entry_of(&pool));
            Some(if draining { entry.draining() } else { entry })
        });
        let pools: Vec<_> = entries.collect();
        let of_status = parts.iter().zip(NAMES).filter_map(|(part, name)| {
            let (generation, allocatable, holds) = part.in_status?;
            let verdict = Verdict { holds, reason: "Serving".into(), message: "".into() };
            let ready = Some(verdict);
            Some(KnownPool { name: name.into(), generation, allocatable, ready, ..KnownPool::default() })
        });
        let config_hash = config_hash(&pools);
        let hash = observed.map(|current| if current { config_hash.clone() } else { "other".to_owned() });
        KnownState {
            name: "n1".to_owned(),
            unanswered_since: (observed != Some(true)).then(|| at(NOW - seconds_ago).0),
            status: Some(KnownStatus {
                observed_hash: hash,
                pools: of_status.collect(),
                ..KnownStatus::default()
            }),
            unreadable: unreadable.then(|| "odd".to_owned()),
            status_unreadable: unreadable,
            config_hash,
            pools,
            ..KnownState::default()
        }
    }

    fn said(pool: &MacvtapResourcePool, catalog: &Catalog, state: &KnownState) -> String {
        let node = NodeView {
            node: Arc::new(node("n1", BTreeMap::new())),
            state: Some(Arc::new(state.clone())),
            not_ready_since: None,
            agent_down: None,
            now: at(NOW).0,
            runs_agent: false,
            unstarted_since: None,
            seen_until: at(NOW).0,
        };
        let grants = Grants::default();
        let subject = Subject::new(pool, catalog, &grants);
        let said = assess(&subject, &node);
        let said = said.map(|a| (a.sent, a.obstacle, a.standing, a.ready, a.sample, a.status.cloned()));
        format!("{said:?}")
    }

    proptest! {
        #[test]
        fn of_a_pool_that_a_change_does_not_concern_the_same_is_said(before in state(), after in state()) {
            let pools = pools();
            let catalog = Catalog::new(pools.iter());
            let change = Change::new(&before, &after, at(NOW).0);
            for pool in &pools {
                let (name, uid) = (pool.metadata.name.as_deref().unwrap(), pool.metadata.uid.as_deref().unwrap());
                if !change.concerns(name, uid) {
                    prop_assert_eq!(said(pool, &catalog, &before), said(pool, &catalog, &after));
                }
            }
        }
    }

    #[test]
    fn an_edit_of_a_pool_and_its_answer_concern_that_pool_alone() {
        let part = |generation, answered| PoolPart {
            in_spec: Some((generation, false)),
            in_status: Some((answered, 1, true)),
        };
        let others = [part(1, 1), part(1, 1)];
        let with =
            |first: PoolPart, observed| build(&[&[first], &others[..]].concat(), 1, Some(observed), false);
        let states = [with(part(1, 1), true), with(part(2, 1), false), with(part(2, 2), true)];
        for step in states.windows(2) {
            let change = Change::new(&step[0], &step[1], at(NOW).0);
            let concerned = NAMES.map(|name| change.concerns(name, &format!("uid-{name}")));
            assert_eq!(concerned, [true, false, false]);
            assert_eq!(change.awaits(), !step[1].applied());
        }
    }

    #[test]
    fn an_answer_after_a_long_silence_concerns_every_pool() {
        let part = PoolPart { in_spec: Some((1, false)), in_status: Some((1, 1, true)) };
        let parts = [part.clone(), part.clone(), part];
        let (silent, heard) = (build(&parts, 200, Some(false), false), build(&parts, 200, Some(true), false));
        let change = Change::new(&silent, &heard, at(NOW).0);
        assert!(NAMES.iter().all(|name| change.concerns(name, &format!("uid-{name}"))));
    }
}
