//! The model: what must be true at every moment, whatever is broken. Pure; the rules of the end are in `settle`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::kube_ovn;
use super::snapshot::{Container, DEVICES, Link, Snapshot};

/// So long after the end of its pod nothing of it may be left, whatever is broken meanwhile. The agent takes a minute for what no
/// DEL removed, and begins again when it or the kubelet is restarted, which faults do several times in five minutes.
const ORPHAN: Duration = Duration::from_mins(10);

/// A verdict of silence is wrong when nothing was broken for so long before it.
const QUIET: Duration = Duration::from_mins(3);

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Violation {
    /// Two pods hold one device.
    TwoOwners(String),
    /// A container that runs lost its link, or it changed.
    Taken(String),
    /// A container can open the tap of another pod.
    TapReused(String),
    /// Two pods have one address: of a node's range on one node, of kube-ovn anywhere.
    AddressTwice(String),
    /// kube-ovn's address of a pod that lives became another one.
    AddressChanged(String),
    /// Something was left of a pod that ended long ago.
    Orphan(String),
    /// A node was called silent though nothing was broken.
    FalseVerdict(String),
}

/// What a container had when it was seen first.
type Held = Vec<Link>;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Judge {
    held: BTreeMap<String, Held>,
    /// kube-ovn's address of each pod.
    addresses: BTreeMap<String, String>,
    /// Lower links that a fault deleted: node and index.
    deleted: BTreeSet<(String, u32)>,
    /// When each orphan was seen first.
    orphans: BTreeMap<String, Duration>,
    /// What a single observation may show while links are read one after the other.
    doubtful: BTreeSet<Violation>,
    last_fault: Duration,
}

impl Judge {
    /// A fault begins or goes on at this moment.
    pub(super) fn disturbed(&mut self, at: Duration) {
        self.last_fault = self.last_fault.max(at);
    }

    /// A fault is about to delete this lower link, and the macvtaps on it go with it.
    pub(super) fn deleted(&mut self, node: &str, ifindex: u32) {
        self.deleted.insert((node.to_owned(), ifindex));
    }

    /// Compares an observation with the model.
    pub(super) fn observe(&mut self, seen: &Snapshot) -> Vec<Violation> {
        let mut found = self.taken(seen);
        found.extend(taps_reused(seen));
        found.extend(self.addresses_changed(seen));
        found.extend(self.orphans(seen));
        found.extend(self.false_verdicts(seen));
        let doubtful: BTreeSet<Violation> =
            two_owners(seen).into_iter().chain(addresses_twice(seen)).chain(assigned_twice(seen)).collect();
        found.extend(doubtful.intersection(&self.doubtful).cloned());
        self.doubtful = doubtful;
        found
    }

    /// Nothing is taken from a container that runs: each link it had keeps index, addresses and tap number.
    fn taken(&mut self, seen: &Snapshot) -> Vec<Violation> {
        let mut found = Vec::new();
        for container in &seen.containers {
            let now: Held = links_of(container, seen).into_iter().cloned().collect();
            let key = format!("{}/{}", container.node, container.id);
            let held = self.held.entry(key).or_insert_with(|| now.clone());
            held.retain(|link| !self.deleted.contains(&(link.node.clone(), link.lower)));
            for before in held.iter() {
                if !now.iter().any(|link| same(link, before)) {
                    let what = format!("container {} of pod {} had {before:?}", container.id, container.pod);
                    found.push(Violation::Taken(format!("{what}, now {now:?}")));
                }
            }
        }
        // A container that was reported once is enough.
        if !found.is_empty() {
            self.held.clear();
        }
        found
    }

    /// A pod keeps its address, also in another sandbox.
    fn addresses_changed(&mut self, seen: &Snapshot) -> Vec<Violation> {
        let mut found = Vec::new();
        for (container, now) in assigned(seen) {
            let before = self.addresses.entry(container.pod.clone()).or_insert_with(|| now.to_owned());
            if before != now {
                found.push(Violation::AddressChanged(format!(
                    "pod {} had {before}, now {now}",
                    container.pod
                )));
            }
        }
        found
    }

