//! Staged rollouts: whose turn it is to hear of a change.
//!
//! What a node was told stands in its state, so a new leader goes on where the former one was. In memory are turns that were
//! given and not written yet, and how well each node was before its turn.

use crate::entry::Entry;
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
    /// Whether it could do nothing with its turn: it has no room for the pool, or another one of its name.
    pub is_blocked: bool,
    /// How it stands.
    pub standing: Standing,
    /// How well it is with what it has of the pool, be that current or not.
    pub health: Health,
}

/// How well a node is with a pool, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing is wrong.
    Well,
    /// It offers devices, and something is wrong.
    Degraded,
    /// It offers no healthy device.
    NotReady,
    /// Its agent does not answer.
    Unreachable,
}

impl Member<'_> {
    /// Whether it can hear of the change.
    fn can_hear(&self) -> bool {
        self.standing != Standing::Unreachable && !self.is_blocked
    }
}

/// How far a rollout of one content of a pool has come, as far as that does not stand in the nodes' states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The nodes whose turn it is and that were not told yet.
    turns: HashSet<String>,
    /// How well nodes were when they got their turn, or have been since: only what got worse is held against the change.
    before: HashMap<String, Health>,
    /// Whether nodes had this content before the rollout began: it takes a change back.
    is_way_back: bool,
}

