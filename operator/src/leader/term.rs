//! Until when this process may write.

use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Until when this process leads. Every write asks, so that one which wakes up late does not act on an old promise.
#[derive(Debug, Default)]
pub struct Term {
    until: Mutex<Option<Instant>>,
}

impl Term {
    /// Whether this process may write now.
    pub fn holds(&self) -> bool {
        self.holds_at(Instant::now())
    }

    fn holds_at(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Until when it may.
    pub fn until(&self) -> Option<Instant> {
        *self.lock()
    }

    /// Prolongs it.
    pub fn hold(&self, until: Instant) {
        *self.lock() = Some(until);
    }

    /// Ends it.
    pub fn end(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_term_ends_by_itself() {
        let (term, now) = (Term::default(), Instant::now());
        assert!(!term.holds_at(now));
        term.hold(now + Duration::from_secs(7));
        assert!(term.holds() && !term.holds_at(now + Duration::from_secs(7)));
        term.end();
        assert!(!term.holds());
    }
}
