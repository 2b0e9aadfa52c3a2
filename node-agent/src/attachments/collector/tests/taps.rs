use super::*;
use macvtap::tap_pods::TapPods;

fn tap() -> Attachment {
    Attachment { holder: Holder::Host, ..record(State::Attached) }
}

fn noted(pods: TapPods, pod_uid: Option<&str>) -> Answers {
    Answers { note: Some(TapNote { pods, pod_uid: pod_uid.map(str::to_owned) }), ..ALIVE }
}

fn owner(name: &str) -> TapPods {
    TapPods::Owner(pod(name))
}

fn candidates(names: &[&str]) -> TapPods {
    TapPods::Candidates(names.iter().map(|name| pod(name)).collect())
}

/// A checkpoint that the kubelet has written since it started.
fn checkpoint(version: &str, holders: &[(&str, &str)]) -> KubeletMemory {
    let holders = holders.iter().map(|(device, uid)| (device.parse().unwrap(), [(*uid).to_owned()].into()));
    KubeletMemory { holders: holders.collect(), version: version.into(), is_current: true }
}

#[test]
fn a_tap_without_a_network_is_left_alone_while_the_kubelets_list_may_be_incomplete() {
    let (record, agent) = (tap(), pod("agent"));
    let complete = listing(&[], &["agent"]);
    let incomplete = listing(&[], &["other"]);
    for (listing, own, up) in [
        (None, Some(&agent), 100),
        (Some(&incomplete), Some(&agent), 100),
        (Some(&complete), None, 100),
        (Some(&complete), Some(&agent), 20),
    ] {
        let scene = Scene::of(std::slice::from_ref(&record), &complete, &ALIVE);
        let scene = Scene { listing: listing.cloned(), own: own.cloned(), ..scene };
        let [_, second] = twice([up, up + 10], &scene);
        assert_eq!(records(&second), []);
    }
    assert_eq!(orphans(&record, &complete, &ALIVE), [record]);
}

#[test]
fn a_kubelet_that_lists_static_pods_alone_has_not_heard_from_the_api_server() {
    let scene = |pods: &[&str]| {
        let scene = Scene::of(&[tap()], &listing(&[], pods), &noted(owner("vm"), None));
        Scene { own: Some(pod("agent-node-1")), ..scene }
    };
    assert_eq!(orphans_of(&scene(&["agent-node-1", "etcd-node-1"])), []);
    assert_eq!(orphans_of(&scene(&["agent-node-1", "other"])), [tap()]);
    let unknown = Scene { node: None, ..scene(&["agent-node-1", "other"]) };
    assert_eq!(orphans_of(&unknown), [], "the agent does not know the name of the node");
}

#[test]
fn a_tap_without_a_network_is_its_pods_whatever_the_kubelet_says_of_the_device() {
    let (record, vm) = (tap(), noted(owner("vm"), None));
    for devices in [vec![], vec![("aMvp0", "next")]] {
        let lives = listing(&devices, &["vm", "next", "agent"]);
        assert_eq!(orphans(&record, &lives, &vm), []);
    }
    let gone = listing(&[], &["next", "agent"]);
    assert_eq!(orphans(&record, &gone, &vm), std::slice::from_ref(&record));
    // The note may be wrong: what the kubelet lists is left to Allocate and PreStart.
    let listed = listing(&[("aMvp0", "next")], &["next", "agent"]);
    assert_eq!(orphans(&record, &listed, &vm), []);
}

