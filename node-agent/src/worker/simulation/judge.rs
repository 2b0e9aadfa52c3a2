//! What must hold after everything that happens, and when nothing happens any more.

use super::machine::NODE;
use super::world::{RESOURCES, SimulatedNode};
use crate::devices::offer::Offer;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::record::Holder;
use macvtap::{records, table_file};
use std::collections::BTreeMap;
use std::time::Duration;

/// Rounds of ten seconds after which everything must be well again.
const ROUNDS: usize = 14;

/// Devices of each pool that a healthy node has.
const HEALTHY: u32 = 8;

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Whose each index was in this boot.
    indexes: BTreeMap<u32, DeviceId>,
    boots: u32,
    tables_lost: u32,
}

type Judgement = Result<(), String>;

fn must(holds: bool, what: impl FnOnce() -> String) -> Judgement {
    if holds { Ok(()) } else { Err(what()) }
}

impl Judge {
    pub(super) fn look(&mut self, world: &SimulatedNode) -> Judgement {
        self.indexes_are_never_used_again(world)?;
        what_is_offered_is_on_the_disk(world)?;
        pods_have_what_they_got(world)?;
        no_tap_number_of_a_pod_is_anothers(world)
    }

    fn indexes_are_never_used_again(&mut self, world: &SimulatedNode) -> Judgement {
        let seen = (world.boots, world.tables_lost);
        if (self.boots, self.tables_lost) != seen {
            (self.boots, self.tables_lost) = seen;
            self.indexes.clear();
        }
        let Ok(Some(table)) = table_file::load(&world.paths) else { return Ok(()) };
        if table.boot_id != world.boot() {
            return Ok(());
        }
        for (name, resource) in &table.resources {
            for range in resource.links().iter().flat_map(|link| &link.ranges) {
                for slot in range.slots() {
                    let (device, index) =
                        (DeviceId::new(name.clone(), slot), range.ifindex_of(slot).unwrap());
                    let first = self.indexes.entry(index).or_insert_with(|| device.clone());
                    must(*first == device, || format!("index {index} of {first} is {device}'s now"))?;
                }
            }
        }
        Ok(())
    }
}

fn what_is_offered_is_on_the_disk(world: &SimulatedNode) -> Judgement {
    let offers = &world.kubelet.offered;
    if offers.values().all(|offer| offer.runs.is_empty()) {
        return Ok(());
    }
    let table = table_file::load(&world.paths).ok().flatten().filter(|table| table.boot_id == world.boot());
    for (name, offer) in offers {
        for run in offer.runs.iter().map(|offered| &offered.run) {
            let Some(range) = run.range() else { continue };
            for slot in range.slots() {
                let device = DeviceId::new(name.clone(), slot);
                let found = table.as_ref().and_then(|table| table.macvtap(&device));
                let same = found.is_some_and(|found| {
                    Some(found.ifindex) == range.ifindex_of(slot) && found.link.ifindex == run.lower
                });
                must(same, || format!("{device} is offered and not on the disk"))?;
            }
        }
    }
    Ok(())
}

fn pods_have_what_they_got(world: &SimulatedNode) -> Judgement {
    let mut owners = BTreeMap::new();
    for (uid, pod) in world.kubelet.pods.iter().filter(|(_, pod)| !pod.ended && pod.is_up()) {
        let sandbox = pod.sandbox.as_ref().unwrap();
        let device = &pod.device;
        let before = owners.insert(device.clone(), *uid);
        must(before.is_none(), || format!("{device} has two owners, pods {uid} and {before:?}"))?;
        let record = records::read(&world.paths, device);
        let recorded = matches!(&record, Ok(Some(record)) if
            matches!(&record.holder, Holder::Pod { container_id, .. } if *container_id == sandbox.container));
        must(recorded, || format!("{device} of living pod {uid} has record {record:?}"))?;
        let index = record.unwrap().unwrap().ifindex;
        let at = (sandbox.netns, index);
        let there = world.machine.links.contains_key(&at) || world.machine.swept.contains(&at);
        must(there, || format!("the link of {device} was taken from living pod {uid}"))?;
        let node = world.paths.device_node(index);
        must(world.machine.nodes.contains_key(&node), || {
            format!("the node of {device} of pod {uid} is gone")
        })?;
    }
    Ok(())
}

