//! What nodes are told.

use super::*;
use crate::states::{Spec, States};
use crate::testing::{created, deleted, known, labels, pool, spec, state};
use kube::ResourceExt;
use macvtap_crds::v1alpha1::{
    MacvtapNodeState, MacvtapNodeStateSpec, MacvtapNodeStateStatus, MacvtapResourcePool, NodePoolStatus,
};
use proptest::prelude::*;
use serde_json::json;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn names(spec: &MacvtapNodeStateSpec) -> Vec<(&str, PoolPhase)> {
    spec.pools().iter().map(|pool| (pool.name.as_str(), pool.phase)).collect()
}

fn rendered(pools: &[MacvtapResourcePool], current: Option<&MacvtapNodeState>) -> MacvtapNodeStateSpec {
    with(&Catalog::new(pools.iter()), &labels(&[]), current, false, true)
}

fn with(
    catalog: &Catalog,
    labels: &BTreeMap<String, String>,
    current: Option<&MacvtapNodeState>,
    silent: bool,
    turn: bool,
) -> MacvtapNodeStateSpec {
    let current = current.map(known);
    let target = Target { name: "n1", labels, silent, current: current.as_ref(), seen_until: NOW };
    spec(&render(target, catalog, |_| turn))
}

/// The state after the node's agent applied its spec and reports so many devices in use for every pool.
fn applied(spec: MacvtapNodeStateSpec, allocated: u32) -> MacvtapNodeState {
    let mut state = state("n1", spec, 0);
    let pools = state.spec.pools().iter();
    let pools =
        pools.map(|p| NodePoolStatus { name: p.name.clone(), allocated, ..Default::default() }).collect();
    let hash = Some(state.spec.config_hash.clone());
    state.status = Some(MacvtapNodeStateStatus { observed_hash: hash, pools, ..Default::default() });
    state
}

#[test]
fn a_node_gets_the_pools_that_select_it_in_order_of_precedence() {
    let pools = [
        created(pool("low", json!({})), 1),
        created(pool("high", json!({"priority": 7, "nodeSelector": {"matchLabels": {"zone": "a"}}})), 2),
        created(pool("elsewhere", json!({"nodeSelector": {"matchLabels": {"zone": "b"}}})), 3),
    ];
    let spec = with(&Catalog::new(pools.iter()), &labels(&[("zone", "a")]), None, false, true);
    assert_eq!(names(&spec), [("high", PoolPhase::Active), ("low", PoolPhase::Active)]);
    assert_eq!((spec.pools()[0].resource(), spec.pools()[0].resource_name.as_deref()), (Some("high"), None));
}

#[test]
fn the_priority_of_a_staged_pool_changes_the_order_on_a_node_when_its_turn_comes() {
    let staged =
        |priority: u32| created(pool("b", json!({"priority": priority, "rollout": {"type": "Staged"}})), 2);
    let first = created(pool("a", json!({})), 1);
    let before = applied(rendered(&[first.clone(), staged(0)], None), 0);
    let catalog = Catalog::new([&first, &staged(100)].into_iter());
    let order = |turn| {
        let spec = with(&catalog, &labels(&[]), Some(&before), false, turn);
        spec.pools().iter().map(|pool| (pool.name.clone(), pool.settings.priority)).collect::<Vec<_>>()
    };
    assert_eq!(order(false), [("a".to_owned(), 0), ("b".to_owned(), 0)]);
    assert_eq!(order(true), [("b".to_owned(), 100), ("a".to_owned(), 0)]);
}

#[test]
fn a_pool_without_our_finalizer_or_without_acceptance_is_not_rendered() {
    let mut fresh = pool("fresh", json!({}));
    fresh.metadata.finalizers = None;
    let second = created(pool("second", json!({"resourceName": "first"})), 9);
    assert_eq!(
        names(&rendered(&[fresh, pool("first", json!({})), second], None)),
        [("first", PoolPhase::Active)]
    );
}

#[test]
fn an_edit_that_no_node_needs_to_know_changes_nothing() {
    let before = state("n1", rendered(&[pool("a", json!({}))], None), 0);
    let mut edited = pool("a", json!({"networks": [{"name": "a", "namespaces": {"names": ["x"]}}]}));
    edited.metadata.generation = Some(2);
    assert_eq!(rendered(&[edited], Some(&before)), before.spec);
    let mut relevant = pool("a", json!({"priority": 3}));
    relevant.metadata.generation = Some(3);
    let spec = rendered(&[relevant], Some(&before));
    assert_eq!(spec.pools()[0].generation, 3);
    assert_ne!(spec.config_hash, before.spec.config_hash);
}

