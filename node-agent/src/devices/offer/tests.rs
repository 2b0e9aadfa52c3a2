use super::*;
use crate::devices::assignment;
use macvtap::table::SlotRange;

fn run(first_slot: u32, count: u32, lower: u32) -> OfferedRun {
    OfferedRun {
        run: Run {
            devices: RunDevices::Macvtaps(SlotRange { first_slot, count, first_ifindex: 1000 + first_slot }),
            lower,
            advertised: true,
        },
        link: format!("eth{lower}"),
        identity: assignment::nowhere(),
        state: LinkState::Healthy,
        numa_node: None,
    }
}

fn offer(allocation: Allocation, runs: Vec<OfferedRun>) -> Offer {
    Offer {
        resource: "a".parse().unwrap(),
        full_name: "example.com/a".into(),
        tap_only: TapOnly::Forbidden,
        device_type: DeviceType::Macvtap,
        allocation,
        runs,
    }
}

fn granted(slot: u32, ifindex: u32) -> Granted {
    let device = DeviceId::new("a".parse().unwrap(), slot);
    Granted::Macvtap { device, ifindex, lower: assignment::nowhere() }
}

fn ids(slots: impl IntoIterator<Item = u32>) -> Vec<String> {
    slots.into_iter().map(|slot| format!("aMvp{slot}")).collect()
}

