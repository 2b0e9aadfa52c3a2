//! Pure: how one node stands to one pool.

use crate::catalog::{ActivePool, Catalog, Nodes};
use crate::entry::Entry;
use crate::node::{NodeView, silent};
use crate::node_state::render::{Target, turn_matters};
use crate::rollout::{Grants, Health, Member, Standing};
use crate::states::{KnownPool, KnownState};
use kube::ResourceExt;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::nodestate::{POOLS_MAX, PoolPhase};
use macvtap_crds::v1alpha1::pool::NodeSample;
use macvtap_crds::v1alpha1::reason::{NodePoolReason, SampleReason};
use std::time::Duration;

/// What a message in a sample may have at most.
const SAMPLE_MESSAGE_MAX: usize = 1024;

/// A pool, prepared for many nodes.
#[derive(Debug)]
pub struct Subject<'s> {
    name: &'s str,
    uid: String,
    nodes: Option<Nodes>,
    catalog: &'s Catalog,
    grants: &'s Grants,
    /// What nodes should be sent, if it has an effect.
    pub wanted: Option<&'s ActivePool>,
}

impl<'s> Subject<'s> {
    /// The pool among all others, with the turns that were given in staged rollouts.
    pub fn new(pool: &'s MacvtapResourcePool, catalog: &'s Catalog, grants: &'s Grants) -> Self {
        let uid = pool.uid().unwrap_or_default();
        Self {
            name: pool.metadata.name.as_deref().unwrap_or_default(),
            nodes: Nodes::new(pool.spec.node_selector.as_ref()),
            catalog,
            grants,
            wanted: catalog.active(&uid),
            uid,
        }
    }
}

/// Why a node cannot be sent a pool as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The Node is being deleted: a staged rollout leaves it out, and without a state it gets none any more.
    Terminating,
    /// It has as many pools as it can have.
    NoRoom,
    /// An earlier pool of the same name or resource is still there.
    NameTaken,
}

/// One node that the pool selects.
#[derive(Clone, Debug)]
pub struct Assessment<'v> {
    /// Name of the node.
    pub node: &'v str,
    /// Whether its spec has the pool as it is now.
    pub sent: bool,
    /// Why it cannot be sent it now, if it cannot.
    pub obstacle: Option<Obstacle>,
    /// Whether the Node is being deleted.
    pub is_terminating: bool,
    /// How it stands.
    pub standing: Standing,
    /// Whether it offers a healthy device.
    pub ready: bool,
    /// Why it is not well; none when it is.
    pub sample: Option<NodeSample>,
    /// What its agent says of the pool.
    pub status: Option<&'v KnownPool>,
    /// How soon it becomes unreachable if it stays silent.
    pub silent_in: Option<Duration>,
}

impl<'v> Assessment<'v> {
    /// The node as a member of a rollout.
    pub fn member(&self) -> Member<'v> {
        let is_degraded =
            |status: &KnownPool| status.degraded.as_ref().is_some_and(|degraded| degraded.holds);
        let health = match self.status {
            _ if self.standing == Standing::Unreachable => Health::Unreachable,
            _ if self.standing == Standing::Ready => Health::Well,
            // Also one whose links no longer match: it had devices before.
            Some(status) if status.ready.as_ref().is_some_and(|ready| !ready.holds) => Health::NotReady,
            Some(status) if is_degraded(status) => Health::Degraded,
            Some(_) | None if self.standing == Standing::NotReady => Health::NotReady,
            Some(_) | None => Health::Well,
        };
        Member {
            node: self.node,
            sent: self.sent,
            is_blocked: self.obstacle.is_some(),
            standing: self.standing,
            health,
            serves: self.status.is_some_and(|status| status.links > 0 || status.capacity > 0),
        }
    }
}

/// Returns how all nodes that the pool selects stand to it.
pub fn assess_all<'v>(subject: &Subject<'_>, nodes: &'v [NodeView]) -> Vec<Assessment<'v>> {
    nodes.iter().filter_map(|node| assess(subject, node)).collect()
}