#[test]
fn a_deleted_pool_drains_until_no_device_is_in_use() {
    let active = applied(rendered(&[pool("a", json!({}))], None), 2);
    let gone = [deleted(pool("a", json!({})))];
    let draining = rendered(&gone, Some(&active));
    assert_eq!(names(&draining), [("a", PoolPhase::Draining)]);
    assert_eq!(names(&rendered(&gone, Some(&applied(draining.clone(), 1)))), [("a", PoolPhase::Draining)]);
    let mut not_applied = applied(draining.clone(), 0);
    not_applied.status.as_mut().unwrap().observed_hash = Some("sha256:other".into());
    assert_eq!(names(&rendered(&gone, Some(&not_applied))), [("a", PoolPhase::Draining)]);
    assert_eq!(names(&rendered(&gone, Some(&applied(draining, 0)))), []);
}

#[test]
fn a_node_that_has_not_answered_yet_drains_until_its_agent_had_the_time_to_answer() {
    let unanswered = |spec: &MacvtapNodeStateSpec, written| state("n1", spec.clone(), written);
    let sent = unanswered(&rendered(&[pool("a", json!({}))], None), -3600);
    let elsewhere = pool("a", json!({"nodeSelector": {"matchLabels": {"zone": "b"}}}));
    let rejected = [created(pool("other", json!({"resourceName": "a"})), -1), pool("a", json!({}))];
    for ending in [&[deleted(pool("a", json!({})))][..], &[elsewhere], &rejected] {
        let draining = rendered(ending, Some(&sent));
        assert_eq!(names(&draining), [("a", PoolPhase::Draining)], "it may have applied the pool just now");
        assert_eq!(names(&rendered(ending, Some(&unanswered(&draining, -9)))), names(&draining));
        let given_up = rendered(ending, Some(&unanswered(&draining, -10)));
        assert!(
            given_up.pools().iter().all(|pool| pool.name != "a"),
            "no agent has answered for ten seconds"
        );
        assert_eq!(names(&rendered(ending, Some(&applied(draining.clone(), 1)))), names(&draining));
    }
}

#[test]
fn a_pool_that_no_longer_selects_the_node_drains_too_and_comes_back_when_it_does_again() {
    let active = applied(rendered(&[pool("a", json!({}))], None), 1);
    let elsewhere = pool("a", json!({"nodeSelector": {"matchLabels": {"zone": "b"}}}));
    let draining = rendered(&[elsewhere], Some(&active));
    assert_eq!(names(&draining), [("a", PoolPhase::Draining)]);
    let back = rendered(&[pool("a", json!({}))], Some(&applied(draining, 1)));
    assert_eq!(names(&back), [("a", PoolPhase::Active)]);
}

#[test]
fn a_pool_with_the_name_or_the_resource_of_a_draining_one_waits_for_it() {
    let old = applied(rendered(&[pool("a", json!({}))], None), 1);
    let mut anew = pool("a", json!({}));
    anew.metadata.uid = Some("another".into());
    let heir = pool("heir", json!({"resourceName": "a"}));
    assert_eq!(names(&rendered(&[anew], Some(&old))), [("a", PoolPhase::Draining)]);
    assert_eq!(names(&rendered(&[heir], Some(&old))), [("a", PoolPhase::Draining)]);
}

#[test]
fn a_node_has_at_most_as_many_pools_as_the_schema_allows() {
    let pools: Vec<_> = (0..70).map(|i| created(pool(&format!("p{i:02}"), json!({})), i)).collect();
    let spec = rendered(&pools, None);
    assert_eq!(spec.pools().len(), POOLS_MAX);
    assert_eq!(spec.pools()[POOLS_MAX - 1].name, "p63");
}

#[test]
fn a_pool_that_must_make_room_drains_first_and_the_new_one_waits() {
    let mut pools: Vec<_> = (0..64).map(|i| created(pool(&format!("p{i:02}"), json!({})), i)).collect();
    let full = applied(rendered(&pools, None), 1);
    pools.push(created(pool("new", json!({"priority": 9})), 99));
    let making_room = rendered(&pools, Some(&full));
    assert_eq!(making_room.pools().len(), POOLS_MAX);
    assert_eq!(names(&making_room)[63], ("p63", PoolPhase::Draining));
    assert_eq!(names(&making_room)[62], ("p62", PoolPhase::Active));
    let still = applied(making_room.clone(), 1);
    assert_eq!(rendered(&pools, Some(&still)), making_room);
    let free = applied(making_room, 0);
    let after = rendered(&pools, Some(&free));
    assert_eq!((names(&after)[0], after.pools().len()), (("new", PoolPhase::Active), POOLS_MAX));
    assert!(names(&after).iter().all(|(name, _)| *name != "p63"));
    assert_eq!(rendered(&pools, Some(&applied(after.clone(), 1))), after);
}