#[test]
fn unknown_foreign_and_repeated_devices_are_refused_with_the_reason_and_nothing_is_granted() {
    let mut gone = run(4, 1, 3);
    gone.state = LinkState::Unhealthy(LinkReason::LinkGone);
    let offer = offer(Allocation::Spread, vec![run(0, 4, 2), gone]);
    assert_eq!(offer.grant(&ids([1, 3])).unwrap()[1], granted(3, 1003));
    for (ids, text) in [
        (vec!["aMvp0", "aMvp9"], "device aMvp9 is not offered by resource example.com/a"),
        (vec!["bMvp0"], "device bMvp0 is not of resource example.com/a"),
        (vec!["nonsense"], "\"nonsense\" is not of the form"),
        (vec![""], "is not of the form"),
        (vec!["aMvp0", "aMvp0"], "device aMvp0 is asked for twice"),
        (vec!["aMvp4"], "link eth3 of device aMvp4 does not exist"),
    ] {
        let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
        let error = offer.grant(&ids).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_withdrawn_or_unhealthy_device_is_still_honoured_but_not_listed_as_healthy() {
    let mut withdrawn = run(4, 1, 2);
    withdrawn.run.advertised = false;
    let mut down = run(5, 1, 3);
    down.state = LinkState::Unhealthy(LinkReason::NoCarrier);
    let offer = offer(Allocation::Spread, vec![run(0, 2, 2), withdrawn, down]);
    assert!(offer.grant(&ids([4, 5])).is_ok());
    assert_eq!(offer.counts(), Counts { capacity: 3, allocatable: 2 });
    let listed: Vec<(String, String)> = offer.devices().into_iter().map(|d| (d.id, d.health)).collect();
    let expected = [("aMvp0", HEALTHY), ("aMvp1", HEALTHY), ("aMvp5", UNHEALTHY)];
    assert_eq!(listed, expected.map(|(id, health)| (id.to_owned(), health.to_owned())));
}

#[test]
fn spread_takes_from_the_link_with_the_fewest_in_use_and_pack_from_the_one_with_the_most() {
    let runs = || vec![run(0, 4, 2), run(4, 4, 3)];
    // One device of the first link is in use.
    let available = ids([1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(offer(Allocation::Spread, runs()).prefer(&available, &[], 3), ids([4, 1, 5]));
    assert_eq!(offer(Allocation::Pack, runs()).prefer(&available, &[], 4), ids([1, 2, 3, 4]));
}

#[test]
fn devices_of_one_link_are_preferred_by_number_in_whatever_order_the_kubelet_names_them() {
    let offer = offer(Allocation::Spread, vec![run(8, 2, 2), run(0, 2, 2)]);
    assert_eq!(offer.prefer(&ids([9, 1, 8, 0]), &[], 3), ids([0, 1, 8]));
}

#[test]
fn preferences_keep_what_must_be_and_end_with_what_there_is() {
    let offer = offer(Allocation::Spread, vec![run(0, 4, 2)]);
    assert_eq!(offer.prefer(&ids([1, 2]), &ids([2]), 3), ids([2, 1]));
    assert_eq!(offer.prefer(&["junk"], &[], 1), [""; 0]);
}

#[test]
fn whole_nics_are_listed_preferred_and_granted_by_their_pci_address_and_by_nothing_else() {
    let nic = |slot: u32, address: &str| OfferedRun {
        run: Run {
            devices: RunDevices::Nic { address: address.parse().unwrap(), number: slot },
            lower: slot,
            advertised: true,
        },
        numa_node: Some(slot),
        ..run(slot, 1, slot)
    };
    let (a, b) = ("0000:00:0a.0", "0000:00:0b.0");
    let mut offer = offer(Allocation::Spread, vec![nic(0, a), nic(1, b)]);
    offer.device_type = DeviceType::HostDevice;
    let listed = offer.devices();
    let nodes: Vec<_> = listed
        .iter()
        .map(|device| (device.id.as_str(), device.topology.as_ref().unwrap().nodes[0].id))
        .collect();
    assert_eq!(nodes, [(a, 0), (b, 1)]);
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(offer.prefer(&texts(&[b, a]), &[], 1), [a]);
    assert_eq!(offer.prefer(&texts(&[b, a, "0000:00:0c.0", "aMvp0"]), &texts(&[b]), 3), [b, a]);
    let granted = offer.grant(&texts(&[b])).unwrap();
    assert_eq!(granted, [Granted::Nic { device: "aMvp1".parse().unwrap(), address: b.parse().unwrap() }]);
    for (ids, text) in [
        (&["0000:00:0c.0"][..], "device 0000:00:0c.0 is not offered by resource example.com/a"),
        (&["aMvp0"], "\"aMvp0\" is not a PCI address"),
        (&["0000:00:0A.0"], "is not a PCI address"),
        (&[""], "is not a PCI address"),
        (&["../0000:00:0a.0"], "is not a PCI address"),
        (&[a, a], "device 0000:00:0a.0 is asked for twice"),
        (&[a, "0000:00:0c.0"], "0000:00:0c.0 is not offered"),
    ] {
        let error = offer.grant(&texts(ids)).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn the_longest_list_is_one_that_a_kubelet_takes() {
    for name in ["a".to_owned(), "a".repeat(63)] {
        let resource: ResourceName = name.parse().unwrap();
        let mut all =
            run(macvtap::device_id::SLOT_MAX + 1 - devices_max(&resource), devices_max(&resource), 2);
        (all.state, all.numa_node) = (LinkState::Unhealthy(LinkReason::NoCarrier), Some(1023));
        let offer = Offer { resource, ..offer(Allocation::Spread, vec![all]) };
        let list = kubelet::ListAndWatchResponse { devices: offer.devices() };
        let length = prost::Message::encoded_len(&list);
        assert!(length <= MESSAGE_MAX && length > MESSAGE_MAX / 2, "{length} bytes");
    }
}

#[test]
fn before_the_table_is_stored_only_what_it_had_is_offered() {
    let before = offer(Allocation::Spread, vec![run(0, 2, 2)]);
    let moved = run(0, 2, 9);
    let after = offer(Allocation::Spread, vec![run(0, 2, 2), run(2, 2, 2)]);
    assert_eq!(after.common_with(Some(&before)).runs, before.runs);
    assert_eq!(offer(Allocation::Spread, vec![moved]).common_with(Some(&before)).runs, []);
    assert_eq!(after.common_with(None).runs, []);
}

#[test]
fn a_run_waits_until_the_table_has_each_of_its_devices_on_its_link() {
    let common = |before: Vec<OfferedRun>| {
        let after = offer(Allocation::Spread, vec![run(0, 4, 2)]);
        after.common_with(Some(&offer(Allocation::Spread, before))).runs.len()
    };
    assert_eq!(common(vec![run(2, 2, 2), run(0, 2, 2)]), 1, "in parts");
    assert_eq!(common(vec![run(0, 9, 2)]), 1, "as part of a longer one");
    // A rebuilt table that had the second device under another index of the same link.
    assert_eq!(common(vec![run(0, 1, 2), run(1, 1, 9), run(2, 2, 2)]), 0);
    assert_eq!(common(vec![run(0, 1, 2), run(3, 1, 2)]), 0);
    let mut another = run(0, 4, 2);
    another.run.devices = RunDevices::Macvtaps(SlotRange { first_slot: 0, count: 4, first_ifindex: 7 });
    assert_eq!(common(vec![another]), 0, "other indexes");
}

#[test]
fn a_longer_run_or_another_nic_waits_until_the_table_is_stored() {
    let common = |after: OfferedRun, before: OfferedRun| {
        let [after, before] = [after, before].map(|run| offer(Allocation::Spread, vec![run]));
        after.common_with(Some(&before)).runs.len()
    };
    assert_eq!((common(run(0, 4, 2), run(0, 4, 2)), common(run(0, 5, 2), run(0, 4, 2))), (1, 0));
    let nic = |number, lower| {
        let devices = RunDevices::Nic { address: "0000:00:0a.0".parse().unwrap(), number };
        let run = Run { devices, lower, advertised: true };
        OfferedRun { run, ..super::tests::run(0, 1, lower) }
    };
    assert_eq!(nic(3, 7).run.address(), "0000:00:0a.0".parse().ok());
    assert_eq!(run(0, 1, 7).run.address(), None);
    assert_eq!((common(nic(3, 9), nic(3, 7)), common(nic(4, 7), nic(3, 7))), (1, 0));
}
