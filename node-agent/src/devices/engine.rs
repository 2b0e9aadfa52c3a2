//! The agent's state and its one step: links, pools and use go in; table, offers and findings come out.
//!
//! No sockets, no files, no clock: the caller brings them. Whatever order changes come in, the next step depends only
//! on where they ended, and on what pods have: who offered a device that is in use keeps it.

mod mtus;
mod offers;

use crate::devices::assignment::{
    self, Demand, DemandedLink, Evolution, Known, KnownLinks, Surroundings, Withdrawals,
};
use crate::devices::nics::{self, InPod};
use crate::devices::offer::{self, Offer};
use crate::links::health::Tracker;
use crate::links::inventory::Inventory;
use crate::links::link::{Kind, Link};
use crate::pods::PodName;
use crate::pools::pool::{Naming, Pool};
use crate::pools::selection::{self, Holding, Holdings, Selection};
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::pci::PciAddress;
use macvtap::table::{DeviceTable, IFINDEX_FIRST, LowerLink, Resource};
use mtus::SmallestMtu;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Everything the agent knows.
#[derive(Debug)]
pub struct Engine {
    /// The links.
    pub inventory: Inventory,
    /// The pools, in the order in which they choose.
    pub pools: Vec<Pool>,
    /// Devices that a pod has.
    pub in_use: BTreeSet<DeviceId>,
    /// Whole NICs that are in pods, as their records say.
    pub in_pods: BTreeMap<DeviceId, InPod>,
    table: DeviceTable,
    /// Whether the table is on the disk.
    is_stored: bool,
    boot_id: String,
    standalone: bool,
    withdrawals: Withdrawals,
    /// The pool that had each resource last.
    owners: BTreeMap<ResourceName, String>,
    /// Every NIC that is offered as a whole, as it looked when it was last seen on the node.
    seen: BTreeMap<PciAddress, Link>,
    tracker: Tracker<(ResourceName, u32)>,
    /// The smallest MTU that the link of each device in use has had since the device is in use.
    smallest_mtus: BTreeMap<DeviceId, SmallestMtu>,
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

impl Engine {
    /// Starts from the stored table; an empty one when there is none.
    pub fn new(table: DeviceTable, boot_id: String, standalone: bool) -> Self {
        Self {
            inventory: Inventory::default(),
            pools: Vec::new(),
            in_use: BTreeSet::new(),
            in_pods: BTreeMap::new(),
            table,
            is_stored: true,
            boot_id,
            standalone,
            withdrawals: Withdrawals::new(),
            owners: BTreeMap::new(),
            seen: BTreeMap::new(),
            tracker: Tracker::default(),
            smallest_mtus: BTreeMap::new(),
        }
    }

    /// Starts from a table that is not on the disk.
    pub fn rebuilt(table: DeviceTable, boot_id: String, standalone: bool) -> Self {
        Self { is_stored: false, ..Self::new(table, boot_id, standalone) }
    }

    /// The table that was stored last, or the one that this began with.
    pub fn table(&self) -> &DeviceTable {
        &self.table
    }

    /// What the CNI plugin acts on: what stands of a resource in a table that is on the disk and of this boot.
    pub fn on_disk(&self, resource: &ResourceName) -> Option<&Resource> {
        let valid = self.is_stored && self.table.boot_id == self.boot_id;
        self.table.resources.get(resource).filter(|_| valid)
    }

    /// The boot it runs in.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Takes over the table of a step, once it is on the disk.
    pub fn stored(&mut self, table: DeviceTable) {
        self.table = table;
        self.is_stored = true;
    }