    /// Whatever names a pod goes with it.
    fn orphans(&mut self, seen: &Snapshot) -> Vec<Violation> {
        // Without the API server nobody knows which pods exist.
        if seen.pods.is_none() {
            return Vec::new();
        }
        let now: BTreeSet<String> = orphans(seen).into_iter().collect();
        self.orphans.retain(|orphan, _| now.contains(orphan));
        for orphan in now {
            self.orphans.entry(orphan).or_insert(seen.at);
        }
        let old = |since: &Duration| seen.at.saturating_sub(*since) > ORPHAN;
        let old = self.orphans.iter().filter(|(_, since)| old(since));
        old.map(|(orphan, _)| Violation::Orphan(orphan.clone())).collect()
    }

    /// No node that answers is called silent.
    fn false_verdicts(&self, seen: &Snapshot) -> Vec<Violation> {
        let pools = seen.pools.iter().flatten();
        let silent = pools.filter(|_| seen.at.saturating_sub(self.last_fault) > QUIET);
        let silent = silent.filter(|pool| pool.unreachable > 0);
        silent
            .map(|pool| {
                Violation::FalseVerdict(format!("{}: {} nodes unreachable", pool.name, pool.unreachable))
            })
            .collect()
    }
}

fn same(link: &Link, before: &Link) -> bool {
    let tap = link.tap.is_none() || before.tap.is_none() || link.tap == before.tap;
    tap && (link.netns, link.ifindex, &link.mac, &link.addresses)
        == (before.netns, before.ifindex, &before.mac, &before.addresses)
}

/// The macvtaps of a container: those of its network namespace, and those of the node that it can open.
fn links_of<'s>(container: &Container, seen: &'s Snapshot) -> Vec<&'s Link> {
    let can_open = |link: &Link| container.taps.iter().any(|(ifindex, _)| *ifindex == link.ifindex);
    let own = |link: &&Link| link.node == container.node && (link.netns == container.netns || can_open(link));
    seen.links.iter().filter(own).collect()
}

/// No device has two owners.
fn two_owners(seen: &Snapshot) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut owners: BTreeMap<(&str, u32), BTreeSet<&str>> = BTreeMap::new();
    for container in &seen.containers {
        for (ifindex, _) in &container.taps {
            owners.entry((&container.node, *ifindex)).or_default().insert(&container.pod);
        }
    }
    for ((node, ifindex), pods) in owners.iter().filter(|(_, pods)| pods.len() > 1) {
        found.push(Violation::TwoOwners(format!("{node}: tap{ifindex} is of pods {pods:?}")));
    }
    let mut places: BTreeMap<(&str, u32), BTreeSet<u64>> = BTreeMap::new();
    for link in seen.links.iter().filter(|link| DEVICES.contains(&link.ifindex)) {
        places.entry((&link.node, link.ifindex)).or_default().insert(link.netns);
    }
    for ((node, ifindex), places) in places.iter().filter(|(_, places)| places.len() > 1) {
        let places = places.iter().filter(|netns| seen.containers.iter().any(|other| other.netns == **netns));
        if places.count() > 1 {
            found.push(Violation::TwoOwners(format!("{node}: index {ifindex} is in two pods")));
        }
    }
    found
}

/// No container can open the tap of another one of its node: the number of a lost link is given to nobody while its node is
/// held. The other node of this machine knows nothing of that, as it has a kernel of its own elsewhere.
fn taps_reused(seen: &Snapshot) -> Vec<Violation> {
    let mut found = Vec::new();
    for container in &seen.containers {
        for (ifindex, number) in &container.taps {
            let others = seen.links.iter().filter(|link| link.tap.as_ref() == Some(number));
            let others = others.filter(|link| DEVICES.contains(&link.ifindex));
            for other in others.filter(|link| link.node == container.node && link.ifindex != *ifindex) {
                found.push(Violation::TapReused(format!(
                    "pod {} on {} can open tap{ifindex} {number}, which is {other:?}",
                    container.pod, container.node
                )));
            }
        }
    }
    found
}