fn no_tap_number_of_a_pod_is_anothers(world: &SimulatedNode) -> Judgement {
    for (uid, pod) in &world.kubelet.pods {
        let (Some(minor), Some(sandbox)) = (pod.opened, &pod.sandbox) else { continue };
        let Some((netns, index)) = world.machine.by_minor(minor) else { continue };
        let parked = netns == NODE && index >= macvtap::table::PLACEHOLDER_IFINDEX_FIRST;
        must(parked || netns == sandbox.netns, || {
            format!("pod {uid} can open tap {minor}, which is link {index} of namespace {netns} now")
        })?;
    }
    Ok(())
}

/// Lets everything heal, and looks whether it did; then ends all pods, and looks whether anything is left.
pub(super) fn settle(world: &mut SimulatedNode, judge: &mut Judge) -> Judgement {
    world.heal();
    rounds(world, judge)?;
    // Only a new pod gets a working link in place of one that went with its NIC.
    let lost: Vec<u64> = world.without_link();
    for uid in lost {
        world.end_pod(uid, false, None, false);
    }
    rounds(world, judge)?;
    everybody_is_up(world)?;
    nothing_is_left_of_pods_that_ended(world)?;
    for name in RESOURCES {
        let resource: ResourceName = name.parse().unwrap();
        let (free, uid) = (world.kubelet.allocate(&resource), world.create_pod_of(&resource));
        if let Some(device) = free.map(|granted| granted.device().clone()) {
            let up = uid.is_some_and(|uid| world.start_pod(uid, None));
            must(up || world.is_held_twice(&device), || format!("no new pod starts with {device}"))?;
        }
        judge.look(world)?;
    }
    let all: Vec<u64> = world.kubelet.pods.keys().copied().collect();
    for uid in all {
        world.end_pod(uid, false, None, false);
    }
    rounds(world, judge)?;
    nothing_is_left(world)
}

fn rounds(world: &mut SimulatedNode, judge: &mut Judge) -> Judgement {
    for _ in 0..ROUNDS {
        world.pass(Duration::from_secs(10));
        let waiting: Vec<u64> = world.kubelet.pods.keys().copied().collect();
        for uid in waiting {
            let ended = world.kubelet.pods[&uid].ended;
            if ended {
                world.end_pod(uid, false, None, false);
            } else {
                world.start_pod(uid, None);
            }
        }
        for _ in 0..3 {
            world.look();
        }
        world.decide(None);
        judge.look(world)?;
    }
    Ok(())
}

fn everybody_is_up(world: &SimulatedNode) -> Judgement {
    for (uid, pod) in &world.kubelet.pods {
        // What was promised to a pod that had nothing yet, and was forgotten by who promised it, nobody can know.
        let forgotten = !world.kubelet.given.contains_key(&pod.device);
        let up = pod.is_up() && pod.opened.is_some();
        must(up || forgotten || world.is_held_twice(&pod.device), || format!("pod {uid} is stuck: {pod:?}"))?;
    }
    Ok(())
}

/// While other pods live, which may have the names of those that ended. The record stays while a namespace has the inode
/// number of the one that is gone, and while the pod of that name has no sandbox: the kubelet forgot its device.
fn nothing_is_left_of_pods_that_ended(world: &SimulatedNode) -> Judgement {
    for record in records::list(&world.paths).unwrap().records {
        let Holder::Pod { pod_uid, pod_name, netns_inode, .. } = &record.holder else { continue };
        let pods = &world.kubelet.pods;
        let lives = pods.keys().any(|uid| uid.to_string() == *pod_uid);
        let waits = pods.values().any(|pod| pod.name == *pod_name && !pod.is_up());
        let inode_lives = world.machine.spaces.values().any(|space| space.inode == *netns_inode);
        must(lives || waits || inode_lives, || format!("the pod of this record has ended: {record:?}"))?;
    }
    Ok(())
}

fn nothing_is_left(world: &SimulatedNode) -> Judgement {
    for directory in [world.paths.attachments(), world.paths.taps(), world.paths.run().join("tap-pods")] {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        must(names.is_empty(), || format!("left in {}: {names:?}", directory.display()))?;
    }
    let nics: Vec<u32> = world.nics.iter().filter_map(|nic| nic.index).collect();
    let left = world.machine.links.iter().find(|((netns, index), _)| *netns != NODE || !nics.contains(index));
    must(left.is_none(), || format!("link left: {left:?}"))?;
    must(world.machine.nodes.is_empty(), || format!("nodes left: {:?}", world.machine.nodes))?;
    for name in RESOURCES {
        let offer = world.kubelet.offered.get(&name.parse().unwrap());
        let counts = offer.map(Offer::counts).unwrap_or_default();
        must((counts.capacity, counts.allocatable) == (HEALTHY, HEALTHY), || {
            format!("{name} has {counts:?}")
        })?;
    }
    Ok(())
}