#[test]
fn a_turn_matters_as_long_as_there_is_or_can_be_made_room() {
    let mut pools: Vec<_> = (0..64).map(|i| created(pool(&format!("p{i:02}"), json!({})), i)).collect();
    let full = known(&applied(rendered(&pools, None), 1));
    let matters = |pools: &[MacvtapResourcePool], state: &KnownState| {
        let (catalog, labels) = (Catalog::new(pools.iter()), labels(&[]));
        let target =
            Target { name: "n1", labels: &labels, silent: false, current: Some(state), seen_until: NOW };
        turn_matters(target, &catalog, catalog.active("uid-new").unwrap(), |_| false)
    };
    let staged = |priority: u32| pool("new", json!({"priority": priority, "rollout": {"type": "Staged"}}));
    pools.push(created(staged(0), 99));
    assert!(!matters(&pools, &full), "64 pools come first");
    pools[64] = created(staged(9), 99);
    assert!(matters(&pools, &full), "the last one makes room");
    let draining =
        with(&Catalog::new(pools.iter()), &labels(&[]), Some(&applied(spec(&full.pools), 1)), false, true);
    assert_eq!(names(&draining)[63], ("p63", PoolPhase::Draining));
    assert!(matters(&pools, &known(&applied(draining, 1))), "without the turn it would come back");
}

#[test]
fn a_change_of_a_staged_pool_waits_for_the_nodes_turn() {
    let staged = |mtu: u32| {
        let rollout = json!({"type": "Staged"});
        [pool("a", json!({"rollout": rollout, "macvtap": {"mtu": mtu}}))]
    };
    let turn = |pools: &[MacvtapResourcePool], current: Option<&MacvtapNodeState>, turn| {
        with(&Catalog::new(pools.iter()), &labels(&[]), current, false, turn)
    };
    assert_eq!(names(&turn(&staged(1500), None, false)), [], "a new pool comes by turns too");
    let first = applied(turn(&staged(1500), None, true), 1);
    assert_eq!(turn(&staged(9000), Some(&first), false), first.spec);
    let second = turn(&staged(9000), Some(&first), true);
    assert_eq!(second.pools()[0].settings.macvtap.as_ref().unwrap().mtu, Some(9000));
    assert_eq!(turn(&staged(9000), Some(&applied(second.clone(), 1)), false), second);
    let gone = [deleted(staged(9000)[0].clone())];
    assert_eq!(
        names(&turn(&gone, Some(&first), false)),
        [("a", PoolPhase::Draining)],
        "leaving takes no turn"
    );
}

#[test]
fn a_silent_node_is_let_go_only_when_the_deleted_pool_says_so() {
    let active = applied(rendered(&[pool("a", json!({}))], None), 2);
    let mut ending = deleted(pool("a", json!({})));
    let left = |pool: &MacvtapResourcePool, silent| {
        let catalog = Catalog::new([pool].into_iter());
        with(&catalog, &labels(&[]), Some(&active), silent, true).pools().len()
    };
    assert_eq!(left(&ending, true), 1);
    ending.annotations_mut().insert(macvtap_crds::RELEASE_ANNOTATION.into(), "n0, n1".into());
    assert_eq!((left(&ending, false), left(&ending, true)), (1, 0));
}

#[test]
fn a_pool_that_cannot_be_read_stays_as_it_was_told_in_its_place() {
    let high = pool("high", json!({"priority": 9}));
    let odd = pool("odd", json!({"priority": 5}));
    let low = pool("low", json!({}));
    let before = applied(rendered(&[high.clone(), odd.clone(), low.clone()], None), 1);
    let rest = [high, low];
    let frozen = |meta: &kube::api::ObjectMeta| {
        let catalog = Catalog::new(rest.iter()).with_unreadable([meta].into_iter());
        with(&catalog, &labels(&[]), Some(&before), false, true)
    };
    assert_eq!(frozen(&odd.metadata), before.spec);
    let ending = frozen(&deleted(odd).metadata);
    let expected = [("high", PoolPhase::Active), ("low", PoolPhase::Active), ("odd", PoolPhase::Draining)];
    assert_eq!(names(&ending), expected);
}

#[test]
fn what_an_agent_says_unreadably_is_no_drain() {
    let draining = rendered(
        &[deleted(pool("a", json!({})))],
        Some(&applied(rendered(&[pool("a", json!({}))], None), 2)),
    );
    let mut state = known(&applied(draining, 0));
    assert!(drained(&state, &state.pools[0].clone(), NOW));
    state.status_unreadable = true;
    assert!(!drained(&state, &state.pools[0].clone(), NOW));
}

