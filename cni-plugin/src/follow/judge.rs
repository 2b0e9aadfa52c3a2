//! Pure: when a link has its guest's address. Nothing here has a clock or a socket.

use std::time::{Duration, Instant};

/// How long a link is without its address when nothing else happens. In a migration its pod has ended by then; a pod that
/// still runs was robbed of its address by somebody who only said that he has it.
const RETURN: Duration = Duration::from_secs(30);

/// How long announcements are not believed after the first that proved wrong. Each further one doubles it.
const DOUBT: Duration = Duration::from_mins(1);

/// At most.
const DOUBT_MAX: Duration = Duration::from_hours(1);

/// How long a link that was refused its guest's address waits before it asks for it again. Each further refusal doubles it.
const RETRY: Duration = Duration::from_secs(1);

/// At most.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The guest behind this link sent a frame.
    Guest,
    /// A station elsewhere announced the guest's address.
    Elsewhere,
    /// Time passed.
    Nothing,
}

/// What must be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Give the link the guest's address.
    Take,
    /// Take it from the link.
    Leave,
}

/// Where the guest is taken to be.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    state: State,
    /// Announcements that proved wrong.
    mistakes: u32,
    /// Announcements are not believed before.
    doubts: Option<Instant>,
    /// Refusals of the address since the link last had it.
    refusals: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not seen yet: the pod is a migration's target, or has just started.
    Awaited,
    /// Behind this link.
    Here,
    /// Behind this link, which cannot have the address before somebody else on its lower link gives it up.
    Refused { until: Instant },
    /// It was here, and an announcement was believed.
    Left { since: Instant },
}

impl Judge {
    /// A link that has the address, or not yet.
    pub(super) fn new(has_address: bool) -> Self {
        let state = if has_address { State::Here } else { State::Awaited };
        Self { state, mistakes: 0, doubts: None, refusals: 0 }
    }

    /// Whether the guest is behind this link.
    pub(super) fn is_here(&self) -> bool {
        matches!(self.state, State::Here | State::Refused { .. })
    }