#[test]
fn the_pod_of_a_tap_is_noted_as_soon_as_it_is_known() {
    let record = tap();
    let notes = |listing: &Listing, world: &Answers, memory: Option<KubeletMemory>, up: u64| {
        let scene = Scene::of(std::slice::from_ref(&record), listing, world);
        let notes = Story::new().see(up, &Scene { memory, ..scene }).tap_notes.into_iter();
        notes.map(|note| (note.after.pods, note.after.pod_uid)).collect::<Vec<_>>()
    };
    // A list that lacks pods is not remembered.
    assert_eq!(notes(&listing(&[], &["other"]), &ALIVE, None, 100), []);
    let listed = listing(&[("aMvp0", "vm")], &["vm", "agent"]);
    assert_eq!(notes(&listed, &ALIVE, None, 0), [(owner("vm"), None)]);
    // An init container's: any pod may have it that was there when it was first seen.
    let unlisted = listing(&[], &["vm", "agent"]);
    assert_eq!(notes(&unlisted, &ALIVE, None, 100), [(candidates(&["vm"]), None)]);
    let memory = || Some(checkpoint("1", &[("aMvp0", "u")]));
    let with_uid = [(owner("vm"), Some("u".into()))];
    assert_eq!(notes(&listed, &noted(owner("vm"), None), memory(), 0), with_uid);
    assert_eq!(notes(&listed, &noted(owner("vm"), Some("u")), memory(), 0), []);
    // It was created again, and its container has not started.
    assert_eq!(notes(&listed, &noted(owner("vm"), Some("former")), memory(), 0), []);
    // Another pod was taken for it, which started at the same time.
    assert_eq!(notes(&listed, &noted(candidates(&["other"]), Some("u")), memory(), 0), with_uid);
    assert_eq!(notes(&listed, &noted(candidates(&["other"]), Some("former")), memory(), 0), []);
    // One of several was noted with the UID of a pod that has the device no more.
    assert_eq!(notes(&listed, &noted(candidates(&["vm"]), Some("former")), memory(), 0), []);
    assert_eq!(notes(&listed, &noted(candidates(&["vm"]), None), memory(), 0), with_uid);
    assert_eq!(notes(&listed, &noted(candidates(&["other"]), None), None, 0), []);
}

#[test]
fn a_note_by_which_an_orphan_was_judged_is_handed_on() {
    let scene = Scene::of(&[tap()], &listing(&[], &["agent"]), &noted(owner("vm"), None));
    let [_, second] = twice([100, 110], &scene);
    assert_eq!(second.orphans[0].note().map(|note| &note.pods), Some(&owner("vm")));
}

#[test]
fn a_kubelet_that_started_since_is_believed_when_it_shows_where_the_pod_or_its_device_is() {
    let world = noted(owner("vm"), Some("u"));
    for (devices, holders, removed) in [
        (&[][..], &[][..], 0),
        (&[("aMvp1", "vm")], &[], 1),
        (&[("bMvp1", "vm")], &[], 0),
        (&[("aMvp1", "next")], &[], 0),
        (&[], &[("aMvp0", "next")], 1),
    ] {
        let scene = |version: &str, devices: &[(&str, &str)], holders: &[(&str, &str)]| {
            let listing = listing(devices, &["vm", "next", "agent"]);
            let scene = Scene::of(&[older(&tap())], &listing, &world);
            Scene { memory: Some(checkpoint(version, holders)), ..scene }
        };
        let mut story = Story::new();
        story.see(100, &scene("1", &[], &[("aMvp0", "u")]));
        for (seconds, version, count) in [(110, "2", 0), (699, "3", 0), (710, "3", removed)] {
            let plan = story.see(seconds, &scene(version, devices, holders));
            assert_eq!(records(&plan).len(), count, "{devices:?} {holders:?} after {seconds} s");
        }
    }
}

#[test]
fn a_pod_that_is_not_listed_for_a_moment_keeps_a_device_that_was_never_listed() {
    let (mut story, vm) = (Story::new(), noted(candidates(&["vm"]), None));
    let scene = |pods: &[&str]| Scene::of(&[tap()], &listing(&[], pods), &vm);
    for (seconds, pods) in [(100, &["vm", "agent"][..]), (3600, &["vm", "agent"]), (3610, &["agent"])] {
        assert_eq!(records(&story.see(seconds, &scene(pods))), [], "after {seconds} s");
    }
    assert_eq!(records(&story.see(3620, &scene(&["agent"]))), [tap()]);
}

