//! The end of a run: when all faults have ended, the cluster must converge, and after the last pod nothing may be left.

use std::collections::BTreeMap;

use super::faults::Excuses;
use super::judge;
use super::snapshot::{Container, DEVICES, POOLS, PREFIX, Pod, Pool, Record, Snapshot};

/// Pods that ran, and those that could not, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fates {
    pub(super) ready: usize,
    /// The kubelet refused them when it admitted them, while no agent was registered, or their node went.
    pub(super) refused: usize,
    /// They wait for what was given away twice, or for a link that is gone: limits, see docs/reliability.md.
    pub(super) excused: usize,
}

/// What is not yet as a cluster without faults would be. `waits` says why each pod that waits does so.
pub(super) fn unsettled(
    seen: &Snapshot,
    excuses: &Excuses,
    waits: &BTreeMap<String, String>,
) -> (Fates, Vec<String>) {
    let (mut fates, mut wanting) = (Fates::default(), Vec::new());
    let Some(pods) = &seen.pods else { return (fates, vec!["the API server does not answer".to_owned()]) };
    for pod in pods {
        match judge_pod(pod, excuses, waits) {
            Fate::Ready => fates.ready += 1,
            Fate::Refused => fates.refused += 1,
            Fate::Excused => fates.excused += 1,
            Fate::Wanting(why) => wanting.push(why),
        }
    }
    wanting.extend(judge::orphans(seen));
    wanting.extend(unrecorded(seen));
    wanting.extend(unaddressed(seen, pods));
    wanting.extend(pools(seen));
    (fates, wanting)
}

/// What is left after the last pod. `devices` is how many each pool offers on all nodes.
pub(super) fn left(seen: &Snapshot, devices: u64) -> Vec<String> {
    let mut left = judge::orphans(seen);
    let placeholders = seen.links.iter().filter(|link| !DEVICES.contains(&link.ifindex));
    left.extend(placeholders.map(|link| format!("{}: placeholder {}", link.node, link.name)));
    match &seen.pods {
        None => left.push("the API server does not answer".to_owned()),
        Some(pods) => left.extend(pods.iter().map(|pod| format!("pod {}", pod.name))),
    }
    left.extend(pools(seen));
    for pool in seen.pools.iter().flatten() {
        if (pool.allocated, pool.dead, pool.offered) != (0, 0, devices) {
            left.push(format!("{pool:?}, expected: none of {devices} devices in use"));
        }
    }
    left
}

enum Fate {
    Ready,
    Refused,
    Excused,
    Wanting(String),
}

fn judge_pod(pod: &Pod, excuses: &Excuses, waits: &BTreeMap<String, String>) -> Fate {
    if pod.ready && !pod.terminating {
        return Fate::Ready;
    }
    if pod.failed.is_some() {
        return Fate::Refused;
    }
    let why = waits.get(&pod.uid).map(String::as_str).unwrap_or_default();
    // The kubelet gave a device of a pod that runs to another one, because it did not know any more.
    let twice = excuses.checkpoint_lost.contains(&pod.node) && why.contains("in use by");
    let lost =
        excuses.link_deleted.contains(&pod.node) && (why.contains("lost") || why.contains("does not exist"));
    if twice || lost {
        return Fate::Excused;
    }
    Fate::Wanting(format!("{pod:?} waits: {why}"))
}

/// What kube-ovn has not released after the last pod.
pub(super) fn unreleased(seen: &Snapshot) -> Vec<String> {
    match &seen.addresses {
        None => vec!["kube-ovn's records were not read".to_owned()],
        Some(all) => all.iter().map(|one| format!("kube-ovn's {} of pod {}", one.address, one.pod)).collect(),
    }
}