    /// Whether anything is decided by this link. The links that the networks of pods are made of come and go with every
    /// pod; such a link matters only if a pool selects it, if it has a device's index, or if the table has had it.
    pub fn concerns(&self, link: &Link) -> bool {
        let has_devices = || {
            let links = self.table.resources.values().flat_map(|resource| &resource.links);
            links.into_iter().any(|lower| lower.ifindex == link.ifindex || lower.name == link.name)
        };
        !selection::is_of_pods(link)
            || link.lower.is_some_and(|lower| link.kind != Kind::Veth && self.inventory.has(lower))
            || link.ifindex >= IFINDEX_FIRST
            || self.pools.iter().any(|pool| pool.selects(link))
            || has_devices()
    }

    /// Decides everything again.
    pub fn step(&mut self, now: Instant) -> Step {
        self.remember_nics();
        self.note_mtus();
        let links = self.inventory.iter().map(known).collect();
        let selection = selection::select(&self.pools, &self.inventory, &self.holdings(&links));
        self.remember_owners(&selection);
        let demands = self.demands(&selection);
        let around = Surroundings {
            boot_id: &self.boot_id,
            links: &links,
            in_use: &self.in_use,
            standalone: self.standalone,
            now,
        };
        let mut evolution = assignment::evolve(&self.table, &demands, around, &mut self.withdrawals);
        let mut wake = evolution.next_deadline;
        let mut offers = BTreeMap::new();
        let names: BTreeSet<ResourceName> = evolution.offers.keys().chain(demands.keys()).cloned().collect();
        for resource in names {
            let runs = evolution.offers.remove(&resource).unwrap_or_default();
            let offer = self.offer(&resource, &runs, &demands, &evolution.table, &selection, now, &mut wake);
            offers.extend(offer.map(|offer| (resource, offer)));
        }
        self.tracker.forget_unseen(now);
        self.note_seen(&evolution.table);
        let table_changed = !self.is_stored || evolution.table != self.table;
        Step { evolution, table_changed, offers, selection, wake }
    }

    /// Puts the NICs that are in pods beside the links of the node, as they were before they left.
    fn remember_nics(&mut self) {
        let mut away = Vec::new();
        let nics = nics::of(&self.table);
        for nic in &nics {
            let in_pod = self.in_pods.get(&nic.device);
            if let Some(in_pod) = in_pod.filter(|_| self.nic_on_node(nic.link).is_none()) {
                // Its index may be another link's by now; the one that is kept for the device is nobody's.
                let index = nic.link.ifindex;
                let index = if index == 0 || self.inventory.has(index) { nic.ifindex } else { index };
                let seen = self.seen.get(&nic.address).cloned();
                away.push(Link { ifindex: index, ..seen.unwrap_or_else(|| in_pod.link(index)) });
            }
        }
        self.inventory.set_in_pods(away);
    }

    /// Notes how the NICs of a table look, for the time when they are in pods.
    fn note_seen(&mut self, table: &DeviceTable) {
        let nics = nics::of(table);
        let now = nics.iter().filter_map(|nic| Some((nic.address, self.nic_on_node(nic.link)?.clone())));
        let now: Vec<(PciAddress, Link)> = now.collect();
        self.seen.extend(now);
        let addresses: BTreeSet<PciAddress> = nics.iter().map(|nic| nic.address).collect();
        self.seen.retain(|address, _| addresses.contains(address));
    }

    /// The pool that had the resource when the last agent ended. A table that was rebuilt, or is of an earlier release, does
    /// not tell: then it is the one whose entry it is, if there is only one.
    fn last_owner(&self, stored: &Resource) -> Option<String> {
        if stored.pool.is_some() {
            return stored.pool.clone();
        }
        let is_of = |pool: &&Pool| {
            let entry = pool.table_entry();
            entry == Resource { pool: entry.pool.clone(), links: Vec::new(), ..stored.clone() }
        };
        let mut alike = self.pools.iter().filter(is_of);
        alike.next().filter(|_| alike.next().is_none()).map(|pool| pool.name.clone())
    }

