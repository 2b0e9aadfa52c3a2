use super::*;
use crate::devices::nics;
use crate::links::inventory::tests::nic;

struct World {
    link: bool,
    sandbox: bool,
}

impl Liveness for World {
    fn link_exists(&self, _: &Attachment) -> bool {
        self.link
    }
    fn sandbox_exists(&self, _: &Attachment) -> bool {
        self.sandbox
    }
}

const ALIVE: World = World { link: true, sandbox: true };
const LINK_LOST: World = World { link: false, sandbox: true };
const GONE: World = World { link: false, sandbox: false };

/// A pod of namespace `default`.
pub(crate) fn pod(name: &str) -> PodName {
    PodName { namespace: "default".into(), name: name.into() }
}

/// The record of a macvtap that pod `default/vm` has.
pub(crate) fn recorded(device: &str) -> Attachment {
    Attachment {
        version: macvtap::record::VERSION,
        device: device.parse().unwrap(),
        holder: Holder::Pod {
            container_id: "c".into(),
            ifname: "net1".into(),
            pod_uid: "u".into(),
            pod_namespace: "default".into(),
            pod_name: "vm".into(),
            netns: "/run/netns/x".into(),
            netns_inode: 1,
        },
        state: State::Attached,
        ifindex: 0x0100_0000,
        lower_ifindex: 3,
        mac: None,
        tap: None,
        netns_id: None,
        network: None,
        nic: None,
    }
}

fn record(state: State) -> Attachment {
    Attachment { state, ..recorded("aMvp0") }
}

/// The plans of two looks, ten seconds apart, at the same things.
fn twice(
    record: &Attachment,
    listing: Option<&Listing>,
    own: Option<&PodName>,
    up: u64,
    world: &World,
) -> [Plan; 2] {
    let start = Instant::now();
    let mut collector = Collector::default();
    [0, 10].map(|seconds| {
        let seen = Observation {
            records: std::slice::from_ref(record),
            damaged: &[],
            listing,
            allocated: &BTreeSet::new(),
            own_pod: own,
            kubelet_since: start,
            now: start + Duration::from_secs(up + seconds),
        };
        collector.plan(&seen, world)
    })
}

fn listing(devices: &[(&str, &str)], pods: &[&str]) -> Listing {
    Listing {
        devices: devices.iter().map(|(id, name)| (id.parse().unwrap(), pod(name))).collect(),
        pods: pods.iter().map(|name| pod(name)).collect(),
    }
}

#[test]
fn a_record_whose_maker_was_killed_is_undone_at_once_whatever_the_kubelet_says() {
    let record = record(State::Creating);
    let [first, _] = twice(&record, None, None, 0, &ALIVE);
    assert_eq!(first.leftovers, [record]);
}

#[test]
fn a_link_that_vanished_under_a_listed_pod_is_a_dead_device_and_nothing_is_removed() {
    let record = record(State::Attached);
    let listing = listing(&[("aMvp0", "vm")], &["vm", "agent"]);
    let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &LINK_LOST);
    assert_eq!(first.dead, [(record, pod("vm"))]);
    assert_eq!((first.leftovers, second.leftovers), (vec![], vec![]));
}

#[test]
fn a_record_without_a_pod_is_undone_after_two_looks() {
    let record = record(State::Attached);
    let listing = listing(&[], &["agent"]);
    let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &ALIVE);
    assert_eq!(first, Plan::default());
    assert_eq!(second.leftovers, [record]);
}

/// What a second look undoes that sees another record of the device, or an allocation.
fn undone_after(later: &Attachment, allocated: &BTreeSet<DeviceId>) -> Vec<Attachment> {
    let (start, agent, nobody) = (Instant::now(), pod("agent"), BTreeSet::new());
    let listing = listing(&[], &["agent"]);
    let earlier = record(State::Attached);
    let mut collector = Collector::default();
    let looks = [(&earlier, &nobody, 100), (later, allocated, 120)];
    let plans = looks.map(|(record, allocated, seconds)| {
        let seen = Observation {
            records: std::slice::from_ref(record),
            damaged: &[],
            listing: Some(&listing),
            allocated,
            own_pod: Some(&agent),
            kubelet_since: start,
            now: start + Duration::from_secs(seconds),
        };
        collector.plan(&seen, &ALIVE).leftovers
    });
    let [_, second] = plans;
    second
}

