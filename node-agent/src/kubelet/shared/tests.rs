use super::*;
use crate::attachments::collector::tests::{pod, recorded};

#[test]
fn an_allocation_counts_until_the_kubelet_lists_it() {
    let (ledger, grace) = (Ledger::default(), Duration::from_mins(1));
    let device: DeviceId = "dataplaneMvp0".parse().unwrap();
    let asked_before = Instant::now();
    let recent = || ledger.recent(grace, Instant::now());
    ledger.note(device.clone(), Instant::now());
    ledger.confirm([&device].into_iter(), asked_before);
    assert_eq!(recent(), std::slice::from_ref(&device), "that list was about an earlier holder");
    ledger.confirm(std::iter::empty(), Instant::now() + grace);
    assert_eq!(recent(), std::slice::from_ref(&device), "not listed yet");
    ledger.confirm([&device].into_iter(), Instant::now() + grace);
    assert!(recent().is_empty());
}

/// Some device, and when it was allocated.
fn waiting() -> (BTreeSet<DeviceId>, Instant) {
    (["dataplaneMvp0".parse().unwrap()].into(), Instant::now())
}

#[test]
fn a_device_that_is_never_listed_is_held_for_as_long_as_the_checkpoint_names_it() {
    let (grace, (device, start)) = (Duration::from_mins(1), waiting());
    let ledger = Ledger::default();
    ledger.note(device.first().unwrap().clone(), start);
    let (soon, later) = (start + grace / 2, start + 60 * grace);
    assert!(!ledger.has_older(grace, soon));
    assert!(ledger.keep(grace, Some(&BTreeSet::new()), soon).is_empty());
    assert_eq!(ledger.recent(grace, soon).len(), 1, "the checkpoint is written after the allocation");
    assert!(ledger.has_older(grace, later) && ledger.recent(grace, later).is_empty());
    assert_eq!(ledger.keep(grace, Some(&device), later), device);
    assert_eq!(ledger.keep(grace, None, later), device, "a checkpoint that cannot be read shows nothing");
    assert!(ledger.keep(grace, Some(&BTreeSet::new()), later).is_empty());
    assert!(
        ledger.keep(grace, Some(&device), later).is_empty(),
        "what the checkpoint names is another allocation"
    );
    ledger.note(device.first().unwrap().clone(), start);
    ledger.confirm(device.iter(), later);
    assert!(ledger.keep(grace, Some(&device), later).is_empty(), "its list decides");
}

#[test]
fn what_an_earlier_agent_allocated_is_held_by_the_checkpoint_alone() {
    let (grace, (device, start)) = (Duration::from_mins(1), waiting());
    let ledger = Ledger::default();
    ledger.note_earlier(device.iter().cloned(), start);
    assert!(ledger.recent(grace, start).is_empty() && ledger.has_older(grace, start));
    assert_eq!(ledger.keep(grace, Some(&device), start), device);
    assert!(ledger.keep(grace, Some(&BTreeSet::new()), start).is_empty());
}

#[test]
fn a_checkpoint_is_asked_for_less_and_less_often_the_longer_a_device_waits() {
    let (devices, start) = waiting();
    let ledger = Ledger::default();
    ledger.note(devices.first().unwrap().clone(), start);
    let due = |ledger: &Ledger, devices: &BTreeSet<DeviceId>, seconds: std::ops::Range<u64>| {
        let is_due = |second: &u64| ledger.is_checkpoint_due(devices, start + Duration::from_secs(*second));
        seconds.step_by(10).filter(is_due).collect::<Vec<_>>()
    };
    assert_eq!(due(&ledger, &devices, 60..2000), [60, 120, 240, 480, 960, 1560]);
    // It is attached, and its pod ends.
    assert_eq!(due(&ledger, &BTreeSet::new(), 2000..2010), [0_u64; 0]);
    assert_eq!(due(&ledger, &devices, 2010..2030), [2010]);
}

#[test]
fn a_former_holder_is_one_until_the_kubelet_lists_it_with_the_device_again() {
    let (ledger, device): (_, DeviceId) = (Ledger::default(), "dataplaneMvp0".parse().unwrap());
    let holder = recorded("dataplaneMvp0").holder;
    let asked_before = Instant::now();
    ledger.note_former(&device, Some(holder.clone()));
    let later = Instant::now() + Duration::from_secs(1);
    for (name, asked) in [("vm", asked_before), ("next", later)] {
        ledger.absolve([(&device, &pod(name))].into_iter(), asked);
        assert_eq!(ledger.former(&device), Some(holder.clone()), "{name}");
    }
    ledger.absolve([(&device, &pod("vm"))].into_iter(), later);
    assert_eq!(ledger.former(&device), None);
}
