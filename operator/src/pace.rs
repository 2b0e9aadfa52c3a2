//! How often things are done, whatever the number of events.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A pool is looked at no more often than this, and the rarer the more nodes there are to look at: each of them reports
/// on its own after a change.
const POOL_EVERY: Duration = Duration::from_millis(500);
const POOL_EVERY_PER_NODE: Duration = Duration::from_micros(500);

/// When each pool had its turn.
#[derive(Debug, Default)]
pub struct Pace {
    turns: Mutex<HashMap<String, Turns>>,
    /// What was said of pools that cannot be read.
    said: Mutex<HashMap<String, String>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Turns {
    run: Option<Instant>,
    numbers: Option<Instant>,
    /// The generation for whose networks its status has waited.
    waited: Option<i64>,
}

impl Pace {
    /// Takes the turn to look at a pool, or says how long to wait for it.
    pub fn run(&self, pool: &str, nodes: usize) -> Option<Duration> {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        let every = POOL_EVERY.saturating_add(POOL_EVERY_PER_NODE.saturating_mul(nodes));
        take(&mut self.turns().entry(pool.to_owned()).or_default().run, every, Instant::now())
    }

    /// Takes the turn to write a pool's numbers, or says how long to wait for it.
    pub fn numbers(&self, pool: &str, every: Duration) -> Option<Duration> {
        take(&mut self.turns().entry(pool.to_owned()).or_default().numbers, every, Instant::now())
    }

    /// Whether a pool's status waits for the networks of this generation: once.
    pub fn wait_for_networks(&self, pool: &str, generation: i64) -> bool {
        self.turns().entry(pool.to_owned()).or_default().waited.replace(generation) != Some(generation)
    }

    /// Whether this was said of a pool already.
    pub fn has_said(&self, pool: &str, trouble: &str) -> bool {
        self.said().get(pool).is_some_and(|said| said == trouble)
    }

    /// Notes what was said of a pool.
    pub fn say(&self, pool: &str, trouble: String) {
        self.said().insert(pool.to_owned(), trouble);
    }

    /// Notes that nothing is wrong with a pool any more.
    pub fn unsay(&self, pool: &str) {
        self.said().remove(pool);
    }

    /// The pools that had a turn and were not forgotten.
    pub fn pools(&self) -> Vec<String> {
        self.turns().keys().cloned().collect()
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &str) {
        self.turns().remove(pool);
        self.unsay(pool);
    }

    fn said(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<String, Turns>> {
        // Each entry is whole at any time, also after a panic elsewhere.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(last: &mut Option<Instant>, every: Duration, now: Instant) -> Option<Duration> {
    let wait = last.map(|last| every.saturating_sub(now.saturating_duration_since(last)));
    match wait {
        Some(wait) if !wait.is_zero() => Some(wait),
        Some(_) | None => {
            *last = Some(now);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_of_a_pool_is_said_once() {
        let pace = Pace::default();
        assert!(!pace.has_said("dp", "a"));
        pace.say("dp", "a".to_owned());
        assert!(pace.has_said("dp", "a") && !pace.has_said("dp", "b") && !pace.has_said("other", "a"));
        pace.unsay("dp");
        assert!(!pace.has_said("dp", "a"));
    }

    #[test]
    fn the_first_turn_is_free_and_the_next_comes_after_the_pause() {
        let (mut last, start, every) = (None, Instant::now(), Duration::from_secs(30));
        assert_eq!(take(&mut last, every, start), None);
        let later = start + Duration::from_secs(10);
        assert_eq!(take(&mut last, every, later), Some(Duration::from_secs(20)));
        assert_eq!(take(&mut last, every, start + every), None);
        assert_eq!(take(&mut last, every, start + every), Some(every));
    }
}
