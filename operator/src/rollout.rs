//! Staged rollouts: whose turn it is to hear of a change.
//!
//! What a node was sent is in its state, so a new leader continues where the former one stopped. In memory are turns that were
//! given and not written yet, and how well each node was before its turn.

use crate::entry::Entry;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::MacvtapResourcePoolStatus;
use macvtap_crds::v1alpha1::pool::{NodeSample, SAMPLES_MAX, Staged};
use macvtap_crds::v1alpha1::reason::{PoolReason, SampleReason};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A node that the pool selects.
#[derive(Clone, Copy, Debug)]
pub struct Member<'m> {
    /// Its name.
    pub node: &'m str,
    /// Whether its spec has the pool as it is now.
    pub sent: bool,
    /// Whether it could do nothing with its turn: it has no room for the pool, or another one of its name.
    pub is_blocked: bool,
    /// How it stands.
    pub standing: Standing,
    /// How well it is with what it has of the pool, be that current or not.
    pub health: Health,
    /// Whether it has links or devices of the pool.
    pub serves: bool,
}

/// How a node stands, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It has not answered for [`SILENCE`](crate::node::SILENCE).
    Unreachable,
    /// It has applied the pool and offers no healthy device.
    NotReady,
    /// It offers devices, and something is wrong.
    Degraded,
    /// It has not applied the last change yet.
    Updating,
    /// It offers devices, or would if the pool were not a dry run.
    Ready,
    /// It has applied the pool, and no link of it matches. It counts apart.
    WithoutLinks,
}

/// How well a node is with a pool, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing is wrong.
    Well,
    /// It offers devices, and something is wrong.
    Degraded,
    /// It offers no healthy device.
    NotReady,
    /// Its agent does not answer.
    Unreachable,
}

impl Member<'_> {
    /// Whether it can hear of the change.
    fn can_hear(&self) -> bool {
        self.standing != Standing::Unreachable && !self.is_blocked
    }
}

/// How far a rollout of one content of a pool has come, as far as that does not stand in the nodes' states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The nodes whose turn it is and that were not sent the change yet.
    turns: HashSet<String>,
    /// How well nodes were when they got their turn, or have been since: only what got worse is held against the change.
    before: HashMap<String, Baseline>,
    /// Whether the content is that of the rollout which came through last: it takes a change back.
    is_way_back: bool,
    /// Whether every node that can receive the change has applied it, and no more got worse by it than may.
    is_through: bool,
}

/// The best that a node has been since it got its turn, or was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Baseline {
    health: Health,
    served: bool,
}

impl Baseline {
    fn new(member: &Member<'_>) -> Self {
        Self { health: member.health, served: member.serves }
    }

    fn improve(&mut self, member: &Member<'_>) {
        self.health = self.health.min(member.health);
        self.served |= member.serves;
    }

    /// Whether the node is less well now. One that never had a link for the pool lost nothing.
    fn is_better_than(self, member: &Member<'_>) -> bool {
        member.health > self.health && (self.served || member.standing != Standing::WithoutLinks)
    }
}