/// The address that kube-ovn has assigned to a pod is on its link, and recorded.
fn unaddressed(seen: &Snapshot, pods: &[Pod]) -> Vec<String> {
    let Some(recorded) = &seen.addresses else { return unreleased(seen) };
    let mut found = Vec::new();
    let on_links = judge::assigned(seen);
    for pod in pods.iter().filter(|pod| pod.ready && pod.lives()) {
        let Some(address) = &pod.address else { continue };
        let links = on_links.iter().filter(|(container, _)| container.pod == pod.uid);
        let links: Vec<&str> = links.map(|(_, address)| *address).collect();
        if links != [address.as_str()] {
            found.push(format!("pod {} is assigned {address}, and has {links:?}", pod.name));
        }
        if !recorded.iter().any(|one| (&one.pod, &one.address) == (&pod.name, address)) {
            found.push(format!("kube-ovn has no record of {address} of pod {}", pod.name));
        }
    }
    found
}

/// Each container's tap has a record.
fn unrecorded(seen: &Snapshot) -> Vec<String> {
    let has = |container: &Container, ifindex: u32| {
        seen.records.iter().any(|record| record.node == container.node && record.ifindex == ifindex)
    };
    let mut found = Vec::new();
    for container in &seen.containers {
        for (ifindex, _) in container.taps.iter().filter(|(ifindex, _)| DEVICES.contains(ifindex)) {
            if !has(container, *ifindex) {
                found.push(format!("pod {} on {}: no record of tap{ifindex}", container.pod, container.node));
            }
        }
    }
    found
}

