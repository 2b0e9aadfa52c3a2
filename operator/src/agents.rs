//! Which nodes' agents run, by their pods: no agent writes anything merely to say that it is alive.

use crate::trouble;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodSpec, PodStatus};
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How soon a `DaemonSet` replaces a pod that was refused.
const REPLACED_WITHIN: Duration = Duration::from_mins(1);

/// Agents by node. Empty when agents are not pods of ours: then their silence shows in node states only.
#[derive(Debug, Default)]
pub struct Agents {
    state: Mutex<AgentPods>,
}

#[derive(Debug, Default)]
struct AgentPods {
    pods: Pods,
    /// The list that is being read.
    filling: Pods,
    /// When the last agent of a node went.
    gone: HashMap<String, Timestamp>,
    /// When the first list was complete.
    filled: Option<Timestamp>,
    /// Whether there ever was an agent's pod.
    seen: bool,
    /// Nodes on which an agent has been started: a virtual node never starts one.
    started: HashSet<String>,
    /// Nodes that have had an agent's pod and never started one, and since when.
    unstarted: HashMap<String, Timestamp>,
}

/// By node and name.
type Pods = HashMap<String, HashMap<String, AgentPod>>;

/// What is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AgentPod {
    /// Since when it is not ready, if it is not.
    since: Option<Timestamp>,
    /// Whether its container runs.
    runs: bool,
}

/// No agent of a node is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Down {
    /// Since when.
    pub since: Timestamp,
    /// Whether one runs nevertheless: it says itself in the node's state what it lacks.
    pub runs: bool,
}

impl Agents {
    /// Takes in an event; gives the node it is about, if it may change what is known of it.
    pub fn take(&self, event: &Event<Pod>, now: Timestamp) -> Option<String> {
        let mut state = self.lock();
        if let Event::InitApply(pod) | Event::Apply(pod) = event {
            state.note_start(pod, matches!(event, Event::InitApply(_)), now);
        }
        match event {
            Event::Init => {
                state.filling.clear();
                None
            }
            Event::InitApply(pod) => {
                let (node, name) = place(pod)?;
                let known = state.known(pod, &node, &name, true, now);
                state.filling.entry(node).or_default().insert(name, known);
                None
            }
            Event::InitDone => {
                let new = std::mem::take(&mut state.filling);
                let old = std::mem::replace(&mut state.pods, new);
                let AgentPods { pods, gone, .. } = &mut *state;
                gone.retain(|node, _| !pods.contains_key(node));
                for node in old.into_keys().filter(|node| !pods.contains_key(node)) {
                    gone.insert(node, now);
                }
                let AgentPods { pods, started, unstarted, .. } = &mut *state;
                started.retain(|node| pods.contains_key(node));
                unstarted.retain(|node, _| pods.contains_key(node));
                state.filled.get_or_insert(now);
                state.seen |= !state.pods.is_empty();
                None
            }
            Event::Apply(pod) => {
                let (node, name) = place(pod)?;
                let known = state.known(pod, &node, &name, false, now);
                state.seen = true;
                state.gone.remove(&node);
                let before = state.pods.entry(node.clone()).or_default().insert(name, known);
                (before != Some(known)).then_some(node)
            }
            Event::Delete(pod) => {
                let (node, name) = place(pod)?;
                let pods = state.pods.get_mut(&node)?;
                pods.remove(&name);
                if pods.is_empty() {
                    state.pods.remove(&node);
                    state.gone.insert(node.clone(), now);
                }
                Some(node)
            }
        }
    }

    /// Whether the node has started an agent, ready or not.
    pub fn runs_on(&self, node: &str) -> bool {
        let state = self.lock();
        state.started.contains(node) && state.pods.contains_key(node)
    }

    /// Whether the node has no agent: there are pods of agents, and none is the node's.
    pub fn is_without(&self, node: &str) -> bool {
        let state = self.lock();
        state.filled.is_some() && state.seen && !state.pods.contains_key(node)
    }

