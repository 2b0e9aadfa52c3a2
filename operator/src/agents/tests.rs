//! What pods of agents show of nodes.

use super::*;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(name: &str, node: &str, ready: bool, since: i64) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "creationTimestamp": at(1)},
        "spec": {"nodeName": node, "containers": []},
        "status": {"conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(since),
        }]},
    }))
    .unwrap()
}

fn filled(pods: Vec<Pod>, now: i64) -> Agents {
    let agents = Agents::default();
    agents.take(&Event::Init, at(now));
    for pod in pods {
        agents.take(&Event::InitApply(pod), at(now));
    }
    agents.take(&Event::InitDone, at(now));
    agents
}

fn since(agents: &Agents, node: &str) -> Option<Timestamp> {
    agents.down(node).map(|down| down.since)
}

#[test]
fn where_no_agent_is_a_pod_of_ours_nothing_is_said() {
    assert_eq!(filled(vec![], 100).down("n1"), None);
}

#[test]
fn an_agent_is_down_since_its_pod_is_not_ready() {
    let agents = filled(vec![pod("a", "n1", true, 5), pod("b", "n2", false, 7)], 100);
    assert_eq!((since(&agents, "n1"), since(&agents, "n2")), (None, Some(at(7))));
    assert_eq!(agents.take(&Event::Apply(pod("a", "n1", false, 120)), at(121)).as_deref(), Some("n1"));
    assert_eq!(since(&agents, "n1"), Some(at(121)), "by our clock");
    assert_eq!(agents.take(&Event::Apply(pod("a", "n1", false, 120)), at(122)), None);
}

#[test]
fn a_node_without_agent_is_down_since_the_last_one_went_or_since_we_know() {
    let agents = filled(vec![pod("a", "n1", true, 5)], 100);
    assert_eq!(since(&agents, "n2"), Some(at(100)));
    agents.take(&Event::Delete(pod("a", "n1", true, 5)), at(130));
    assert_eq!(since(&agents, "n1"), Some(at(130)));
    agents.take(&Event::Apply(pod("a2", "n1", true, 140)), at(140));
    assert_eq!(since(&agents, "n1"), None);
}

#[test]
fn an_agent_that_went_while_the_watch_was_interrupted_is_missed() {
    let agents = filled(vec![pod("a", "n1", true, 5), pod("b", "n2", true, 5)], 100);
    agents.take(&Event::Init, at(200));
    agents.take(&Event::InitApply(pod("b", "n2", true, 5)), at(200));
    assert_eq!(since(&agents, "n1"), None);
    agents.take(&Event::InitDone, at(201));
    assert_eq!((since(&agents, "n1"), since(&agents, "n2")), (Some(at(201)), None));
    agents.take(&Event::Init, at(300));
    agents.take(&Event::InitApply(pod("b", "n2", true, 5)), at(300));
    agents.take(&Event::InitDone, at(300));
    assert_eq!(since(&agents, "n1"), Some(at(201)), "a later list adds nothing");
}

#[test]
fn a_node_is_without_agent_only_while_other_nodes_have_one() {
    let (unread, none) = (Agents::default(), filled(vec![], 100));
    unread.take(&Event::Apply(pod("a", "n1", true, 5)), at(100));
    let some = filled(vec![pod("a", "n1", true, 5)], 100);
    let without = |agents: &Agents| (agents.is_without("n1"), agents.is_without("n2"));
    assert_eq!((without(&unread), without(&none)), ((false, false), (false, false)));
    assert_eq!(without(&some), (false, true));
}

#[test]
fn of_two_agents_during_a_hand_over_one_is_enough() {
    let agents = filled(vec![pod("old", "n1", false, 50), pod("new", "n1", true, 60)], 100);
    assert_eq!(since(&agents, "n1"), None);
}

