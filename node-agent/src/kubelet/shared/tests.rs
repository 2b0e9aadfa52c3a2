use super::*;
use crate::attachments::collector::tests::{pod, recorded};

#[test]
fn an_allocation_counts_until_the_kubelet_lists_it() {
    let (ledger, grace) = (Ledger::default(), Duration::from_mins(1));
    let device: DeviceId = "dataplaneMvp0".parse().unwrap();
    let asked_before = Instant::now();
    ledger.note(device.clone());
    ledger.confirm([&device].into_iter(), asked_before);
    assert_eq!(ledger.recent(grace), std::slice::from_ref(&device), "that list was about an earlier holder");
    ledger.confirm(std::iter::empty(), Instant::now() + grace);
    assert_eq!(ledger.recent(grace), std::slice::from_ref(&device), "not listed yet");
    ledger.confirm([&device].into_iter(), Instant::now() + grace);
    assert!(ledger.recent(grace).is_empty());
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