    /// Since when the node has been meant to run an agent and has not started any, if that is so. A pod that was refused is
    /// soon replaced by another one.
    pub fn unstarted_since(&self, node: &str, now: Timestamp) -> Option<Timestamp> {
        let state = self.lock();
        let is_gone = |gone: &Timestamp| *gone + REPLACED_WITHIN < now;
        let is_meant =
            state.pods.contains_key(node) || state.gone.get(node).is_some_and(|gone| !is_gone(gone));
        state.unstarted.get(node).copied().filter(|_| is_meant)
    }

    /// Whether and since when no agent of the node is ready.
    pub fn down(&self, node: &str) -> Option<Down> {
        let state = self.lock();
        let Some(pods) = state.pods.get(node) else {
            let since = state.gone.get(node).copied().or(state.filled).filter(|_| state.seen)?;
            return Some(Down { since, runs: false });
        };
        if pods.values().any(|pod| pod.since.is_none()) {
            return None;
        }
        let since = pods.values().filter_map(|pod| pod.since).max()?;
        Some(Down { since, runs: pods.values().any(|pod| pod.runs) })
    }

    fn lock(&self) -> MutexGuard<'_, AgentPods> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentPods {
    /// Notes whether an agent of the pod's node has ever been started.
    fn note_start(&mut self, pod: &Pod, is_listed: bool, now: Timestamp) {
        let Some((node, _)) = place(pod) else { return };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Running") {
            self.unstarted.remove(&node);
            self.started.insert(node);
        } else if matches!(phase, Some("Pending" | "Failed")) && !self.started.contains(&node) {
            let since = trouble::since(not_ready(pod, now), None, is_listed, now).unwrap_or(now);
            self.unstarted.entry(node).or_insert(since);
        }
    }

    fn known(&self, pod: &Pod, node: &str, name: &str, is_listed: bool, now: Timestamp) -> AgentPod {
        let before = self.pods.get(node).and_then(|pods| pods.get(name)).map(|pod| pod.since);
        AgentPod { since: trouble::since(not_ready(pod, now), before, is_listed, now), runs: runs(pod) }
    }
}

/// Removes what is never looked at.
pub fn prune(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.metadata.labels = None;
    if let Some(spec) = &mut pod.spec {
        let node_name = spec.node_name.take().or_else(|| meant_for(spec));
        *spec = PodSpec { node_name, ..PodSpec::default() };
    }
    if let Some(status) = &mut pod.status {
        let running = |container: ContainerStatus| {
            let running = container.state.and_then(|state| state.running);
            let state =
                running.map(|running| ContainerState { running: Some(running), ..Default::default() });
            ContainerStatus { state, ..Default::default() }
        };
        let containers = status.container_statuses.take();
        *status = PodStatus {
            phase: status.phase.take(),
            conditions: status.conditions.take(),
            container_statuses: containers.map(|all| all.into_iter().map(running).collect()),
            ..Default::default()
        };
    }
}

/// The node for which a `DaemonSet` made a pod that is not scheduled yet.
fn meant_for(spec: &PodSpec) -> Option<String> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    name.values.as_ref()?.first().cloned()
}

/// Node and name of a pod that has a node, or is meant for one.
fn place(pod: &Pod) -> Option<(String, String)> {
    Some((pod.spec.as_ref()?.node_name.clone()?, pod.name_any()))
}

/// Whether a container of the pod runs.
fn runs(pod: &Pod) -> bool {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers
        .into_iter()
        .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Since when the pod is not ready, by the API, if it is not.
fn not_ready(pod: &Pod, now: Timestamp) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|ready| ready.status == "True");
    if is_ready {
        return pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    }
    let said = ready.and_then(|ready| ready.last_transition_time.as_ref());
    Some(said.or(pod.metadata.creation_timestamp.as_ref()).map_or(now, |time| time.0))
}

#[cfg(test)]
mod tests;
