//! What a pool's status says of its nodes.

use super::*;
use crate::agents::Down;
use crate::catalog::Catalog;
use crate::network::Problem;
use crate::node::silent;
use crate::node_state::render::{self, Target};
use crate::pool::advance::advance;
use crate::pool::assess::{Subject, assess_all, recheck};
use crate::rollout::Grants;
use crate::testing::{deleted, known, labels, node, pool, spec, state};
use kube::ResourceExt;
use macvtap_crds::condition::find;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateStatus, NodePoolStatus};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

mod availability;
mod kstatus;
mod members;
mod obstacles;
mod silence;

const NOW: i64 = 10_000;

/// A node of a test: how its state came about.
struct TestNode {
    name: &'static str,
    labels: BTreeMap<String, String>,
    not_ready_since: Option<Timestamp>,
    agent_down: Option<Down>,
    runs_agent: bool,
    unstarted_since: Option<Timestamp>,
    is_terminating: bool,
    state: Option<MacvtapNodeState>,
}

impl TestNode {
    fn view(&self) -> NodeView {
        let mut node = node(self.name, self.labels.clone());
        node.metadata.deletion_timestamp = self.is_terminating.then(|| crate::testing::at(NOW));
        NodeView {
            node: Arc::new(node),
            state: self.state.as_ref().map(known).map(Arc::new),
            not_ready_since: self.not_ready_since,
            agent_down: self.agent_down,
            now: Timestamp::from_second(NOW).unwrap(),
            runs_agent: self.runs_agent,
            unstarted_since: self.unstarted_since,
            seen_until: Timestamp::from_second(NOW).unwrap(),
        }
    }
}

/// What comes of a look at a pool.
struct Report {
    status: MacvtapResourcePoolStatus,
    recheck: Option<Duration>,
    rollout: RolloutStep,
}

/// A node that was told of the pool so many seconds ago and has not answered.
fn told(name: &'static str, pool: &MacvtapResourcePool, seconds_ago: i64) -> TestNode {
    let labels = labels(&[]);
    let target =
        Target { name, labels: &labels, silent: false, current: None, seen_until: Timestamp::UNIX_EPOCH };
    let entries = render::render(target, &Catalog::new([pool].into_iter()), |_| true);
    let state = Some(state(name, spec(&entries), NOW - seconds_ago));
    TestNode {
        name,
        labels,
        not_ready_since: None,
        agent_down: None,
        runs_agent: true,
        unstarted_since: None,
        is_terminating: false,
        state,
    }
}

/// The same after its agent answered with this entry for the pool.
fn answered(name: &'static str, pool: &MacvtapResourcePool, entry: &serde_json::Value) -> TestNode {
    let mut node = told(name, pool, 0);
    let mut full = json!({"name": pool.name_any(), "generation": 1});
    full.as_object_mut().unwrap().extend(entry.as_object().unwrap().clone());
    let entry: NodePoolStatus = serde_json::from_value(full).unwrap();
    let state = node.state.as_mut().unwrap();
    let observed_hash = Some(state.spec.config_hash.clone());
    state.status = Some(MacvtapNodeStateStatus { observed_hash, pools: vec![entry], ..Default::default() });
    node
}

fn conditions(list: &[(&str, &str, &str)]) -> serde_json::Value {
    let time = "1970-01-01T00:00:00Z";
    let list = list.iter().map(|(kind, status, reason)| {
        json!({"type": kind, "status": status, "reason": reason, "message": "why", "lastTransitionTime": time})
    });
    list.collect()
}

fn healthy(name: &'static str, pool: &MacvtapResourcePool) -> TestNode {
    let entry = json!({
        "capacity": 50, "allocatable": 50, "allocated": 2, "links": ["dp0"],
        "conditions": conditions(&[("Ready", "True", "Serving")]),
    });
    answered(name, pool, &entry)
}

fn status_with(
    pool: &MacvtapResourcePool,
    nodes: &[TestNode],
    verdict: &Result<(), Rejection>,
    networks: &NetworkReport,
) -> Report {
    status_after(pool, nodes, verdict, networks, &Grants::default())
}

fn status_after(
    pool: &MacvtapResourcePool,
    nodes: &[TestNode],
    verdict: &Result<(), Rejection>,
    networks: &NetworkReport,
    grants: &Grants,
) -> Report {
    let nodes: Vec<NodeView> = nodes.iter().map(TestNode::view).collect();
    report(pool, &nodes, verdict, networks, &Catalog::new([pool].into_iter()), grants)
}