#[test]
fn the_wait_for_a_former_pod_does_not_count_against_the_next_one() {
    let mut next = record(State::Attached);
    assert_eq!(undone_after(&next, &BTreeSet::new()), std::slice::from_ref(&next));
    if let Holder::Pod { pod_name, container_id, .. } = &mut next.holder {
        (*pod_name, *container_id) = ("next".into(), "d".into());
    }
    assert_eq!(undone_after(&next, &BTreeSet::new()), []);
}

#[test]
fn a_device_that_was_just_allocated_is_left_alone_although_the_kubelet_does_not_list_it() {
    let record = record(State::Attached);
    assert_eq!(undone_after(&record, &[record.device.clone()].into()), []);
}

#[test]
fn a_live_link_is_left_alone_while_the_kubelets_list_may_be_incomplete() {
    let record = record(State::Attached);
    let agent = pod("agent");
    let complete = listing(&[], &["agent"]);
    let incomplete = listing(&[], &["other"]);
    for (listing, own, up) in [
        (None, Some(&agent), 100),
        (Some(&incomplete), Some(&agent), 100),
        (Some(&complete), None, 100),
        (Some(&complete), Some(&agent), 20),
    ] {
        let [_, second] = twice(&record, listing, own, up, &ALIVE);
        assert_eq!(second, Plan::default());
    }
}

#[test]
fn a_nic_is_fetched_when_its_sandbox_is_gone_although_the_nic_exists() {
    let mut record = record(State::Attached);
    let world = World { link: true, sandbox: false };
    let collected = |record: &Attachment, world: &World| {
        let [_, second] = twice(record, Some(&listing(&[], &[])), None, 0, world);
        second.leftovers.len()
    };
    assert_eq!(collected(&record, &world), 0, "a macvtap without a path to its namespace");
    record.nic = Some(nics::tests::recorded(&nic(2, "eth1", 0xa)));
    assert_eq!(collected(&record, &world), 1);
    assert_eq!(collected(&record, &ALIVE), 0);
}

#[test]
fn what_is_left_when_link_and_sandbox_are_gone_is_removed_without_further_proof() {
    let record = record(State::Attached);
    let [first, second] = twice(&record, Some(&listing(&[], &[])), None, 0, &GONE);
    assert_eq!(first, Plan::default());
    assert_eq!(second.leftovers, std::slice::from_ref(&record));
    let [_, second] = twice(&record, None, None, 0, &GONE);
    assert_eq!(second, Plan::default(), "the kubelet said nothing");
}

#[test]
fn a_record_that_cannot_be_read_is_given_up_when_it_is_certain_that_no_pod_has_the_device() {
    let (start, agent) = (Instant::now(), pod("agent"));
    let device: DeviceId = "aMvp0".parse().unwrap();
    let second = |listing: &Listing, up: u64| {
        let mut collector = Collector::default();
        let looks = [0, 10].map(|seconds| {
            let seen = Observation {
                records: &[],
                damaged: std::slice::from_ref(&device),
                listing: Some(listing),
                allocated: &BTreeSet::new(),
                own_pod: Some(&agent),
                kubelet_since: start,
                now: start + Duration::from_secs(up + seconds),
            };
            collector.plan(&seen, &ALIVE).unreadable
        });
        assert_eq!(looks[0], []);
        looks[1].clone()
    };
    assert_eq!(second(&listing(&[], &["agent"]), 100), std::slice::from_ref(&device));
    assert_eq!(second(&listing(&[], &["agent"]), 20), [], "the kubelet has just started");
    assert_eq!(second(&listing(&[("aMvp0", "vm")], &["vm", "agent"]), 100), [], "a pod has it");
}

#[test]
fn a_device_without_a_record_is_looked_for_after_two_looks_and_one_with_a_record_is_not() {
    let listing = listing(&[("aMvp0", "vm"), ("aMvp1", "next")], &["vm", "next", "agent"]);
    let record = record(State::Attached);
    let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &ALIVE);
    assert_eq!(first, Plan::default());
    assert_eq!(second.unrecorded, [("aMvp1".parse().unwrap(), pod("next"))]);
    assert_eq!((second.leftovers, second.dead), (vec![], vec![]));
}

#[test]
fn what_is_left_of_a_pod_whose_device_another_one_has_is_removed() {
    let record = record(State::Attached);
    let listing = listing(&[("aMvp0", "next")], &["next", "agent"]);
    let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &GONE);
    assert_eq!((first, second.leftovers), (Plan::default(), vec![record]));
}

#[test]
fn a_device_that_another_pod_has_by_now_is_its_business() {
    let record = record(State::Attached);
    let listing = listing(&[("aMvp0", "next")], &["next", "agent"]);
    let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &LINK_LOST);
    assert_eq!((first, second), (Plan::default(), Plan::default()));
}
