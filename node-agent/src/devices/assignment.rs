//! How the device table changes when links, pools or use change: a pure function.
//!
//! A device once advertised keeps its index for as long as it is in the table, and an index is never used again within
//! a boot. Growing adds a range. Shrinking stops advertising free devices from the top; they stay in the table for
//! [`GRACE`], so that an Allocate that was under way still ends well, and leave it after that.
//!
//! A link is known by its index within a boot. What was recreated (a NIC after its driver was reloaded, a bond that was
//! deleted and set up again, everything after a reboot) is the same link when its [`LinkIdentity`] is, and gets its
//! devices back.
//!
//! A NIC that is given away as a whole is known by what it is alone, never by its index, and is one device: its rules
//! are in [`nics`].

mod adopted;
mod known;
mod nics;
mod slots;

pub use known::{Known, KnownLinks};
pub use nics::{find as find_nic, is_same as is_nic};
pub use slots::{LinkRun, Run, RunDevices};

use crate::links::link::{Kind, Link};
use adopted::adopt;
use macvtap::device_id::{DeviceId, ResourceName, SLOT_MAX};
use macvtap::mode::Mode;
use macvtap::table::{
    DeviceTable, DeviceType, Devices, IFINDEX_FIRST, IFINDEX_LAST, LinkIdentity, LowerLink, Resource,
    SlotRange, VERSION,
};
use slots::Split;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a device that is no longer advertised can still be allocated.
pub const GRACE: Duration = Duration::from_mins(1);

/// The desired state of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Everything but links, as the table has it.
    pub entry: Resource,
    /// Mode of devices from now on.
    pub mode: Mode,
    /// Its links, in the order of discovery.
    pub links: Vec<DemandedLink>,
}

/// A link of a resource, and how many devices it should offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DemandedLink {
    /// Its index.
    pub ifindex: u32,
    /// Devices.
    pub count: u32,
}

/// What is known beside the table.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// This boot.
    pub boot_id: &'a str,
    /// Every link of the node, by index.
    pub links: &'a KnownLinks,
    /// Devices that a pod has, as far as anybody knows.
    pub in_use: &'a BTreeSet<DeviceId>,
    /// Whether the agent runs without the API.
    pub standalone: bool,
    /// This moment.
    pub now: Instant,
}

/// Since when each device is in the table without being advertised.
pub type Withdrawals = BTreeMap<DeviceId, Instant>;

/// The new table, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evolution {
    /// To be stored before anything new is advertised.
    pub table: DeviceTable,
    /// What to advertise, and what to honour in addition, by resource.
    pub offers: BTreeMap<ResourceName, Vec<LinkRun>>,
    /// Links (by resource and index) whose devices in use keep another mode than the resource's.
    pub mode_pending: BTreeSet<(ResourceName, u32)>,
    /// Links (by resource and name) that are gone while another one has their name.
    pub replaced: BTreeSet<(ResourceName, String)>,
    /// Whether indexes or slots ran out: some devices are missing.
    pub exhausted: bool,
    /// When the next withdrawn device leaves the table.
    pub next_deadline: Option<Instant>,
}

/// An empty table.
pub fn empty(boot_id: &str, standalone: bool) -> DeviceTable {
    DeviceTable {
        version: VERSION,
        boot_id: boot_id.to_owned(),
        next_ifindex: IFINDEX_FIRST,
        standalone,
        ..DeviceTable::default()
    }
}

/// What a link is known by across boots: a NIC by the device it is on, everything else by kind and name.
pub fn identity(link: &Link) -> LinkIdentity {
    match (&link.kind, link.own_mac(), &link.hardware.parent) {
        (Kind::Physical, Some(mac), Some(parent)) => LinkIdentity::Hardware { mac, parent: parent.clone() },
        _ => LinkIdentity::Name { kind: link.kind.rtnetlink().to_owned(), name: link.name.clone() },
    }
}

/// The identity of a link of which nobody has noted what it was.
pub fn nowhere() -> LinkIdentity {
    LinkIdentity::Name { kind: String::new(), name: String::new() }
}

