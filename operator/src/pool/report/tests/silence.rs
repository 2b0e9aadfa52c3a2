//! Nodes that do not answer.

use super::*;
use macvtap_crds::RELEASE_ANNOTATION;

#[test]
fn a_node_whose_agent_never_starts_counts_as_unreachable_after_minutes_unless_it_is_virtual() {
    let dp = pool("dp", json!({}));
    let failing = |seconds, labels: &[(&str, &str)]| TestNode {
        runs_agent: false,
        unstarted_since: Timestamp::from_second(NOW - seconds).ok(),
        agent_down: Timestamp::from_second(NOW - seconds).ok().map(|since| Down { since, runs: false }),
        labels: crate::testing::labels(labels),
        ..told("n2", &dp, seconds)
    };
    let look = |node| status_with(&dp, &[healthy("n1", &dp), node], &Ok(()), &NetworkReport::default());
    let starting = look(failing(170, &[]));
    says(&starting.status, Ready, true, PoolReason::AllNodesReady);
    assert_eq!((starting.status.nodes.matched, starting.recheck), (1, Some(Duration::from_secs(11))));
    let failed = look(failing(181, &[]));
    says(&failed.status, Degraded, true, PoolReason::NodesUnreachable);
    assert_eq!((failed.status.nodes.summary.as_str(), failed.recheck), ("1/2", None));
    assert_eq!(failed.status.samples[0].reason, "AgentNotStarted");
    assert!(failed.status.samples[0].message.contains("no agent has started"));
    let elsewhere = look(failing(900, &[("type", "virtual-kubelet")]));
    assert_eq!((elsewhere.status.nodes.matched, elsewhere.recheck), (1, None));
}

#[test]
fn a_silent_node_is_unreachable_after_ninety_seconds_and_does_not_take_readiness_away() {
    let dp = pool("dp", json!({"nodeSelector": {}}));
    let waiting =
        status_with(&dp, &[healthy("a", &dp), told("b", &dp, 30)], &Ok(()), &NetworkReport::default());
    assert_eq!(waiting.recheck, Some(Duration::from_secs(61)));
    says(&waiting.status, Ready, false, PoolReason::NodesNotReady);
    let node = told("b", &dp, 100);
    let seen_until = |seconds_ago| NodeView {
        seen_until: Timestamp::from_second(NOW - seconds_ago).unwrap(),
        ..node.view()
    };
    assert!(silent(&seen_until(10)).is_ok());
    let late = "its answer may be on its way in a watch that is late";
    assert_eq!(silent(&seen_until(11)), Err(Some(Duration::from_secs(1))), "{late}");
    let mut gone = healthy("b", &dp);
    gone.not_ready_since = Some(Timestamp::from_second(NOW - 90).unwrap());
    let silent = status_with(&dp, &[healthy("a", &dp), gone], &Ok(()), &NetworkReport::default());
    says(&silent.status, Ready, true, PoolReason::AllNodesReady);
    says(&silent.status, Degraded, true, PoolReason::NodesUnreachable);
    assert_eq!(silent.recheck, None);
    says(&status(&dp, &[told("b", &dp, 100)]), Ready, false, PoolReason::NodesNotReady);
}

#[test]
fn a_node_whose_agent_is_down_is_unreachable_after_90_seconds_although_it_had_applied_everything() {
    let dp = pool("dp", json!({}));
    let mut node = healthy("n1", &dp);
    let down = |seconds: i64| {
        let since = Timestamp::from_second(NOW - seconds).unwrap();
        Some(Down { since, runs: false })
    };
    node.agent_down = down(89);
    let report = status_with(&dp, std::slice::from_ref(&node), &Ok(()), &NetworkReport::default());
    says(&report.status, Ready, true, PoolReason::AllNodesReady);
    assert_eq!(report.recheck.map(|wait| wait.as_secs()), Some(2));
    node.agent_down = down(91);
    let found = status(&dp, std::slice::from_ref(&node));
    says(&found, Degraded, true, PoolReason::NodesUnreachable);
    says(&found, Ready, false, PoolReason::NodesNotReady);
    assert_eq!(found.nodes.unreachable, 1);
    node.agent_down = None;
    says(&status(&dp, &[node]), Ready, true, PoolReason::AllNodesReady);
}

#[test]
fn a_pool_being_deleted_names_the_nodes_that_may_hold_it_although_their_states_are_missing() {
    let pool = crate::testing::deleted(pool("dp", json!({})));
    let waits = |remembered: &[&str]| {
        let remembered: Vec<String> = remembered.iter().map(|name| (*name).to_owned()).collect();
        let found = super::super::terminating(&pool.metadata, &[], &remembered);
        (found.reason, found.message)
    };
    let message = "waiting for 2 nodes whose states are missing and may have had the pool: n1, n2";
    assert_eq!(waits(&["n1", "n2"]), ("NodesDraining", message.to_owned()));
    assert_eq!(waits(&[]).0, "RemovingNetworks");
}

#[test]
fn a_pool_being_deleted_says_which_released_nodes_do_not_exist() {
    let alive = pool("dp", json!({}));
    let mut pool = crate::testing::deleted(alive.clone());
    pool.metadata.annotations = Some([(RELEASE_ANNOTATION.to_owned(), "n1\nn2 typo".to_owned())].into());
    let message = |names: &[&'static str], remembered: &[String]| {
        let nodes: Vec<_> = names.iter().map(|name| healthy(name, &alive).view()).collect();
        super::super::terminating(&pool.metadata, &nodes, remembered).message
    };
    let named = format!("; annotation {RELEASE_ANNOTATION} names nodes that do not exist: ");
    assert!(message(&["n1", "n2"], &[]).ends_with(&format!("{named}typo")));
    assert!(message(&["n1"], &["n9".to_owned()]).ends_with(&format!("{named}n2, typo")));
    assert!(!message(&["n1", "n2", "typo"], &[]).contains(RELEASE_ANNOTATION));
    assert!(!message(&[], &[]).contains(RELEASE_ANNOTATION), "nothing is waited for");
}