#[test]
fn a_tap_stays_while_the_kubelet_knows_its_pod_although_another_was_noted_by_name() {
    // A pod of a StatefulSet was created again within seconds, so another one that had just started was noted.
    let other = noted(candidates(&["other"]), Some("u"));
    let held = |version| {
        let scene = Scene::of(&[tap()], &listing(&[], &["vm-0", "agent"]), &other);
        Scene { memory: Some(checkpoint(version, &[("aMvp0", "u")])), ..scene }
    };
    let mut story = Story::new();
    let first = story.see(100, &held("1"));
    assert!(first.ask_for_checkpoint, "it may be behind");
    for seconds in [110, 120, 3600] {
        let plan = story.see(seconds, &held("2"));
        assert_eq!((records(&plan), plan.ask_for_checkpoint), (vec![], seconds == 3600));
    }
    let ended = Scene { memory: Some(checkpoint("3", &[])), ..held("") };
    assert_eq!(records(&story.see(3610, &ended)), [tap()]);
}

#[test]
fn a_checkpoint_that_is_behind_does_not_keep_a_tap() {
    let mut story = Story::new();
    let scene = |memory| {
        let scene = Scene::of(&[tap()], &listing(&[], &["agent"]), &noted(owner("vm"), Some("u")));
        Scene { memory, ..scene }
    };
    let asked = story.see(100, &scene(Some(checkpoint("1", &[("aMvp0", "u")]))));
    assert!(asked.ask_for_checkpoint && records(&asked).is_empty());
    assert_eq!(records(&story.see(110, &scene(Some(checkpoint("2", &[]))))), [tap()]);
}

#[test]
fn a_checkpoint_that_the_kubelet_did_not_write_takes_nothing() {
    // Somebody emptied it by hand: the kubelet has not written it since it was found like that.
    let mut story = Story::new();
    let scene = |memory| {
        let scene = Scene::of(&[tap()], &listing(&[], &["agent-node-1"]), &noted(owner("vm"), Some("u")));
        Scene { memory, own: Some(pod("agent-node-1")), ..scene }
    };
    assert!(story.see(100, &scene(Some(checkpoint("1", &[])))).ask_for_checkpoint);
    assert_eq!(records(&story.see(200, &scene(Some(checkpoint("1", &[]))))), []);
    assert_eq!(records(&story.see(210, &scene(Some(checkpoint("2", &[("aMvp0", "u")]))))), []);
    assert_eq!(records(&story.see(220, &scene(None))), [], "it cannot be read");
}

#[test]
fn a_kubelet_that_lost_its_checkpoint_is_not_believed_about_taps_and_one_that_did_not_is() {
    let scene = |memory, pods: &[&str]| {
        let scene = Scene::of(&[older(&tap())], &listing(&[], pods), &noted(owner("vm"), Some("u")));
        Scene { memory: Some(memory), own: Some(pod("agent-node-1")), ..scene }
    };
    // Its pod runs, and neither the list nor the checkpoint has it.
    let mut lost = Story::new();
    for (seconds, version) in [(100, "1"), (110, "2"), (3600, "3")] {
        let scene = scene(checkpoint(version, &[]), &["agent-node-1"]);
        assert_eq!(records(&lost.see(seconds, &scene)), []);
    }
    let mut kept = Story::new();
    kept.see(100, &scene(checkpoint("1", &[("aMvp0", "u")]), &["vm", "agent-node-1"]));
    for seconds in [110, 120] {
        let version = seconds.to_string();
        let plan = kept.see(seconds, &scene(checkpoint(&version, &[]), &["agent-node-1"]));
        assert_eq!(records(&plan).len(), usize::from(seconds == 120));
    }
}