fn report(
    pool: &MacvtapResourcePool,
    nodes: &[NodeView],
    verdict: &Result<(), Rejection>,
    networks: &NetworkReport,
    catalog: &Catalog,
    grants: &Grants,
) -> Report {
    let now = Timestamp::from_second(NOW).unwrap();
    let subject = Subject::new(pool, catalog, grants);
    let assessments = &assess_all(&subject, nodes);
    let rollout = advance(pool, &subject, assessments, grants);
    let observed =
        Observed { pool, verdict, nodes, assessments, rollout: &rollout, networks, remembered: &[], now };
    Report { status: super::status(&observed), recheck: recheck(nodes, assessments), rollout }
}

fn status(pool: &MacvtapResourcePool, nodes: &[TestNode]) -> MacvtapResourcePoolStatus {
    status_with(pool, nodes, &Ok(()), &NetworkReport::default()).status
}

fn condition(status: &MacvtapResourcePoolStatus, kind: ConditionType) -> (String, String) {
    let found = find(&status.conditions, kind).unwrap_or_else(|| panic!("no condition {kind}"));
    (found.status.clone(), found.reason.clone())
}

fn says(status: &MacvtapResourcePoolStatus, kind: ConditionType, holds: bool, reason: PoolReason) {
    let expected = (ConditionStatus::from(holds).to_string(), reason.to_string());
    assert_eq!(condition(status, kind), expected, "{kind}: {:?}", find(&status.conditions, kind));
}

use ConditionType::{Accepted, Available, Degraded, NetworksReady, Progressing, Ready, Stalled, Terminating};

#[test]
fn every_node_with_a_healthy_device_makes_the_pool_ready() {
    let pool = pool("dp", json!({}));
    let status = status(&pool, &[healthy("n1", &pool), healthy("n2", &pool)]);
    says(&status, Accepted, true, PoolReason::Valid);
    says(&status, Ready, true, PoolReason::AllNodesReady);
    says(&status, Progressing, false, PoolReason::UpToDate);
    says(&status, Degraded, false, PoolReason::AsExpected);
    says(&status, NetworksReady, true, PoolReason::NoNetworks);
    assert_eq!(find(&status.conditions, Terminating), None);
    assert_eq!(status.nodes.summary, "2/2");
    assert_eq!((status.devices.allocatable, status.devices.allocated, status.links.claimed), (100, 4, 2));
    assert_eq!(status.resource.as_deref(), Some("macvtap.network.kubevirt.io/dp"));
    assert!(status.samples.is_empty());
}

#[test]
fn a_pool_that_no_node_matches_says_so() {
    let everywhere = pool("dp", json!({}));
    let all = pool("dp", json!({"nodeSelector": {}}));
    for virtual_too in [&everywhere, &all] {
        let without_agent = TestNode { runs_agent: false, ..told("n1", virtual_too, 100) };
        let found = status(virtual_too, &[without_agent]);
        says(&found, Ready, false, PoolReason::NoMatchingNodes);
        assert_eq!(found.nodes.matched, 0, "a node that never ran an agent is not meant");
    }
    let labelled = pool("dp", json!({"nodeSelector": {"matchLabels": {"zone": "a"}}}));
    says(&status(&labelled, &[healthy("n1", &everywhere)]), Ready, false, PoolReason::NoMatchingNodes);
}

#[test]
fn the_reason_of_each_node_is_in_the_samples_the_worst_first() {
    let dp = pool("dp", json!({"nodeSelector": {}}));
    let no_link =
        json!({"contestedLinks": ["dp0"], "conditions": conditions(&[("Ready", "False", "NoMatchingLink")])});
    let degraded = json!({
        "allocatable": 1,
        "conditions": conditions(&[("Ready", "True", "Serving"), ("Degraded", "True", "LinksUnhealthy")]),
    });
    let nodes = [
        healthy("a", &dp),
        told("b", &dp, 5),
        answered("c", &dp, &degraded),
        answered("d", &dp, &no_link),
        told("e", &dp, 91),
    ];
    let status = status(&dp, &nodes);
    let samples: Vec<_> = status.samples.iter().map(|s| (s.node.as_str(), s.reason.as_str())).collect();
    let expected =
        [("e", "Unreachable"), ("d", "NoMatchingLink"), ("c", "LinksUnhealthy"), ("b", "Updating")];
    assert_eq!(samples, expected);
    says(&status, Ready, false, PoolReason::NodesNotReady);
    says(&status, Progressing, true, PoolReason::NodesUpdating);
    says(&status, Degraded, true, PoolReason::NodesDegraded);
    let counts = &status.nodes;
    assert_eq!(
        (counts.matched, counts.updated, counts.ready, counts.degraded, counts.unreachable),
        (5, 3, 2, 2, 1)
    );
    assert!(find(&status.conditions, Ready).unwrap().message.contains("d: NoMatchingLink"));
}

