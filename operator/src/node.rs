//! Pure: a node as the operator sees it, and when its agent counts as unreachable.

use crate::agents::Down;
use crate::states::KnownState;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a node may be silent before it counts as unreachable.
pub const SILENCE: Duration = Duration::from_secs(90);

/// How long the first start of a node's agent may take: its image comes from a registry.
const START: Duration = Duration::from_mins(3);

/// Labels of nodes without a kubelet of their own, on which no agent can run.
const VIRTUAL: [(&str, &str); 2] =
    [("type", "virtual-kubelet"), ("eks.amazonaws.com/compute-type", "fargate")];

/// What is known of a node.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The Node.
    pub node: Arc<Node>,
    /// Its state, if it has one.
    pub state: Option<Arc<KnownState>>,
    /// Since when the Node is not Ready, if it is not.
    pub not_ready_since: Option<Timestamp>,
    /// Whether and since when no agent of it is ready.
    pub agent_down: Option<Down>,
    /// Whether an agent of it has been started, also if it never reported.
    pub runs_agent: bool,
    /// Since when it has been meant to run an agent and has never started one.
    pub unstarted_since: Option<Timestamp>,
    /// The time. This and all others are of the operator's own clock.
    pub now: Timestamp,
    /// Until when the watch has surely shown every change of node states.
    pub seen_until: Timestamp,
}

impl NodeView {
    /// Its name.
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        self.node.labels()
    }

    /// Whether the Node is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.node.metadata.deletion_timestamp.is_some()
    }

    /// Returns since when the node's agent fails to start, or else how soon that will be said of it. A virtual node is not
    /// meant to start one.
    pub fn fails_to_start(&self) -> Result<Timestamp, Option<Duration>> {
        let is_virtual =
            |(label, value): &(&str, &str)| self.labels().get(*label).is_some_and(|is| is == value);
        let runs = self.runs_agent || self.state().is_some_and(KnownState::answered);
        let since = self.unstarted_since.filter(|_| !runs && !VIRTUAL.iter().any(is_virtual)).ok_or(None)?;
        let left =
            START.saturating_sub(Duration::try_from(self.now.duration_since(since)).unwrap_or_default());
        if left.is_zero() { Ok(since) } else { Err(Some(left)) }
    }

    /// Its state, if it has one.
    pub fn state(&self) -> Option<&KnownState> {
        self.state.as_deref()
    }
}

/// Returns since when the node's agent has been unreachable, or else how soon it will be if it stays silent. A missing
/// answer is held against the agent only as far as the operator would have seen it. An agent that runs, and has reported
/// why it is not ready, answers.
pub fn silent(node: &NodeView) -> Result<Timestamp, Option<Duration>> {
    let unanswered = node.state().filter(|state| !state.applied()).and_then(|state| state.unanswered_since);
    let is_explained = |down: &Down| down.runs && node.state().is_some_and(KnownState::explains_unready);
    let agent_down = node.agent_down.filter(|down| !is_explained(down)).map(|down| down.since);
    let down = node.not_ready_since.into_iter().chain(agent_down).min();
    let judged = [(down, node.now), (unanswered, node.seen_until)];
    let judged = judged.into_iter().filter_map(|(since, until)| {
        let past = Duration::try_from(until.duration_since(since?)).unwrap_or_default();
        Some((since?, SILENCE.saturating_sub(past)))
    });
    let (past, future): (Vec<_>, Vec<_>) = judged.partition(|(_, left)| left.is_zero());
    let since = past.iter().map(|(since, _)| *since).min();
    since.ok_or_else(|| future.iter().map(|(_, left)| *left).min())
}
