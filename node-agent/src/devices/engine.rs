//! The agent's decisions: what is observed ([`World`]) and what was decided before ([`Memory`]) go in; table, offers and
//! findings come out.
//!
//! No sockets, no files, no clock: the caller brings them. Whatever order changes come in, the next step depends only
//! on where they ended, and on what pods have: who offered a device that is in use keeps it.

mod memory;
mod mtus;
mod offers;
mod world;

use crate::devices::assignment::{self, Evolution, Surroundings};
use crate::devices::offer::Offer;
use crate::links::link::{Kind, Link};
use crate::pods::PodName;
use crate::pools::pool::Pool;
use crate::pools::selection::{self, Selection};
use macvtap::device_id::ResourceName;
use macvtap::table::{DeviceTable, IFINDEX_FIRST, Resource, WholeNic};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

pub use memory::Memory;
pub use world::World;

/// The world as it was observed last, and what was decided so far.
#[derive(Debug)]
pub struct Engine {
    /// What is observed.
    pub world: World,
    memory: Memory,
}

/// What a step found.
#[derive(Clone, Debug)]
pub struct Step {
    /// Table and what became of devices.
    pub evolution: Evolution,
    /// Whether the table is another one than that on the disk.
    pub table_changed: bool,
    /// What to offer, by resource.
    pub offers: BTreeMap<ResourceName, Offer>,
    /// Who has which link.
    pub selection: Selection,
    /// When the next step is due although nothing happened.
    pub wake: Option<Instant>,
}

/// Decides everything again.
pub fn step(world: &World, memory: &mut Memory, now: Instant) -> Step {
    memory.note_mtus(world);
    let links = world.known_links();
    let selection = selection::select(&world.pools, &world.inventory, &memory.holdings(world, &links));
    memory.note_owners(world, &selection);
    let demands = world.demands(&selection);
    let around = Surroundings {
        boot_id: &memory.boot_id,
        links: &links,
        in_use: &world.in_use,
        standalone: memory.standalone,
        now,
    };
    let mut evolution = assignment::evolve(&memory.table, &demands, around, &mut memory.withdrawals);
    let mut wake = evolution.next_deadline;
    let mut offers = BTreeMap::new();
    let names: BTreeSet<ResourceName> = evolution.offers.keys().chain(demands.keys()).cloned().collect();
    for resource in names {
        let runs = evolution.offers.remove(&resource).unwrap_or_default();
        let stored = evolution.table.resources.get(&resource);
        let Some(entry) = stored.or_else(|| demands.get(&resource).map(|demand| &demand.entry)) else {
            continue;
        };
        let pool = world.pool_of(&resource, &selection);
        let (offer, due) = memory.offer(world, &resource, entry, pool, runs, now);
        wake = wake.into_iter().chain(due).min();
        offers.insert(resource, offer);
    }
    memory.tracker.forget_unseen(now);
    memory.note_nics(world, &evolution.table);
    let table_changed = !memory.is_stored || evolution.table != memory.table;
    Step { evolution, table_changed, offers, selection, wake }
}

impl Engine {
    /// Starts from the stored table; an empty one when there is none.
    pub fn new(table: DeviceTable, boot_id: String, standalone: bool) -> Self {
        Self { world: World::default(), memory: Memory::new(table, true, boot_id, standalone) }
    }

    /// Starts from a table that is not on the disk.
    pub fn rebuilt(table: DeviceTable, boot_id: String, standalone: bool) -> Self {
        Self { world: World::default(), memory: Memory::new(table, false, boot_id, standalone) }
    }

    /// Decides everything again.
    pub fn step(&mut self, now: Instant) -> Step {
        self.world.place_nics(&self.memory);
        step(&self.world, &mut self.memory, now)
    }

    /// The table that was stored last, or the one that this began with.
    pub fn table(&self) -> &DeviceTable {
        &self.memory.table
    }

    /// What the CNI plugin acts on: what stands of a resource in a table that is on the disk and of this boot.
    pub fn on_disk(&self, resource: &ResourceName) -> Option<&Resource> {
        let Memory { table, is_stored, boot_id, .. } = &self.memory;
        table.resources.get(resource).filter(|_| *is_stored && table.boot_id == *boot_id)
    }

    /// The boot it runs in.
    pub fn boot_id(&self) -> &str {
        &self.memory.boot_id
    }

    /// Takes over the table of a step, once it is on the disk.
    pub fn stored(&mut self, table: DeviceTable) {
        self.memory.table = table;
        self.memory.is_stored = true;
    }

    /// Whether anything is decided by this link. The links that the networks of pods are made of come and go with every
    /// pod; such a link matters only if a pool selects it, if it has a device's index, or if the table has had it.
    pub fn concerns(&self, link: &Link) -> bool {
        let World { inventory, pools, .. } = &self.world;
        let has_devices = || {
            let is_it = |ifindex: u32, name: &str| ifindex == link.ifindex || name == link.name;
            self.table().resources.values().any(|resource| {
                resource.links().iter().any(|lower| is_it(lower.ifindex, &lower.name))
                    || resource.nics().iter().any(|nic| is_it(nic.ifindex, &nic.name))
            })
        };
        !selection::is_of_pods(link)
            || link.lower.is_some_and(|lower| link.kind != Kind::Veth && inventory.has(lower))
            || link.ifindex >= IFINDEX_FIRST
            || pools.iter().any(|pool| pool.selects(link))
            || has_devices()
    }

    /// The resources of the table that the pool had last.
    pub fn resources_of<'e>(&'e self, pool: &Pool) -> impl Iterator<Item = &'e ResourceName> {
        let owns = move |(resource, stored): &(&ResourceName, &Resource)| {
            self.memory.owner(&self.world.pools, resource, stored).is_some_and(|owner| owner == pool.name)
        };
        self.table().resources.iter().filter(owns).map(|(resource, _)| resource)
    }

    /// The link of a NIC of the table, while it is on the node.
    pub fn nic_on_node(&self, nic: &WholeNic) -> Option<&Link> {
        self.world.nic_on_node(nic)
    }

    /// The pod that a NIC is in.
    pub fn pod_of(&self, link: &Link) -> Option<&PodName> {
        let World { inventory, in_pods, .. } = &self.world;
        let address = link.pci_function().filter(|_| inventory.is_in_pod(link.ifindex))?;
        in_pods.values().find(|in_pod| in_pod.nic.pci == address).map(|in_pod| &in_pod.pod)
    }

    /// The MTU that pods on the link were left with when the link's own was lowered and raised again.
    pub fn lowered_mtu(&self, link: &Link) -> Option<u32> {
        self.memory.lowered_mtu(link)
    }
}

#[cfg(test)]
mod tests;
