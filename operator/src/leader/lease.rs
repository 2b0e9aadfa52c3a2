//! Pure: what a candidate does about a lease.

use super::LEASE;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use std::time::Duration;
use tokio::time::Instant;

/// A lease, and since when it has been as it is.
#[derive(Clone, Debug)]
pub struct SeenLease {
    lease: Lease,
    since: Instant,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Somebody else has it, for at least so long.
    Wait(Duration),
    /// There is none: make this one.
    Create(Lease),
    /// It is free, run out, or ours: write this.
    Replace(Lease),
}

impl SeenLease {
    /// A lease that is seen for the first time.
    pub fn new(lease: Lease, now: Instant) -> Self {
        Self { lease, since: now }
    }

    /// The lease as it is now; one that did not change is as old as before.
    #[must_use]
    pub fn seen(self, lease: Lease, now: Instant) -> Self {
        let unchanged = self.lease.spec == lease.spec;
        Self { lease, since: if unchanged { self.since } else { now } }
    }

    /// Who has it; empty when nobody does.
    pub fn holder(&self) -> &str {
        self.spec().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
    }

    /// The lease without its holder, if that is `identity`.
    pub fn released(&self, identity: &str) -> Option<Lease> {
        if self.holder() != identity {
            return None;
        }
        let mut lease = self.lease.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        Some(lease)
    }

    fn spec(&self) -> Option<&LeaseSpec> {
        self.lease.spec.as_ref()
    }

    /// How long the holder may still rely on it.
    fn left(&self, now: Instant) -> Duration {
        let seconds = self.spec().and_then(|spec| spec.lease_duration_seconds);
        let lasts = seconds.and_then(|s| u64::try_from(s).ok()).map_or(LEASE, Duration::from_secs);
        lasts.saturating_sub(now.saturating_duration_since(self.since))
    }
}

/// What the candidate `identity` does about what it observed. `wall` is for people only.
pub fn step(observed: Option<&SeenLease>, identity: &str, now: Instant, wall: Timestamp) -> Step {
    let Some(observed) = observed else {
        return Step::Create(Lease { spec: Some(spec(None, identity, wall)), ..Lease::default() });
    };
    let held_by_another = !observed.holder().is_empty() && observed.holder() != identity;
    let left = observed.left(now);
    if held_by_another && !left.is_zero() {
        return Step::Wait(left);
    }
    let mut lease = observed.lease.clone();
    lease.spec = Some(spec(lease.spec.as_ref(), identity, wall));
    Step::Replace(lease)
}

fn spec(before: Option<&LeaseSpec>, identity: &str, wall: Timestamp) -> LeaseSpec {
    let mine = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(identity));
    let mut spec = before.cloned().unwrap_or_default();
    if !mine {
        spec.acquire_time = Some(MicroTime(wall));
        let transitions = spec.lease_transitions.map_or(0, |count| count.saturating_add(1));
        spec.lease_transitions = Some(transitions);
    }
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_duration_seconds = i32::try_from(LEASE.as_secs()).ok();
    spec.renew_time = Some(MicroTime(wall));
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    fn held(identity: &str, now: Instant) -> SeenLease {
        match step(None, identity, now, WALL) {
            Step::Create(lease) => SeenLease::new(lease, now),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lease_of_another_is_respected_until_it_was_seen_unchanged_for_its_whole_time() {
        let start = Instant::now();
        let observed = held("a", start);
        let later = start + Duration::from_secs(4);
        assert_eq!(step(Some(&observed), "b", later, WALL), Step::Wait(Duration::from_secs(11)));
        let Step::Replace(taken) = step(Some(&observed), "b", start + LEASE, WALL) else {
            panic!("not taken")
        };
        let spec = taken.spec.unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(1)));
    }

    #[test]
    fn a_renewal_prolongs_it_whatever_the_holders_clock_says() {
        let start = Instant::now();
        let observed = held("a", start);
        let mut renewed = observed.lease.clone();
        renewed.spec.as_mut().unwrap().renew_time =
            Some(MicroTime(Timestamp::from_second(-9_000_000).unwrap()));
        let seen = observed.seen(renewed.clone(), start + Duration::from_secs(9));
        assert_eq!(step(Some(&seen), "b", start + LEASE, WALL), Step::Wait(Duration::from_secs(9)));
        let same = seen.seen(renewed, start + Duration::from_secs(12));
        assert!(matches!(step(Some(&same), "b", start + Duration::from_secs(24), WALL), Step::Replace(_)));
    }

    #[test]
    fn the_holder_renews_and_keeps_the_time_of_its_start() {
        let start = Instant::now();
        let observed = held("a", start);
        let later = Timestamp::from_second(60).unwrap();
        let Step::Replace(renewed) = step(Some(&observed), "a", start, later) else { panic!("not renewed") };
        let spec = renewed.spec.unwrap();
        assert_eq!((spec.acquire_time, spec.renew_time), (Some(MicroTime(WALL)), Some(MicroTime(later))));
        assert_eq!(spec.lease_transitions, Some(0));
    }

    #[test]
    fn a_released_lease_is_taken_at_once_and_only_the_holder_releases_it() {
        let start = Instant::now();
        let observed = held("a", start);
        assert_eq!(observed.released("b"), None);
        let free = SeenLease::new(observed.released("a").unwrap(), start);
        assert!(matches!(step(Some(&free), "b", start, WALL), Step::Replace(_)));
    }
}
