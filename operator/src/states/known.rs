//! Pure: what the operator needs of a node state.

use super::content::hash_of;
use super::spec::Spec;
use crate::entry::{Entry, Form};
use jiff::Timestamp;
use kube::api::ObjectMeta;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::reason::NodePoolReason;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// For how long a state that was deleted, or the answer in a status that was removed, is remembered: what its node holds it
/// still holds, and it receives them again when the state is recreated.
const REMEMBERED: Duration = Duration::from_mins(10);

/// How long an agent may take until its answer is seen. A node that has not answered what it was sent within this time runs no
/// agent, or one that hangs.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Whether what was lost at this time is remembered still.
pub(super) fn is_remembered(since: Timestamp, now: Timestamp) -> bool {
    !left(REMEMBERED, since, now).is_zero()
}

/// How much of a time that began at `since` is left.
fn left(time: Duration, since: Timestamp, now: Timestamp) -> Duration {
    time.saturating_sub(Duration::try_from(now.duration_since(since)).unwrap_or_default())
}

/// What is known of a node's state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownState {
    /// Its name, and the node's.
    pub name: String,
    /// UID of the Node that owns it, if it is owned as we would have it.
    pub owner: Option<String>,
    /// `metadata.resourceVersion`; 0 if it is not a number.
    pub version: u64,
    /// Since when the operator has seen a spec that the agent has neither applied nor said anything about, by the
    /// operator's own clock.
    pub unanswered_since: Option<Timestamp>,
    /// Since when the watch has shown every drain of the spec, by the operator's own clock, if it shows them.
    pub drains_shown_since: Option<Timestamp>,
    /// `spec.configHash`.
    pub config_hash: String,
    /// `spec.pools`, those that can be read.
    pub pools: Vec<Arc<Entry>>,
    /// In which form they are written: brief if any is.
    pub form: Form,
    /// `spec.config`: the configuration that has the pools, if the state has not.
    pub config: Option<String>,
    /// `status`, once there is one.
    pub status: Option<KnownStatus>,
    /// Since when an answer that the operator knew has been missing, by the operator's own clock: the status was removed, or
    /// the state was deleted and recreated.
    pub answer_missing_since: Option<Timestamp>,
    /// What cannot be read, if anything.
    pub unreadable: Option<String>,
    /// Whether that is in spec.
    pub spec_unreadable: bool,
    /// Whether nobody knows what the pools of its configuration are: `pools` has those that its node may have been sent.
    pub spec_unknown: bool,
    /// Whether that is in status: devices in use may be among it.
    pub status_unreadable: bool,
}

/// What is known of what the agent says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownStatus {
    /// The spec it has applied.
    pub observed_hash: Option<String>,
    /// The briefest form that the agent can read.
    pub reads: Form,
    /// Its pools.
    pub pools: Vec<KnownPool>,
}

/// What is known of one pool on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownPool {
    /// Name of the pool.
    pub name: Arc<str>,
    /// The generation in spec that this is about.
    pub generation: i64,
    /// Devices offered, healthy or not.
    pub capacity: u32,
    /// Devices offered and healthy.
    pub allocatable: u32,
    /// Devices pods have.
    pub allocated: u32,
    /// Devices whose link vanished under a running pod.
    pub dead: u32,
    /// How many links it has.
    pub links: u32,
    /// How many of them are unhealthy.
    pub unhealthy: u32,
    /// How many it matches and another pool has.
    pub contested: u32,
    /// With `resourcePer: Link`: its resources.
    pub resources: Vec<Arc<str>>,
    /// Condition Ready.
    pub ready: Option<Verdict>,
    /// Condition Degraded.
    pub degraded: Option<Verdict>,
}

/// A condition, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is `True`.
    pub holds: bool,
    /// Its reason.
    pub reason: Arc<str>,
    /// Its message.
    pub message: Arc<str>,
}

impl KnownState {
    /// Puts a spec of the operator's in the place of the one that is known.
    pub(super) fn write(&mut self, spec: &Spec) {
        self.owner.clone_from(&spec.owner);
        self.config_hash.clone_from(&spec.config_hash);
        self.pools.clone_from(&spec.pools);
        self.form = spec.form;
        self.config.clone_from(&spec.config);
        self.spec_is_known();
    }

    /// Notes that all pools of its spec are known.
    fn spec_is_known(&mut self) {
        self.spec_unknown = false;
        if std::mem::take(&mut self.spec_unreadable) && !self.status_unreadable {
            self.unreadable = None;
        }
    }

    /// Takes pools that cannot be read from what was known of the state before: they are the same if it named the same
    /// configuration then; else its node may still have any of those. What it was assumed to have goes first.
    pub(super) fn recall(&mut self, before: &Self) {
        let is_same = self.config.is_some() && before.config == self.config && !before.spec_unknown;
        if self.spec_unknown && is_same {
            self.pools.clone_from(&before.pools);
            self.spec_is_known();
        } else if self.spec_unknown {
            self.assume(&before.pools);
        }
    }

    /// Adds pools that its node may have.
    pub(super) fn assume(&mut self, pools: &[Arc<Entry>]) {
        for entry in pools {
            if self.entry(&entry.uid).is_none() {
                self.pools.push(Arc::clone(entry));
            }
        }
    }

