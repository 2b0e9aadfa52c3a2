//! What is observed.

use super::Memory;
use crate::devices::assignment::{self, Demand, DemandedLink, Known, KnownLinks};
use crate::devices::nics::InPod;
use crate::devices::offer;
use crate::links::inventory::Inventory;
use crate::links::link::Link;
use crate::pools::pool::{Naming, Pool};
use crate::pools::selection::Selection;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::table::WholeNic;
use std::collections::{BTreeMap, BTreeSet};

/// The first of the indexes under which NICs that are in pods are listed. The kernel gives a link no such index.
const AWAY_FIRST: u32 = 1 << 31;

/// Links, pools and use, as they were observed last.
#[derive(Debug, Default)]
pub struct World {
    /// The links.
    pub inventory: Inventory,
    /// The pools, in the order in which they choose.
    pub pools: Vec<Pool>,
    /// Devices that a pod has.
    pub in_use: BTreeSet<DeviceId>,
    /// Whole NICs that are in pods, as their records say.
    pub in_pods: BTreeMap<DeviceId, InPod>,
}

impl World {
    /// Puts the NICs that are in pods beside the links of the node, as they were before they left.
    pub(super) fn place_nics(&mut self, memory: &Memory) {
        let mut taken: BTreeSet<u32> = memory.table.nics().map(|(_, found)| found.nic.ifindex).collect();
        let mut away = Vec::new();
        for (device, found) in memory.table.nics() {
            let in_pod = self.in_pods.get(&device);
            if let Some(in_pod) = in_pod.filter(|_| self.nic_on_node(found.nic).is_none()) {
                let mut index = found.nic.ifindex;
                // Another link's by now.
                if index == 0 || self.inventory.has(index) {
                    index = (AWAY_FIRST..=u32::MAX).find(|index| taken.insert(*index)).unwrap_or_default();
                }
                let seen = memory.nics.get(&found.nic.address).cloned();
                away.push(Link { ifindex: index, ..seen.unwrap_or_else(|| in_pod.link(index)) });
            }
        }
        self.inventory.set_in_pods(away);
    }

    /// The link of a NIC of the table, while it is on the node.
    pub(super) fn nic_on_node(&self, nic: &WholeNic) -> Option<&Link> {
        self.inventory.with_function(nic.address).find(|link| assignment::is_nic(nic, &known(link).1))
    }

    pub(super) fn known_links(&self) -> KnownLinks {
        self.inventory.iter().map(known).collect()
    }

    /// The pool that has the resource, or gives it its name.
    pub(super) fn pool_of(&self, resource: &ResourceName, selection: &Selection) -> Option<&Pool> {
        let claimed = selection.resources.get(resource).and_then(|claim| self.pools.get(claim.pool));
        let is_named = |pool: &&Pool| pool.naming == Naming::Fixed(resource.clone());
        claimed.or_else(|| self.pools.iter().find(is_named))
    }

    pub(super) fn demands(&self, selection: &Selection) -> BTreeMap<ResourceName, Demand> {
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
