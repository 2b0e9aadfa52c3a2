//! What waits to be reconciled: each key once, however many events asked for it, and by one worker at a time. What is
//! urgent goes first: a new node, a drain or a release does not wait behind an edit of the whole fleet.
//!
//! A controller of ours and not the client library's, because leadership comes and goes while the caches stay, because
//! its depth is a metric, and because its workers are tasks of their own.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How soon a key that failed is tried again. Each further failure doubles it.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(5);

/// A name of an object.
pub type Key = Arc<str>;

/// In which order keys that are due are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// At once.
    Urgent,
    /// After what is urgent.
    Later,
}

/// Keys by the time they are due. Closed it takes none: a standby has nothing to do.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<Lanes>,
    /// Wakes a worker that takes urgent keys only.
    urgent: Notify,
    /// Wakes a worker that takes all keys. One for both kinds of workers would be lost on those that cannot take the key.
    later: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    open: bool,
    urgent: Line,
    later: Line,
    /// Keys in work, with the times at which they were asked for meanwhile.
    running: HashMap<Key, Vec<(Lane, Instant)>>,
    /// How often in a row keys have failed.
    failures: HashMap<Key, u32>,
}

/// The keys of a lane by the time they are due.
#[derive(Debug, Default)]
struct Line {
    due: HashMap<Key, Instant>,
    order: BTreeSet<(Instant, Key)>,
}

impl Line {
    fn add(&mut self, key: Key, due: Instant) {
        if let Some(before) = self.due.get(&key).copied() {
            if before <= due {
                return;
            }
            self.order.remove(&(before, Arc::clone(&key)));
        }
        self.due.insert(Arc::clone(&key), due);
        self.order.insert((due, key));
    }

    fn remove(&mut self, key: &Key) -> Option<Instant> {
        let due = self.due.remove(key)?;
        self.order.remove(&(due, Arc::clone(key)));
        Some(due)
    }

    fn first(&self, now: Instant) -> Option<Key> {
        self.order.first().filter(|(due, _)| *due <= now).map(|(_, key)| Arc::clone(key))
    }

    fn depth(&self, now: Instant) -> usize {
        self.order.range((Bound::Unbounded, Bound::Included((now, Key::from("\u{10ffff}"))))).count()
    }
}

impl Queue {
    /// Begins to take keys.
    pub fn open(&self) {
        self.state().open = true;
    }

    /// Forgets everything and takes no more. Nobody may be at work.
    pub fn close(&self) {
        *self.state() = Lanes::default();
    }

    /// Asks for a reconcile as soon as possible.
    pub fn add(&self, key: &str) {
        self.ask(key, Lane::Urgent, Duration::ZERO);
    }

    /// Asks for a reconcile after all that is urgent.
    pub fn add_later(&self, key: &str) {
        self.ask(key, Lane::Later, Duration::ZERO);
    }

    /// Asks for a reconcile within this time.
    pub fn add_within(&self, key: &str, wait: Duration) {
        self.ask(key, Lane::Urgent, wait);
    }

    fn ask(&self, key: &str, lane: Lane, wait: Duration) {
        let Some(due) = Instant::now().checked_add(wait) else { return };
        let mut state = self.state();
        if state.open {
            state.ask(key.into(), lane, due);
            self.wake(&state);
        }
    }