impl Progress {
    /// A rollout that begins with an edit. Where nobody knows what came through before, nodes that have the content
    /// already are taken for ones that never had the change.
    fn begin(members: &[Member<'_>], edited: Edited) -> Self {
        let is_way_back = edited.is_way_back.unwrap_or_else(|| members.iter().any(|member| member.sent));
        Self { before: edited.before, is_way_back, ..Self::default() }
    }

    /// A rollout that another operator has led so far. Of the changed nodes, one was unwell before only if that operator
    /// reported it and went on, or if the node has not applied the change yet; any other got worse by the change.
    fn adopt(members: &[Member<'_>], former: &Former) -> Self {
        let before = |member: &Member<'_>| {
            let is_changing = member.standing == Standing::Updating;
            if is_changing || former.went_on_with(member) {
                Baseline::new(member)
            } else {
                Baseline { health: Health::Well, served: true }
            }
        };
        let sent = members.iter().filter(|member| member.sent);
        let before = sent.map(|member| (member.node.to_owned(), before(member)));
        let is_through = former.was(PoolReason::UpToDate) && members.iter().any(|member| member.sent);
        Self { before: before.collect(), is_through, ..Self::default() }
    }

    /// Whether the node is less well than it was without the change.
    fn is_worse(&mut self, member: &Member<'_>) -> bool {
        let Some(before) = self.before.get_mut(member.node) else { return false };
        if member.standing == Standing::Ready {
            before.improve(member);
        }
        before.is_better_than(member)
    }
}

/// What another operator reported in the status of the pool.
#[derive(Clone, Debug, Default)]
pub struct Former {
    /// The reason of condition Progressing, if it is of this generation.
    progress: Option<String>,
    /// The nodes that it reported as not well.
    unwell: HashSet<String>,
    /// Whether there may be nodes that it had no room to report: of those that count apart, and of all.
    has_more_without_links: bool,
    has_more: bool,
}

impl Former {
    /// Reads the status. That of an earlier generation shows the nodes as they were before the change.
    pub fn new(status: &MacvtapResourcePoolStatus, generation: Option<i64>) -> Self {
        let progressing = condition::find(&status.conditions, ConditionType::Progressing);
        let progressing = progressing.filter(|_| status.observed_generation == generation);
        let waits = [SampleReason::Updating, SampleReason::Waiting, SampleReason::NodeTerminating];
        let is_unwell = |sample: &&NodeSample| !waits.iter().any(|reason| reason.as_str() == sample.reason);
        let unwell: HashSet<_> =
            status.samples.iter().filter(is_unwell).map(|sample| sample.node.clone()).collect();
        Self {
            progress: progressing.map(|found| found.reason.clone()),
            // Samples have the worst nodes first, those that wait after them, and those without links last.
            has_more_without_links: status.samples.len() >= SAMPLES_MAX,
            has_more: unwell.len() >= SAMPLES_MAX,
            unwell,
        }
    }

    fn was(&self, reason: PoolReason) -> bool {
        self.progress.as_deref() == Some(reason.as_str())
    }

    fn went_on_with(&self, member: &Member<'_>) -> bool {
        let may_be_unnamed =
            self.has_more || self.has_more_without_links && member.standing == Standing::WithoutLinks;
        !self.was(PoolReason::RolloutHalted) && (may_be_unnamed || self.unwell.contains(member.node))
    }
}

/// What is known of a rollout's past.
#[derive(Clone, Debug)]
pub enum Past {
    /// How far it has come.
    Known(Progress),
    /// The pool was another one until now.
    Edited(Edited),
    /// Another operator led it, and reported this.
    Unknown(Former),
}

/// What is left of the rollout of another content.
#[derive(Clone, Debug, Default)]
pub struct Edited {
    /// How well nodes were when they got their turn: some may have the content from an earlier rollout, which did not come
    /// through.
    before: HashMap<String, Baseline>,
    /// Whether the content is the one that came through last, if that is known.
    is_way_back: Option<bool>,
}

/// How a rollout goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolloutStep {
    /// The nodes whose turn it is now, in addition to those that had it already.
    pub next: Vec<String>,
    /// How far it has come with that.
    pub progress: Progress,
    /// How many of the changed nodes have got worse, if that stops the rollout.
    pub halted: Option<usize>,
    /// How many nodes have not heard of the change.
    pub waiting: usize,
}