    /// Sets since when the agent owes an answer, given what was known before. What was written meanwhile does not put
    /// that off; a status that changed does.
    /// `now` is absent while the watch does not show the spec yet.
    pub(super) fn wait_since(&mut self, before: Option<&Self>, now: Option<Timestamp>) {
        let earlier = before.filter(|before| before.status == self.status);
        let earlier = earlier.and_then(|before| before.unanswered_since);
        self.unanswered_since = if self.applied() { None } else { earlier.or(now) };
    }

    /// Sets since when the watch has shown every drain, given what was known before. Other changes do not put that off.
    /// `now` is absent while the watch does not show the spec yet.
    pub(super) fn drain_since(&mut self, before: Option<&Self>, now: Option<Timestamp>) {
        let drained_before = |entry: &Arc<Entry>, before: &Self| {
            before.entry(&entry.uid).is_some_and(|before| before.phase == PoolPhase::Draining)
        };
        let earlier = before.filter(|before| self.drains().all(|entry| drained_before(entry, before)));
        let now = now.filter(|_| !self.spec_unknown);
        self.drains_shown_since = earlier.and_then(|before| before.drains_shown_since).or(now);
    }

    fn drains(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.pools.iter().filter(|entry| entry.phase == PoolPhase::Draining)
    }

    /// How long the drains of a node whose agent has not answered are waited for. Its agent may have applied the pools before
    /// anybody has seen that; one that has received the drains and still does not answer does not run. None if the agent has
    /// answered, if there is no drain, or while the watch does not show every drain.
    pub fn drains_given_up_in(&self, now: Timestamp) -> Option<Duration> {
        if self.answered() || self.drains().next().is_none() {
            return None;
        }
        let unanswered = left(ANSWER_WITHIN, self.drains_shown_since?, now);
        let remembered = self.answer_missing_since.map(|since| left(REMEMBERED, since, now));
        Some(unanswered.max(remembered.unwrap_or_default()))
    }

    /// Whether the agent has applied the spec as it is. One that does not know configurations sees no pools in a state that
    /// names one, and its answer is about those.
    pub fn applied(&self) -> bool {
        let observed = self.status.as_ref().and_then(|status| status.observed_hash.as_deref());
        let can_read = self.form < Form::Shared || self.reads() == Form::Shared;
        observed == Some(self.config_hash.as_str()) && can_read && !self.spec_unknown
    }

    /// Whether the agent has applied an entry as its spec has it: all of the spec, or at least this generation of the
    /// pool. A change of one pool is no news of the others, and must not make them look unready.
    pub fn applied_entry(&self, entry: &Entry) -> bool {
        let ending = |pool: &KnownPool| {
            let reason = pool.ready.as_ref().map(|ready| &*ready.reason);
            [NodePoolReason::Draining, NodePoolReason::Drained].iter().any(|end| reason == Some(end.as_str()))
        };
        let answered = |pool: &KnownPool| {
            pool.generation == entry.generation && ending(pool) == (entry.phase == PoolPhase::Draining)
        };
        self.applied() || self.pool(&entry.name).is_some_and(answered)
    }

    /// Whether the agent reports why it is not ready as a whole, although it serves what it can. That it is registering is
    /// not a reason: an agent that crashes again and again leaves that as its last status.
    pub fn explains_unready(&self) -> bool {
        const TROUBLES: [NodePoolReason; 4] = [
            NodePoolReason::PluginMissing,
            NodePoolReason::TableNotWritten,
            NodePoolReason::KubeletUnreachable,
            NodePoolReason::RegistrationFailed,
        ];
        let says = |verdict: &Verdict, trouble: &NodePoolReason| &*verdict.reason == trouble.as_str();
        let mut verdicts = self
            .status
            .iter()
            .flat_map(|status| &status.pools)
            .flat_map(|pool| pool.ready.iter().filter(|ready| !ready.holds).chain(&pool.degraded));
        verdicts.any(|verdict| TROUBLES.iter().any(|trouble| says(verdict, trouble)))
    }

    /// Whether an agent ever answered.
    pub fn answered(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.observed_hash.is_some())
    }

    /// Whether an agent answered, now or not long ago: its node still holds what it held then.
    pub fn was_answered(&self, now: Timestamp) -> bool {
        self.answered() || self.answer_missing_since.is_some_and(|since| is_remembered(since, now))
    }

    /// The briefest form that the agent is known to read.
    pub fn reads(&self) -> Form {
        self.status.as_ref().map(|status| status.reads).unwrap_or_default()
    }

    /// Whether the state says this already, in a form that its agent can read. `spec` is as if it had its pools itself.
    pub fn is_as(&self, spec: &Spec) -> bool {
        let hash = self.config.as_deref().map_or(spec.config_hash.as_str(), hash_of);
        self.pools == spec.pools
            && !self.spec_unreadable
            && self.form <= spec.form
            && self.owner == spec.owner
            && self.config_hash == hash
    }

    /// What the agent says of a pool.
    pub fn pool(&self, name: &str) -> Option<&KnownPool> {
        self.status.as_ref()?.pools.iter().find(|pool| &*pool.name == name)
    }

    /// Whether the node is to offer devices of any pool with one of these UIDs.
    pub fn offers_any(&self, uids: &HashSet<&str>) -> bool {
        self.pools.iter().any(|entry| entry.phase != PoolPhase::Draining && uids.contains(entry.uid.as_str()))
    }

    /// The entry of a pool in spec.
    pub fn entry(&self, uid: &str) -> Option<&Arc<Entry>> {
        self.pools.iter().find(|entry| entry.uid == uid)
    }
}

/// The version of an object; 0 if it is not a number.
pub fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
