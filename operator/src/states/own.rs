//! Pure: the operator's own writes of node states, how far the watch is behind them, and which of them wait for an
//! agent's answer.

use super::known::{ANSWER_WITHIN, KnownState};
use super::spec::Spec;
use jiff::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

/// How many specs may be unanswered at once. The rate at which the API server's watches pass them on limits the rate of
/// an edit of the whole fleet, so that no answer waits long behind others.
const UNANSWERED_MAX: usize = 256;

/// How long a write may stay unseen before it is ignored. No watch is that late: such a write is an error in this record.
const UNSEEN_MAX: Duration = Duration::from_mins(5);

/// How long a write whose answer was lost may still take effect: an API server aborts a request after a minute, unless it
/// is configured otherwise, and the request may have been late before.
pub const LOST_MAX: Duration = Duration::from_mins(2);

/// Own writes by the name of their state.
#[derive(Debug, Default)]
pub(super) struct Own {
    writes: HashMap<String, Writes>,
    /// When the watch last showed a write, and how late.
    last: Option<(Timestamp, Duration)>,
}

/// The writes of one state: the last one that the API server stored, the one after it, and those of which nobody knows
/// whether they were stored or will be.
#[derive(Debug, Default)]
struct Writes {
    stored: Option<Stored>,
    sent: Option<Sent>,
    lost: Vec<Lost>,
}

/// A write that the API server has stored and the agent has not answered yet.
#[derive(Debug)]
struct Stored {
    spec: Spec,
    version: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The watch has not shown it since it was stored at this time.
    Unseen { since: Timestamp },
    /// The watch showed it at this time.
    Seen { at: Timestamp },
}

/// A write to which no answer came, or one that says nothing. Nobody can wait for it.
#[derive(Debug)]
struct Lost {
    spec: Spec,
    since: Timestamp,
}

/// A write that waits for the API server's answer.
#[derive(Debug)]
struct Sent {
    spec: Spec,
    /// In which version the state was deleted while the write was on its way.
    deleted: Option<u64>,
}

impl Own {
    /// Notes that a write is being sent.
    pub(super) fn send(&mut self, name: &str, spec: Spec) {
        let sent = Sent { spec, deleted: None };
        self.writes.entry(name.to_owned()).or_default().sent = Some(sent);
    }

    /// Notes that a write was refused or was not sent.
    pub(super) fn withdraw(&mut self, name: &str) {
        self.change(name, |writes| writes.sent = None);
    }

    /// Notes that nobody knows what became of a write.
    pub(super) fn lost(&mut self, name: &str, now: Timestamp) {
        self.change(name, |writes| writes.lose(now));
    }

    /// Notes which version a write became. Returns whether that is still there, as far as the watch has shown.
    pub(super) fn stored(&mut self, name: &str, version: u64, at: Timestamp) -> bool {
        let sent = self.writes.get_mut(name).and_then(|writes| writes.sent.take());
        let is_there = sent.as_ref().is_none_or(|sent| sent.deleted.is_none_or(|deleted| version > deleted));
        self.change(name, |writes| {
            let stored = sent.filter(|_| is_there);
            let stored =
                stored.map(|sent| Stored { spec: sent.spec, version, phase: Phase::Unseen { since: at } });
            writes.stored = stored.or(writes.stored.take().filter(|_| is_there));
        });
        is_there
    }

    /// Processes a state as the watch shows it. While it does not show an own write yet, the spec is what was written.
    /// Returns how late the watch showed the write, if it shows it now.
    pub(super) fn seen(&mut self, state: &mut KnownState, now: Timestamp) -> Option<Duration> {
        // A state with the spec of a lost write does not prove that this write has arrived: the spec may be of a later one.
        self.change(&state.name, |writes| writes.lost.retain(|lost| lost.may_arrive(now)));
        let stored = self.writes.get_mut(&state.name)?.stored.as_mut()?;
        let mut lag = None;
        if let Phase::Unseen { since } = stored.phase {
            if state.version < stored.version {
                state.write(&stored.spec);
                return None;
            }
            lag = Some(between(since, now));
            stored.phase = Phase::Seen { at: now };
        }
        self.last = lag.map(|lag| (now, lag)).or(self.last);
        if state.applied() {
            self.change(&state.name, |writes| writes.stored = None);
        }
        lag
    }

    /// Whether a state that the watch does not show, at this version or in a list begun at this time, is still there.
    pub(super) fn survives(&mut self, name: &str, gone: Gone) -> bool {
        let mut newer = false;
        self.change(name, |writes| {
            if let (Some(sent), Gone::Deleted(version)) = (&mut writes.sent, gone) {
                sent.deleted = Some(version);
            }
            newer = writes.stored.as_ref().is_some_and(|stored| match (stored.phase, gone) {
                (Phase::Unseen { .. }, Gone::Deleted(deleted)) => stored.version > deleted,
                (Phase::Unseen { since }, Gone::NotListedSince(begun)) => since >= begun,
                (Phase::Seen { .. }, _) => false,
            });
            if !newer {
                writes.stored = None;
            }
        });
        newer
    }

