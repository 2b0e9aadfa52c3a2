//! Pure: the operator's own writes of node states, how far the watch is behind them, and which of them wait for an
//! agent's answer.

use crate::entry::Entry;
use crate::states::KnownState;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How many specs may be under way to agents and back at once. What the API server's watches take to pass them on sets
/// the rate of an edit of the whole fleet, so that no answer waits long behind others.
const UNANSWERED_MAX: usize = 256;

/// How long an answer is waited for by those that come after: an agent that hangs holds up nobody for longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A spec as the operator writes it.
#[derive(Clone, Debug)]
pub struct Spec {
    /// UID of the Node that owns the state.
    pub owner: Option<String>,
    /// Hash of its pools.
    pub config_hash: String,
    /// Its pools.
    pub pools: Vec<Arc<Entry>>,
}

/// Own writes by the name of their state.
#[derive(Debug, Default)]
pub(super) struct Own {
    writes: HashMap<String, Write>,
    /// When the watch last showed a write, and how late.
    last: Option<(Timestamp, Duration)>,
}

#[derive(Debug)]
struct Write {
    spec: Spec,
    phase: Phase,
    /// In which version the state was deleted while the write was on its way.
    deleted: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The request is under way.
    Sent,
    /// No answer came, or one that says nothing: the API server may have stored it. Nothing of it can be waited for.
    Unknown,
    /// The API server has stored it as this version, and the watch has not shown it yet.
    Stored { version: u64, at: Timestamp },
    /// The watch has shown it, and its agent has not answered yet.
    Seen { at: Timestamp },
}

impl Own {
    /// Notes that a write is being sent.
    pub(super) fn send(&mut self, name: &str, spec: Spec) {
        self.writes.insert(name.to_owned(), Write { spec, phase: Phase::Sent, deleted: None });
    }

    /// Notes that a write was refused, or not sent.
    pub(super) fn refused(&mut self, name: &str) {
        self.writes.remove(name);
    }

    /// Notes that nobody knows what became of a write.
    pub(super) fn lost(&mut self, name: &str) {
        if let Some(write) = self.writes.get_mut(name) {
            write.phase = Phase::Unknown;
        }
    }

    /// Forgets a write of which nobody knows what became of it: there is nothing more to write.
    pub(super) fn give_up(&mut self, name: &str) {
        if matches!(self.writes.get(name).map(|write| write.phase), Some(Phase::Sent | Phase::Unknown)) {
            self.writes.remove(name);
        }
    }

    /// Notes which version a write became. Returns whether that is still there, as far as the watch has shown.
    pub(super) fn stored(&mut self, name: &str, version: u64, at: Timestamp) -> bool {
        let Some(write) = self.writes.get_mut(name) else { return true };
        let is_gone = write.deleted.is_some_and(|deleted| version < deleted);
        if is_gone {
            self.writes.remove(name);
        } else {
            write.phase = Phase::Stored { version, at };
        }
        !is_gone
    }

    /// Takes in a state as the watch shows it. While it does not show an own write yet, the spec is what was written.
    /// Returns how late the watch showed the write, if it shows it now.
    pub(super) fn seen(&mut self, state: &mut KnownState, now: Timestamp) -> Option<Duration> {
        let write = self.writes.get_mut(&state.name)?;
        match write.phase {
            Phase::Stored { version, .. } if state.version < version => {
                state.write(&write.spec);
                None
            }
            Phase::Stored { at, .. } => {
                let lag = between(at, now);
                self.last = Some((now, lag));
                write.phase = Phase::Seen { at: now };
                if state.applied() {
                    self.writes.remove(&state.name);
                }
                Some(lag)
            }
            Phase::Seen { .. } if state.applied() => {
                self.writes.remove(&state.name);
                None
            }
            Phase::Sent | Phase::Unknown | Phase::Seen { .. } => None,
        }
    }

    /// Whether a state that the watch does not show, at this version or in a list begun at this time, is still there.
    pub(super) fn survives(&mut self, name: &str, gone: Gone) -> bool {
        if let Some(write) = self.writes.get_mut(name)
            && let Gone::Deleted(version) = gone
        {
            write.deleted = Some(version);
        }
        let newer = match self.writes.get(name).map(|write| write.phase) {
            Some(Phase::Sent | Phase::Unknown) => return false,
            Some(Phase::Stored { version, at }) => match gone {
                Gone::Deleted(deleted) => version > deleted,
                Gone::NotListedSince(begun) => at >= begun,
            },
            Some(Phase::Seen { .. }) | None => false,
        };
        if !newer {
            self.writes.remove(name);
        }
        newer
    }

    /// The spec that was stored as a later version than this, if the watch has not shown it yet.
    pub(super) fn newer(&self, name: &str, version: u64) -> Option<&Spec> {
        let write = self.writes.get(name)?;
        matches!(write.phase, Phase::Stored { version: stored, .. } if stored > version)
            .then_some(&write.spec)
    }

    /// Whether the operator has written the state since the watch showed it.
    pub(super) fn is_ahead(&self, name: &str) -> bool {
        matches!(self.writes.get(name).map(|write| write.phase), Some(Phase::Stored { .. }))
    }

    /// Whether a write that may still reach the API server has an entry of the pool with this UID.
    pub(super) fn may_hold(&self, uid: &str) -> impl Iterator<Item = &str> {
        self.writes
            .iter()
            .filter(move |(_, write)| {
                matches!(write.phase, Phase::Sent | Phase::Unknown) && write.spec.has(uid)
            })
            .map(|(name, _)| name.as_str())
    }