/// The status of a staged pool whose first node got worse by the edit.
fn halted(before: &MacvtapResourcePool, after: &MacvtapResourcePool) -> MacvtapResourcePoolStatus {
    let bad = json!({"conditions": conditions(&[("Ready", "False", "MtuTooSmall")])});
    let mut grants = Grants::default();
    let [_, halted] = [healthy("n1", before), answered("n1", after, &bad)].map(|n1| {
        let nodes = [healthy("n2", before), n1];
        let report = status_after(after, &nodes, &Ok(()), &NetworkReport::default(), &grants);
        let catalog = Catalog::new([after].into_iter());
        grants.set(&catalog.active[0].entry, report.rollout.progress);
        report.status
    });
    halted
}

#[test]
fn a_pool_that_is_not_accepted_names_the_one_that_is() {
    let dp = pool("dp", json!({}));
    let verdict = Err(Rejection::ResourceNameConflict { resource: "dp".into(), older: "first".into() });
    let nodes = [healthy("n1", &pool("first", json!({})))];
    let found = status_with(&dp, &nodes, &verdict, &NetworkReport::default()).status;
    says(&found, Accepted, false, PoolReason::ResourceNameConflict);
    says(&found, Ready, false, PoolReason::NotAccepted);
    says(&found, Progressing, false, PoolReason::NotAccepted);
    assert!(found.samples.is_empty(), "no node gets a pool that is not accepted: {:?}", found.samples);
    says(&found, NetworksReady, false, PoolReason::NotAccepted);
    assert!(find(&found.conditions, Accepted).unwrap().message.contains("first"));
}

#[test]
fn the_first_problem_of_the_networks_is_the_reason() {
    let networks = json!([{"name": "n", "namespaces": {"names": ["a"]}}]);
    let dp = pool("dp", json!({"networks": networks}));
    let problem = |reason| Problem { reason, message: "m".into() };
    let report = NetworkReport {
        desired: 2,
        ready: 1,
        problems: vec![problem(PoolReason::NADConflict), problem(PoolReason::NamespaceNotFound)],
        ..NetworkReport::default()
    };
    let found = status_with(&dp, &[], &Ok(()), &report).status;
    says(&found, NetworksReady, false, PoolReason::NADConflict);
    assert_eq!((found.networks.desired, found.networks.ready), (2, 1));
    assert!(find(&found.conditions, NetworksReady).unwrap().message.contains("and 1 more"));
    let fine = NetworkReport { desired: 1, ready: 1, ..NetworkReport::default() };
    says(&status_with(&dp, &[], &Ok(()), &fine).status, NetworksReady, true, PoolReason::AllNetworksReady);
}

#[test]
fn a_pool_for_each_link_says_what_its_resources_look_like() {
    let found = status(&pool("dp", json!({"resourcePer": "Link"})), &[]);
    assert_eq!(found.resource.as_deref(), Some("macvtap.network.kubevirt.io/{link}"));
}

#[test]
fn an_agent_that_states_no_condition_is_judged_by_its_devices() {
    let dp = pool("dp", json!({}));
    says(
        &status(&dp, &[answered("n1", &dp, &json!({"allocatable": 1}))]),
        Ready,
        true,
        PoolReason::AllNodesReady,
    );
    says(&status(&dp, &[answered("n1", &dp, &json!({}))]), Ready, false, PoolReason::NodesNotReady);
}

#[test]
fn samples_are_at_most_ten() {
    let dp = pool("dp", json!({"nodeSelector": {}}));
    let nodes: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
        .into_iter()
        .map(|name| told(name, &dp, 0))
        .collect();
    assert_eq!(status(&dp, &nodes).samples.len(), SAMPLES_MAX);
}

/// The pool after an edit that the nodes have not heard of.
fn edited(rollout: &serde_json::Value) -> MacvtapResourcePool {
    let mut pool = pool("dp", json!({"macvtap": {"mtu": 9000}, "rollout": rollout}));
    pool.metadata.generation = Some(2);
    pool
}