    /// The next key that is due, of this lane or a more urgent one, for as long as it takes. [`Self::done`] or
    /// [`Self::failed`] must follow.
    pub async fn next(&self, last: Lane) -> (Key, Lane) {
        let changed = match last {
            Lane::Urgent => &self.urgent,
            Lane::Later => &self.later,
        };
        loop {
            let earliest = {
                let mut state = self.state();
                if let Some(taken) = state.take(Instant::now(), last) {
                    self.wake(&state);
                    return taken;
                }
                state.earliest(last)
            };
            match earliest {
                Some(due) => tokio::select! {
                    () = changed.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => changed.notified().await,
            }
        }
    }

    /// The next key that is due: an urgent one at any time, and any other once there is room for it.
    pub async fn next_when(&self, room: impl Future<Output = ()>) -> (Key, Lane) {
        tokio::select! {
            biased;
            taken = self.next(Lane::Urgent) => return taken,
            () = room => {}
        }
        self.next(Lane::Later).await
    }

    /// Ends the work on a key; says how soon to look again although nobody asks.
    pub fn done(&self, key: &Key, lane: Lane, again: Option<Duration>) {
        let mut state = self.state();
        state.failures.remove(key);
        state.end(key, lane, again);
        self.wake(&state);
    }

    /// Ends the work on a key that failed; it comes again after a pause that grows with each failure in a row, and is
    /// never the same for two keys. Returns the pause.
    pub fn failed(&self, key: &Key, lane: Lane) -> Duration {
        let mut state = self.state();
        let failures = state.failures.entry(Arc::clone(key)).or_default();
        let longest = RETRY_MIN.saturating_mul(1 << (*failures).min(16)).min(RETRY_MAX);
        *failures = failures.saturating_add(1);
        // The standard library seeds it from the kernel's random numbers.
        let share = RandomState::new().hash_one(key) % 1000;
        let pause = longest / 2 + longest / 2000 * u32::try_from(share).unwrap_or_default();
        state.end(key, lane, Some(pause));
        self.wake(&state);
        pause
    }

    /// How many keys are due and wait for a worker.
    pub fn depth(&self) -> usize {
        let (state, now) = (self.state(), Instant::now());
        state.urgent.depth(now) + state.later.depth(now)
    }

    /// Has a worker of each kind look again that may find a key.
    fn wake(&self, state: &Lanes) {
        if !state.urgent.order.is_empty() {
            self.urgent.notify_one();
        }
        if !state.is_empty() {
            self.later.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, Lanes> {
        // Each change is whole before the lock is let go, also when a holder panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    fn line(&mut self, lane: Lane) -> &mut Line {
        match lane {
            Lane::Urgent => &mut self.urgent,
            Lane::Later => &mut self.later,
        }
    }

    fn is_empty(&self) -> bool {
        self.urgent.order.is_empty() && self.later.order.is_empty()
    }

    fn ask(&mut self, key: Key, lane: Lane, due: Instant) {
        match self.running.get_mut(&key) {
            Some(asked) => asked.push((lane, due)),
            None => self.line(lane).add(key, due),
        }
    }

    fn take(&mut self, now: Instant, last: Lane) -> Option<(Key, Lane)> {
        let later = || self.later.first(now).filter(|_| last == Lane::Later);
        let urgent = self.urgent.first(now).map(|key| (key, Lane::Urgent));
        let (key, lane) = urgent.or_else(|| later().map(|key| (key, Lane::Later)))?;
        // Work on a key does what any lane has asked for by now; what is due later stays.
        let asked = [Lane::Urgent, Lane::Later].map(|lane| (lane, self.line(lane).remove(&key)));
        let asked = asked.into_iter().filter_map(|(lane, due)| Some((lane, due.filter(|due| *due > now)?)));
        self.running.insert(Arc::clone(&key), asked.collect());
        Some((key, lane))
    }

    fn end(&mut self, key: &Key, lane: Lane, again: Option<Duration>) {
        let asked = self.running.remove(key).unwrap_or_default();
        let again = again.and_then(|wait| Instant::now().checked_add(wait)).map(|due| (lane, due));
        if self.open {
            asked.into_iter().chain(again).for_each(|(lane, due)| self.ask(Arc::clone(key), lane, due));
        }
    }

    fn earliest(&self, last: Lane) -> Option<Instant> {
        let later = self.later.order.first().filter(|_| last == Lane::Later);
        self.urgent.order.first().into_iter().chain(later).map(|(due, _)| *due).min()
    }
}

#[cfg(test)]
mod tests;