    /// The resources of the table that the pool had last.
    pub fn resources_of<'e>(&'e self, pool: &Pool) -> impl Iterator<Item = &'e ResourceName> {
        let owner = |(resource, stored)| {
            self.owners
                .get(resource)
                .cloned()
                .or_else(|| self.last_owner(stored))
                .filter(|owner| *owner == pool.name)
        };
        self.table.resources.iter().filter(move |entry| owner(*entry).is_some()).map(|(resource, _)| resource)
    }

    /// A pool whose links are gone for a while still had the resource.
    fn remember_owners(&mut self, selection: &Selection) {
        let Self { owners, table, pools, .. } = self;
        owners.retain(|resource, _| table.resources.contains_key(resource));
        let claims = selection.resources.iter();
        owners.extend(claims.map(|(resource, claim)| (resource.clone(), pools[claim.pool].name.clone())));
    }

    /// The link of a NIC of the table, while it is on the node.
    pub fn nic_on_node(&self, nic: &LowerLink) -> Option<&Link> {
        self.inventory.with_function(nic.pci?).find(|link| assignment::is_nic(nic, &known(link).1))
    }

    /// The pod that a NIC is in.
    pub fn pod_of(&self, link: &Link) -> Option<&PodName> {
        let address = link.pci_function().filter(|_| self.inventory.is_in_pod(link.ifindex))?;
        self.in_pods.values().find(|in_pod| in_pod.nic.pci == address).map(|in_pod| &in_pod.pod)
    }

    /// Devices in use, by link.
    fn holdings(&self, links: &KnownLinks) -> Holdings {
        let mut holdings = Holdings::new();
        for device in &self.in_use {
            let Some(found) = self.table.device(device) else {
                continue;
            };
            let resource = device.resource();
            let pool = self.owners.get(resource).cloned().or_else(|| self.last_owner(found.resource));
            let holding = Holding { resource: resource.clone(), mode: found.link.mode, pool };
            let moved = found.link.pci.and_then(|_| assignment::find_nic(found.link, links));
            let list = holdings.entry(moved.unwrap_or(found.link.ifindex)).or_default();
            if !list.contains(&holding) {
                list.push(holding);
            }
        }
        holdings
    }

    fn demands(&self, selection: &Selection) -> BTreeMap<ResourceName, Demand> {
        let mut demands: BTreeMap<ResourceName, Demand> = BTreeMap::new();
        for (index, pool) in self.pools.iter().enumerate() {
            let outcome = &selection.pools[index];
            if pool.is_dry_run() || outcome.name_taken_by.is_some() {
                continue;
            }
            let demand = |links| Demand { entry: pool.table_entry(), mode: pool.mode(), links };
            // Known to the kubelet even without a link, as a resource of which there is none.
            if let Naming::Fixed(resource) = &pool.naming {
                demands.insert(resource.clone(), demand(Vec::new()));
            }
            let listed = match &pool.naming {
                Naming::Fixed(resource) => Some(offer::devices_max(resource)),
                // The list of one link is never too long.
                Naming::AfterLink => None,
            };
            let per_node = pool.settings.per_node().into_iter().chain(listed).min();
            let shares = assignment::share(pool.settings.per_link(), per_node, outcome.links.len());
            for (ifindex, count) in outcome.links.iter().zip(shares) {
                let link = self.inventory.get(*ifindex);
                let Some(resource) = link.and_then(|link| pool.resource_for(link).ok()) else {
                    continue;
                };
                let count = if pool.draining { 0 } else { count };
                let count = if pool.gives_nics() { count.min(1) } else { count };
                let links = &mut demands.entry(resource).or_insert_with(|| demand(Vec::new())).links;
                links.push(DemandedLink { ifindex: *ifindex, count });
            }
        }
        demands
    }
}

fn known(link: &Link) -> (u32, Known) {
    (
        link.ifindex,
        Known { name: link.name.clone(), identity: assignment::identity(link), pci: link.pci_function() },
    )
}

#[cfg(test)]
mod tests;