/// Gives the next nodes their turn, in the order of their names, once all before them have applied the change and none has
/// got worse by it, except for as many as may. Neither the way back nor, once the change has come through, a node that joins
/// later is stopped by that. A node that does not answer gets its
/// turn when it does: what it was sent is not why it is silent; and one that could do nothing with it gets it when it can.
/// A turn ends when the node was sent the change, cannot be sent it or is not selected any more: one that comes back later waits like
/// others.
pub fn plan(members: &[Member<'_>], staged: &Staged, past: Past) -> RolloutStep {
    let mut progress = match past {
        Past::Known(progress) => progress,
        Past::Edited(edited) => Progress::begin(members, edited),
        Past::Unknown(former) => Progress::adopt(members, &former),
    };
    let given = std::mem::take(&mut progress.turns);
    let (mut worse, mut is_busy) = (0, false);
    let mut waiting = Vec::new();
    for member in members {
        if member.sent && member.standing == Standing::Updating {
            // What it reports is of the content before: only what it has applied is held against the change.
            is_busy = true;
        } else if member.sent {
            worse += usize::from(progress.is_worse(member));
        } else if given.contains(member.node) && member.can_hear() {
            is_busy = true;
            progress.turns.insert(member.node.to_owned());
        } else {
            waiting.push(member);
        }
    }
    let mut step = RolloutStep { waiting: waiting.len(), ..RolloutStep::default() };
    let allowed = usize::try_from(staged.max_degraded).unwrap_or(usize::MAX);
    // Nodes that cannot receive it now are not waited for: they get their turn when they can. On the way back, what stays
    // broken is not held against the next change either.
    let is_done = !is_busy && !waiting.iter().any(|member| member.can_hear());
    let is_received = members.iter().any(|member| member.sent);
    progress.is_through |= is_done && is_received && (worse <= allowed || progress.is_way_back);
    if !waiting.is_empty() && worse > allowed && !progress.is_way_back && !progress.is_through {
        step.halted = Some(worse);
    } else if !is_busy {
        waiting.retain(|member| member.can_hear());
        waiting.sort_unstable_by_key(|member| member.node);
        for member in waiting.into_iter().take(batch(&staged.batch, members.len())) {
            step.next.push(member.node.to_owned());
            progress.turns.insert(member.node.to_owned());
            // What an earlier change broke, which did not come through, this one has yet to mend.
            let before = progress.before.entry(member.node.to_owned());
            before.or_insert_with(|| Baseline::new(member)).improve(member);
        }
    }
    step.progress = progress;
    step
}

/// Returns the plan of a pool that all nodes change to at once: nobody waits for a turn, and the content has come through
/// once every node that can receive it has applied it.
pub fn all_at_once(members: &[Member<'_>]) -> RolloutStep {
    let has_applied = |member: &Member<'_>| member.sent && member.standing != Standing::Updating;
    let mut reached = members.iter().filter(|member| member.sent || member.can_hear()).peekable();
    let is_through = reached.peek().is_some() && reached.all(has_applied);
    RolloutStep { progress: Progress { is_through, ..Progress::default() }, ..RolloutStep::default() }
}

/// How many of so many nodes change together: at least one.
fn batch(batch: &IntOrString, all: usize) -> usize {
    let nodes = match batch {
        IntOrString::Int(nodes) => usize::try_from(*nodes).ok(),
        IntOrString::String(share) => share
            .strip_suffix('%')
            .and_then(|share| share.parse().ok())
            .map(|share: usize| all.saturating_mul(share.min(100)).div_ceil(100)),
    };
    nodes.unwrap_or(1).max(1)
}

/// How far the rollouts of all pools have come, by the UID of the pool.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    pools: HashMap<String, Arc<Rollout>>,
}

/// The rollout of a pool.
#[derive(Debug)]
struct Rollout {
    entry: Arc<Entry>,
    progress: Progress,
    /// The content that came through last.
    through: Option<Arc<Entry>>,
}

impl Grants {
    /// Records how far the rollout of this content has come. That of any other content of the pool has ended.
    pub fn set(&mut self, entry: &Arc<Entry>, progress: Progress) {
        let before = self.pools.get(&entry.uid).and_then(|rollout| rollout.through.clone());
        let through = if progress.is_through { Some(Arc::clone(entry)) } else { before };
        let rollout = Rollout { entry: Arc::clone(entry), progress, through };
        self.pools.insert(entry.uid.clone(), Arc::new(rollout));
    }

    /// Whether it is the node's turn to hear this.
    pub fn has(&self, entry: &Entry, node: &str) -> bool {
        let current = self.pools.get(&entry.uid).filter(|rollout| rollout.entry.says_the_same(entry));
        current.is_some_and(|rollout| rollout.progress.turns.contains(node))
    }

    /// What is known of the past of the rollout of this content; `former` is what the pool's status says of it.
    pub fn past(&self, entry: &Entry, former: impl FnOnce() -> Former) -> Past {
        match self.pools.get(&entry.uid) {
            Some(rollout) if rollout.entry.says_the_same(entry) => Past::Known(rollout.progress.clone()),
            Some(rollout) => Past::Edited(Edited {
                before: if rollout.progress.is_through {
                    HashMap::new()
                } else {
                    rollout.progress.before.clone()
                },
                is_way_back: rollout.through.as_ref().map(|through| through.says_the_same(entry)),
            }),
            None => Past::Unknown(former()),
        }
    }

    /// Whether this is the content that came through last.
    #[cfg(test)]
    fn is_through(&self, entry: &Entry) -> bool {
        let through = self.pools.get(&entry.uid).and_then(|rollout| rollout.through.as_ref());
        through.is_some_and(|through| through.says_the_same(entry))
    }

    /// Forgets every pool that is not one of these.
    pub fn retain(&mut self, uids: &HashSet<&str>) {
        self.pools.retain(|uid, _| uids.contains(uid.as_str()));
    }
}

#[cfg(test)]
mod tests;