/// The addresses of kube-ovn and the containers that have them, of pods that the API server has and that are to run: kube-ovn
/// releases the address of a pod that was deleted, whether its containers still run or not.
pub(super) fn assigned(seen: &Snapshot) -> Vec<(&Container, &str)> {
    let lives = |uid: &str| seen.pods.iter().flatten().any(|pod| pod.uid == uid && pod.lives());
    let mut found = Vec::new();
    for container in seen.containers.iter().filter(|container| lives(&container.pod)) {
        let addresses = links_of(container, seen).into_iter().flat_map(|link| &link.addresses);
        let addresses = addresses.filter(|address| kube_ovn::assigned(address));
        found.extend(addresses.map(|address| (container, address.as_str())));
    }
    found
}

/// No two pods that live have one address of kube-ovn, on whatever nodes.
fn assigned_twice(seen: &Snapshot) -> Vec<Violation> {
    let mut pods: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (container, address) in assigned(seen) {
        pods.entry(address).or_default().insert(&container.pod);
    }
    let twice = pods.iter().filter(|(_, pods)| pods.len() > 1);
    twice.map(|(address, pods)| Violation::AddressTwice(format!("{address} is in pods {pods:?}"))).collect()
}

/// No two pods of a node have one address of its range: leases are of a node.
fn addresses_twice(seen: &Snapshot) -> Vec<Violation> {
    let mut places: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for link in &seen.links {
        for address in link.addresses.iter().filter(|address| !kube_ovn::assigned(address)) {
            places.entry((&link.node, address)).or_default().insert(link.netns);
        }
    }
    let twice = places.iter().filter(|(_, places)| places.len() > 1);
    twice
        .map(|((node, address), _)| Violation::AddressTwice(format!("{node}: {address} is in two pods")))
        .collect()
}

/// Records, device nodes and links whose pod neither runs nor is known to the API server.
pub(super) fn orphans(seen: &Snapshot) -> Vec<String> {
    let known: BTreeSet<&str> = seen
        .pods
        .iter()
        .flatten()
        .map(|pod| pod.uid.as_str())
        .chain(seen.running.iter().map(|(_, uid)| uid.as_str()))
        .collect();
    let mut found = Vec::new();
    let held: BTreeSet<(&str, u32)> = seen
        .containers
        .iter()
        .flat_map(|container| container.taps.iter().map(|(ifindex, _)| (container.node.as_str(), *ifindex)))
        .collect();
    let mut of_a_pod = held.clone();
    for record in &seen.records {
        let here = (record.node.as_str(), record.ifindex);
        if known.contains(record.pod.as_str()) || (record.pod.is_empty() && held.contains(&here)) {
            of_a_pod.insert(here);
        } else {
            found.push(format!("{}: record {} of pod {:?}", record.node, record.device, record.pod));
        }
    }
    let is_left = |node: &String, ifindex: &u32| !of_a_pod.contains(&(node.as_str(), *ifindex));
    let nodes = seen.device_nodes.iter().filter(|(node, ifindex)| is_left(node, ifindex));
    found.extend(nodes.map(|(node, ifindex)| format!("{node}: device node {ifindex}")));
    // A placeholder stays as long as a record names its number.
    let links = seen.links.iter().filter(|link| DEVICES.contains(&link.ifindex));
    let links = links.filter(|link| is_left(&link.node, &link.ifindex));
    found.extend(links.map(|link| format!("{}: link {} {}", link.node, link.name, link.ifindex)));
    found
}

#[cfg(test)]
mod tests;