#[test]
fn a_tap_of_a_pod_that_was_created_again_is_removed_when_that_has_another_device() {
    let (record, vm) = (tap(), noted(owner("vm"), None));
    let again = listing(&[("aMvp1", "vm")], &["vm", "agent"]);
    let orphans = |seconds: u64, record: &Attachment, listing: &Listing, world: &Answers| {
        let scene = Scene::of(std::slice::from_ref(record), listing, world);
        let [_, second] = twice([100, 100 + seconds], &scene);
        records(&second)
    };
    assert_eq!(orphans(600, &record, &again, &vm), std::slice::from_ref(&record));
    assert_eq!(orphans(599, &record, &again, &vm), [], "containers of the former pod may still be ending");
    let other = listing(&[("bMvp1", "vm"), ("aMvp1", "next")], &["vm", "next", "agent"]);
    assert_eq!(orphans(600, &record, &other, &vm), [], "its own device may be an init container's");
    // A kubelet that lost its checkpoint gives a pod that runs another device.
    assert_eq!(orphans(600, &older(&record), &again, &vm), []);
    // Nobody knows whether it ever had this one.
    assert_eq!(orphans(600, &record, &again, &ALIVE), []);
}

#[test]
fn a_tap_of_a_pod_that_was_created_again_without_a_device_is_removed_when_the_kubelet_has_forgotten_it() {
    // A kubelet that started since can forget a pod that it has not admitted yet, and that runs.
    for (pods, record, removed) in [
        (owner("vm"), tap(), 1),
        (candidates(&["vm", "other"]), tap(), 1),
        (owner("vm"), older(&tap()), 0),
        (candidates(&["vm", "other"]), older(&tap()), 0),
    ] {
        let world = noted(pods, Some("u"));
        let scene = |version: &str, holders: &[(&str, &str)]| {
            let scene = Scene::of(std::slice::from_ref(&record), &listing(&[], &["vm", "agent"]), &world);
            Scene { memory: Some(checkpoint(version, holders)), ..scene }
        };
        let mut story = Story::new();
        story.see(100, &scene("1", &[("aMvp0", "u")]));
        for (seconds, version, count) in [(110, "2", 0), (699, "3", 0), (700, "3", removed)] {
            let plan = story.see(seconds, &scene(version, &[]));
            assert_eq!(records(&plan).len(), count, "after {seconds} s");
        }
    }
}

#[test]
fn a_tap_whose_device_was_given_to_another_pod_is_removed_for_that() {
    let world = noted(owner("vm"), Some("u"));
    let scene = |version: &str, pods: &[&str]| {
        let scene = Scene::of(&[tap()], &listing(&[("aMvp0", "next")], pods), &world);
        Scene { memory: Some(checkpoint(version, &[("aMvp0", "u2")])), ..scene }
    };
    let (mut gone, mut again) = (Story::new(), Story::new());
    for (seconds, version, without, with) in [(100, "1", 0, 0), (110, "2", 1, 0), (700, "3", 1, 1)] {
        let plan = gone.see(seconds, &scene(version, &["next", "agent"]));
        assert_eq!(records(&plan).len(), without, "after {seconds} s");
        // A pod of its name is there again.
        let plan = again.see(seconds, &scene(version, &["vm", "next", "agent"]));
        assert_eq!(records(&plan).len(), with, "after {seconds} s");
    }
}

#[test]
fn a_sandbox_that_outlives_its_pod_does_not_make_the_kubelets_list_incomplete() {
    // The kubelet dropped that pod before it started again.
    let stuck = older(&record(State::Attached));
    let tap = Attachment { device: "aMvp1".parse().unwrap(), ..older(&tap()) };
    let scene = Scene::of(&[stuck, tap.clone()], &listing(&[], &["agent"]), &noted(owner("vm"), None));
    assert_eq!(orphans_of(&scene), [tap]);
}
