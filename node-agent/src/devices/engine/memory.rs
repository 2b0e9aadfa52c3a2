//! What was decided, and what was seen on the way.

use super::World;
use super::mtus::SmallestMtu;
use crate::devices::assignment::{self, KnownLinks, Withdrawals};
use crate::links::health::Tracker;
use crate::links::link::Link;
use crate::pools::pool::Pool;
use crate::pools::selection::{Holding, Holdings, Selection};
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::mode::Mode;
use macvtap::pci::PciAddress;
use macvtap::table::{Device, DeviceTable, Devices, Resource};
use std::collections::{BTreeMap, BTreeSet};

/// What decides in addition to the world as it is.
#[derive(Debug)]
pub struct Memory {
    pub(super) table: DeviceTable,
    /// Whether the table is on the disk.
    pub(super) is_stored: bool,
    pub(super) boot_id: String,
    pub(super) standalone: bool,
    pub(super) withdrawals: Withdrawals,
    /// The pool that had each resource last.
    pub(super) owners: BTreeMap<ResourceName, String>,
    /// Every NIC that is offered as a whole, as it looked when it was last seen on the node.
    pub(super) nics: BTreeMap<PciAddress, Link>,
    pub(super) tracker: Tracker<(ResourceName, u32)>,
    /// The smallest MTU that the link of each device in use has had since the device is in use.
    pub(super) smallest_mtus: BTreeMap<DeviceId, SmallestMtu>,
}

impl Memory {
    pub(super) fn new(table: DeviceTable, is_stored: bool, boot_id: String, standalone: bool) -> Self {
        Self {
            table,
            is_stored,
            boot_id,
            standalone,
            withdrawals: Withdrawals::new(),
            owners: BTreeMap::new(),
            nics: BTreeMap::new(),
            tracker: Tracker::default(),
            smallest_mtus: BTreeMap::new(),
        }
    }

    /// Notes how the NICs of a table look, for the time when they are in pods.
    pub(super) fn note_nics(&mut self, world: &World, table: &DeviceTable) {
        let nics = || table.nics().map(|(_, found)| found.nic);
        self.nics.extend(nics().filter_map(|nic| Some((nic.address, world.nic_on_node(nic)?.clone()))));
        let addresses: BTreeSet<PciAddress> = nics().map(|nic| nic.address).collect();
        self.nics.retain(|address, _| addresses.contains(address));
    }

    /// The pool that had the resource last.
    pub(super) fn owner(&self, pools: &[Pool], resource: &ResourceName, stored: &Resource) -> Option<String> {
        self.owners.get(resource).cloned().or_else(|| last_owner(pools, stored))
    }

    /// A pool whose links are gone for a while still had the resource.
    pub(super) fn note_owners(&mut self, world: &World, selection: &Selection) {
        let Self { owners, table, .. } = self;
        owners.retain(|resource, _| table.resources.contains_key(resource));
        let claims = selection.resources.iter();
        owners
            .extend(claims.map(|(resource, claim)| (resource.clone(), world.pools[claim.pool].name.clone())));
    }

    /// Devices in use, by link.
    pub(super) fn holdings(&self, world: &World, links: &KnownLinks) -> Holdings {
        let mut holdings = Holdings::new();
        for device in &world.in_use {
            let (stored, mode, ifindex) = match self.table.device(device) {
                Some(Device::Macvtap(found)) => (found.resource, found.link.mode, found.link.ifindex),
                Some(Device::Nic(found)) => {
                    let ifindex = assignment::find_nic(found.nic, links).unwrap_or(found.nic.ifindex);
                    // Others can have as little on it.
                    (found.resource, Mode::Passthru, ifindex)
                }
                None => continue,
            };
            let resource = device.resource();
            let pool = self.owner(&world.pools, resource, stored);
            let holding = Holding { resource: resource.clone(), mode, pool };
            let list = holdings.entry(ifindex).or_default();
            if !list.contains(&holding) {
                list.push(holding);
            }
        }
        holdings
    }
}

/// The pool that had the resource when the last agent ended. A table that was rebuilt, or is of an earlier release, does
/// not show it: then it is the one whose entry it is, if there is only one.
fn last_owner(pools: &[Pool], stored: &Resource) -> Option<String> {
    if stored.pool.is_some() {
        return stored.pool.clone();
    }
    let is_of = |pool: &&Pool| {
        let entry = pool.table_entry();
        let devices = Devices::none(stored.device_type());
        entry == Resource { pool: entry.pool.clone(), devices, ..stored.clone() }
    };
    let mut alike = pools.iter().filter(is_of);
    alike.next().filter(|_| alike.next().is_none()).map(|pool| pool.name.clone())
}
