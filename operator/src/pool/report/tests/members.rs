//! Nodes as members of a rollout, and what they say of states that cannot be read.

use super::*;
use crate::rollout::{Health, Member, Standing};
use crate::states::KnownState;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;

/// Calls `check` with how the node stands to the pool.
fn member<T>(pool: &MacvtapResourcePool, view: NodeView, check: impl Fn(Member<'_>) -> T) -> T {
    let (catalog, grants) = (Catalog::new([pool].into_iter()), Grants::default());
    let nodes = [view];
    let assessments = assess_all(&Subject::new(pool, &catalog, &grants), &nodes);
    check(assessments[0].member())
}

#[test]
fn health_is_that_of_what_the_node_has_also_before_it_applied_an_edit() {
    let before = pool("dp", json!({}));
    let after = edited(&json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}}));
    let with =
        |list: &[(&str, &str, &str)]| answered("n1", &before, &json!({"conditions": conditions(list)}));
    let well = || healthy("n1", &before);
    let (bad, degraded) = (("Ready", "False", "MtuTooSmall"), ("Degraded", "True", "LinkDown"));
    let silent = TestNode { not_ready_since: Some(Timestamp::UNIX_EPOCH), ..well() };
    for (pool, node, standing, health) in [
        (&before, well(), Standing::Ready, Health::Well),
        (&after, well(), Standing::Updating, Health::Well),
        (&before, with(&[("Ready", "False", "DryRun")]), Standing::Ready, Health::Well),
        (&before, with(&[bad]), Standing::NotReady, Health::NotReady),
        (&after, with(&[bad]), Standing::Updating, Health::NotReady),
        (&before, with(&[]), Standing::NotReady, Health::NotReady),
        (&before, with(&[("Ready", "True", "Serving"), degraded]), Standing::Degraded, Health::Degraded),
        (&after, with(&[("Ready", "True", "Serving"), degraded]), Standing::Updating, Health::Degraded),
        (&before, silent, Standing::Unreachable, Health::Unreachable),
    ] {
        let found = member(pool, node.view(), |member| (member.standing, member.health));
        assert_eq!(found, (standing, health));
    }
}

#[test]
fn a_node_serves_a_pool_of_which_it_has_links_or_devices() {
    let dp = pool("dp", json!({}));
    for (entry, serves) in [
        (json!({}), false),
        (json!({"links": ["dp0"]}), true),
        (json!({"capacity": 1}), true),
        (json!({"links": ["dp0"], "capacity": 1}), true),
    ] {
        assert_eq!(
            member(&dp, answered("n1", &dp, &entry).view(), |member| member.serves),
            serves,
            "{entry}"
        );
    }
}

#[test]
fn a_node_that_still_drains_the_same_pool_was_not_sent_it() {
    let dp = pool("dp", json!({}));
    let mut draining = healthy("n1", &dp);
    let sent = |node: &TestNode| member(&dp, node.view(), |member| member.sent);
    assert!(sent(&draining));
    draining.state.as_mut().unwrap().spec.pools.as_mut().unwrap()[0].phase = PoolPhase::Draining;
    assert!(!sent(&draining));
    let (catalog, grants, nodes) = (Catalog::new(std::iter::empty()), Grants::default(), [draining.view()]);
    let assessments = assess_all(&Subject::new(&dp, &catalog, &grants), &nodes);
    assert!(!assessments[0].member().sent, "nor is it when the pool has no effect");
}

#[test]
fn an_answer_without_the_pool_is_a_trouble_only_if_it_could_not_be_read() {
    let dp = pool("dp", json!({}));
    let mut node = healthy("n1", &dp);
    node.state.as_mut().unwrap().status.as_mut().unwrap().pools.clear();
    let reason = |status_unreadable| {
        let state = KnownState {
            unreadable: Some("spec.pools[odd] or status.pools[odd]".to_owned()),
            status_unreadable,
            ..known(node.state.as_ref().unwrap())
        };
        let view = NodeView { state: Some(Arc::new(state)), ..node.view() };
        let catalog = Catalog::new([&dp].into_iter());
        let report = report(&dp, &[view], &Ok(()), &NetworkReport::default(), &catalog, &Grants::default());
        report.status.samples[0].reason.clone()
    };
    assert_eq!((reason(true).as_str(), reason(false).as_str()), ("StatusNotReadable", "Updating"));
}