/// Shares `per_node` out evenly over `links` links of at most `per_link` each; the first ones get the remainder.
pub fn share(per_link: u32, per_node: Option<u32>, links: usize) -> Vec<u32> {
    let links = u32::try_from(links).unwrap_or(u32::MAX);
    let total = per_node.unwrap_or(u32::MAX);
    let (Some(each), Some(rest)) = (total.checked_div(links), total.checked_rem(links)) else {
        return Vec::new();
    };
    (0..links).map(|place| (each + u32::from(place < rest)).min(per_link)).collect()
}

/// The next table.
pub fn evolve(
    old: &DeviceTable,
    demands: &BTreeMap<ResourceName, Demand>,
    around: Surroundings<'_>,
    withdrawals: &mut Withdrawals,
) -> Evolution {
    let mut next = Evolution {
        table: empty(around.boot_id, around.standalone),
        offers: BTreeMap::new(),
        mode_pending: BTreeSet::new(),
        replaced: BTreeSet::new(),
        exhausted: false,
        next_deadline: None,
    };
    next.table.next_ifindex = first_unused(old);
    let same_boot = old.boot_id == around.boot_id;
    let held = nics::held(old, around.in_use);
    let mut still_withdrawn = Withdrawals::new();
    let names: BTreeSet<&ResourceName> = old.resources.keys().chain(demands.keys()).collect();
    for name in names {
        let (before, demand) = settle_type(name, old.resources.get(name), demands.get(name), around.in_use);
        let Some(entry) = demand.map(|d| &d.entry).or(before) else {
            continue;
        };
        let mut work =
            Work { name, around, withdrawals, still_withdrawn: &mut still_withdrawn, next: &mut next };
        let devices = match entry.device_type() {
            DeviceType::Macvtap => {
                let links = before.map_or(&[][..], Resource::links);
                Devices::Macvtaps(work.macvtaps(adopt(links, demand, around, same_boot), demand))
            }
            DeviceType::HostDevice => {
                let nics = nics::adopt(before.map_or(&[][..], Resource::nics), around, same_boot);
                Devices::Nics(work.nics(nics, demand, &held))
            }
        };
        if !devices.is_empty() {
            next.table.resources.insert(name.clone(), Resource { devices, ..entry.clone() });
        }
    }
    let deadlines = still_withdrawn.values().map(|since| *since + GRACE);
    next.next_deadline = deadlines.filter(|deadline| *deadline > around.now).min();
    *withdrawals = still_withdrawn;
    next
}

/// The first index that the table says was never given out. A damaged number in the file must not give an index twice.
fn first_unused(table: &DeviceTable) -> u32 {
    let links = table.resources.values().flat_map(Resource::links);
    let ends =
        links.flat_map(|link| &link.ranges).map(|range| range.first_ifindex.saturating_add(range.count));
    ends.max().unwrap_or_default().max(table.next_ifindex).max(IFINDEX_FIRST)
}

/// The resource before and the demand that count. What a device is does not change under a pod: as long as one has a
/// device of the earlier type, the resource is what it was and offers nothing new. Free devices of it go at once.
fn settle_type<'t>(
    name: &ResourceName,
    before: Option<&'t Resource>,
    demand: Option<&'t Demand>,
    in_use: &BTreeSet<DeviceId>,
) -> (Option<&'t Resource>, Option<&'t Demand>) {
    let same = |(before, demand): (&Resource, &Demand)| before.device_type() == demand.entry.device_type();
    if before.zip(demand).is_none_or(same) {
        return (before, demand);
    }
    if in_use.iter().any(|device| device.resource() == name) { (before, None) } else { (None, demand) }
}

fn wanted(demand: Option<&Demand>, ifindex: u32) -> u32 {
    let links = demand.map_or(&[][..], |demand| demand.links.as_slice());
    links.iter().find(|link| link.ifindex == ifindex).map_or(0, |link| link.count)
}

/// One resource on its way from the old table to the new one.
struct Work<'w> {
    name: &'w ResourceName,
    around: Surroundings<'w>,
    withdrawals: &'w Withdrawals,
    still_withdrawn: &'w mut Withdrawals,
    next: &'w mut Evolution,
}

