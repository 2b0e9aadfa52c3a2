//! Staged rollouts: whose turn it is to hear of a change.
//!
//! What a node was told stands in its state, so a new leader needs nothing from the former one. Only turns that were
//! given and not written yet are kept in memory: losing them costs a smaller batch.

use crate::node_state::entry::Entry;
use crate::pool::assess::Standing;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use macvtap_crds::v1alpha1::pool::Staged;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A node that the pool selects.
#[derive(Clone, Copy, Debug)]
pub struct Member<'m> {
    /// Its name.
    pub node: &'m str,
    /// Whether its spec has the pool as it is now.
    pub told: bool,
    /// Whether it is its turn.
    pub granted: bool,
    /// Whether it could do nothing with its turn: it has no room for the pool, or another one of its name.
    pub is_blocked: bool,
    /// How it stands.
    pub standing: Standing,
}

impl Member<'_> {
    /// Whether it can hear of the change.
    fn can_hear(&self) -> bool {
        self.standing != Standing::Unreachable && !self.is_blocked
    }
}

/// How a staged rollout goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whose turn it is now, besides those whose it was.
    pub next: Vec<String>,
    /// Everybody whose turn it is: those, and who had it before and was not told yet.
    pub turns: Vec<String>,
    /// How many of the changed nodes are not well, if that stops the rollout.
    pub halted: Option<usize>,
    /// How many nodes have not heard of the change.
    pub waiting: usize,
}

/// Gives the next nodes their turn, in the order of their names, once all before them have applied the change and are
/// well, except for as many as may be degraded. A node that does not answer gets its turn when it does: what it was
/// told is not why it is silent; and one that could do nothing with it gets it when it can. A turn ends when the node
/// was told, cannot be told or is not meant any more: one that comes back later waits like others.
pub fn plan<'m>(members: impl Iterator<Item = Member<'m>>, staged: &Staged) -> Plan {
    let (mut all, mut bad, mut busy) = (0, 0, 0);
    let mut waiting = Vec::new();
    let mut plan = Plan::default();
    for member in members {
        all += 1;
        match (member.told, member.standing) {
            (true, Standing::Ready | Standing::WithoutLinks) => {}
            (true, Standing::Updating) => busy += 1,
            (true, Standing::Degraded | Standing::NotReady | Standing::Unreachable) => bad += 1,
            (false, _) if member.granted && member.can_hear() => {
                busy += 1;
                plan.turns.push(member.node.to_owned());
            }
            (false, _) => waiting.push(member),
        }
    }
    plan.waiting = waiting.len();
    if waiting.is_empty() {
        return plan;
    }
    if bad > usize::try_from(staged.max_degraded).unwrap_or(usize::MAX) {
        plan.halted = Some(bad);
    } else if busy == 0 {
        waiting.retain(Member::can_hear);
        waiting.sort_unstable_by_key(|member| member.node);
        let next = waiting.iter().take(batch(&staged.batch, all));
        plan.next = next.map(|member| member.node.to_owned()).collect();
        plan.turns.extend(plan.next.iter().cloned());
    }
    plan
}

/// How many of so many nodes change together: at least one.
fn batch(batch: &IntOrString, all: usize) -> usize {
    let nodes = match batch {
        IntOrString::Int(nodes) => usize::try_from(*nodes).ok(),
        IntOrString::String(share) => share
            .strip_suffix('%')
            .and_then(|share| share.parse().ok())
            .map(|share: usize| all.saturating_mul(share.min(100)).div_ceil(100)),
    };
    nodes.unwrap_or(1).max(1)
}

/// The turns that were given.
#[derive(Debug, Default)]
pub struct Grants {
    pools: Mutex<HashMap<String, Granted>>,
}

#[derive(Debug)]
struct Granted {
    entry: Arc<Entry>,
    nodes: HashSet<String>,
}