    /// When to ask again though nothing was seen.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Left { since } => Some(since + RETURN),
            State::Refused { until } => Some(until),
            State::Awaited | State::Here => None,
        }
    }

    /// Judges what was seen.
    pub(super) fn judge(&mut self, seen: Seen, now: Instant) -> Option<Act> {
        match (self.state, seen) {
            (State::Awaited, Seen::Guest) => {
                self.state = State::Here;
                Some(Act::Take)
            }
            (State::Here, Seen::Elsewhere) if self.doubts.is_none_or(|until| now >= until) => {
                self.state = State::Left { since: now };
                Some(Act::Leave)
            }
            (State::Refused { .. }, Seen::Elsewhere) => {
                // The announcement may be forged.
                self.state = State::Left { since: now };
                None
            }
            (State::Refused { until }, _) if now >= until => {
                self.state = State::Here;
                Some(Act::Take)
            }
            (State::Left { .. }, Seen::Guest) => Some(self.come_back(now)),
            (State::Left { since }, Seen::Nothing | Seen::Elsewhere) if now >= since + RETURN => {
                Some(self.come_back(now))
            }
            _ => None,
        }
    }

    /// Takes note that what was to be done is done.
    pub(super) fn succeeded(&mut self) {
        self.refusals = 0;
    }

    /// Takes note that the kernel refused it. Returns how long it is not tried again.
    pub(super) fn failed(&mut self, act: Act, now: Instant) -> Duration {
        let delay = RETRY.saturating_mul(1 << self.refusals.min(8)).min(RETRY_MAX);
        self.refusals += 1;
        match act {
            Act::Take => self.state = State::Refused { until: now + delay },
            Act::Leave => {
                self.state = State::Here;
                // A machine that arrives elsewhere announces itself several times within a second.
                self.doubts = Some(now + delay / 10);
                return delay / 10;
            }
        }
        delay
    }

    fn come_back(&mut self, now: Instant) -> Act {
        let doubt = DOUBT.saturating_mul(1 << self.mistakes.min(8)).min(DOUBT_MAX);
        self.mistakes += 1;
        self.doubts = Some(now + doubt);
        self.state = State::Here;
        Act::Take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn the_target_of_a_migration_waits_for_its_guest_however_long_that_takes() {
        let start = Instant::now();
        let mut judge = Judge::new(false);
        assert_eq!(judge.judge(Seen::Elsewhere, start), None);
        assert_eq!(judge.judge(Seen::Nothing, start + seconds(9_000)), None);
        assert_eq!(judge.deadline(), None);
        assert_eq!(judge.judge(Seen::Guest, start + seconds(9_000)), Some(Act::Take));
        assert_eq!(judge.judge(Seen::Guest, start + seconds(9_001)), None);
    }

    #[test]
    fn the_source_leaves_once() {
        let start = Instant::now();
        let mut judge = Judge::new(true);
        assert!(judge.is_here());
        assert_eq!(judge.judge(Seen::Elsewhere, start), Some(Act::Leave));
        assert_eq!(judge.deadline(), Some(start + RETURN));
        // Hypervisors announce several times.
        assert_eq!(judge.judge(Seen::Elsewhere, start + seconds(1)), None);
        assert!(!judge.is_here());
    }

    #[test]
    fn who_is_robbed_comes_back_and_believes_less_each_time() {
        let mut now = Instant::now();
        let mut judge = Judge::new(true);
        let mut without = Duration::ZERO;
        let mut believed = 0;
        // Somebody announces the address once a second for a day; the guest is one that waits to be spoken to.
        for _ in 0..86_400 {
            now += seconds(1);
            match judge.judge(Seen::Elsewhere, now) {
                Some(Act::Leave) => believed += 1,
                Some(Act::Take) => without += RETURN,
                None => {}
            }
        }
        assert!(believed <= 31, "{believed}");
        assert!(without <= seconds(31 * 30), "{without:?}");
    }

    #[test]
    fn an_address_that_somebody_else_has_is_claimed_ever_more_rarely_until_it_is_free() {
        let mut now = Instant::now();
        let mut judge = Judge::new(false);
        let mut claims = 0;
        // The guest sends ten times a second for an hour.
        for _ in 0..36_000 {
            now += Duration::from_millis(100);
            if judge.judge(Seen::Guest, now) == Some(Act::Take) {
                claims += 1;
                judge.failed(Act::Take, now);
            }
        }
        assert!((100..=125).contains(&claims), "{claims}");
        assert_eq!(judge.judge(Seen::Nothing, judge.deadline().unwrap()), Some(Act::Take));
        judge.succeeded();
        assert_eq!(judge.deadline(), None);
        assert_eq!(judge.failed(Act::Leave, now), RETRY / 10, "counted from the beginning");
        assert_eq!(judge.judge(Seen::Elsewhere, now), None);
        assert_eq!(judge.judge(Seen::Elsewhere, now + RETRY / 10), Some(Act::Leave));
    }

    #[test]
    fn a_guest_that_is_announced_elsewhere_while_its_link_is_refused_the_address_may_come_back() {
        let start = Instant::now();
        let mut judge = Judge::new(false);
        judge.judge(Seen::Guest, start);
        judge.failed(Act::Take, start);
        assert_eq!(judge.judge(Seen::Elsewhere, start), None);
        assert!(!judge.is_here());
        assert_eq!(judge.judge(Seen::Nothing, start + seconds(29)), None);
        assert_eq!(judge.clone().judge(Seen::Guest, start + seconds(1)), Some(Act::Take));
        assert_eq!(judge.judge(Seen::Nothing, start + RETURN), Some(Act::Take), "the announcement was a lie");
    }

    #[test]
    fn the_guests_next_frame_brings_it_back_at_once() {
        let start = Instant::now();
        let mut judge = Judge::new(true);
        judge.judge(Seen::Elsewhere, start);
        assert_eq!(judge.judge(Seen::Guest, start + seconds(1)), Some(Act::Take));
        assert_eq!(judge.judge(Seen::Elsewhere, start + seconds(2)), None, "in doubt");
        assert_eq!(judge.judge(Seen::Elsewhere, start + seconds(61)), Some(Act::Leave));
    }
}
