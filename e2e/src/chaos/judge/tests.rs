//! Every rule finds the violation that is planted for it, and nothing in a state that is as it should be.

use super::super::snapshot::{Pod, Pool, Record};
use super::*;

const FIRST: u32 = 0x0100_0000;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two pods on one node, one on the other, each with a macvtap.
fn healthy() -> Snapshot {
    let mut seen = Snapshot { pods: Some(Vec::new()), pools: Some(Vec::new()), ..Snapshot::default() };
    for (number, node) in [(0, "n1"), (1, "n1"), (2, "n2")] {
        let ifindex = FIRST + number;
        let (pod, tap) = (format!("pod-{number}"), format!("240:{number}"));
        seen.containers.push(Container {
            node: node.into(),
            pod: pod.clone(),
            id: format!("c{number}"),
            netns: u64::from(number),
            taps: vec![(ifindex, tap.clone())],
        });
        seen.links.push(Link {
            node: node.into(),
            netns: u64::from(number),
            name: "net1".into(),
            ifindex,
            mac: format!("02:00:00:00:00:0{number}"),
            lower: 3,
            tap: Some(tap),
            addresses: vec![format!("192.0.2.{number}")],
        });
        seen.records.push(Record {
            node: node.into(),
            device: format!("chaosMvp{number}"),
            pod: pod.clone(),
            ifindex,
        });
        seen.device_nodes.push((node.into(), ifindex));
        seen.running.push((node.into(), pod.clone()));
        seen.pods.as_mut().unwrap().push(Pod { uid: pod, node: node.into(), ..Pod::default() });
    }
    seen
}

/// What the judge finds when a healthy state is followed twice by this one.
fn found(change: impl FnOnce(&mut Snapshot)) -> Vec<Violation> {
    let mut judge = Judge::default();
    assert_eq!(judge.observe(&healthy()), []);
    let mut seen = healthy();
    change(&mut seen);
    let mut found = judge.observe(&seen);
    found.extend(judge.observe(&seen));
    found
}

/// What it finds when this state is the first one, and seen twice.
fn found_at_first(change: impl FnOnce(&mut Snapshot)) -> Vec<Violation> {
    let mut judge = Judge::default();
    let mut seen = healthy();
    change(&mut seen);
    let mut found = judge.observe(&seen);
    found.extend(judge.observe(&seen));
    found
}

#[test]
fn a_healthy_state_is_no_violation_however_often_it_is_seen() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn a_link_taken_or_exchanged_under_a_container_is_found() {
    let lost = found(|seen| drop(seen.links.remove(0)));
    assert!(matches!(&lost[..], [Violation::Taken(what), ..] if what.contains("pod-0")), "{lost:?}");
    let other = found(|seen| seen.links[1].mac = "02:00:00:00:00:99".into());
    assert!(matches!(&other[..], [Violation::Taken(what), ..] if what.contains("pod-1")), "{other:?}");
    let number = found(|seen| seen.links[1].tap = Some("240:9".into()));
    assert!(matches!(&number[..], [Violation::Taken(_), ..]), "{number:?}");
}

#[test]
fn a_link_that_went_with_its_lower_link_was_not_taken() {
    let mut judge = Judge::default();
    judge.observe(&healthy());
    judge.deleted("n1", 3);
    let mut seen = healthy();
    seen.links.retain(|link| link.node != "n1");
    assert_eq!(judge.observe(&seen), []);
    seen.links.clear();
    assert!(
        matches!(&judge.observe(&seen)[..], [Violation::Taken(_)]),
        "the other node's link was not deleted"
    );
}

#[test]
fn one_device_in_two_pods_is_found() {
    let two = found(|seen| seen.containers[1].taps.push((FIRST, "240:0".into())));
    assert!(two.iter().any(|found| matches!(found, Violation::TwoOwners(_))), "{two:?}");
    let index = found(|seen| {
        let link = Link {
            netns: 1,
            tap: None,
            mac: "02:00:00:00:00:55".into(),
            addresses: Vec::new(),
            ..seen.links[0].clone()
        };
        seen.links.push(link);
    });
    assert!(matches!(&index[..], [Violation::TwoOwners(_)]), "{index:?}");
}