#[test]
fn a_pod_that_no_kubelet_starts_is_no_running_agent() {
    let phase = |phase: &str| {
        let mut pod = pod("a", "fargate", false, 1);
        pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
        pod
    };
    let agents = filled(vec![phase("Pending")], 100);
    assert!(!agents.runs_on("fargate"));
    let mut running = phase("Running");
    prune(&mut running);
    agents.take(&Event::Apply(running), at(101));
    assert!(agents.runs_on("fargate"));
    agents.take(&Event::Delete(phase("Running")), at(102));
    assert!(!agents.runs_on("fargate"));
}

#[test]
fn a_node_whose_agents_never_start_is_known_since_the_first_of_them() {
    let pod = |name: &str, phase: &str| {
        let mut pod = pod(name, "n1", false, 50);
        pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
        pod
    };
    let agents = filled(vec![pod("a", "Pending")], 100);
    assert_eq!(agents.unstarted_since("n1", at(100)), Some(at(50)));
    // The kubelet refuses it, and the next one.
    agents.take(&Event::Delete(pod("a", "Failed")), at(110));
    assert_eq!(agents.unstarted_since("n1", at(111)), Some(at(50)));
    agents.take(&Event::Apply(pod("b", "Pending")), at(112));
    assert_eq!(agents.unstarted_since("n1", at(112)), Some(at(50)));
    agents.take(&Event::Delete(pod("b", "Failed")), at(113));
    let replaced_by = at(113) + REPLACED_WITHIN;
    assert_eq!(agents.unstarted_since("n1", replaced_by), Some(at(50)));
    assert_eq!(agents.unstarted_since("n1", at(300)), None, "it is not meant to run any more");
    agents.take(&Event::Apply(pod("c", "Running")), at(301));
    assert_eq!((agents.unstarted_since("n1", at(302)), agents.runs_on("n1")), (None, true));
    agents.take(&Event::Apply(pod("d", "Pending")), at(303));
    assert_eq!(agents.unstarted_since("n1", at(303)), None, "an upgrade is not a first start");
}

#[test]
fn a_pod_that_waits_for_its_node_is_of_that_node() {
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "a"}, "status": {"phase": "Pending"},
        "spec": {"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "NotIn", "values": ["n2"]},
                {"key": "metadata.namespace", "operator": "In", "values": ["n3"]},
                {"key": "metadata.name", "operator": "In", "values": ["n1"]},
            ]}],
        }}}},
    }))
    .unwrap();
    prune(&mut pod);
    assert_eq!(place(&pod), Some(("n1".to_owned(), "a".to_owned())));
}

#[test]
fn a_pod_of_an_upgrade_is_not_ready_since_it_came_whatever_the_clock_of_its_node_says() {
    let agents = filled(vec![pod("a", "n1", true, 5)], 1000);
    agents.take(&Event::Delete(pod("a", "n1", true, 5)), at(1010));
    agents.take(&Event::Apply(pod("b", "n1", false, 700)), at(1011));
    assert_eq!(since(&agents, "n1"), Some(at(1011)));
}

#[test]
fn a_pod_whose_containers_wait_does_not_run() {
    let waiting = json!({
        "name": "agent", "image": "i", "imageID": "i", "ready": false, "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    });
    let mut pod = pod("a", "n1", false, 7);
    pod.status.as_mut().unwrap().container_statuses = Some(vec![serde_json::from_value(waiting).unwrap()]);
    assert!(!filled(vec![pod], 100).down("n1").unwrap().runs);
}

#[test]
fn pruning_keeps_what_is_needed() {
    let mut pod = pod("a", "n1", false, 7);
    let container = json!({
        "name": "agent", "image": "i", "imageID": "i", "ready": false, "restartCount": 3,
        "state": {"running": {"startedAt": at(3)}},
    });
    pod.status.as_mut().unwrap().container_statuses = Some(vec![serde_json::from_value(container).unwrap()]);
    let known = |pod: &Pod| (place(pod), not_ready(pod, at(9)), runs(pod));
    let before = known(&pod);
    assert!(before.2);
    prune(&mut pod);
    assert_eq!(known(&pod), before);
}
