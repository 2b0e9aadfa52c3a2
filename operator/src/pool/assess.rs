//! Pure: how one node stands to one pool.

use crate::acceptance::selects;
use jiff::Timestamp;
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::nodestate::{POOLS_MAX, PoolPhase};
use macvtap_crds::v1alpha1::pool::NodeSample;
use macvtap_crds::v1alpha1::reason::{PoolReason, SampleReason};
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool, NodePoolStatus};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a node may be silent before it counts as unreachable.
pub const SILENCE: Duration = Duration::from_secs(90);

/// What a message in a sample may have at most.
const SAMPLE_MESSAGE_MAX: usize = 1024;

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'v> {
    /// Its name.
    pub name: &'v str,
    /// Its labels.
    pub labels: &'v BTreeMap<String, String>,
    /// Since when the Node is not Ready, if it is not.
    pub not_ready_since: Option<Timestamp>,
    /// Its state, if it has one.
    pub state: Option<&'v MacvtapNodeState>,
}

/// How a node stands, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It has not answered for [`SILENCE`].
    Unreachable,
    /// It has applied the pool and offers no healthy device.
    NotReady,
    /// It offers devices, and something is wrong.
    Degraded,
    /// It has not applied the last change yet.
    Updating,
    /// It offers devices.
    Ready,
}

/// One node that the pool selects.
#[derive(Clone, Debug)]
pub struct Assessment<'v> {
    /// How it stands.
    pub standing: Standing,
    /// Whether it offers a healthy device.
    pub ready: bool,
    /// Why it is not well; none when it is.
    pub sample: Option<NodeSample>,
    /// What its agent says of the pool.
    pub status: Option<&'v NodePoolStatus>,
    /// When it becomes unreachable if it stays silent.
    pub deadline: Option<Timestamp>,
}

/// How the node stands to the pool; none when the pool does not mean it.
///
/// Without a node selector the pool means every node that runs the agent, so one that never reported is not meant.
pub fn assess<'v>(pool: &MacvtapResourcePool, node: &NodeView<'v>, now: Timestamp) -> Option<Assessment<'v>> {
    let selector = pool.spec.node_selector.as_ref();
    let agent =
        node.state.and_then(|state| state.status.as_ref()).filter(|status| status.observed_hash.is_some());
    if !selects(selector, node.labels) || (selector.is_none() && agent.is_none()) {
        return None;
    }
    let applied = node.state.zip(agent).is_some_and(|(state, status)| {
        status.observed_hash.as_deref() == Some(state.spec.config_hash.as_str())
    });
    let told = node.state.and_then(|state| told(state, pool));
    let pool_name = pool.metadata.name.as_deref().unwrap_or_default();
    let status = agent.and_then(|status| status.pools.iter().find(|entry| entry.name == pool_name));

    let unheard_since = if applied { None } else { node.state.and_then(written) };
    let silent_since = node.not_ready_since.into_iter().chain(unheard_since).min();
    let deadline = silent_since.and_then(|since| since.checked_add(SILENCE).ok());
    let sample = |reason: &str, message: &str| Some(sample(node.name, reason, message));

    let mut assessment =
        Assessment { standing: Standing::Updating, ready: false, sample: None, status, deadline };
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= now) {
        let message = format!("no answer since {}", deadline.checked_sub(SILENCE).unwrap_or(deadline));
        assessment.standing = Standing::Unreachable;
        assessment.sample = sample(SampleReason::Unreachable.as_str(), &message);
        assessment.deadline = None;
    } else if told == Some(Told::NoRoom) {
        assessment.standing = Standing::NotReady;
        let message = format!("the node has {POOLS_MAX} pools of higher precedence");
        assessment.sample = sample(PoolReason::TooManyPools.as_str(), &message);
    } else if let (true, Some(Told::Active), Some(status)) = (applied, told, status) {
        let ready = condition::find(&status.conditions, ConditionType::Ready);
        assessment.ready = ready.map_or(status.allocatable > 0, |ready| ready.status == "True");
        let degraded =
            condition::find(&status.conditions, ConditionType::Degraded).filter(|c| c.status == "True");
        (assessment.standing, assessment.sample) = match (assessment.ready, degraded) {
            (true, None) => (Standing::Ready, None),
            (true, Some(why)) => (Standing::Degraded, sample(&why.reason, &why.message)),
            (false, _) => {
                let (reason, message) = ready.map_or(("NoHealthyLink", ""), |c| (&c.reason, &c.message));
                (Standing::NotReady, sample(reason, message))
            }
        };
    } else {
        assessment.sample = sample(SampleReason::Updating.as_str(), "the last change is not applied yet");
    }
    Some(assessment)
}

/// What the operator has told a node about a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The pool is in its spec.
    Active,
    /// The spec is full.
    NoRoom,
}

fn told(state: &MacvtapNodeState, pool: &MacvtapResourcePool) -> Option<Told> {
    let entry = state.spec.pools.iter().find(|entry| Some(&entry.uid) == pool.metadata.uid.as_ref());
    match entry {
        Some(entry) if entry.phase == PoolPhase::Active => Some(Told::Active),
        None if state.spec.pools.len() >= POOLS_MAX => Some(Told::NoRoom),
        Some(_) | None => None,
    }
}

/// When the operator wrote the spec: what its agent has had to answer since.
fn written(state: &MacvtapNodeState) -> Option<Timestamp> {
    let fields = state.metadata.managed_fields.iter().flatten();
    let ours = fields.filter(|entry| entry.manager.as_deref() == Some(OPERATOR_FIELD_MANAGER));
    let times = ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0);
    times.max().or_else(|| state.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

fn sample(node: &str, reason: &str, message: &str) -> NodeSample {
    NodeSample {
        node: node.to_owned(),
        reason: reason.chars().take(64).collect(),
        message: message.chars().take(SAMPLE_MESSAGE_MAX).collect(),
    }
}
