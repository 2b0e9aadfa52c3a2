//! What is known of node states.

use super::*;
use crate::entry::{config_hash, entry_of};
use crate::testing::{pool, raw, spec};
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde_json::Value;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn named(name: &str) -> RawState {
    let entry = entry_of(&pool("dp", serde_json::json!({})));
    raw(&MacvtapNodeState::new(name, spec(&[Arc::new(entry)])))
}

#[test]
fn a_list_that_is_read_anew_replaces_what_was_known_when_it_is_complete() {
    let states = States::default();
    let names = |states: &States| {
        let mut names: Vec<_> = states.all().iter().map(|state| state.name.clone()).collect();
        names.sort();
        names
    };
    for event in [Event::Init, Event::InitApply(named("a")), Event::InitApply(named("b")), Event::InitDone] {
        states.take(event, NOW);
    }
    states.take(Event::Apply(named("c")), NOW);
    states.take(Event::Delete(named("a")), NOW);
    assert_eq!(names(&states), ["b", "c"]);
    states.take(Event::Init, NOW);
    states.take(Event::InitApply(named("d")), NOW);
    assert_eq!(names(&states), ["b", "c"]);
    states.take(Event::InitDone, NOW);
    assert_eq!(names(&states), ["d"]);
}

fn versioned(version: u64, observed: Option<&str>) -> RawState {
    let mut raw = named("n1");
    raw.metadata.resource_version = Some(version.to_string());
    raw.spec["configHash"] = "old".into();
    raw.status = observed.map_or(Value::Null, |hash| serde_json::json!({"observedHash": hash}));
    raw
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn silence_begins_when_the_watch_shows_the_spec_and_a_further_write_does_not_put_it_off() {
    let states = States::default();
    let spec = |hash: &str| Spec { config_hash: hash.to_owned(), ..Spec::default() };
    let write = |hash: &str, version, second| {
        states.send("n1", spec(hash));
        states.stored("n1", &spec(hash), version, at(second));
    };
    let show = |hash: &str, version, observed: Option<&str>, second| {
        let mut raw = versioned(version, observed);
        raw.spec["configHash"] = hash.into();
        states.take(Event::Apply(raw), at(second));
    };
    let since = || states.get("n1").unwrap().unanswered_since;
    show("old", 5, Some("old"), 0);
    write("new", 6, 10);
    assert_eq!(states.get("n1").unwrap().config_hash, "new");
    assert_eq!(since(), None, "the agent may not have been told yet");
    show("old", 5, Some("old"), 40);
    assert_eq!((since(), states.get("n1").unwrap().config_hash.as_str()), (None, "new"));
    show("new", 6, Some("old"), 60);
    assert_eq!(since(), Some(at(60)));
    write("newer", 7, 70);
    show("newer", 7, Some("old"), 80);
    assert_eq!(since(), Some(at(60)), "it has not said anything since");
    show("newer", 8, Some("new"), 90);
    assert_eq!(since(), Some(at(90)), "it is busy with an earlier spec");
    show("newer", 9, Some("newer"), 95);
    assert_eq!(since(), None);
}

#[test]
fn a_list_does_not_undo_what_was_written_after_the_state_was_read_for_it() {
    let states = States::default();
    states.take(Event::Apply(versioned(5, None)), NOW);
    states.take(Event::Init, NOW);
    states.take(Event::InitApply(versioned(5, None)), NOW);
    let spec = Spec { config_hash: "new".to_owned(), ..Spec::default() };
    states.send("n1", spec.clone());
    states.stored("n1", &spec, 6, NOW);
    states.take(Event::InitDone, NOW);
    assert_eq!(states.get("n1").unwrap().config_hash, "new");
}

#[test]
fn a_state_that_is_deleted_is_remembered_until_another_is_made_and_its_answers_are_beyond_that() {
    let states = States::default();
    states.take(Event::Apply(versioned(5, Some("old"))), at(0));
    assert!(states.deleted("n1", at(0)).is_none());
    states.take(Event::Delete(versioned(6, Some("old"))), at(1));
    let deleted = states.deleted("n1", at(2)).unwrap();
    assert!(deleted.entry("uid-dp").is_some() && states.get("n1").is_none());
    assert!(states.deleted("n1", at(601)).is_none(), "no node comes back so late");
    let spec = Spec { config_hash: "old".to_owned(), ..Spec::default() };
    states.send("n1", spec.clone());
    assert!(states.stored("n1", &spec, 7, at(3)).was_answered(at(3)));
    states.take(Event::Apply(versioned(7, None)), at(4));
    let was_answered = |second| states.get("n1").unwrap().was_answered(at(second));
    assert!(was_answered(600) && states.deleted("n1", at(4)).is_none());
    assert!(!was_answered(601), "ten minutes after the state was deleted");
    states.take(Event::Apply(versioned(8, Some("old"))), at(5));
    states.take(Event::Apply(versioned(9, None)), at(6));
    assert!(was_answered(605), "its status was removed");
    states.take(Event::Apply(versioned(10, None)), at(400));
    assert!(!was_answered(606), "a further change does not put that off");
}

#[test]
fn an_answer_that_no_event_showed_before_its_state_was_deleted_counts() {
    let states = States::default();
    states.take(Event::Apply(versioned(5, None)), at(0));
    states.take(Event::Delete(versioned(7, Some("old"))), at(1));
    assert!(states.deleted("n1", at(2)).unwrap().answered(), "the deleted state has it");

    states.take(Event::Apply(versioned(8, None)), at(700));
    states.take(Event::Delete(versioned(9, None)), at(1400));
    assert!(!states.deleted("n1", at(1401)).unwrap().was_answered(at(1401)), "the watch showed everything");

    states.take(Event::Apply(versioned(10, None)), at(2100));
    for event in [Event::Init, Event::InitDone] {
        states.take(event, at(2101));
    }
    let deleted = states.deleted("n1", at(2102)).unwrap();
    assert!(deleted.was_answered(at(2102)), "what happened while no watch was open was not seen");
}

#[test]
fn a_spec_on_its_way_may_bring_a_pool_that_no_state_has() {
    let states = States::default();
    let entry = Arc::new(entry_of(&pool("dp", serde_json::json!({}))));
    let spec = Spec { config_hash: "h".to_owned(), pools: vec![entry], ..Spec::default() };
    states.send("n1", spec.clone());
    assert_eq!(states.may_hold("uid-dp", NOW), ["n1"]);
    states.withdraw("n1");
    assert!(states.may_hold("uid-dp", NOW).is_empty(), "it was refused");
    states.send("n1", spec.clone());
    states.stored("n1", &spec, 3, NOW);
    assert!(states.may_hold("uid-dp", NOW).is_empty() && states.get("n1").unwrap().entry("uid-dp").is_some());
}

#[test]
fn a_drain_is_shown_since_the_watch_has_it_and_other_changes_do_not_put_that_off() {
    let states = States::default();
    let entry = |name: &str| Arc::new(entry_of(&pool(name, serde_json::json!({}))));
    let drain = |names: &[&str]| -> Vec<_> { names.iter().map(|name| entry(name).draining()).collect() };
    let write = |pools: &[Arc<Entry>], version, second| {
        let spec = Spec { config_hash: format!("h{version}"), pools: pools.to_vec(), ..Spec::default() };
        states.send("n1", spec.clone());
        states.stored("n1", &spec, version, at(second));
    };
    let show = |pools: &[Arc<Entry>], version, second| {
        let mut shown = raw(&MacvtapNodeState::new("n1", spec(pools)));
        shown.metadata.resource_version = Some(u64::to_string(&version));
        states.take(Event::Apply(shown), at(second));
    };
    let given_up_in = |second| {
        let state = states.get("n1").or_else(|| states.deleted("n1", at(second))).unwrap();
        state.drains_given_up_in(at(second)).map(|wait| wait.as_secs())
    };
    show(&[entry("a"), entry("b")], 1, 0);
    assert_eq!(given_up_in(0), None, "there is no drain");
    write(&drain(&["a"]), 2, 100);
    show(&[entry("a"), entry("b")], 1, 105);
    assert_eq!(given_up_in(200), None, "the agent may not have received it");
    show(&drain(&["a"]), 2, 200);
    assert_eq!(given_up_in(203), Some(7));
    let with_other = [&drain(&["a"])[..], &[entry("c")]].concat();
    write(&with_other, 3, 204);
    show(&with_other, 3, 205);
    assert_eq!(given_up_in(206), Some(4));
    write(&drain(&["a", "c"]), 4, 207);
    show(&drain(&["a", "c"]), 4, 208);
    assert_eq!((given_up_in(208), given_up_in(300)), (Some(10), Some(0)));
    states.take(Event::Delete(versioned(5, None)), at(209));
    assert_eq!(given_up_in(300), None, "the node can receive it from another state only");
}

/// A state that names a configuration, which has these pools or cannot be read.
fn naming(config: &str, version: u64, pools: Result<&[Arc<Entry>], &[Arc<Entry>]>) -> RawState {
    let mut raw = versioned(version, Some("old"));
    raw.spec = serde_json::json!({"configHash": "old", "config": config});
    raw.status["observedGeneration"] = 1.into();
    raw.shared = match pools {
        Ok(pools) => {
            let content = Content { name: config.to_owned(), pools: Value::Null, entries: pools.to_vec() };
            Shared::Known(Arc::new(content))
        }
        Err(assumed) => Shared::Unknown { why: "it is away".to_owned(), assumed: assumed.to_vec() },
    };
    raw
}

#[test]
fn what_a_missing_configuration_had_is_taken_from_memory_and_else_from_all_that_it_may_have_had() {
    let entry = |name: &str| Arc::new(entry_of(&pool(name, serde_json::json!({}))));
    let [a, b] = [entry("a"), entry("b").draining()];
    let names =
        |state: &KnownState| -> Vec<String> { state.pools.iter().map(|pool| pool.name.clone()).collect() };
    let states = States::default();
    states.take(Event::Apply(naming("c1", 1, Ok(std::slice::from_ref(&a)))), at(0));
    states.take(Event::Apply(naming("c1", 2, Err(&[Arc::clone(&b)]))), at(1));
    let known = states.get("n1").unwrap();
    assert!(known.applied() && known.unreadable.is_none(), "nothing has changed");
    assert_eq!((names(&known), states.nodes_with(&config_hash(&[a]))), (vec!["a".to_owned()], 1));

    states.take(Event::Apply(naming("c2", 3, Err(&[Arc::clone(&b)]))), at(2));
    let known = states.get("n1").unwrap();
    assert_eq!(names(&known), ["b", "a"]);
    assert!(known.spec_unknown && known.spec_unreadable && !known.applied());
    assert_eq!(known.drains_shown_since, None, "nobody has sent that drain");
    let spec = Spec { config_hash: "new".to_owned(), pools: known.pools.clone(), ..Spec::default() };
    assert!(!known.is_as(&spec));
    states.send("n1", spec.clone());
    let written = states.stored("n1", &spec, 4, at(3));
    assert!(!written.spec_unknown && written.unreadable.is_none() && written.config.is_none());
    assert!(states.configs(at(3)).is_empty());
}

#[test]
fn a_state_whose_configuration_is_missing_when_the_operator_starts_may_have_all_pools() {
    let states = States::default();
    for event in [Event::Init, Event::InitApply(naming("c1", 1, Err(&[]))), Event::InitDone] {
        states.take(event, at(0));
    }
    let drain = Arc::new(entry_of(&pool("dp", serde_json::json!({})))).draining();
    states.assume("n1", || vec![Arc::clone(&drain)], at(1));
    let known = states.get("n1").unwrap();
    assert!(known.entry("uid-dp").is_some() && !known.applied());
    assert_eq!(known.drains_given_up_in(at(900)), None);
}

#[test]
fn the_answer_of_an_agent_that_does_not_know_configurations_is_about_no_pools() {
    let states = States::default();
    let mut raw = naming("c1", 1, Ok(&[]));
    states.take(Event::Apply(raw.clone()), at(0));
    assert!(states.get("n1").unwrap().applied());
    raw.status = serde_json::json!({"observedHash": "old", "agentVersion": "0.1.0"});
    states.take(Event::Apply(raw), at(1));
    assert!(!states.get("n1").unwrap().applied());
}
