use super::*;
use macvtap_crds::v1alpha1::nodestate::NodeLink;

fn status(hash: &str) -> MacvtapNodeStateStatus {
    MacvtapNodeStateStatus { observed_hash: Some(hash.into()), ..MacvtapNodeStateStatus::default() }
}

/// An object of a watch that began before anything was written.
fn stored(uid: &str, version: u64, status: Option<MacvtapNodeStateStatus>) -> Stored {
    let since = Instant::now() - Duration::from_secs(1);
    Stored { uid: Some(uid.into()), version: Some(version), is_readable: true, status, since }
}

/// A writer whose status is stored in the object `a` at version 5.
fn written() -> Progress {
    let mut progress = Progress { tried_at: Some(Instant::now()), ..Progress::default() };
    let stored = Stored { since: Instant::now(), ..stored("a", 5, Some(status("h1"))) };
    progress.succeeded(&status("h1"), stored);
    progress
}

fn is_due(progress: &mut Progress, seen: &Stored) -> bool {
    progress.next(Some(&status("h1")), Some(seen), Instant::now()).is_some()
}

#[test]
fn a_status_that_is_stored_is_not_written_again() {
    let mut progress = written();
    assert!(!is_due(&mut progress, &stored("a", 5, Some(status("h1")))));
    assert!(!is_due(&mut progress, &stored("a", 9, Some(status("h1")))), "the spec changed");
    assert!(!is_due(&mut progress, &stored("a", 4, None)), "the watch is behind");
    let of_another_release = Stored { is_readable: false, ..stored("a", 9, None) };
    assert!(!is_due(&mut progress, &of_another_release));
    assert!(
        progress.next(Some(&status("h2")), None, Instant::now()).is_none(),
        "there is no object to write to"
    );
}

#[test]
fn a_status_that_is_no_longer_stored_is_written_again() {
    for seen in [
        stored("b", 6, None),
        stored("b", 2, Some(status("h1"))),
        stored("a", 6, None),
        stored("a", 6, Some(status("h0"))),
    ] {
        assert!(is_due(&mut written(), &seen), "{seen:?}");
    }
}

#[test]
fn a_status_from_before_a_restore_of_etcd_is_replaced_although_its_version_is_lower() {
    let mut progress = written();
    let listed_later = |status| Stored { since: Instant::now(), ..stored("a", 3, Some(status)) };
    assert!(!is_due(&mut progress, &listed_later(status("h1"))));
    assert!(is_due(&mut progress, &listed_later(status("h0"))));
}

#[test]
fn an_api_server_that_stores_less_is_not_written_to_for_ever() {
    let mut progress = Progress::default();
    progress.succeeded(&status("h1"), stored("a", 5, Some(MacvtapNodeStateStatus::default())));
    assert!(!is_due(&mut progress, &stored("a", 6, Some(MacvtapNodeStateStatus::default()))));
}

#[test]
fn changes_do_not_shorten_the_wait_after_a_failure() {
    let mut progress = Progress::default();
    let seen = stored("a", 1, None);
    let (mut tries, mut now) = (0, Instant::now());
    // An API server that is away for two minutes, and a link that changes ten times a second.
    for change in 0..1200 {
        let wanted = status(&format!("h{change}"));
        if progress.next(Some(&wanted), Some(&seen), now).unwrap().at <= now {
            progress.tried_at = Some(now);
            progress.failed("connection refused", now);
            tries += 1;
        }
        now += Duration::from_millis(100);
    }
    assert!((4..=15).contains(&tries), "{tries}");
    let listed = Stored { since: now, ..seen };
    assert!(progress.next(Some(&status("h")), Some(&listed), now).unwrap().at <= now, "it is back");
}

#[test]
fn numbers_in_use_carrier_and_speed_alone_can_wait() {
    let link = NodeLink { name: "dp0".into(), carrier: true, ..NodeLink::default() };
    let mut one = MacvtapNodeStateStatus { links: vec![link], ..MacvtapNodeStateStatus::default() };
    one.totals.allocated = 3;
    let mut other = one.clone();
    other.totals.allocated = 4;
    (other.links[0].carrier, other.links[0].speed_mbps) = (false, Some(10_000));
    assert!(differ_in_details_only(&one, &other));
    let mut unhealthy = other.clone();
    unhealthy.links[0].reason = Some("NoCarrier".into());
    assert!(!differ_in_details_only(&one, &unhealthy));
    other.totals.dead = 1;
    assert!(!differ_in_details_only(&one, &other));
}