proptest! {
    #[test]
    fn rendering_again_what_was_rendered_changes_nothing(
        priorities in proptest::collection::vec(0u32..4, 0..8),
        deleted_at in proptest::option::of(0usize..8),
        allocated in 0u32..3,
    ) {
        let mut pools: Vec<_> = priorities.iter().enumerate()
            .map(|(i, priority)| created(pool(&format!("p{i}"), json!({"priority": priority})), i.try_into().unwrap()))
            .collect();
        let first = applied(rendered(&pools, None), allocated);
        prop_assert_eq!(&rendered(&pools, Some(&first)), &first.spec);
        if let Some(gone) = deleted_at.filter(|i| *i < pools.len()) {
            pools[gone] = deleted(pools[gone].clone());
            let second = applied(rendered(&pools, Some(&first)), allocated);
            let third = rendered(&pools, Some(&second));
            prop_assert_eq!(third.pools().len(), pools.len() - usize::from(allocated == 0));
            pools.reverse();
            prop_assert_eq!(rendered(&pools, Some(&second)), third);
        }
    }
}

#[test]
fn a_node_whose_state_was_deleted_is_told_again_of_what_it_had_whoever_s_turn_it_is() {
    let staged = |mtu: u32| pool("b", json!({"macvtap": {"mtu": mtu}, "rollout": {"type": "Staged"}}));
    let gone = applied(rendered(&[pool("a", json!({})), staged(1500)], None), 2);
    let catalog = Catalog::new([deleted(pool("a", json!({}))), staged(9000)].iter());
    let again = with(&catalog, &labels(&[]), Some(&gone), false, false);
    assert_eq!(names(&again), [("b", PoolPhase::Active), ("a", PoolPhase::Draining)]);
    assert_eq!(again.pools()[0].settings.macvtap.as_ref().and_then(|macvtap| macvtap.mtu), Some(1500));
    // As long as the agent has not answered the new state, it holds what it held.
    let mut made = known(&state("n1", again, 0));
    let draining = Arc::clone(&made.pools[1]);
    let at = |second| Timestamp::from_second(second).unwrap();
    assert!(!drained(&made, &draining, at(9)) && drained(&made, &draining, at(10)), "nobody ever answered");
    made.answer_missing_since = Some(NOW);
    assert!(!drained(&made, &draining, at(599)));
    assert!(drained(&made, &draining, at(600)), "its agent has not come back for ten minutes");
}

#[test]
fn a_node_of_which_nobody_knows_what_it_was_sent_keeps_what_it_has_and_drains_what_is_deleted() {
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]});
    let pools = [
        pool("all", json!({})),
        pool("staged", json!({"rollout": {"type": "Staged"}})),
        pool(
            "elsewhere",
            json!({"rollout": {"type": "Staged"}, "nodeSelector": {"matchLabels": {"zone": "b"}}}),
        ),
        pool("frozen", json!({"nodeSelector": selector})),
        deleted(pool("ending", json!({}))),
    ];
    let (odd, gone) = (pool("odd", json!({})), deleted(pool("gone", json!({}))));
    let catalog = Catalog::new(pools.iter()).with_unreadable([&odd.metadata, &gone.metadata].into_iter());
    let states = States::default();
    let sent = |state: Option<&KnownState>, turn: bool, now| {
        let labels = labels(&[]);
        let target = Target { name: "n1", labels: &labels, silent: false, current: state, seen_until: now };
        render(target, &catalog, |_| turn)
    };
    states.assume("n1", || catalog.assumed(&labels(&[])), NOW);
    let entries = sent(states.deleted("n1", NOW).as_deref(), false, NOW);
    let (unchanged, draining) = (PoolPhase::Unchanged, PoolPhase::Draining);
    let (written, mut found) = (spec(&entries), Vec::new());
    found.extend(names(&written));
    found.sort_by_key(|(name, _)| *name);
    let kept = [("all", PoolPhase::Active), ("ending", draining), ("frozen", unchanged)];
    assert_eq!(found, [&kept[..], &[("gone", draining), ("odd", unchanged), ("staged", unchanged)]].concat());
    // Until its agent has answered the new state, for ten minutes.
    let written = Spec { pools: entries, ..Spec::default() };
    states.send("n1", written.clone());
    let mut state = states.stored("n1", &written, 1, NOW);
    Arc::make_mut(&mut state).drains_shown_since = Some(NOW);
    let later = Timestamp::from_second(600).unwrap();
    assert_eq!(sent(Some(&state), false, NOW), written.pools, "and nothing is written again");
    let later = sent(Some(&state), true, later);
    let of = |name: &str| later.iter().find(|entry| entry.name == name).map(|entry| entry.phase);
    assert_eq!((of("staged"), of("ending"), of("odd")), (Some(PoolPhase::Active), None, Some(unchanged)));
}
