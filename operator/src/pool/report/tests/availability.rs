//! What a pool is for those who wait for it: available, stalled, a dry run, or on its way out.

use super::*;

#[test]
fn nodes_without_a_matching_link_count_apart() {
    let dp = pool("dp", json!({"nodeSelector": {}}));
    let none = json!({"conditions": conditions(&[("Ready", "False", "NoMatchingLink")])});
    let found = status(&dp, &[healthy("a", &dp), answered("b", &dp, &none)]);
    says(&found, Ready, true, PoolReason::AllNodesReady);
    says(&found, Degraded, false, PoolReason::AsExpected);
    assert_eq!((found.nodes.summary.as_str(), found.nodes.without_links), ("1/1", 1));
    assert_eq!((found.nodes.updated, found.samples[0].node.as_str()), (1, "b"));
    let alone = status(&dp, &[answered("b", &dp, &none)]);
    says(&alone, Ready, false, PoolReason::NoMatchingLinks);
    for trouble in [json!({"dead": 1}), json!({"contestedLinks": ["dp0"]}), json!({"allocated": 1})] {
        let mut entry = none.clone();
        entry.as_object_mut().unwrap().extend(trouble.as_object().unwrap().clone());
        let found = status(&dp, &[healthy("a", &dp), answered("b", &dp, &entry)]);
        assert_eq!((found.nodes.without_links, found.nodes.degraded), (0, 1), "{trouble}");
    }
}

#[test]
fn a_pool_stays_available_while_one_node_serves_it() {
    let before = pool("dp", json!({}));
    let after = edited(&json!({}));
    let found = status(&after, &[healthy("n1", &before)]);
    says(&found, Ready, false, PoolReason::NodesNotReady);
    says(&found, Available, true, PoolReason::NodesServing);
    let down = json!({"conditions": conditions(&[("Ready", "False", "NoHealthyLink")])});
    let nodes = |first: TestNode| [first, answered("n2", &before, &down)];
    says(&status(&before, &nodes(healthy("n1", &before))), Available, true, PoolReason::NodesServing);
    let mut silent = healthy("n1", &before);
    silent.not_ready_since = Some(Timestamp::from_second(NOW - 90).unwrap());
    says(&status(&before, &nodes(silent)), Available, false, PoolReason::NoNodeServing);
}

#[test]
fn what_goes_on_only_when_somebody_acts_is_stalled() {
    let dp = pool("dp", json!({}));
    assert_eq!(find(&status(&dp, &[healthy("n1", &dp)]).conditions, Stalled), None);
    let verdict = Err(Rejection::ResourceNameConflict { resource: "dp".into(), older: "first".into() });
    let rejected = status_with(&dp, &[], &verdict, &NetworkReport::default()).status;
    says(&rejected, Stalled, true, PoolReason::ResourceNameConflict);
    let after = edited(&json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}}));
    says(&halted(&dp, &after), Stalled, true, PoolReason::RolloutHalted);
    let ending = status_with(&deleted(dp.clone()), &[], &verdict, &NetworkReport::default()).status;
    assert_eq!(find(&ending.conditions, Stalled), None);
}

#[test]
fn a_dry_run_is_never_ready_and_nothing_is_wrong_with_it() {
    let dry = pool("dp", json!({"advertisement": "DryRun"}));
    let entry = json!({"links": ["dp0"], "conditions": conditions(&[("Ready", "False", "DryRun")])});
    let found = status(&dry, &[answered("n1", &dry, &entry)]);
    says(&found, Ready, false, PoolReason::DryRun);
    says(&found, Available, false, PoolReason::NoNodeServing);
    says(&found, Degraded, false, PoolReason::AsExpected);
    says(&found, Progressing, false, PoolReason::UpToDate);
    assert!(found.samples.is_empty(), "{:?}", found.samples);
}

#[test]
fn a_pool_that_is_being_deleted_names_the_nodes_it_waits_for() {
    let dp = pool("dp", json!({}));
    let gone = deleted(dp.clone());
    let found = status(&gone, &[healthy("n1", &dp), answered("n2", &dp, &json!({"allocated": 7}))]);
    says(&found, Terminating, true, PoolReason::DevicesInUse);
    says(&found, Ready, false, PoolReason::Terminating);
    let message = &find(&found.conditions, Terminating).unwrap().message;
    assert_eq!(message, "9 devices in use on 2 nodes: n2 (7), n1 (2)");
    let unused = [healthy("n1", &dp), answered("n2", &dp, &json!({"allocatable": 5}))];
    let message = |nodes: &[TestNode]| {
        let found = status(&gone, nodes);
        assert!(found.samples.is_empty(), "{:?}", found.samples);
        says(&found, Progressing, false, PoolReason::Terminating);
        find(&found.conditions, Terminating).map(|c| (c.reason.clone(), c.message.clone())).unwrap()
    };
    assert_eq!(message(&unused), ("DevicesInUse".into(), "2 devices in use on 1 nodes: n1 (2)".into()));
    let (reason, text) = message(&unused[1..]);
    assert_eq!((&*reason, &*text), ("NodesDraining", "waiting for 1 nodes to withdraw the pool: n2"));
    says(&status(&gone, &[]), Terminating, true, PoolReason::RemovingNetworks);
}

#[test]
fn an_agent_that_runs_and_says_what_it_lacks_is_not_unreachable() {
    let dp = pool("dp", json!({}));
    let since = Timestamp::from_second(NOW - 600).unwrap();
    for reason in ["PluginMissing", "TableNotWritten", "RegistrationFailed", "KubeletUnreachable"] {
        let entry = json!({"capacity": 50, "conditions": conditions(&[("Ready", "False", reason)])});
        let mut node = answered("n1", &dp, &entry);
        node.agent_down = Some(Down { since, runs: true });
        let found = status(&dp, std::slice::from_ref(&node));
        assert_eq!((found.nodes.unreachable, found.samples[0].reason.as_str()), (0, reason));
        // Its container does not run: what it said is of the past.
        node.agent_down = Some(Down { since, runs: false });
        assert_eq!(status(&dp, &[node]).nodes.unreachable, 1, "{reason}");
    }
    let mut node = healthy("n1", &dp);
    node.agent_down = Some(Down { since, runs: true });
    assert_eq!(status(&dp, &[node]).nodes.unreachable, 1, "an agent that hangs says nothing");
    // An agent that crashes again and again leaves this as its last status.
    let entry = json!({"capacity": 50, "conditions": conditions(&[("Ready", "False", "Registering")])});
    let mut node = answered("n1", &dp, &entry);
    node.agent_down = Some(Down { since, runs: true });
    assert_eq!(status(&dp, &[node]).nodes.unreachable, 1);
}
