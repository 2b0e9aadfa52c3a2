mod taps;

use super::*;
use crate::attachments::sandbox;

#[derive(Clone)]
struct Answers {
    link: bool,
    sandbox: fn(&Attachment) -> Fate,
    /// What is noted of a tap without a network.
    note: Option<TapNote>,
}

impl Liveness for Answers {
    fn link_exists(&self, _: &Attachment) -> bool {
        self.link
    }
    fn sandbox(&self, record: &Attachment) -> Fate {
        (self.sandbox)(record)
    }
    fn tap_note(&self, _: &DeviceId) -> Option<TapNote> {
        self.note.clone()
    }
}

const ALIVE: Answers = Answers { link: true, sandbox: |_| Fate::Alive, note: None };
const LINK_LOST: Answers = Answers { link: false, ..ALIVE };
const UNKNOWN: Answers = Answers { link: false, sandbox: |_| Fate::Unknown, ..ALIVE };
const GONE: Answers = Answers { link: false, sandbox: |_| sandbox::tests::gone(), ..ALIVE };

/// The node at one moment.
#[derive(Clone)]
struct Scene {
    records: Vec<Attachment>,
    damaged: Vec<DeviceId>,
    listing: Option<Listing>,
    memory: Option<KubeletMemory>,
    allocated: BTreeSet<DeviceId>,
    own: Option<PodName>,
    kubelet: &'static str,
    node: Option<&'static str>,
    world: Answers,
}

impl Scene {
    /// A kubelet that lists these, asked by an agent that it lists.
    fn of(records: &[Attachment], listing: &Listing, world: &Answers) -> Self {
        Self {
            records: records.to_vec(),
            damaged: Vec::new(),
            listing: Some(listing.clone()),
            memory: None,
            allocated: BTreeSet::new(),
            own: Some(pod("agent")),
            kubelet: "k",
            node: Some("node-1"),
            world: world.clone(),
        }
    }
}

/// A collector, and when its kubelet was first seen.
struct Story {
    collector: Collector,
    start: Instant,
}

impl Story {
    fn new() -> Self {
        Self { collector: Collector::default(), start: Instant::now() }
    }

    /// What is planned so many seconds after the kubelet was first seen.
    fn see(&mut self, seconds: u64, scene: &Scene) -> Plan {
        let seen = Observation {
            records: &scene.records,
            damaged: &scene.damaged,
            listing: scene.listing.as_ref(),
            memory: scene.memory.as_ref(),
            allocated: &scene.allocated,
            own_pod: scene.own.as_ref(),
            node: scene.node,
            kubelet: Some(scene.kubelet),
            kubelet_since: self.start,
            now: self.start + Duration::from_secs(seconds),
        };
        self.collector.plan(&seen, &scene.world)
    }
}

/// The plans of two passes that see the same.
fn twice(seconds: [u64; 2], scene: &Scene) -> [Plan; 2] {
    let mut story = Story::new();
    seconds.map(|seconds| story.see(seconds, scene))
}

/// A pod of namespace `default`.
pub(crate) fn pod(name: &str) -> PodName {
    PodName { namespace: "default".into(), name: name.into() }
}

/// The record of a macvtap that pod `default/vm` has, made under another kubelet than any that serves.
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
        made: None,
        kubelet: Some("former".into()),
    }
}

/// The record of pod `default/vm`, made under the kubelet that serves.
fn record(state: State) -> Attachment {
    Attachment { state, kubelet: Some("k".into()), ..recorded("aMvp0") }
}

