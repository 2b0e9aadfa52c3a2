use super::*;
use crate::attachments::sandbox;

struct World {
    link: bool,
    sandbox: fn() -> Fate,
    /// Seconds after the kubelet's start.
    written: i64,
    /// The pod that is noted for a tap without a network.
    tap_pod: Option<&'static str>,
}

impl Liveness for World {
    fn link_exists(&self, _: &Attachment) -> bool {
        self.link
    }
    fn sandbox(&self, _: &Attachment) -> Fate {
        (self.sandbox)()
    }
    fn written(&self, _: &Attachment) -> Option<SystemTime> {
        let seconds = Duration::from_secs(self.written.unsigned_abs());
        Some(if self.written < 0 { KUBELET_START - seconds } else { KUBELET_START + seconds })
    }
    fn tap_pods(&self, _: &DeviceId) -> Option<TapPods> {
        self.tap_pod.map(|name| TapPods::Owner(pod(name)))
    }
}

const KUBELET_START: SystemTime = SystemTime::UNIX_EPOCH;
const ALIVE: World = World { link: true, sandbox: || Fate::Alive, written: 1, tap_pod: None };
const LINK_LOST: World = World { link: false, ..ALIVE };
const UNKNOWN: World = World { link: false, sandbox: || Fate::Unknown, ..ALIVE };
const GONE: World = World { link: false, sandbox: sandbox::tests::gone, ..ALIVE };

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
    looks([0, 10], record, listing, own, up, world)
}

/// The plans of two looks, so many seconds after a beginning.
fn looks(
    seconds: [u64; 2],
    record: &Attachment,
    listing: Option<&Listing>,
    own: Option<&PodName>,
    up: u64,
    world: &World,
) -> [Plan; 2] {
    let start = Instant::now();
    let mut collector = Collector::default();
    seconds.map(|seconds| {
        let seen = Observation {
            records: std::slice::from_ref(record),
            damaged: &[],
            listing,
            allocated: &BTreeSet::new(),
            own_pod: own,
            kubelet_since: start,
            kubelet_started: Some(KUBELET_START),
            now: start + Duration::from_secs(up + seconds),
        };
        collector.plan(&seen, world)
    })
}

pub(crate) fn listing(devices: &[(&str, &str)], pods: &[&str]) -> Listing {
    Listing {
        devices: devices.iter().map(|(id, name)| (id.parse().unwrap(), pod(name))).collect(),
        pods: pods.iter().map(|name| pod(name)).collect(),
    }
}

fn records(plan: &Plan) -> Vec<Attachment> {
    plan.orphans.iter().map(|orphan| orphan.record().clone()).collect()
}

/// The records of these orphans in the second of two looks; there must be none in the first.
fn orphans(record: &Attachment, listing: &Listing, world: &World) -> Vec<Attachment> {
    let [first, second] = twice(record, Some(listing), Some(&pod("agent")), 100, world);
    assert_eq!(records(&first), []);
    records(&second)
}

#[test]
fn a_record_whose_maker_was_killed_is_undone_at_once_whatever_the_kubelet_says() {
    let record = record(State::Creating);
    let [first, _] = twice(&record, None, None, 0, &ALIVE);
    assert_eq!(records(&first), [record]);
}

#[test]
fn a_link_that_vanished_under_a_listed_pod_is_a_dead_device_and_nothing_is_removed() {
    let record = record(State::Attached);
    let listing = listing(&[("aMvp0", "vm")], &["vm", "agent"]);
    let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &LINK_LOST);
    assert_eq!(first.dead, [(record, pod("vm"))]);
    assert_eq!((records(&first), records(&second)), (vec![], vec![]));
}

#[test]
fn a_pod_that_is_listed_keeps_what_it_has_although_the_kubelet_lost_its_checkpoint() {
    let record = record(State::Attached);
    // The kubelet lists the pod without its device: a lost checkpoint, or a device of an init container.
    let listing = listing(&[], &["vm", "agent"]);
    for world in [ALIVE, LINK_LOST, UNKNOWN, GONE] {
        let [first, second] = twice(&record, Some(&listing), Some(&pod("agent")), 100, &world);
        assert_eq!((records(&first), records(&second)), (vec![], vec![]));
        let unlisted = [(record.device.clone(), record.holder.clone())];
        assert_eq!(first.unlisted, unlisted.into(), "it is reported");
    }
}

#[test]
fn a_pod_whose_sandbox_lives_keeps_what_it_has_although_the_kubelet_does_not_list_it() {
    let record = record(State::Attached);
    // An agent that is a static pod is listed by a kubelet that has not heard from the API server.
    let listing = listing(&[], &["agent"]);
    for world in [ALIVE, LINK_LOST, UNKNOWN] {
        assert_eq!(orphans(&record, &listing, &world), []);
    }
    assert_eq!(orphans(&record, &listing, &GONE), [record]);
}