#[test]
fn a_tap_number_that_another_container_of_the_node_can_open_is_found() {
    let reused = found(|seen| {
        // The link of the first pod is lost, and the other pod of the node gets its number.
        seen.links.remove(0);
        seen.links[0].tap = Some("240:0".into());
    });
    assert!(reused.iter().any(|found| matches!(found, Violation::TapReused(_))), "{reused:?}");
    let parked = found(|seen| {
        seen.links[0].ifindex = DEVICES.end;
    });
    assert!(
        !parked.iter().any(|found| matches!(found, Violation::TapReused(_))),
        "a placeholder: {parked:?}"
    );
}

#[test]
fn an_address_of_two_pods_is_found() {
    let twice = found_at_first(|seen| seen.links[1].addresses = vec!["192.0.2.0".into()]);
    assert!(matches!(&twice[..], [Violation::AddressTwice(_)]), "{twice:?}");
    let elsewhere = found_at_first(|seen| seen.links[2].addresses = vec!["192.0.2.0".into()]);
    assert_eq!(elsewhere, [], "leases are of a node");
}

#[test]
fn an_address_of_kube_ovn_in_two_pods_that_live_is_found_on_whatever_nodes() {
    let give = |seen: &mut Snapshot, pods: &[usize]| {
        for pod in pods {
            seen.links[*pod].addresses = vec!["198.51.100.7".into()];
        }
    };
    let apart = found_at_first(|seen| give(seen, &[0, 2]));
    assert!(matches!(&apart[..], [Violation::AddressTwice(what)] if what.contains("pod-2")), "{apart:?}");
    let together = found_at_first(|seen| give(seen, &[0, 1]));
    assert!(matches!(&together[..], [Violation::AddressTwice(_)]), "{together:?}");
    assert_eq!(found_at_first(|seen| give(seen, &[0])), []);
    let released: [fn(&mut Vec<Pod>); 3] = [
        |pods| drop(pods.remove(0)),
        |pods| pods[0].terminating = true,
        |pods| pods[0].failed = Some("Evicted".into()),
    ];
    for release in released {
        let found = found_at_first(|seen| {
            give(seen, &[0, 1]);
            release(seen.pods.as_mut().unwrap());
        });
        assert_eq!(found, [], "kube-ovn has released the address of a pod that does not live");
    }
}

#[test]
fn another_address_of_a_pod_that_lives_is_found() {
    let mut judge = Judge::default();
    let mut seen = healthy();
    seen.links[0].addresses = vec!["198.51.100.7".into()];
    assert_eq!(judge.observe(&seen), []);
    // In another sandbox, on a link of its own.
    "other".clone_into(&mut seen.containers[0].id);
    assert_eq!(judge.observe(&seen), []);
    "third".clone_into(&mut seen.containers[0].id);
    seen.links[0].addresses = vec!["198.51.100.8".into()];
    assert!(matches!(&judge.observe(&seen)[..], [Violation::AddressChanged(what)] if what.contains("pod-0")));
    let lost = found(|seen| seen.links[0].addresses.clear());
    assert!(matches!(&lost[..], [Violation::Taken(_), ..]), "an address that a container lost: {lost:?}");
}

#[test]
fn what_is_left_of_an_ended_pod_is_found_after_its_time() {
    let mut seen = healthy();
    seen.pods.as_mut().unwrap().remove(0);
    seen.containers.remove(0);
    seen.running.remove(0);
    assert_eq!(orphans(&seen).len(), 3, "record, device node and link: {:?}", orphans(&seen));
    let mut judge = Judge::default();
    assert_eq!(judge.observe(&seen), []);
    seen.at = ORPHAN + at(1);
    assert!(judge.observe(&seen).iter().all(|found| matches!(found, Violation::Orphan(_))));
    assert_eq!(judge.observe(&seen).len(), 3);
    // It went after all, and another one of the same name starts again.
    let gone = Snapshot { at: at(400), ..healthy() };
    assert_eq!(judge.observe(&gone), []);
    seen.at = at(401);
    assert_eq!(judge.observe(&seen), []);
}

#[test]
fn a_verdict_of_silence_without_a_fault_is_found() {
    let mut judge = Judge::default();
    judge.disturbed(at(100));
    let pool = Pool { name: "chaos-a".into(), unreachable: 1, ..Pool::default() };
    let seen = |seconds| Snapshot { at: at(seconds), pools: Some(vec![pool.clone()]), ..healthy() };
    assert_eq!(judge.observe(&seen(200)), []);
    assert!(matches!(&judge.observe(&seen(281))[..], [Violation::FalseVerdict(_)]));
}