impl Progress {
    /// A rollout that begins with an edit. Nodes that have the content already never had the change.
    fn begin(members: &[Member<'_>]) -> Self {
        Self { is_way_back: members.iter().any(|member| member.told), ..Self::default() }
    }

    /// A rollout that another operator has led so far. Unless that one had stopped it, what is wrong with the changed
    /// nodes was wrong before.
    fn adopt(members: &[Member<'_>], was_halted: bool) -> Self {
        let before = |member: &Member<'_>| if was_halted { Health::Well } else { member.health };
        let told = members.iter().filter(|member| member.told);
        let before = told.map(|member| (member.node.to_owned(), before(member)));
        Self { before: before.collect(), ..Self::default() }
    }

    /// Whether the node is less well than it was without the change.
    fn is_worse(&mut self, member: &Member<'_>) -> bool {
        let Some(before) = self.before.get_mut(member.node) else { return false };
        if member.standing == Standing::Ready {
            *before = Health::Well;
        }
        member.health > *before
    }
}

/// What is known of a rollout's past.
#[derive(Clone, Debug)]
pub enum Past {
    /// How far it has come.
    Known(Progress),
    /// The pool was another one until now.
    Edited,
    /// Another operator led it.
    Unknown {
        /// Whether it had stopped.
        was_halted: bool,
    },
}

/// How a staged rollout goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whose turn it is now, besides those whose it was.
    pub next: Vec<String>,
    /// How far it has come with that.
    pub progress: Progress,
    /// How many of the changed nodes have got worse, if that stops the rollout.
    pub halted: Option<usize>,
    /// How many nodes have not heard of the change.
    pub waiting: usize,
}

/// Gives the next nodes their turn, in the order of their names, once all before them have applied the change and none has
/// got worse by it, except for as many as may. The way back is not stopped by that. A node that does not answer gets its
/// turn when it does: what it was told is not why it is silent; and one that could do nothing with it gets it when it can.
/// A turn ends when the node was told, cannot be told or is not meant any more: one that comes back later waits like
/// others.
pub fn plan(members: &[Member<'_>], staged: &Staged, past: Past) -> Plan {
    let mut progress = match past {
        Past::Known(progress) => progress,
        Past::Edited => Progress::begin(members),
        Past::Unknown { was_halted } => Progress::adopt(members, was_halted),
    };
    let given = std::mem::take(&mut progress.turns);
    let (mut worse, mut busy) = (0, 0);
    let mut waiting = Vec::new();
    for member in members {
        if member.told {
            worse += usize::from(progress.is_worse(member));
            busy += usize::from(member.standing == Standing::Updating);
        } else if given.contains(member.node) && member.can_hear() {
            busy += 1;
            progress.turns.insert(member.node.to_owned());
        } else {
            waiting.push(member);
        }
    }
    let mut plan = Plan { waiting: waiting.len(), ..Plan::default() };
    let allowed = usize::try_from(staged.max_degraded).unwrap_or(usize::MAX);
    if !waiting.is_empty() && worse > allowed && !progress.is_way_back {
        plan.halted = Some(worse);
    } else if busy == 0 {
        waiting.retain(|member| member.can_hear());
        waiting.sort_unstable_by_key(|member| member.node);
        for member in waiting.into_iter().take(batch(&staged.batch, members.len())) {
            plan.next.push(member.node.to_owned());
            progress.turns.insert(member.node.to_owned());
            progress.before.insert(member.node.to_owned(), member.health);
        }
    }
    plan.progress = progress;
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

/// How far the rollouts of all pools have come.
#[derive(Debug, Default)]
pub struct Grants {
    pools: Mutex<HashMap<String, (Arc<Entry>, Progress)>>,
}

impl Grants {
    /// From now on the rollout of this content has come so far, and that of any other content of the pool has ended.
    pub fn set(&self, entry: &Arc<Entry>, progress: Progress) {
        self.lock().insert(entry.uid.clone(), (Arc::clone(entry), progress));
    }

    /// Whether it is the node's turn to hear this.
    pub fn has(&self, entry: &Entry, node: &str) -> bool {
        let pools = self.lock();
        let current = pools.get(&entry.uid).filter(|(current, _)| current.says_the_same(entry));
        current.is_some_and(|(_, progress)| progress.turns.contains(node))
    }

    /// What is known of the past of the rollout of this content; `was_halted` is what the pool's status says of it.
    pub fn past(&self, entry: &Entry, was_halted: bool) -> Past {
        match self.lock().get(&entry.uid) {
            Some((current, progress)) if current.says_the_same(entry) => Past::Known(progress.clone()),
            Some(_) => Past::Edited,
            None => Past::Unknown { was_halted },
        }
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

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Arc<Entry>, Progress)>> {
        // Sets of names are whole at any time, also after a panic elsewhere.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::entry_of;
    use crate::testing::pool;
    use Standing::{Degraded, NotReady, Ready, Unreachable, Updating};
    use proptest::prelude::*;
    use serde_json::json;

    fn staged(batch: IntOrString, max_degraded: u32) -> Staged {
        Staged { batch, max_degraded }
    }

    fn member(node: &'static str, told: bool, standing: Standing) -> Member<'static> {
        let health = match standing {
            Unreachable => Health::Unreachable,
            NotReady => Health::NotReady,
            Degraded => Health::Degraded,
            _ => Health::Well,
        };
        Member { node, told, is_blocked: false, standing, health }
    }

    /// A plan of which the rollout so far is known: it is these nodes' turn, and those that were told were well.
    fn next(members: &[Member<'static>], staged: &Staged, turns: &[&str]) -> Plan {
        let mut progress = Progress::adopt(members, true);
        progress.turns = turns.iter().map(|node| (*node).to_owned()).collect();
        plan(members, staged, Past::Known(progress))
    }

    fn given(plan: &Plan) -> (Vec<&str>, usize, Option<usize>) {
        assert!(plan.next.iter().all(|node| plan.progress.turns.contains(node)));
        (plan.next.iter().map(String::as_str).collect(), plan.waiting, plan.halted)
    }

    #[test]
    fn the_first_batch_is_the_first_nodes_by_name() {
        let members = ["c", "a", "b"].map(|node| member(node, false, Ready));
        assert_eq!(given(&next(&members, &staged(IntOrString::Int(2), 0), &[])), (vec!["a", "b"], 3, None));
    }

    #[test]
    fn the_next_batch_waits_for_the_former_to_have_applied_the_change() {
        let two = staged(IntOrString::Int(2), 0);
        let mut members = [member("a", true, Ready), member("b", true, Updating), member("c", false, Ready)];
        assert_eq!(given(&next(&members, &two, &[])), (vec![], 1, None));
        members[1].standing = Ready;
        assert_eq!(given(&next(&members, &two, &[])), (vec!["c"], 1, None));
        members[1] = member("b", false, Ready);
        let plan = next(&members, &two, &["b"]);
        assert_eq!(given(&plan), (vec![], 1, None), "a turn that was given and not taken yet counts");
        assert!(plan.progress.turns.contains("b"));
    }

    #[test]
    fn more_nodes_that_got_worse_than_allowed_halt_it_and_healing_resumes_it() {
        let one = staged(IntOrString::Int(1), 1);
        let mut members = [
            member("a", true, Degraded),
            member("b", true, NotReady),
            member("c", false, Ready),
            member("d", false, Degraded),
        ];
        assert_eq!(given(&next(&members, &one, &[])), (vec![], 2, Some(2)));
        members[1] = member("b", true, Ready);
        assert_eq!(given(&next(&members, &one, &[])), (vec!["c"], 2, None));
    }

    #[test]
    fn a_node_that_was_bad_before_its_turn_halts_nothing_unless_it_gets_worse() {
        let one = staged(IntOrString::Int(1), 0);
        let mut members = [member("a", false, Degraded), member("b", false, Ready)];
        let first = plan(&members, &one, Past::Edited);
        assert_eq!(given(&first), (vec!["a"], 2, None));
        members[0] = member("a", true, Degraded);
        let second = plan(&members, &one, Past::Known(first.progress.clone()));
        assert_eq!(given(&second), (vec!["b"], 1, None));
        members[0] = member("a", true, NotReady);
        assert_eq!(given(&plan(&members, &one, Past::Known(first.progress.clone()))), (vec![], 1, Some(1)));
        members[0] = member("a", true, Ready);
        let healed = plan(&members, &one, Past::Known(first.progress)).progress;
        let mut healed = Progress { turns: HashSet::new(), ..healed };
        assert!(healed.is_worse(&member("a", true, Degraded)), "it has been well with the change");
    }

    #[test]
    fn the_way_back_is_not_halted_by_anybody() {
        let one = staged(IntOrString::Int(1), 0);
        let mut members =
            [member("a", false, NotReady), member("b", true, NotReady), member("c", false, Ready)];
        let first = plan(&members, &one, Past::Edited);
        assert_eq!(given(&first), (vec!["a"], 2, None), "b never had the change");
        members[0] = member("a", true, Unreachable);
        assert_eq!(given(&plan(&members, &one, Past::Known(first.progress))), (vec!["c"], 1, None));
    }

    #[test]
    fn an_heir_goes_on_with_what_was_wrong_unless_that_had_halted_the_rollout() {
        let one = staged(IntOrString::Int(1), 0);
        let mut members = [member("a", true, NotReady), member("b", false, Ready)];
        let after =
            |was_halted, members: &[Member<'static>]| plan(members, &one, Past::Unknown { was_halted });
        assert_eq!(given(&after(true, &members)), (vec![], 1, Some(1)));
        assert_eq!(given(&after(false, &members)), (vec!["b"], 1, None));
        members[0] = member("a", true, Updating);
        assert_eq!(
            given(&after(false, &members)),
            (vec![], 1, None),
            "a batch of the former leader's is under way"
        );
    }

    #[test]
    fn a_silent_node_gets_no_turn_and_holds_up_nobody() {
        let members = [member("a", false, Unreachable), member("b", false, Ready)];
        let five = staged(IntOrString::Int(5), 0);
        assert_eq!(given(&next(&members, &five, &[])), (vec!["b"], 2, None));
        let told = [member("a", true, Unreachable), member("b", false, Ready)];
        assert_eq!(next(&told, &five, &[]).halted, Some(1));
    }

    #[test]
    fn a_turn_ends_when_it_is_taken_or_cannot_be() {
        let (one, others) = (staged(IntOrString::Int(1), 0), member("b", false, Ready));
        let taken = [member("a", true, Updating), others];
        assert_eq!(given(&next(&taken, &one, &["a"])), (vec![], 1, None));
        let silent = [member("a", false, Unreachable), others];
        assert_eq!(given(&next(&silent, &one, &["a"])), (vec!["b"], 2, None));
    }

    #[test]
    fn a_node_that_could_do_nothing_with_its_turn_neither_gets_nor_keeps_it() {
        let one = staged(IntOrString::Int(1), 0);
        let blocked = |standing| Member { is_blocked: true, ..member("a", false, standing) };
        let others = member("b", false, Ready);
        assert_eq!(given(&next(&[blocked(NotReady), others], &one, &[])), (vec!["b"], 2, None));
        assert_eq!(given(&next(&[blocked(Updating), others], &one, &["a"])), (vec!["b"], 2, None));
        assert_eq!(given(&next(&[blocked(NotReady)], &one, &["a"])), (vec![], 1, None));
    }

    #[test]
    fn a_rollout_that_is_through_is_not_halted_by_what_happens_later() {
        let members = [member("a", true, NotReady), member("b", true, NotReady)];
        assert_eq!(given(&next(&members, &staged(IntOrString::Int(1), 0), &[])), (vec![], 0, None));
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
        let turn = |node: &str| Progress { turns: HashSet::from([node.to_owned()]), ..Progress::default() };
        grants.set(&old, turn("a"));
        assert!(grants.has(&old, "a") && !grants.has(&old, "b") && !grants.has(&new, "a"));
        grants.set(&new, turn("b"));
        assert!(grants.has(&new, "b") && !grants.has(&new, "a") && !grants.has(&old, "a"));
        grants.retain(&HashSet::from(["uid-dp"]));
        assert!(grants.has(&new, "b"));
        grants.retain(&HashSet::new());
        assert!(!grants.has(&new, "b"), "a pool that went while nobody looked leaves no turns");
        grants.set(&new, turn("b"));
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
                let members: Vec<_> = names.iter().zip(&told).map(|(node, told)| Member {
                    node, told: *told, is_blocked: false, standing: Ready, health: Health::Well,
                }).collect();
                let plan = plan(&members, &limit, Past::Unknown { was_halted: false });
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