impl Work<'_> {
    /// Decides about the macvtaps of these links.
    fn macvtaps(&mut self, mut links: Vec<LowerLink>, demand: Option<&Demand>) -> Vec<LowerLink> {
        for link in &mut links {
            self.note_replaced(link.ifindex, &link.name);
            self.keep(link, demand);
        }
        for place in 0..links.len() {
            self.grow(&mut links, place, demand);
        }
        links.retain(|link| !link.ranges.is_empty());
        links
    }

    /// Decides about every device a link has: advertised, withdrawn but honoured, or dropped.
    fn keep(&mut self, link: &mut LowerLink, demand: Option<&Demand>) {
        let present = self.around.links.has(link.ifindex);
        let count = if present { wanted(demand, link.ifindex) } else { 0 };
        let in_use = self.in_use(link);
        if let Some(demand) = demand.filter(|demand| demand.mode != link.mode) {
            if in_use.is_empty() {
                link.mode = demand.mode;
            } else {
                self.next.mode_pending.insert((self.name.clone(), link.ifindex));
            }
        }
        let used = u32::try_from(in_use.len()).unwrap_or(u32::MAX);
        let mut free = count.saturating_sub(used);
        let mut split = Split::default();
        link.ranges.sort_unstable_by_key(|range| range.first_slot);
        for range in &link.ranges {
            for slot in range.slots() {
                let Some(ifindex) = range.ifindex_of(slot) else {
                    continue;
                };
                if in_use.contains(&slot) {
                    split.advertise(slot, ifindex);
                } else if free > 0 {
                    free -= 1;
                    split.advertise(slot, ifindex);
                } else if self.honours(slot) {
                    split.withdraw(slot, ifindex);
                }
            }
        }
        link.ranges = split.ranges();
        let offer = self.next.offers.entry(self.name.clone()).or_default();
        offer.extend(split.runs(link));
    }

    /// Slots of the link that pods have.
    fn in_use(&self, link: &LowerLink) -> BTreeSet<u32> {
        let ours = self.around.in_use.range(self.device(0)..=self.device(SLOT_MAX));
        let of_link = |slot: &u32| link.ranges.iter().any(|range| range.ifindex_of(*slot).is_some());
        ours.map(DeviceId::slot).filter(of_link).collect()
    }

    /// Adds what is missing to the number of devices the link should have.
    fn grow(&mut self, links: &mut [LowerLink], place: usize, demand: Option<&Demand>) {
        let Some(ifindex) = links.get(place).map(|link| link.ifindex) else {
            return;
        };
        let offered = self.next.offers.get(self.name).map_or(0, |runs| slots::advertised(runs, ifindex));
        let mut missing = wanted(demand, ifindex).saturating_sub(offered);
        while missing > 0 {
            let taken = links.iter().flat_map(|link| &link.ranges);
            let Some((first_slot, gap)) = slots::first_gap(taken) else {
                self.next.exhausted = true;
                return;
            };
            let left = IFINDEX_LAST.saturating_add(1).saturating_sub(self.next.table.next_ifindex);
            let count = missing.min(gap).min(left);
            if count == 0 {
                self.next.exhausted = true;
                return;
            }
            let range = SlotRange { first_slot, count, first_ifindex: self.next.table.next_ifindex };
            self.next.table.next_ifindex += count;
            missing -= count;
            // Another link's device of that name may be leaving.
            let again = |id: &DeviceId| id.resource() == self.name && range.ifindex_of(id.slot()).is_some();
            self.still_withdrawn.retain(|device, _| !again(device));
            if let Some(link) = links.get_mut(place) {
                link.ranges.push(range);
                let offer = self.next.offers.entry(self.name.clone()).or_default();
                offer.push(LinkRun::of_macvtaps(link, range, true));
            }
        }
    }

    /// Whether a device that is not advertised stays for now; notes since when.
    fn honours(&mut self, slot: u32) -> bool {
        let device = self.device(slot);
        let since = self.withdrawals.get(&device).copied().unwrap_or(self.around.now);
        // Also of one that leaves: it is in the stored table until the next one is stored, which may take several tries.
        self.still_withdrawn.insert(device, since);
        self.around.now.saturating_duration_since(since) < GRACE
    }

    fn note_replaced(&mut self, ifindex: u32, link: &str) {
        let links = self.around.links;
        if !links.has(ifindex) && links.iter().any(|(_, known)| known.name == link) {
            self.next.replaced.insert((self.name.clone(), link.to_owned()));
        }
    }

    fn device(&self, slot: u32) -> DeviceId {
        DeviceId::new(self.name.clone(), slot)
    }
}

#[cfg(test)]
mod tests;
