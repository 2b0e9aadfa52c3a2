//! Whose turn it is.

use super::*;
use crate::entry::entry_of;
use crate::testing::pool;
use Standing::{Degraded, NotReady, Ready, Unreachable, Updating};
use proptest::prelude::*;
use serde_json::json;

fn staged(batch: IntOrString, max_degraded: u32) -> Staged {
    Staged { batch, max_degraded }
}

fn member(node: &'static str, sent: bool, standing: Standing) -> Member<'static> {
    let health = match standing {
        Unreachable => Health::Unreachable,
        NotReady | Standing::WithoutLinks => Health::NotReady,
        Degraded => Health::Degraded,
        _ => Health::Well,
    };
    let serves = standing != Standing::WithoutLinks;
    Member { node, sent, is_blocked: false, standing, health, serves }
}

/// A plan of which the rollout so far is known: it is these nodes' turn, and those that were sent were well.
fn next(members: &[Member<'static>], staged: &Staged, turns: &[&str]) -> RolloutStep {
    let mut progress = Progress::adopt(members, &Former::default());
    progress.turns = turns.iter().map(|node| (*node).to_owned()).collect();
    plan(members, staged, Past::Known(progress))
}

fn given(plan: &RolloutStep) -> (Vec<&str>, usize, Option<usize>) {
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
    let first = plan(&members, &one, Past::Edited(Edited::default()));
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
    let mut members = [member("a", false, NotReady), member("b", true, NotReady), member("c", false, Ready)];
    let first = plan(&members, &one, Past::Edited(Edited::default()));
    assert_eq!(given(&first), (vec!["a"], 2, None), "b never had the change");
    members[0] = member("a", true, Unreachable);
    assert_eq!(given(&plan(&members, &one, Past::Known(first.progress))), (vec!["c"], 1, None));
}

#[test]
fn back_to_a_change_that_never_came_through_is_no_way_back() {
    let mut grants = Grants::default();
    let entry = |mtu: u32| Arc::new(entry_of(&pool("dp", json!({"macvtap": {"mtu": mtu}}))));
    let one = staged(IntOrString::Int(1), 0);
    let mut look = |entry: &Arc<Entry>, members: &[Member<'static>]| {
        let plan = plan(members, &one, grants.past(entry, Former::default));
        grants.set(entry, plan.progress.clone());
        given_of(&plan)
    };
    let all = |sent: bool| ["a", "b", "c"].map(|node| member(node, sent, Ready));
    let (first, broken, typo) = (entry(1500), entry(9000), entry(9001));
    assert_eq!(look(&first, &all(true)), (vec![], None));
    assert_eq!(look(&broken, &all(false)).0, ["a"]);
    let mut members = all(false);
    members[0] = member("a", true, NotReady);
    assert_eq!(look(&broken, &members), (vec![], Some(1)));
    look(&typo, &[member("a", false, NotReady), members[1], members[2]]);
    assert_eq!(look(&broken, &members), (vec![], Some(1)), "the change broke a");
    assert_eq!(look(&first, &[member("a", false, NotReady), member("b", true, Ready), members[2]]).0, ["a"]);
    members[1] = member("b", true, NotReady);
    assert_eq!(look(&first, &members).1, None, "the way back");
}

/// An edit of a staged pool from one MTU to another, with what is kept of its rollouts in between.
fn edit(grants: &mut Grants, mtu: u32, members: &[Member<'static>]) -> (Vec<String>, Option<usize>) {
    let entry = Arc::new(entry_of(&pool("dp", json!({"macvtap": {"mtu": mtu}}))));
    let plan = plan(members, &staged(IntOrString::Int(1), 0), grants.past(&entry, Former::default));
    grants.set(&entry, plan.progress.clone());
    given_of(&plan)
}

#[test]
fn a_dead_node_does_not_keep_a_rollout_from_coming_through() {
    let mut grants = Grants::default();
    let dead = member("z", false, Unreachable);
    edit(&mut grants, 1500, &[member("a", true, Ready), dead]);
    assert_eq!(edit(&mut grants, 9000, &[member("a", false, Ready), dead]).0, ["a"]);
    edit(&mut grants, 9000, &[member("a", true, Ready), dead]);
    let broken = member("a", false, NotReady);
    assert_eq!(edit(&mut grants, 9001, &[broken, dead]).0, ["a"]);
    let halted = edit(&mut grants, 9001, &[member("a", true, NotReady), member("b", false, Ready), dead]);
    assert_eq!(halted, (vec!["b".to_owned()], None), "its link failed long before this edit");
}

#[test]
fn a_way_back_comes_through_although_nodes_stay_broken() {
    let mut grants = Grants::default();
    let both = |sent: bool, a: Standing| [member("a", sent, a), member("b", sent, Ready)];
    edit(&mut grants, 1500, &both(true, Ready));
    edit(&mut grants, 9000, &both(false, Ready));
    edit(&mut grants, 9000, &[member("a", true, NotReady), member("b", false, Ready)]);
    edit(&mut grants, 1500, &[member("a", false, NotReady), member("b", true, Ready)]);
    assert_eq!(edit(&mut grants, 1500, &both(true, NotReady)), (vec![], None));
    assert_eq!(edit(&mut grants, 9100, &both(false, NotReady)).0, ["a"]);
    let next = edit(&mut grants, 9100, &[member("a", true, NotReady), member("b", false, Ready)]);
    assert_eq!(next, (vec!["b".to_owned()], None), "the node was broken before this edit");
}

#[test]
fn a_content_that_all_nodes_got_at_once_is_a_way_back() {
    let mut grants = Grants::default();
    let entry = |mtu: u32| Arc::new(entry_of(&pool("dp", json!({"macvtap": {"mtu": mtu}}))));
    let both = |sent: bool| [member("a", sent, Ready), member("b", sent, Ready)];
    edit(&mut grants, 1500, &both(true));
    grants.set(&entry(9000), all_at_once(&[member("a", true, Updating), member("b", true, Ready)]).progress);
    assert!(!grants.is_through(&entry(9000)), "a node has not applied it yet");
    let unsent = [member("a", false, Ready), member("b", true, Ready)];
    grants.set(&entry(9000), all_at_once(&unsent).progress);
    assert!(!grants.is_through(&entry(9000)), "a node that can receive it was not sent it yet");
    grants.set(&entry(9000), all_at_once(&both(true)).progress);
    assert!(grants.is_through(&entry(9000)));
    edit(&mut grants, 9100, &both(false));
    edit(&mut grants, 9100, &[member("a", true, NotReady), member("b", false, Ready)]);
    edit(&mut grants, 9000, &[member("a", false, NotReady), member("b", true, Ready)]);
    let back = edit(&mut grants, 9000, &[member("a", false, NotReady), member("b", true, NotReady)]);
    assert_eq!(back.1, None, "nothing halts the way back");
}

#[test]
fn a_node_that_is_still_applying_the_change_is_not_worse_by_it() {
    let mut grants = Grants::default();
    let waiting = member("c", false, Ready);
    edit(&mut grants, 1500, &["a", "c"].map(|node| member(node, true, Ready)));
    edit(&mut grants, 9000, &[member("a", false, Ready), waiting]);
    assert_eq!(edit(&mut grants, 9000, &[member("a", true, NotReady), waiting]).1, Some(1));
    assert_eq!(edit(&mut grants, 9100, &[member("a", false, NotReady), waiting]).0, ["a"]);
    let applying = Member { standing: Updating, ..member("a", true, NotReady) };
    assert_eq!(edit(&mut grants, 9100, &[applying, waiting]), (vec![], None), "the fix is under way");
    assert_eq!(edit(&mut grants, 9100, &[member("a", true, NotReady), waiting]), (vec![], Some(1)));
    assert_eq!(edit(&mut grants, 9100, &[member("a", true, Ready), waiting]).0, ["c"]);
}

/// What an operator reported of a pool in generation 2.
fn former(samples: &[(&str, &str)], progressing: &str) -> Former {
    let samples: Vec<_> =
        samples.iter().map(|(node, reason)| json!({"node": node, "reason": reason, "message": ""})).collect();
    let progressing = json!({
        "type": "Progressing", "status": "False", "reason": progressing, "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = json!({"observedGeneration": 2, "conditions": [progressing], "samples": samples});
    Former::new(&serde_json::from_value(status).unwrap(), Some(2))
}

#[test]
fn an_heir_goes_on_with_what_was_reported_and_forgives_nothing_else() {
    let one = staged(IntOrString::Int(1), 0);
    let mut members = [member("a", true, NotReady), member("b", false, Ready)];
    let after =
        |former: Former, members: &[Member<'static>]| given_of(&plan(members, &one, Past::Unknown(former)));
    let broken = (Vec::new(), Some(1));
    let goes_on = (vec!["b".to_owned()], None);
    assert_eq!(after(former(&[("a", "NoHealthyLink")], "RolloutHalted"), &members), broken);
    assert_eq!(after(former(&[("a", "NoHealthyLink")], "NodesUpdating"), &members), goes_on);
    for unreported in [&[][..], &[("a", "Updating")], &[("a", "Waiting"), ("b", "NoHealthyLink")]] {
        assert_eq!(after(former(unreported, "NodesUpdating"), &members), broken, "{unreported:?}");
    }
    assert_eq!(after(Former::default(), &members), broken, "nobody reported anything");
    members[0] = Member { standing: Updating, ..member("a", true, NotReady) };
    let (next, halted) = after(Former::default(), &members);
    assert_eq!((next.len(), halted), (0, None), "a batch of the former leader's is under way");
}

#[test]
fn an_heir_does_not_hold_against_a_change_what_a_full_report_may_have_left_out() {
    let one = staged(IntOrString::Int(1), 0);
    let names: Vec<String> = (0..SAMPLES_MAX).map(|i| format!("n{i}")).collect();
    let full = |reason: &'static str| -> Vec<(&str, &str)> {
        names.iter().map(|name| (name.as_str(), reason)).collect()
    };
    let goes_on = (vec!["b".to_owned()], None);
    let after = |standing, reason: &'static str| {
        let first = Member { standing, ..member("a", true, NotReady) };
        let former = former(&full(reason), "NodesUpdating");
        given_of(&plan(&[first, member("b", false, Ready)], &one, Past::Unknown(former)))
    };
    assert_eq!(after(NotReady, "NoHealthyLink"), goes_on);
    assert_eq!(after(NotReady, "Updating").1, Some(1), "nodes that are not well are reported first");
    assert_eq!(after(Standing::WithoutLinks, "Updating"), goes_on);
}

fn given_of(plan: &RolloutStep) -> (Vec<String>, Option<usize>) {
    (plan.next.clone(), plan.halted)
}

#[test]
fn a_silent_node_gets_no_turn_and_holds_up_nobody() {
    let members = [member("a", false, Unreachable), member("b", false, Ready)];
    let five = staged(IntOrString::Int(5), 0);
    assert_eq!(given(&next(&members, &five, &[])), (vec!["b"], 2, None));
    let sent = [member("a", true, Unreachable), member("b", false, Ready)];
    assert_eq!(next(&sent, &five, &[]).halted, Some(1));
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
    let mut grants = Grants::default();
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
}

#[test]
fn a_new_pool_passes_nodes_on_which_no_link_matches_and_stops_at_ones_that_lost_their_links() {
    let without = |node| member(node, true, Standing::WithoutLinks);
    let fresh = |node| Member { serves: false, ..member(node, false, Updating) };
    let mut grants = Grants::default();
    let mut look = |members: &[Member<'static>]| edit(&mut grants, 1500, members);
    assert_eq!(look(&[fresh("a"), fresh("b"), fresh("c")]).0, ["a"]);
    assert_eq!(look(&[without("a"), fresh("b"), fresh("c")]), (vec!["b".to_owned()], None));
    assert_eq!(look(&[without("a"), without("b"), fresh("c")]), (vec!["c".to_owned()], None));
    let mut grants = Grants::default();
    let mut look = |members: &[Member<'static>]| edit(&mut grants, 1500, members);
    assert_eq!(look(&[member("a", false, Ready), fresh("b")]).0, ["a"]);
    assert_eq!(look(&[without("a"), fresh("b")]), (vec![], Some(1)));
    let mut grants = Grants::default();
    let mut look = |members: &[Member<'static>]| edit(&mut grants, 1500, members);
    assert_eq!(look(&[fresh("a"), fresh("b"), fresh("c")]).0, ["a"]);
    assert_eq!(look(&[member("a", true, Ready), fresh("b"), fresh("c")]).0, ["b"]);
    let lost = look(&[without("a"), member("b", true, Ready), fresh("c")]);
    assert_eq!(lost, (vec![], Some(1)), "it had links meanwhile");
}

#[test]
fn a_rollout_is_not_through_while_a_node_applies_it_or_waits_for_its_turn() {
    let [waiting, last] = ["b", "c"].map(|node| member(node, false, Ready));
    for standing in [Updating, Ready] {
        let mut grants = Grants::default();
        edit(&mut grants, 1500, &[member("a", true, standing), waiting, last]);
        let bad = [member("a", true, NotReady), waiting, last];
        assert_eq!(edit(&mut grants, 1500, &bad), (vec![], Some(1)), "{standing:?}");
    }
    let mut grants = Grants::default();
    edit(&mut grants, 1500, &[member("a", true, Updating)]);
    let joined = [member("a", true, NotReady), waiting];
    assert_eq!(edit(&mut grants, 1500, &joined), (vec![], Some(1)), "nobody had applied it");
}

#[test]
fn a_node_that_joins_after_a_rollout_gets_its_turn_although_another_one_fell_ill() {
    let mut grants = Grants::default();
    edit(&mut grants, 1500, &[member("a", false, Ready)]);
    assert_eq!(edit(&mut grants, 1500, &[member("a", true, Ready)]), (vec![], None));
    let joined = [member("a", true, NotReady), member("new", false, Updating)];
    assert_eq!(edit(&mut grants, 1500, &joined), (vec!["new".to_owned()], None));
    let heir =
        |reason| plan(&joined, &staged(IntOrString::Int(1), 0), Past::Unknown(former(&[], reason))).halted;
    assert_eq!((heir("UpToDate"), heir("NodesUpdating")), (None, Some(1)));
}

proptest! {
    /// Nodes that take their turn and get well: every one is sent, and never more than a batch at once.
    #[test]
    fn every_node_is_reached_by_batches(count in 1usize..40, size in 1i32..9) {
        let names: Vec<String> = (0..count).map(|i| format!("n{i:02}")).collect();
        let mut sent = vec![false; count];
        let limit = staged(IntOrString::Int(size), 0);
        for round in 0..=count {
            let members: Vec<_> = names.iter().zip(&sent).map(|(node, sent)| Member {
                node, sent: *sent, is_blocked: false, standing: Ready, health: Health::Well, serves: true,
            }).collect();
            let plan = plan(&members, &limit, Past::Unknown(Former::default()));
            prop_assert!(plan.next.len() <= usize::try_from(size).unwrap());
            if plan.next.is_empty() {
                prop_assert!(sent.iter().all(|sent| *sent), "stuck in round {}", round);
                return Ok(());
            }
            for node in plan.next {
                sent[names.iter().position(|name| *name == node).unwrap()] = true;
            }
        }
        prop_assert!(false, "never through");
    }
}
