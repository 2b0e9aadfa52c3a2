//! What is known of own writes.

use super::*;
use crate::states::KnownStatus;
use std::sync::Arc;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn spec(hash: &str) -> Spec {
    Spec { config_hash: hash.to_owned(), ..Spec::default() }
}

fn state(name: &str, version: u64, hash: &str) -> KnownState {
    KnownState { name: name.to_owned(), version, config_hash: hash.to_owned(), ..KnownState::default() }
}

#[test]
fn until_the_watch_shows_a_write_the_spec_is_what_was_written_and_the_lag_grows() {
    let mut own = Own::default();
    own.send("n1", spec("new"));
    own.stored("n1", 7, at(100));
    let mut earlier = state("n1", 6, "old");
    assert_eq!(own.seen(&mut earlier, at(130)), None);
    assert_eq!((earlier.config_hash.as_str(), own.lag(at(130))), ("new", Duration::from_secs(30)));
    let mut later = state("n1", 8, "by hand");
    assert_eq!(own.seen(&mut later, at(140)), Some(Duration::from_secs(40)));
    assert_eq!(later.config_hash, "by hand");
    assert_eq!(own.lag(at(179)), Duration::from_secs(40), "answers are as late as specs");
    assert_eq!((own.lag(at(180)), own.lag(at(181))), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn a_state_made_again_outlives_the_news_of_its_deletion() {
    let mut own = Own::default();
    own.send("n1", spec("new"));
    own.stored("n1", 7, at(100));
    assert!(own.survives("n1", Gone::Deleted(6)) && own.survives("n1", Gone::NotListedSince(at(100))));
    assert!(!own.survives("n1", Gone::NotListedSince(at(101))));
    own.send("n1", spec("new"));
    own.stored("n1", 7, at(100));
    assert!(own.newer("n1", 6).is_some() && own.newer("n1", 7).is_none());
    assert!(!own.survives("n1", Gone::Deleted(7)), "no two events have one version");
    own.send("n1", spec("new"));
    own.stored("n1", 7, at(100));
    assert!(!own.survives("n1", Gone::Deleted(8)));
}

#[test]
fn specs_without_an_answer_are_limited_and_an_agent_that_hangs_holds_up_nobody_for_long() {
    let mut own = Own::default();
    for i in 0..UNANSWERED_MAX {
        assert!(own.has_room(at(0), |_| true), "{i}");
        own.send(&i.to_string(), spec("h"));
        own.stored(&i.to_string(), 1, at(0));
    }
    assert!(!own.has_room(at(299), |_| true), "what the watch does not show is under way");
    assert!(own.has_room(at(300), |_| true) && own.lag(at(300)).is_zero(), "no watch is that late");
    for i in 0..UNANSWERED_MAX {
        own.seen(&mut state(&i.to_string(), 1, "h"), at(1000));
    }
    assert!(!own.has_room(at(1009), |_| true) && own.has_room(at(1010), |_| true));
}

#[test]
fn writes_of_which_nobody_knows_what_became_hold_up_no_other_and_may_still_hold_their_pools() {
    let mut own = Own::default();
    let entry = Arc::new(crate::entry::entry_of(&crate::testing::pool("dp", serde_json::json!({}))));
    for i in 0..UNANSWERED_MAX {
        own.send(&i.to_string(), Spec { pools: vec![Arc::clone(&entry)], ..spec("h") });
    }
    assert!(!own.has_room(at(0), |_| true));
    (0..UNANSWERED_MAX).for_each(|i| own.lost(&i.to_string(), at(0)));
    assert!(own.has_room(at(0), |_| true));
    assert_eq!(own.may_hold(&entry.uid, at(0)).count(), UNANSWERED_MAX);
}

#[test]
fn a_lost_write_may_arrive_after_later_ones_until_no_api_server_is_at_work_on_it() {
    let mut own = Own::default();
    let entry = Arc::new(crate::entry::entry_of(&crate::testing::pool("dp", serde_json::json!({}))));
    let holders = |own: &Own, second| own.may_hold(&entry.uid, at(second)).count();
    own.send("n1", Spec { pools: vec![Arc::clone(&entry)], ..spec("with") });
    own.lost("n1", at(0));
    own.seen(&mut state("n1", 5, "without"), at(1));
    own.withdraw("n1");
    assert_eq!(holders(&own, 1), 1, "nothing says that it was refused");
    own.send("n1", spec("without"));
    own.stored("n1", 6, at(2));
    own.seen(&mut state("n1", 6, "without"), at(3));
    own.clear(at(4));
    own.seen(&mut state("n1", 7, "with"), at(5));
    assert_eq!(holders(&own, 5), 1, "this may be the same spec of a later write");
    assert_eq!((holders(&own, 119), holders(&own, 120)), (1, 0));
    own.seen(&mut state("n1", 8, "without"), at(120));
    assert!(own.writes.is_empty());
}

#[test]
fn of_lost_writes_each_content_is_remembered_once() {
    let mut own = Own::default();
    let entry = Arc::new(crate::entry::entry_of(&crate::testing::pool("dp", serde_json::json!({}))));
    for hash in ["with", "without", "without"] {
        let pools = if hash == "with" { vec![Arc::clone(&entry)] } else { Vec::new() };
        own.send("n1", Spec { pools, ..spec(hash) });
        own.lost("n1", at(0));
    }
    assert_eq!(own.may_hold(&entry.uid, at(1)).count(), 1);
    assert_eq!(own.writes["n1"].lost.len(), 2);
}

#[test]
fn what_is_on_its_way_when_another_operator_takes_over_may_arrive() {
    let mut own = Own::default();
    let entry = Arc::new(crate::entry::entry_of(&crate::testing::pool("dp", serde_json::json!({}))));
    own.send("n1", Spec { pools: vec![Arc::clone(&entry)], ..spec("with") });
    own.clear(at(0));
    assert_eq!(own.may_hold(&entry.uid, at(1)).count(), 1);
    assert!(own.has_room(at(1), |_| true) && !own.is_ahead("n1"));
}

#[test]
fn a_state_that_is_deleted_before_the_answer_to_its_write_comes_is_gone() {
    let mut own = Own::default();
    own.send("n1", spec("new"));
    assert!(!own.survives("n1", Gone::Deleted(8)));
    assert!(!own.stored("n1", 7, at(100)));
    assert_eq!((own.lag(at(200)), own.is_ahead("n1")), (Duration::ZERO, false));
    own.send("n1", spec("new"));
    assert!(!own.survives("n1", Gone::Deleted(8)));
    assert!(!own.stored("n1", 8, at(100)));
    own.send("n1", spec("new"));
    assert!(!own.survives("n1", Gone::Deleted(8)));
    assert!(own.stored("n1", 9, at(100)), "made again since");
}

#[test]
fn a_second_write_that_is_refused_leaves_the_first_known_until_the_watch_shows_it() {
    let lose: fn(&mut Own, &str) = |own, name| own.lost(name, at(106));
    for outcome in [Own::withdraw, lose] {
        let mut own = Own::default();
        own.send("n1", spec("first"));
        own.stored("n1", 7, at(100));
        own.send("n1", spec("second"));
        let mut during = state("n1", 6, "old");
        own.seen(&mut during, at(105));
        outcome(&mut own, "n1");
        let mut earlier = state("n1", 6, "old");
        own.seen(&mut earlier, at(110));
        assert_eq!((during.config_hash.as_str(), earlier.config_hash.as_str()), ("first", "first"));
        assert_eq!((own.is_ahead("n1"), own.lag(at(120))), (true, Duration::from_secs(20)));
    }
}

#[test]
fn only_agents_that_answer_limit_the_specs_under_way() {
    let mut own = Own::default();
    for i in 0..UNANSWERED_MAX {
        own.send(&i.to_string(), spec("h"));
        own.stored(&i.to_string(), 1, at(0));
        own.seen(&mut state(&i.to_string(), 1, "h"), at(0));
    }
    assert!(!own.has_room(at(1), |_| true) && own.has_room(at(1), |name| name != "7"));
    let answered = || KnownState {
        status: Some(KnownStatus { observed_hash: Some("old".to_owned()), ..KnownStatus::default() }),
        ..state("n1", 1, "h")
    };
    let waiting = |since| KnownState { unanswered_since: Some(at(since)), ..answered() };
    assert!(will_answer(&answered(), at(100)) && will_answer(&waiting(91), at(100)));
    assert!(!will_answer(&waiting(90), at(100)), "it owes an answer to an earlier spec");
    assert!(!will_answer(&state("n1", 1, "h"), at(100)), "no agent ever answered");
}