/// The same, made before that kubelet started.
fn older(record: &Attachment) -> Attachment {
    Attachment { kubelet: Some("former".into()), ..record.clone() }
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
fn orphans(record: &Attachment, listing: &Listing, world: &Answers) -> Vec<Attachment> {
    orphans_of(&Scene::of(std::slice::from_ref(record), listing, world))
}

fn orphans_of(scene: &Scene) -> Vec<Attachment> {
    let [first, second] = twice([100, 110], scene);
    assert_eq!(records(&first), []);
    records(&second)
}

#[test]
fn a_record_whose_maker_was_killed_is_undone_at_once_whatever_the_kubelet_says() {
    let record = record(State::Creating);
    let scene =
        Scene { listing: None, ..Scene::of(std::slice::from_ref(&record), &listing(&[], &[]), &ALIVE) };
    assert_eq!(records(&Story::new().see(0, &scene)), [record]);
}

#[test]
fn a_link_that_vanished_under_a_listed_pod_is_a_dead_device_and_nothing_is_removed() {
    let record = record(State::Attached);
    let listing = listing(&[("aMvp0", "vm")], &["vm", "agent"]);
    let scene = Scene::of(std::slice::from_ref(&record), &listing, &LINK_LOST);
    let [first, second] = twice([100, 110], &scene);
    assert_eq!(first.dead, [(record, pod("vm"))]);
    assert_eq!((records(&first), records(&second)), (vec![], vec![]));
}

#[test]
fn a_pod_that_is_listed_keeps_what_it_has_although_the_kubelet_lost_its_checkpoint() {
    let record = record(State::Attached);
    // The kubelet lists the pod without its device: a lost checkpoint, or a device of an init container.
    let listing = listing(&[], &["vm", "agent"]);
    for world in [ALIVE, LINK_LOST, UNKNOWN, GONE] {
        let scene = Scene::of(std::slice::from_ref(&record), &listing, &world);
        let [first, second] = twice([100, 110], &scene);
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
    let record = older(&record(State::Attached));
    for pods in [["vm", "next", "agent"], ["other", "next", "agent"]] {
        let listing = listing(&[("aMvp0", "next")], &pods);
        for world in [ALIVE, LINK_LOST, UNKNOWN] {
            assert_eq!(orphans(&record, &listing, &world), []);
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
    let unknown = Attachment { kubelet: None, ..record };
    assert_eq!(orphans(&unknown, &theirs, &ALIVE), [], "nobody knows which kubelet served");
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
    let successor = |record: &Attachment| {
        if record.device.slot() == 0 { sandbox::tests::gone() } else { Fate::Alive }
    };
    let world = Answers { sandbox: successor, ..ALIVE };
    let former = record(State::Attached);
    let mut next = recorded("aMvp1");
    if let Holder::Pod { pod_uid, .. } = &mut next.holder {
        *pod_uid = "next".into();
    }
    let listing = listing(&[("aMvp1", "vm")], &["vm"]);
    assert_eq!(orphans(&former, &listing, &world), []);
    let with = |next: &Attachment| orphans_of(&Scene::of(&[former.clone(), next.clone()], &listing, &world));
    assert_eq!(with(&next), std::slice::from_ref(&former));
    for (name, uid, slot) in [("other", "next", 1), ("vm", "u", 1), ("vm", "", 1), ("vm", "next", 0)] {
        let mut no_successor = recorded(&format!("bMvp{slot}"));
        if let Holder::Pod { pod_uid, pod_name, .. } = &mut no_successor.holder {
            (*pod_uid, *pod_name) = (uid.into(), name.into());
        }
        assert!(!with(&no_successor).contains(&former), "{name} {uid} {slot}");
    }
}

#[test]
fn an_orphan_says_why_it_is_one() {
    let record = record(State::Attached);
    let scene = Scene::of(std::slice::from_ref(&record), &listing(&[], &["agent"]), &GONE);
    let [_, second] = twice([100, 110], &scene);
    assert!(second.orphans[0].reason().len() > 20, "{}", second.orphans[0].reason());
    assert_eq!(second.orphans[0].note(), None);
}

#[test]
fn what_a_kubelet_knew_of_pods_is_remembered_for_as_long_as_it_serves_and_the_record_stands() {
    let mut story = Story::new();
    let scene = |kubelet, memory, records: &[Attachment]| Scene {
        memory,
        kubelet,
        ..Scene::of(records, &listing(&[], &["agent"]), &ALIVE)
    };
    let record = record(State::Attached);
    let memory = |is_current| KubeletMemory {
        holders: [(record.device.clone(), ["u".to_owned()].into())].into(),
        version: "1".into(),
        is_current,
    };
    let mut remembers = |scene: &Scene| {
        story.see(0, scene);
        !story.collector.remembered.holders.is_empty()
    };
    let record = std::slice::from_ref(&record);
    assert!(!remembers(&scene("k", Some(memory(false)), record)), "a checkpoint of another kubelet");
    assert!(remembers(&scene("k", Some(memory(true)), record)));
    assert!(remembers(&scene("k", None, record)));
    assert!(!remembers(&scene("next", None, record)));
    assert!(remembers(&scene("next", Some(memory(true)), record)));
    assert!(!remembers(&scene("next", None, &[])));
}

/// What a second look undoes that sees another record of the device, or an allocation.
fn undone_after(later: &Attachment, allocated: &BTreeSet<DeviceId>) -> Vec<Attachment> {
    let (mut story, listing) = (Story::new(), listing(&[], &["agent"]));
    story.see(100, &Scene::of(&[record(State::Attached)], &listing, &GONE));
    let later = Scene::of(std::slice::from_ref(later), &listing, &GONE);
    records(&story.see(120, &Scene { allocated: allocated.clone(), ..later }))
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
fn without_the_kubelets_list_nothing_is_removed() {
    let scene = Scene::of(&[record(State::Attached)], &listing(&[], &[]), &GONE);
    let [_, second] = twice([0, 10], &Scene { listing: None, own: None, ..scene });
    assert_eq!(second, Plan::default());
}

#[test]
fn a_record_that_cannot_be_read_is_given_up_when_it_is_certain_that_no_pod_has_the_device() {
    let device: DeviceId = "aMvp0".parse().unwrap();
    let second = |listing: &Listing, up: u64| {
        let scene = Scene::of(&[], listing, &ALIVE);
        let scene = Scene { damaged: vec![device.clone()], ..scene };
        let [first, second] = twice([up, up + 10], &scene);
        assert_eq!(first.unreadable, []);
        second.unreadable
    };
    assert_eq!(second(&listing(&[], &["agent"]), 100), std::slice::from_ref(&device));
    assert_eq!(second(&listing(&[], &["agent"]), 20), [], "the kubelet has just started");
    assert_eq!(second(&listing(&[("aMvp0", "vm")], &["vm", "agent"]), 100), [], "a pod has it");
}

#[test]
fn a_device_without_a_record_is_looked_for_after_two_looks_and_one_with_a_record_is_not() {
    let listing = listing(&[("aMvp0", "vm"), ("aMvp1", "next")], &["vm", "next", "agent"]);
    let [first, second] = twice([100, 110], &Scene::of(&[record(State::Attached)], &listing, &ALIVE));
    assert_eq!(first, Plan::default());
    assert_eq!(second.unrecorded, [("aMvp1".parse().unwrap(), pod("next"))]);
    assert_eq!((records(&second), second.dead), (vec![], vec![]));
}

#[test]
fn what_is_left_of_a_pod_whose_device_another_one_has_is_removed() {
    let record = older(&record(State::Attached));
    let listing = listing(&[("aMvp0", "next")], &["next", "agent"]);
    assert_eq!(orphans(&record, &listing, &GONE), [record]);
}

#[test]
fn a_sandbox_that_was_gone_stays_gone_although_its_number_is_another_ones_by_now() {
    let (record, listing) = (record(State::Attached), listing(&[], &["agent"]));
    let scene =
        |record: &Attachment, world: &Answers| Scene::of(std::slice::from_ref(record), &listing, world);
    let mut story = Story::new();
    assert_eq!(records(&story.see(0, &scene(&record, &GONE))), []);
    assert_eq!(records(&story.see(10, &scene(&record, &UNKNOWN))), std::slice::from_ref(&record));
    // The next pod in another sandbox is another holder.
    let mut next = record;
    if let Holder::Pod { container_id, .. } = &mut next.holder {
        *container_id = "next".into();
    }
    assert_eq!(records(&story.see(20, &scene(&next, &UNKNOWN))), []);
    assert_eq!(records(&story.see(30, &scene(&next, &UNKNOWN))), []);
}