/// Returns after what time a node may have become unreachable, or its agent have failed to start, which no event announces.
pub fn recheck(nodes: &[NodeView], assessments: &[Assessment<'_>]) -> Option<Duration> {
    let silent_in = assessments.iter().filter_map(|assessment| assessment.silent_in);
    let due_in = nodes.iter().filter_map(|node| node.fails_to_start().err().flatten());
    silent_in.chain(due_in).min().map(|wait| wait + Duration::from_secs(1))
}

/// How the node stands to the pool; none when the pool does not mean it.
///
/// A pool selects nodes that run the agent, or fail to: one that is not meant to, such as a virtual node, is not selected.
pub fn assess<'v>(subject: &Subject<'_>, node: &'v NodeView) -> Option<Assessment<'v>> {
    let (name, state) = (node.name(), node.state());
    let answered = state.is_some_and(KnownState::answered);
    let failing_since = node.fails_to_start().ok();
    let is_meant = answered || node.runs_agent || failing_since.is_some();
    if !subject.nodes.as_ref()?.selects(node.labels()) || !is_meant {
        return None;
    }
    let sent = state.and_then(|state| sent(state, subject));
    let silent = silent(node);
    let obstacle = obstacle(subject, node, sent, silent.is_ok());
    let status = if answered { state.and_then(|state| state.pool(subject.name)) } else { None };
    let sample = |reason: &str, message: &str| Some(sample(name, reason, message));

    let mut assessment = Assessment {
        node: name,
        sent: sent == Some(Sent::Current),
        obstacle,
        is_terminating: node.is_terminating(),
        standing: Standing::Updating,
        ready: false,
        sample: None,
        status,
        silent_in: silent.err().flatten(),
    };
    let entry = state.and_then(|state| state.entry(&subject.uid));
    let applied = state.zip(entry).is_some_and(|(state, entry)| state.applied_entry(entry));
    if obstacle == Some(Obstacle::Terminating) {
        let message = "the Node is being deleted and did not hear of the last change";
        assessment.sample = sample(SampleReason::NodeTerminating.as_str(), message);
    } else if let Some(since) = failing_since {
        assessment.standing = Standing::Unreachable;
        let message = format!("no agent has started on the node since {since}; see the events of its pod");
        assessment.sample = sample(SampleReason::AgentNotStarted.as_str(), &message);
    } else if let Ok(since) = silent {
        let message = format!("no answer since {since}");
        assessment.standing = Standing::Unreachable;
        assessment.sample = sample(SampleReason::Unreachable.as_str(), &message);
    } else if obstacle == Some(Obstacle::NoRoom) {
        assessment.standing = Standing::NotReady;
        let message = format!(
            "the node has as many pools as it can have, {POOLS_MAX}: of higher precedence, or with devices in use"
        );
        assessment.sample = sample(SampleReason::TooManyPools.as_str(), &message);
    } else if obstacle == Some(Obstacle::NameTaken) {
        let message = "the node still has an earlier pool of this name or resource";
        assessment.sample = sample(SampleReason::Waiting.as_str(), message);
    } else if let (true, Some(Sent::Current), Some(status)) = (applied, sent, status) {
        assessment.ready = status.ready.as_ref().map_or(status.allocatable > 0, |ready| ready.holds);
        let degraded = status.degraded.as_ref().filter(|degraded| degraded.holds);
        (assessment.standing, assessment.sample) = match (assessment.ready, degraded) {
            (true, None) => (Standing::Ready, None),
            (true, Some(why)) => (Standing::Degraded, sample(&why.reason, &why.message)),
            (false, degraded) => {
                let ready = status.ready.as_ref();
                let (reason, message) = ready.map_or(("NoHealthyLink", ""), |c| (&*c.reason, &*c.message));
                match unoffered(status, reason).filter(|_| degraded.is_none()) {
                    Some(Standing::Ready) => (Standing::Ready, None),
                    standing => (standing.unwrap_or(Standing::NotReady), sample(reason, message)),
                }
            }
        };
    } else if let (Some(Sent::Current), Some(trouble)) = (sent, unreadable(state)) {
        assessment.standing = Standing::NotReady;
        assessment.sample = sample(SampleReason::StatusNotReadable.as_str(), trouble);
    } else if sent != Some(Sent::Current) && subject.wanted.is_some_and(|pool| pool.staged) {
        assessment.sample =
            sample(SampleReason::Waiting.as_str(), "the rollout has not reached the node yet");
    } else {
        assessment.sample = sample(SampleReason::Updating.as_str(), "the last change is not applied yet");
    }
    Some(assessment)
}

/// How a node stands that offers no device although nothing is wrong with it, if that is so.
fn unoffered(status: &KnownPool, reason: &str) -> Option<Standing> {
    let is_empty = status.contested == 0 && status.allocated == 0 && status.dead == 0;
    if reason == NodePoolReason::DryRun.as_str() {
        Some(Standing::Ready)
    } else {
        (is_empty && reason == NodePoolReason::NoMatchingLink.as_str()).then_some(Standing::WithoutLinks)
    }
}

/// What the operator has sent a node of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// The pool as it is now.
    Current,
    /// The pool as it was.
    Earlier,
}

fn sent(state: &KnownState, subject: &Subject<'_>) -> Option<Sent> {
    match state.entry(&subject.uid) {
        Some(entry) if entry.phase == PoolPhase::Active => {
            let current = subject.wanted.is_none_or(|wanted| wanted.entry.says_the_same(entry));
            Some(if current { Sent::Current } else { Sent::Earlier })
        }
        Some(_) | None => None,
    }
}

fn obstacle(subject: &Subject<'_>, node: &NodeView, sent: Option<Sent>, is_silent: bool) -> Option<Obstacle> {
    let wanted = subject.wanted.filter(|_| sent != Some(Sent::Current))?;
    if node.is_terminating() && (wanted.staged || node.state.is_none()) {
        return Some(Obstacle::Terminating);
    }
    let state = node.state().filter(|state| state.entry(&subject.uid).is_none())?;
    let resource = wanted.entry.resource();
    let has_name =
        |old: &Entry| old.name == subject.name || (resource.is_some() && old.resource() == resource);
    if state.pools.iter().any(|old| has_name(old)) {
        return Some(Obstacle::NameTaken);
    }
    let is_full = state.pools.len() >= POOLS_MAX;
    let (name, labels) = (node.name(), node.labels());
    let target =
        Target { name, labels, silent: is_silent, current: Some(state), seen_until: node.seen_until };
    let granted = |pool: &ActivePool| subject.grants.has(&pool.entry, name);
    // Whether lower ones could yield is asked for a staged pool only: every other has asked them already.
    let can_have_room = || wanted.staged && turn_matters(target, subject.catalog, wanted, granted);
    (is_full && !can_have_room()).then_some(Obstacle::NoRoom)
}

fn unreadable(state: Option<&KnownState>) -> Option<&str> {
    state.filter(|state| state.status_unreadable && state.applied())?.unreadable.as_deref()
}

fn sample(node: &str, reason: &str, message: &str) -> NodeSample {
    NodeSample {
        node: node.to_owned(),
        reason: reason.chars().take(64).collect(),
        message: message.chars().take(SAMPLE_MESSAGE_MAX).collect(),
    }
}