    /// The spec that was stored as a later version than this, if the watch has not shown it yet.
    pub(super) fn newer(&self, name: &str, version: u64) -> Option<&Spec> {
        let stored = self.unseen(name)?;
        (stored.version > version).then_some(&stored.spec)
    }

    /// Whether the operator has written the state since the watch showed it.
    pub(super) fn is_ahead(&self, name: &str) -> bool {
        self.unseen(name).is_some()
    }

    /// Whether a write that may still reach the API server has an entry of the pool with this UID.
    pub(super) fn may_hold(&self, uid: &str, now: Timestamp) -> impl Iterator<Item = &str> {
        let holds = move |writes: &Writes| {
            writes.sent.as_ref().is_some_and(|sent| sent.spec.has(uid))
                || writes.lost.iter().any(|lost| lost.may_arrive(now) && lost.spec.has(uid))
        };
        self.writes.iter().filter(move |(_, writes)| holds(writes)).map(|(name, _)| name.as_str())
    }

    /// The configurations that writes name whose effect no state may show yet.
    pub(super) fn configs(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        self.writes
            .values()
            .flat_map(move |writes| writes.specs(now))
            .filter_map(|spec| spec.config.as_deref())
    }

    /// How far the watch is behind the API server, as far as own writes show.
    pub(super) fn lag(&self, now: Timestamp) -> Duration {
        let unseen = self.writes.values().filter_map(|writes| match writes.stored.as_ref()?.phase {
            Phase::Unseen { since } => Some(between(since, now)).filter(|lag| *lag < UNSEEN_MAX),
            Phase::Seen { .. } => None,
        });
        // Answers come the same way behind the specs, so the last lag counts for as long as it was.
        let last = self.last.filter(|(at, lag)| between(*at, now) < *lag).map(|(_, lag)| lag);
        unseen.chain(last).max().unwrap_or_default()
    }

    /// Whether one more spec may be written without an answer to an earlier one. `will_answer` says whether an answer is
    /// to be expected of the agent of a node.
    pub(super) fn has_room(&self, now: Timestamp, will_answer: impl Fn(&str) -> bool) -> bool {
        let waits = |name: &str, writes: &Writes| {
            writes.sent.is_some()
                || writes.stored.as_ref().is_some_and(|stored| match stored.phase {
                    Phase::Unseen { since } => between(since, now) < UNSEEN_MAX,
                    Phase::Seen { at } => between(at, now) < ANSWER_WITHIN && will_answer(name),
                })
        };
        self.writes.iter().filter(|(name, writes)| waits(name, writes)).count() < UNANSWERED_MAX
    }

    /// Forgets what was stored: another operator writes now. What is on its way may arrive nevertheless.
    pub(super) fn clear(&mut self, now: Timestamp) {
        self.writes.retain(|_, writes| {
            writes.stored = None;
            writes.lose(now);
            !writes.lost.is_empty()
        });
    }

    fn unseen(&self, name: &str) -> Option<&Stored> {
        let stored = self.writes.get(name)?.stored.as_ref()?;
        matches!(stored.phase, Phase::Unseen { .. }).then_some(stored)
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Writes)) {
        let Some(writes) = self.writes.get_mut(name) else { return };
        change(writes);
        if writes.stored.is_none() && writes.sent.is_none() && writes.lost.is_empty() {
            self.writes.remove(name);
        }
    }
}

impl Writes {
    /// What the API server has stored of them, or may still store.
    fn specs(&self, now: Timestamp) -> impl Iterator<Item = &Spec> {
        let stored = self.stored.iter().map(|stored| &stored.spec);
        let sent = self.sent.iter().map(|sent| &sent.spec);
        let lost = self.lost.iter().filter(move |lost| lost.may_arrive(now)).map(|lost| &lost.spec);
        stored.chain(sent).chain(lost)
    }

    /// Makes the write that waits for an answer one that is lost.
    fn lose(&mut self, now: Timestamp) {
        self.lost.retain(|lost| lost.may_arrive(now));
        if let Some(Sent { spec, .. }) = self.sent.take() {
            self.lost.retain(|lost| lost.spec.config_hash != spec.config_hash);
            self.lost.push(Lost { spec, since: now });
        }
    }
}

impl Lost {
    fn may_arrive(&self, now: Timestamp) -> bool {
        between(self.since, now) < LOST_MAX
    }
}

/// Whether the agent of a node with this state is expected to answer a spec: it has answered one, and owes no answer for
/// too long already.
pub(super) fn will_answer(state: &KnownState, now: Timestamp) -> bool {
    let is_silent = state.unanswered_since.is_some_and(|since| between(since, now) >= ANSWER_WITHIN);
    state.answered() && !is_silent
}

/// How a state is missing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gone {
    /// It was deleted in this version.
    Deleted(u64),
    /// A list that began at this time does not have it.
    NotListedSince(Timestamp),
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