#[test]
fn a_pool_is_not_ready_before_its_nodes_have_heard_of_an_edit() {
    let before = pool("dp", json!({}));
    let after = edited(&json!({}));
    let found = status(&after, &[healthy("n1", &before)]);
    says(&found, Ready, false, PoolReason::NodesNotReady);
    says(&found, Progressing, true, PoolReason::NodesUpdating);
    assert_eq!((found.nodes.updated, found.samples[0].reason.as_str()), (0, "Updating"));
    assert_eq!(found.devices.allocatable, 50, "what nodes offer meanwhile counts");
}

#[test]
fn a_pool_stays_ready_while_its_nodes_apply_the_edit_of_another_one() {
    let dp = pool("dp", json!({}));
    let mut node = healthy("n1", &dp);
    node.state.as_mut().unwrap().spec.config_hash = "sha256:of-another-pools-edit".to_owned();
    let found = status(&dp, &[node]);
    says(&found, Ready, true, PoolReason::AllNodesReady);
    says(&found, Progressing, false, PoolReason::UpToDate);
}

#[test]
fn the_answer_of_a_pool_that_was_drained_is_none_of_its_successor() {
    let dp = pool("dp", json!({}));
    let drained = json!({"conditions": conditions(&[("Ready", "False", "Drained")])});
    let mut node = answered("n1", &dp, &drained);
    node.state.as_mut().unwrap().spec.config_hash = "sha256:with-the-successor".to_owned();
    assert_eq!(status(&dp, &[node]).samples[0].reason, "Updating");
}

#[test]
fn a_staged_rollout_says_who_waits_who_is_next_and_why_it_stopped() {
    let before = pool("dp", json!({}));
    let after = edited(&json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}}));
    let mut grants = Grants::default();
    let mut status_with = |nodes: &[TestNode]| {
        let report = status_after(&after, nodes, &Ok(()), &NetworkReport::default(), &grants);
        let catalog = Catalog::new([&after].into_iter());
        grants.set(&catalog.active[0].entry, report.rollout.progress.clone());
        report
    };
    let report = status_with(&[healthy("n2", &before), healthy("n1", &before)]);
    assert_eq!(report.rollout.next, ["n1"]);
    assert_eq!(report.status.samples[0].reason, "Waiting");
    let bad = json!({"conditions": conditions(&[("Ready", "False", "MtuTooSmall")])});
    let nodes = [healthy("n2", &before), answered("n1", &after, &bad)];
    let report = status_with(&nodes);
    says(&report.status, Progressing, false, PoolReason::RolloutHalted);
    let message = &find(&report.status.conditions, Progressing).unwrap().message;
    assert!(message.contains("last 1 nodes") && message.contains("n1: MtuTooSmall"), "{message}");
    let healed = [healthy("n2", &before), healthy("n1", &after)];
    let report = status_with(&healed);
    says(&report.status, Progressing, true, PoolReason::NodesUpdating);
    assert_eq!(report.rollout.next, ["n2"]);
}

#[test]
fn a_node_that_is_being_deleted_holds_up_neither_rollout_nor_readiness() {
    let before = pool("dp", json!({}));
    let after = edited(&json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}}));
    let leaving = |node: TestNode| TestNode { is_terminating: true, ..node };
    let look = |nodes: &[TestNode]| status_with(&after, nodes, &Ok(()), &NetworkReport::default());
    let waiting = look(&[leaving(healthy("n1", &before)), healthy("n2", &before)]);
    assert_eq!(waiting.rollout.next, ["n2"]);
    let done = look(&[leaving(healthy("n1", &before)), healthy("n2", &after)]);
    assert_eq!((done.rollout.next.len(), done.rollout.waiting), (0, 0));
    says(&done.status, Ready, true, PoolReason::AllNodesReady);
    says(&done.status, Progressing, false, PoolReason::UpToDate);
    assert_eq!(done.status.nodes.summary, "1/1");
    assert_eq!(done.status.samples[0].reason, "NodeTerminating");
    assert_eq!(done.status.devices.allocated, 4, "its pods still have devices");

    let bad = json!({"conditions": conditions(&[("Ready", "False", "NoHealthyLink")])});
    for told in [leaving(answered("n1", &after, &bad)), leaving(told("n1", &after, 5))] {
        assert_eq!(look(&[told, healthy("n2", &before)]).rollout.next, ["n2"]);
    }
}
