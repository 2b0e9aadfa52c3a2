//! Whether the devices of a link work: its carrier, debounced.
//!
//! A link that has carrier when it is first seen, or for the first time, is healthy at once; the delays are against
//! links that come and go.

use crate::links::link::Link;
use macvtap_crds::v1alpha1::settings::{self, Carrier};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// When a link counts as healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether carrier matters.
    pub carrier: Carrier,
    /// How long a link must be down to count as unhealthy.
    pub down_delay: Duration,
    /// How long it must be up again to count as healthy.
    pub up_delay: Duration,
}

/// What one link looks like at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Whether it is switched on.
    pub admin_up: bool,
    /// Whether it is on and has a partner.
    pub carrier: bool,
}

/// Remembers how each link of each policy did.
#[derive(Debug)]
pub struct Tracker<K> {
    states: BTreeMap<K, LinkHealth>,
}

#[derive(Clone, Copy, Debug)]
struct LinkHealth {
    healthy: bool,
    was_healthy: bool,
    /// Since when the link has looked other than `healthy` says.
    differs_since: Option<Instant>,
    last_seen: Instant,
}

impl Sight {
    /// Of a link under macvtaps.
    pub fn of(link: &Link) -> Self {
        Self { admin_up: link.admin_up, carrier: link.carrier }
    }

    /// Of a NIC that pods get as a whole. The pod's network switches it on; before, nobody knows of its carrier.
    pub fn of_nic(link: &Link) -> Self {
        Self { admin_up: true, carrier: link.carrier || !link.admin_up }
    }
}

impl From<&settings::Health> for Policy {
    fn from(health: &settings::Health) -> Self {
        Self {
            carrier: health.carrier,
            down_delay: Duration::from_secs(health.down_delay_seconds.into()),
            up_delay: Duration::from_secs(health.up_delay_seconds.into()),
        }
    }
}

impl<K> Default for Tracker<K> {
    fn default() -> Self {
        Self { states: BTreeMap::new() }
    }
}

impl Default for Policy {
    /// What a pool has that says nothing.
    fn default() -> Self {
        Self::from(&settings::Health::default())
    }
}

impl Policy {
    fn is_up(self, sight: Sight) -> bool {
        sight.admin_up && (sight.carrier || self.carrier == Carrier::Ignored)
    }
}

impl<K: Ord> Tracker<K> {
    /// Whether the link is healthy now, and when that may change by itself.
    pub fn observe(&mut self, key: K, policy: Policy, sight: Sight, now: Instant) -> (bool, Option<Instant>) {
        let up = policy.is_up(sight);
        let first = LinkHealth { healthy: up, was_healthy: up, differs_since: None, last_seen: now };
        let state = self.states.entry(key).or_insert(first);
        state.last_seen = now;
        if up == state.healthy {
            state.differs_since = None;
            return (state.healthy, None);
        }
        let delay = match (up, state.was_healthy) {
            (true, false) => Duration::ZERO,
            (true, true) => policy.up_delay,
            (false, _) => policy.down_delay,
        };
        let due = *state.differs_since.get_or_insert(now) + delay;
        if now < due {
            return (state.healthy, Some(due));
        }
        state.healthy = up;
        state.was_healthy |= up;
        state.differs_since = None;
        (state.healthy, None)
    }

    /// Forgets every link that was not observed at this moment.
    pub fn forget_unseen(&mut self, now: Instant) {
        self.states.retain(|_, state| state.last_seen == now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: Sight = Sight { admin_up: true, carrier: true };
    const NO_CARRIER: Sight = Sight { admin_up: true, carrier: false };
    const ADMIN_DOWN: Sight = Sight { admin_up: false, carrier: false };

    fn policy(carrier: Carrier) -> Policy {
        Policy { carrier, down_delay: Duration::from_secs(3), up_delay: Duration::from_secs(5) }
    }

    #[test]
    fn a_link_with_carrier_at_start_is_healthy_at_once_and_so_is_one_that_gets_it_for_the_first_time() {
        let (mut tracker, now) = (Tracker::default(), Instant::now());
        assert_eq!(tracker.observe("a", policy(Carrier::Required), UP, now), (true, None));
        assert_eq!(tracker.observe("b", policy(Carrier::Required), NO_CARRIER, now), (false, None));
        assert_eq!(tracker.observe("b", policy(Carrier::Required), UP, now), (true, None));
    }

    #[test]
    fn a_loss_counts_after_the_delay_and_a_return_after_the_other_one() {
        let (mut tracker, start) = (Tracker::default(), Instant::now());
        let policy = policy(Carrier::Required);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut see = |sight, seconds| tracker.observe((), policy, sight, at(seconds));
        assert_eq!(see(UP, 0), (true, None));
        assert_eq!(see(NO_CARRIER, 10), (true, Some(at(13))));
        assert_eq!(see(NO_CARRIER, 12), (true, Some(at(13))));
        assert_eq!(see(NO_CARRIER, 13), (false, None));
        assert_eq!(see(UP, 20), (false, Some(at(25))));
        assert_eq!(see(UP, 25), (true, None));
    }

    #[test]
    fn flapping_faster_than_the_delay_never_changes_anything() {
        let (mut tracker, start) = (Tracker::default(), Instant::now());
        for tenth in 0..200 {
            let sight = if tenth % 2 == 0 { UP } else { NO_CARRIER };
            let (healthy, _) = tracker.observe(
                (),
                policy(Carrier::Required),
                sight,
                start + Duration::from_millis(100 * tenth),
            );
            assert!(healthy);
        }
    }

    #[test]
    fn ignoring_carrier_does_not_ignore_that_the_link_is_switched_off() {
        let (mut tracker, now) = (Tracker::default(), Instant::now());
        assert_eq!(tracker.observe("a", policy(Carrier::Ignored), NO_CARRIER, now), (true, None));
        assert_eq!(tracker.observe("b", policy(Carrier::Ignored), ADMIN_DOWN, now), (false, None));
    }

    #[test]
    fn a_link_that_went_away_and_comes_back_is_new() {
        let (mut tracker, start) = (Tracker::default(), Instant::now());
        let later = start + Duration::from_secs(1);
        tracker.observe((), policy(Carrier::Required), UP, start);
        tracker.forget_unseen(later);
        assert_eq!(tracker.observe((), policy(Carrier::Required), NO_CARRIER, later), (false, None));
    }
}