impl Grants {
    /// From now on it is these nodes' turn to hear this, and nobody else's to hear anything of the pool.
    pub fn set(&self, entry: &Arc<Entry>, nodes: impl IntoIterator<Item = String>) {
        let nodes: HashSet<String> = nodes.into_iter().collect();
        let mut pools = self.lock();
        if nodes.is_empty() {
            pools.remove(&entry.uid);
        } else {
            pools.insert(entry.uid.clone(), Granted { entry: Arc::clone(entry), nodes });
        }
    }

    /// Whether it is the node's turn to hear this.
    pub fn has(&self, entry: &Entry, node: &str) -> bool {
        let pools = self.lock();
        pools
            .get(&entry.uid)
            .is_some_and(|granted| granted.entry.says_the_same(entry) && granted.nodes.contains(node))
    }

    /// The nodes whose turn it is to hear this.
    pub fn given(&self, entry: &Entry) -> HashSet<String> {
        let pools = self.lock();
        let granted = pools.get(&entry.uid).filter(|granted| granted.entry.says_the_same(entry));
        granted.map(|granted| granted.nodes.clone()).unwrap_or_default()
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Forgets every pool that is not one of these.
    pub fn retain(&self, uids: &HashSet<&str>) {
        self.lock().retain(|uid, _| uids.contains(uid.as_str()));
    }

    /// Forgets everything: another operator leads.
    pub fn forget_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Granted>> {
        // Sets of names are whole at any time, also after a panic elsewhere.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_state::render::entry_of;
    use crate::testing::pool;
    use Standing::{Degraded, NotReady, Ready, Unreachable, Updating};
    use proptest::prelude::*;
    use serde_json::json;

    fn staged(batch: IntOrString, max_degraded: u32) -> Staged {
        Staged { batch, max_degraded }
    }

    fn member(node: &'static str, told: bool, standing: Standing) -> Member<'static> {
        Member { node, told, granted: false, is_blocked: false, standing }
    }

    fn next(members: &[Member<'static>], staged: &Staged) -> Plan {
        plan(members.iter().copied(), staged)
    }

    fn turn(nodes: &[&str], waiting: usize) -> Plan {
        let next: Vec<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        Plan { turns: next.clone(), next, halted: None, waiting }
    }

    #[test]
    fn the_first_batch_is_the_first_nodes_by_name() {
        let members = ["c", "a", "b"].map(|node| member(node, false, Ready));
        assert_eq!(next(&members, &staged(IntOrString::Int(2), 0)), turn(&["a", "b"], 3));
    }

    #[test]
    fn the_next_batch_waits_for_the_former_to_have_applied_the_change() {
        let two = staged(IntOrString::Int(2), 0);
        let mut members = [member("a", true, Ready), member("b", true, Updating), member("c", false, Ready)];
        assert_eq!(next(&members, &two), turn(&[], 1));
        members[1].standing = Ready;
        assert_eq!(next(&members, &two), turn(&["c"], 1));
        members[1] = Member { granted: true, ..member("b", false, Ready) };
        let given = Plan { turns: vec!["b".to_owned()], ..turn(&[], 1) };
        assert_eq!(next(&members, &two), given, "a turn that was given and not taken yet counts");
    }

    #[test]
    fn more_degraded_nodes_than_allowed_halt_it_and_healing_resumes_it() {
        let one = staged(IntOrString::Int(1), 1);
        let mut members = [
            member("a", true, Degraded),
            member("b", true, NotReady),
            member("c", false, Ready),
            member("d", false, Degraded),
        ];
        assert_eq!(next(&members, &one), Plan { halted: Some(2), ..turn(&[], 2) });
        members[1].standing = Ready;
        assert_eq!(next(&members, &one), turn(&["c"], 2));
    }

    #[test]
    fn a_silent_node_gets_no_turn_and_holds_up_nobody() {
        let members = [member("a", false, Unreachable), member("b", false, Ready)];
        assert_eq!(next(&members, &staged(IntOrString::Int(5), 0)), turn(&["b"], 2));
        let told = [member("a", true, Unreachable), member("b", false, Ready)];
        assert_eq!(next(&told, &staged(IntOrString::Int(5), 0)).halted, Some(1));
    }

    #[test]
    fn a_turn_ends_when_it_is_taken_or_cannot_be() {
        let granted = |told, standing| Member { granted: true, ..member("a", told, standing) };
        let others = member("b", false, Ready);
        assert_eq!(next(&[granted(true, Updating), others], &staged(IntOrString::Int(1), 0)), turn(&[], 1));
        let silent = [granted(false, Unreachable), others];
        assert_eq!(next(&silent, &staged(IntOrString::Int(1), 0)), turn(&["b"], 2));
    }

    #[test]
    fn a_node_that_could_do_nothing_with_its_turn_neither_gets_nor_keeps_it() {
        let one = staged(IntOrString::Int(1), 0);
        let blocked =
            |granted, standing| Member { granted, is_blocked: true, ..member("a", false, standing) };
        let others = member("b", false, Ready);
        assert_eq!(next(&[blocked(false, NotReady), others], &one), turn(&["b"], 2));
        assert_eq!(next(&[blocked(true, Updating), others], &one), turn(&["b"], 2));
        assert_eq!(next(&[blocked(true, NotReady)], &one), turn(&[], 1));
    }

    #[test]
    fn a_rollout_that_is_through_is_not_halted_by_what_happens_later() {
        let members = [member("a", true, NotReady), member("b", true, NotReady)];
        assert_eq!(next(&members, &staged(IntOrString::Int(1), 0)), Plan::default());
    }

    #[test]
    fn a_share_is_rounded_up_and_at_least_one_node() {
        let share = |text: &str, all| batch(&IntOrString::String(text.into()), all);
        assert_eq!((share("10%", 5000), share("10%", 11), share("1%", 3), share("100%", 7)), (500, 2, 1, 7));
        assert_eq!((share("nonsense", 9), batch(&IntOrString::Int(-3), 9)), (1, 1));
    }

    #[test]
    fn turns_are_for_one_content_of_the_pool_only() {
        let grants = Grants::default();
        let entry = |mtu: u32| Arc::new(entry_of(&pool("dp", json!({"macvtap": {"mtu": mtu}}))));
        let (old, new) = (entry(1500), entry(9000));
        grants.set(&old, ["a".to_owned()]);
        assert!(grants.has(&old, "a") && !grants.has(&old, "b") && !grants.has(&new, "a"));
        grants.set(&new, ["b".to_owned()]);
        assert!(grants.has(&new, "b") && !grants.has(&new, "a") && !grants.has(&old, "a"));
        grants.retain(&HashSet::from(["uid-dp"]));
        assert!(grants.has(&new, "b"));
        grants.retain(&HashSet::new());
        assert!(!grants.has(&new, "b"), "a pool that went while nobody looked leaves no turns");
        grants.set(&new, ["b".to_owned()]);
        grants.forget("uid-dp");
        assert!(!grants.has(&new, "b"));
    }

    proptest! {
        /// Nodes that take their turn and get well: every one is told, and never more than a batch at once.
        #[test]
        fn every_node_is_reached_by_batches(count in 1usize..40, size in 1i32..9) {
            let names: Vec<String> = (0..count).map(|i| format!("n{i:02}")).collect();
            let mut told = vec![false; count];
            let limit = staged(IntOrString::Int(size), 0);
            for round in 0..=count {
                let members = names.iter().zip(&told).map(|(node, told)| Member {
                    node, told: *told, granted: false, is_blocked: false, standing: Ready,
                });
                let plan = plan(members, &limit);
                prop_assert!(plan.next.len() <= usize::try_from(size).unwrap());
                if plan.next.is_empty() {
                    prop_assert!(told.iter().all(|told| *told), "stuck in round {}", round);
                    return Ok(());
                }
                for node in plan.next {
                    told[names.iter().position(|name| *name == node).unwrap()] = true;
                }
            }
            prop_assert!(false, "never through");
        }
    }
}