#[test]
fn a_pod_whose_device_the_kubelet_gave_away_after_it_lost_its_checkpoint_keeps_it() {
    let record = record(State::Attached);
    for pods in [["vm", "next", "agent"], ["other", "next", "agent"]] {
        let listing = listing(&[("aMvp0", "next")], &pods);
        for world in [ALIVE, LINK_LOST, UNKNOWN] {
            assert_eq!(orphans(&record, &listing, &World { written: -1, ..world }), []);
        }
    }
}

#[test]
fn a_squatter_gives_way_to_the_pod_that_the_kubelet_lists() {
    let record = record(State::Attached);
    let theirs = listing(&[("aMvp0", "next")], &["vm", "next", "agent"]);
    assert_eq!(orphans(&record, &theirs, &ALIVE), std::slice::from_ref(&record));
    let nobodys = listing(&[], &["vm", "agent"]);
    assert_eq!(orphans(&record, &nobodys, &ALIVE), [], "no pod waits for it");
}

#[test]
fn a_pod_without_a_name_is_known_by_its_sandbox_alone() {
    let mut record = record(State::Attached);
    if let Holder::Pod { pod_name, pod_namespace, .. } = &mut record.holder {
        (*pod_name, *pod_namespace) = (String::new(), String::new());
    }
    let listing = listing(&[], &["vm", "agent"]);
    assert_eq!(orphans(&record, &listing, &UNKNOWN), []);
    assert_eq!(orphans(&record, &listing, &GONE), [record]);
}

#[test]
fn a_record_of_a_former_pod_of_the_same_name_is_undone() {
    struct Successor;
    impl Liveness for Successor {
        fn link_exists(&self, _: &Attachment) -> bool {
            true
        }
        fn sandbox(&self, record: &Attachment) -> Fate {
            if record.device.slot() == 0 { sandbox::tests::gone() } else { Fate::Alive }
        }
        fn written(&self, _: &Attachment) -> Option<SystemTime> {
            None
        }
        fn tap_pods(&self, _: &DeviceId) -> Option<TapPods> {
            None
        }
    }
    let former = record(State::Attached);
    let mut next = recorded("aMvp1");
    if let Holder::Pod { pod_uid, .. } = &mut next.holder {
        *pod_uid = "next".into();
    }
    let (start, listing) = (Instant::now(), listing(&[("aMvp1", "vm")], &["vm"]));
    let records_of = |all: &[Attachment]| {
        let mut collector = Collector::default();
        let plans = [0, 10].map(|seconds| {
            let seen = Observation {
                records: all,
                damaged: &[],
                listing: Some(&listing),
                allocated: &BTreeSet::new(),
                own_pod: None,
                kubelet_since: start,
                kubelet_started: None,
                now: start + Duration::from_secs(seconds),
            };
            records(&collector.plan(&seen, &Successor))
        });
        plans[1].clone()
    };
    assert_eq!(records_of(std::slice::from_ref(&former)), []);
    assert_eq!(records_of(&[former.clone(), next]), [former]);
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
            kubelet_started: Some(KUBELET_START),
            now: start + Duration::from_secs(seconds),
        };
        records(&collector.plan(&seen, &GONE))
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
fn a_tap_without_a_network_is_left_alone_while_the_kubelets_list_may_be_incomplete() {
    let record = Attachment { holder: Holder::Host, ..record(State::Attached) };
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
        assert_eq!(records(&second), []);
    }
    assert_eq!(orphans(&record, &complete, &ALIVE), [record]);
}

#[test]
fn a_tap_without_a_network_is_its_pods_whatever_the_kubelet_says_of_the_device() {
    let record = Attachment { holder: Holder::Host, ..record(State::Attached) };
    let noted = World { tap_pod: Some("vm"), ..ALIVE };
    for devices in [vec![], vec![("aMvp0", "next")]] {
        let lives = listing(&devices, &["vm", "next", "agent"]);
        assert_eq!(orphans(&record, &lives, &noted), []);
    }
    let gone = listing(&[], &["next", "agent"]);
    assert_eq!(orphans(&record, &gone, &noted), std::slice::from_ref(&record));
    // The note may be wrong: what the kubelet lists is left to Allocate and PreStart.
    let listed = listing(&[("aMvp0", "next")], &["next", "agent"]);
    assert_eq!(orphans(&record, &listed, &noted), []);
    // A list that lacks pods is not remembered.
    let [first, _] = twice(&record, Some(&listing(&[], &["other"])), Some(&pod("agent")), 100, &ALIVE);
    assert_eq!(first.tap_pods, []);
    let [first, _] = twice(&record, Some(&listing(&[("aMvp0", "vm")], &["vm", "agent"])), None, 0, &ALIVE);
    assert_eq!(first.tap_pods, [(record.clone(), TapPods::Owner(pod("vm")))], "it is noted");
    // An init container's: any pod may have it that was there when it was first seen.
    let [first, _] = twice(&record, Some(&listing(&[], &["vm", "agent"])), Some(&pod("agent")), 100, &ALIVE);
    assert_eq!(first.tap_pods, [(record.clone(), TapPods::Candidates([pod("vm")].into()))]);
}