/// What pools and kubelets say is what the nodes have.
fn pools(seen: &Snapshot) -> Vec<String> {
    let Some(pools) = &seen.pools else { return vec!["the pools were not read".to_owned()] };
    let mut found = Vec::new();
    if pools.len() != POOLS.len() {
        found.push(format!("{} pools of {}", pools.len(), POOLS.len()));
    }
    for pool in pools {
        let of = |record: &&Record| record.device.starts_with(&format!("{}Mvp", pool.name));
        let records = u64::try_from(seen.records.iter().filter(of).count()).unwrap_or_default();
        let Pool { name, ready, allocatable, allocated, unreachable, offered, .. } = pool;
        if *allocated != records {
            found.push(format!(
                "pool {name} says {allocated} devices in use, the nodes have {records} records"
            ));
        }
        if allocatable != offered {
            found.push(format!(
                "pool {name} says {allocatable} devices, the kubelets offer {offered} {PREFIX}/{name}"
            ));
        }
        if *unreachable > 0 || !ready {
            found.push(format!("pool {name}: ready {ready}, {unreachable} nodes unreachable"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::{Assigned, Link};
    use super::*;

    fn settled() -> Snapshot {
        let pool = |name: &str, allocated| Pool {
            name: name.into(),
            ready: true,
            allocatable: 40,
            allocated,
            offered: 40,
            ..Pool::default()
        };
        let address = "198.51.100.2".to_owned();
        let pod = Pod {
            uid: "u".into(),
            name: "p".into(),
            node: "n1".into(),
            ready: true,
            address: Some(address.clone()),
            ..Pod::default()
        };
        let link = Link {
            node: "n1".into(),
            netns: 1,
            name: "net1".into(),
            ifindex: DEVICES.start,
            mac: String::new(),
            lower: 3,
            tap: None,
            addresses: vec![address.clone()],
        };
        Snapshot {
            links: vec![link],
            addresses: Some(vec![Assigned { pod: "p".into(), address }]),
            containers: vec![Container {
                node: "n1".into(),
                pod: "u".into(),
                id: "c".into(),
                netns: 1,
                taps: vec![(DEVICES.start, "240:1".into())],
            }],
            records: vec![Record {
                node: "n1".into(),
                device: "chaos-aMvp0".into(),
                pod: "u".into(),
                ifindex: DEVICES.start,
            }],
            running: vec![("n1".into(), "u".into())],
            pods: Some(vec![pod]),
            pools: Some(vec![pool("chaos-a", 1), pool("chaos-b", 0)]),
            ..Snapshot::default()
        }
    }

    fn wanting(change: impl FnOnce(&mut Snapshot)) -> Vec<String> {
        let mut seen = settled();
        change(&mut seen);
        unsettled(&seen, &Excuses::default(), &BTreeMap::new()).1
    }

    #[test]
    fn a_settled_cluster_wants_nothing_and_each_fault_of_it_is_found() {
        assert_eq!(wanting(|_| {}), [""; 0]);
        let pod = |seen: &mut Snapshot| seen.pods.as_mut().unwrap()[0].clone();
        assert_eq!(wanting(|seen| seen.pods = Some(vec![Pod { ready: false, ..pod(seen) }])).len(), 1);
        assert_eq!(wanting(|seen| seen.records.clear()).len(), 2, "no record, and a count too high");
        assert_eq!(wanting(|seen| seen.pools.as_mut().unwrap()[0].allocated = 2).len(), 1);
        assert_eq!(wanting(|seen| seen.pools.as_mut().unwrap()[1].offered = 39).len(), 1);
        assert_eq!(wanting(|seen| seen.pools.as_mut().unwrap()[1].unreachable = 1).len(), 1);
        assert_eq!(wanting(|seen| seen.device_nodes.push(("n1".into(), 5))).len(), 1);
        assert_eq!(wanting(|seen| seen.pools = None).len(), 1);
    }

    #[test]
    fn kube_ovns_address_of_a_pod_must_be_on_its_link_and_recorded() {
        assert_eq!(wanting(|seen| seen.links[0].addresses.clear()).len(), 1);
        assert_eq!(wanting(|seen| seen.links[0].addresses = vec!["198.51.100.3".into()]).len(), 1);
        assert_eq!(wanting(|seen| seen.links[0].addresses.push("198.51.100.3".into())).len(), 1);
        assert_eq!(wanting(|seen| seen.addresses = Some(Vec::new())).len(), 1);
        let other = |seen: &mut Snapshot| "other".clone_into(&mut seen.addresses.as_mut().unwrap()[0].pod);
        assert_eq!(wanting(other).len(), 1, "a record of another pod is none");
        assert_eq!(wanting(|seen| seen.addresses = None).len(), 1);
        assert_eq!(wanting(|seen| seen.pods.as_mut().unwrap()[0].address = None), [""; 0], "not kube-ovn's");
    }

    #[test]
    fn an_address_that_kube_ovn_has_not_released_is_found() {
        let mut seen = settled();
        assert_eq!(unreleased(&seen), ["kube-ovn's 198.51.100.2 of pod p"]);
        seen.addresses = Some(Vec::new());
        assert_eq!(unreleased(&seen), [""; 0]);
        seen.addresses = None;
        assert_eq!(unreleased(&seen).len(), 1, "nobody knows");
    }

    #[test]
    fn only_a_known_limit_excuses_a_pod_that_waits() {
        let mut seen = settled();
        seen.pods.as_mut().unwrap()[0].ready = false;
        let waits =
            BTreeMap::from([("u".to_owned(), "device chaos-aMvp0 is in use by pod chaos/b".to_owned())]);
        let (_, wanting) = unsettled(&seen, &Excuses::default(), &waits);
        assert_eq!(wanting.len(), 1, "without a lost checkpoint that is a violation: {wanting:?}");
        let lost = Excuses { checkpoint_lost: ["n1".to_owned()].into(), ..Excuses::default() };
        assert_eq!(unsettled(&seen, &lost, &waits).0.excused, 1);
        assert_eq!(unsettled(&seen, &lost, &BTreeMap::new()).1.len(), 1, "another reason is none");
    }

    #[test]
    fn after_the_last_pod_nothing_is_left() {
        let mut seen = settled();
        assert_eq!(left(&seen, 40).len(), 2, "a pod, and a device in use: {:?}", left(&seen, 40));
        seen = Snapshot { pods: Some(Vec::new()), pools: seen.pools.take(), ..Snapshot::default() };
        seen.pools.as_mut().unwrap()[0].allocated = 0;
        assert_eq!(left(&seen, 40), [""; 0]);
        assert_eq!(left(&seen, 42).len(), 2, "both pools lack two devices");
    }
}