    /// How far the watch is behind the API server, as far as own writes tell.
    pub(super) fn lag(&self, now: Timestamp) -> Duration {
        let pending = self.writes.values().filter_map(|write| match write.phase {
            Phase::Stored { at, .. } => Some(between(at, now)),
            Phase::Sent | Phase::Unknown | Phase::Seen { .. } => None,
        });
        // Answers come the same way behind the specs, so the last lag counts for as long as it was.
        let last = self.last.filter(|(at, lag)| between(*at, now) < *lag).map(|(_, lag)| lag);
        pending.chain(last).max().unwrap_or_default()
    }

    /// Whether one more spec may be written without an answer to an earlier one.
    pub(super) fn has_room(&self, now: Timestamp) -> bool {
        let waits = |write: &&Write| match write.phase {
            Phase::Sent | Phase::Stored { .. } => true,
            Phase::Unknown => false,
            Phase::Seen { at } => between(at, now) < ANSWER_WITHIN,
        };
        self.writes.values().filter(waits).count() < UNANSWERED_MAX
    }

    /// Forgets everything: another operator writes now.
    pub(super) fn clear(&mut self) {
        self.writes.clear();
    }
}

/// How a state is missing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gone {
    /// It was deleted in this version.
    Deleted(u64),
    /// A list that began at this time does not have it.
    NotListedSince(Timestamp),
}

impl Spec {
    fn has(&self, uid: &str) -> bool {
        self.pools.iter().any(|entry| entry.uid == uid)
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn spec(hash: &str) -> Spec {
        Spec { owner: None, config_hash: hash.to_owned(), pools: Vec::new() }
    }

    fn state(name: &str, version: u64, hash: &str) -> KnownState {
        KnownState { name: name.to_owned(), version, config_hash: hash.to_owned(), ..KnownState::default() }
    }

    #[test]
    fn until_the_watch_shows_a_write_the_spec_is_what_was_written_and_the_lag_grows() {
        let mut own = Own::default();
        own.send("n1", spec("new"));
        own.stored("n1", 7, at(100));
        let mut earlier = state("n1", 6, "old");
        assert_eq!(own.seen(&mut earlier, at(130)), None);
        assert_eq!((earlier.config_hash.as_str(), own.lag(at(130))), ("new", Duration::from_secs(30)));
        let mut later = state("n1", 8, "by hand");
        assert_eq!(own.seen(&mut later, at(140)), Some(Duration::from_secs(40)));
        assert_eq!(later.config_hash, "by hand");
        assert_eq!(own.lag(at(179)), Duration::from_secs(40), "answers are as late as specs");
        assert_eq!(own.lag(at(181)), Duration::ZERO);
    }

    #[test]
    fn a_state_made_again_outlives_the_news_of_its_deletion() {
        let mut own = Own::default();
        own.send("n1", spec("new"));
        own.stored("n1", 7, at(100));
        assert!(own.survives("n1", Gone::Deleted(6)) && own.survives("n1", Gone::NotListedSince(at(100))));
        assert!(!own.survives("n1", Gone::NotListedSince(at(101))));
        own.stored("n1", 7, at(100));
        assert!(!own.survives("n1", Gone::Deleted(8)));
    }

    #[test]
    fn specs_without_an_answer_are_limited_and_an_agent_that_hangs_holds_up_nobody_for_long() {
        let mut own = Own::default();
        for i in 0..UNANSWERED_MAX {
            assert!(own.has_room(at(0)), "{i}");
            own.send(&i.to_string(), spec("h"));
            own.stored(&i.to_string(), 1, at(0));
        }
        assert!(!own.has_room(at(1000)), "what the watch does not show is under way");
        for i in 0..UNANSWERED_MAX {
            own.seen(&mut state(&i.to_string(), 1, "h"), at(1000));
        }
        assert!(!own.has_room(at(1009)) && own.has_room(at(1010)));
    }

    #[test]
    fn writes_of_which_nobody_knows_what_became_hold_up_no_other_and_may_still_hold_their_pools() {
        let mut own = Own::default();
        let entry = Arc::new(crate::entry::entry_of(&crate::testing::pool("dp", serde_json::json!({}))));
        for i in 0..UNANSWERED_MAX {
            own.send(&i.to_string(), Spec { pools: vec![Arc::clone(&entry)], ..spec("h") });
        }
        assert!(!own.has_room(at(0)));
        (0..UNANSWERED_MAX).for_each(|i| own.lost(&i.to_string()));
        assert!(own.has_room(at(0)));
        assert_eq!(own.may_hold(&entry.uid).count(), UNANSWERED_MAX);
        assert_eq!(own.seen(&mut state("1", 9, "other"), at(1)), None);
        own.give_up("1");
        assert_eq!(own.may_hold(&entry.uid).count(), UNANSWERED_MAX - 1);
    }

    #[test]
    fn a_state_that_is_deleted_before_the_answer_to_its_write_comes_is_gone() {
        let mut own = Own::default();
        own.send("n1", spec("new"));
        assert!(!own.survives("n1", Gone::Deleted(8)));
        assert!(!own.stored("n1", 7, at(100)));
        assert_eq!((own.lag(at(200)), own.is_ahead("n1")), (Duration::ZERO, false));
        own.send("n1", spec("new"));
        assert!(!own.survives("n1", Gone::Deleted(8)));
        assert!(own.stored("n1", 9, at(100)), "made again since");
    }
}