#[test]
fn without_the_kubelets_list_nothing_is_removed() {
    let [_, second] = twice(&record(State::Attached), None, None, 0, &GONE);
    assert_eq!(second, Plan::default());
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
                kubelet_started: Some(KUBELET_START),
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
    assert_eq!((records(&second), second.dead), (vec![], vec![]));
}

#[test]
fn what_is_left_of_a_pod_whose_device_another_one_has_is_removed() {
    let record = record(State::Attached);
    let listing = listing(&[("aMvp0", "next")], &["next", "agent"]);
    assert_eq!(orphans(&record, &listing, &World { written: -1, ..GONE }), [record]);
}

#[test]
fn a_tap_of_a_pod_that_was_created_again_is_removed_when_that_has_another_device() {
    let record = Attachment { holder: Holder::Host, ..record(State::Attached) };
    let noted = World { tap_pod: Some("vm"), ..ALIVE };
    let again = listing(&[("aMvp1", "vm")], &["vm", "agent"]);
    let orphans = |seconds, listing: &Listing, world: &World| {
        let [_, second] = looks([0, seconds], &record, Some(listing), Some(&pod("agent")), 100, world);
        records(&second)
    };
    assert_eq!(orphans(600, &again, &noted), std::slice::from_ref(&record));
    assert_eq!(orphans(599, &again, &noted), [], "containers of the former pod may still be ending");
    let other = listing(&[("bMvp1", "vm"), ("aMvp1", "next")], &["vm", "next", "agent"]);
    assert_eq!(orphans(600, &other, &noted), [], "its own device may be an init container's");
    // A kubelet that lost its checkpoint gives a pod that runs another device.
    assert_eq!(orphans(600, &again, &World { written: -1, ..noted }), []);
    // Nobody knows whether it ever had this one.
    assert_eq!(orphans(600, &again, &ALIVE), []);
}

#[test]
fn a_sandbox_that_outlives_its_pod_does_not_make_the_kubelets_list_incomplete() {
    let stuck = record(State::Attached);
    let tap = Attachment { device: "aMvp1".parse().unwrap(), holder: Holder::Host, ..stuck.clone() };
    let (start, agent, listing) = (Instant::now(), pod("agent"), listing(&[], &["agent"]));
    let orphans = |world: &World| {
        let mut collector = Collector::default();
        let plans = [100, 110].map(|seconds| {
            let seen = Observation {
                records: &[stuck.clone(), tap.clone()],
                damaged: &[],
                listing: Some(&listing),
                allocated: &BTreeSet::new(),
                own_pod: Some(&agent),
                kubelet_since: start,
                kubelet_started: Some(KUBELET_START),
                now: start + Duration::from_secs(seconds),
            };
            records(&collector.plan(&seen, world))
        });
        plans[1].clone()
    };
    assert_eq!(orphans(&World { tap_pod: Some("vm"), ..ALIVE }), std::slice::from_ref(&tap));
    // The pod is older than the kubelet, which may not have heard of it yet.
    assert_eq!(orphans(&World { tap_pod: Some("vm"), written: -1, ..ALIVE }), []);
}

#[test]
fn a_sandbox_that_was_gone_stays_gone_although_its_number_is_another_ones_by_now() {
    struct Renumbered(std::cell::Cell<u32>);
    impl Liveness for Renumbered {
        fn link_exists(&self, _: &Attachment) -> bool {
            false
        }
        fn sandbox(&self, _: &Attachment) -> Fate {
            let looks = self.0.replace(self.0.get() + 1);
            if looks == 0 { sandbox::tests::gone() } else { Fate::Unknown }
        }
        fn written(&self, _: &Attachment) -> Option<SystemTime> {
            None
        }
        fn tap_pods(&self, _: &DeviceId) -> Option<TapPods> {
            None
        }
    }
    let (record, listing, start) = (record(State::Attached), listing(&[], &["agent"]), Instant::now());
    let mut collector = Collector::default();
    let mut plan = |records: &[Attachment], seconds| {
        let seen = Observation {
            records,
            damaged: &[],
            listing: Some(&listing),
            allocated: &BTreeSet::new(),
            own_pod: None,
            kubelet_since: start,
            kubelet_started: None,
            now: start + Duration::from_secs(seconds),
        };
        let world = Renumbered(std::cell::Cell::new(u32::from(seconds > 0)));
        self::records(&collector.plan(&seen, &world))
    };
    assert_eq!(plan(std::slice::from_ref(&record), 0), []);
    assert_eq!(plan(std::slice::from_ref(&record), 10), std::slice::from_ref(&record));
    // The next pod in another sandbox is another holder.
    let mut next = record;
    if let Holder::Pod { container_id, .. } = &mut next.holder {
        *container_id = "next".into();
    }
    assert_eq!(plan(std::slice::from_ref(&next), 20), []);
    assert_eq!(plan(std::slice::from_ref(&next), 30), []);
}
