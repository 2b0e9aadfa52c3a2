//! What waits to be looked at: each key once, however many events asked for it, and by one worker at a time.
//!
//! A controller of ours and not the client library's, because leadership comes and goes while the caches stay, because
//! its depth is a metric, and because its workers are tasks of their own.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A name of an object.
pub type Key = Arc<str>;

/// Keys by the time they are due. Closed it takes none: a standby has nothing to do.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    due: HashMap<Key, Instant>,
    order: BTreeSet<(Instant, Key)>,
    /// Keys in work, with the time at which they were asked for meanwhile.
    running: HashMap<Key, Option<Instant>>,
}

impl Queue {
    /// Begins to take keys.
    pub fn open(&self) {
        self.state().open = true;
    }

    /// Forgets everything and takes no more. Nobody may be at work.
    pub fn close(&self) {
        *self.state() = State::default();
    }

    /// Asks for a look as soon as possible.
    pub fn add(&self, key: &str) {
        let mut state = self.state();
        if state.open {
            state.ask(key.into(), Instant::now());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Asks for a look within this time.
    pub fn add_within(&self, key: &str, wait: Duration) {
        let Some(due) = Instant::now().checked_add(wait) else { return };
        let mut state = self.state();
        if state.open {
            state.ask(key.into(), due);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The next key that is due, for as long as it takes. [`Self::done`] must follow.
    pub async fn next(&self) -> Key {
        loop {
            let earliest = {
                let mut state = self.state();
                if let Some(key) = state.take(Instant::now()) {
                    if !state.order.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.order.first().map(|(due, _)| *due)
            };
            match earliest {
                Some(due) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// Ends the work on a key; says how soon to look again although nobody asks.
    pub fn done(&self, key: &Key, again: Option<Duration>) {
        let mut state = self.state();
        let asked = state.running.remove(key).flatten();
        let again = again.and_then(|wait| Instant::now().checked_add(wait));
        if let Some(due) = asked.into_iter().chain(again).min().filter(|_| state.open) {
            state.ask(Arc::clone(key), due);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// How many keys are due and wait for a worker.
    pub fn depth(&self) -> usize {
        let now = Instant::now();
        self.state().order.range((Bound::Unbounded, Bound::Included((now, Key::from("\u{10ffff}"))))).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before the lock is let go, also when a holder panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ask(&mut self, key: Key, due: Instant) {
        if let Some(again) = self.running.get_mut(&key) {
            *again = Some(again.map_or(due, |before| before.min(due)));
            return;
        }
        if let Some(before) = self.due.get(&key).copied() {
            if before <= due {
                return;
            }
            self.order.remove(&(before, Arc::clone(&key)));
        }
        self.due.insert(Arc::clone(&key), due);
        self.order.insert((due, key));
    }

    fn take(&mut self, now: Instant) -> Option<Key> {
        if self.order.first().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.due.remove(&key);
        self.running.insert(Arc::clone(&key), None);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn open() -> Queue {
        let queue = Queue::default();
        queue.open();
        queue
    }

    fn ready(queue: &Queue) -> Option<Key> {
        queue.next().now_or_never()
    }

    #[tokio::test]
    async fn a_key_is_given_once_however_often_it_is_asked_for() {
        let queue = open();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!(queue.depth(), 2);
        assert_eq!((ready(&queue).as_deref(), ready(&queue).as_deref()), (Some("a"), Some("b")));
        assert_eq!(ready(&queue), None);
    }

    #[tokio::test]
    async fn a_key_in_work_is_given_again_only_when_that_work_is_done() {
        let queue = open();
        queue.add("a");
        let key = queue.next().await;
        queue.add("a");
        assert_eq!(ready(&queue), None);
        queue.done(&key, Some(Duration::from_hours(1)));
        assert_eq!(
            ready(&queue).as_deref(),
            Some("a"),
            "what was asked for meanwhile comes before the pause"
        );
    }

    #[tokio::test]
    async fn a_key_that_shall_come_again_comes_after_its_pause_or_with_the_next_event() {
        let queue = open();
        queue.add("a");
        let key = queue.next().await;
        queue.done(&key, Some(Duration::from_secs(30)));
        assert_eq!((ready(&queue), queue.depth()), (None, 0));
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(queue.state().take(later(29)), None);
        assert_eq!(queue.state().take(later(31)).as_deref(), Some("a"));
        queue.done(&key, Some(Duration::from_secs(30)));
        queue.add("a");
        assert_eq!(ready(&queue).as_deref(), Some("a"));
        queue.done(&key, None);
        assert_eq!(queue.state().take(later(3600)), None);
    }

    #[tokio::test]
    async fn what_is_asked_for_within_a_time_puts_off_nothing_that_is_asked_for_sooner() {
        let queue = open();
        queue.add_within("a", Duration::from_mins(1));
        queue.add_within("a", Duration::from_secs(90));
        assert_eq!((ready(&queue), queue.depth()), (None, 0));
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(queue.state().take(later(61)).as_deref(), Some("a"));
        queue.done(&"a".into(), None);
        queue.add("a");
        queue.add_within("a", Duration::from_mins(1));
        assert_eq!(ready(&queue).as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn a_pause_ends_by_itself() {
        let queue = open();
        queue.add("a");
        let key = queue.next().await;
        queue.done(&key, Some(Duration::from_millis(5)));
        assert_eq!(queue.next().await, key);
    }

    #[tokio::test]
    async fn a_closed_queue_takes_nothing_and_forgets_what_it_had() {
        let queue = Queue::default();
        queue.add("a");
        assert_eq!(ready(&queue), None);
        queue.open();
        queue.add("a");
        queue.close();
        queue.open();
        assert_eq!(ready(&queue), None);
    }

    #[tokio::test]
    async fn every_waiting_worker_gets_its_key() {
        let queue = Arc::new(open());
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in ["a", "b", "c"] {
            queue.add(key);
        }
        let mut keys: Vec<_> =
            futures::future::join_all(workers).await.into_iter().map(Result::unwrap).collect();
        keys.sort();
        assert_eq!(keys.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["a", "b", "c"]);
    }
}
