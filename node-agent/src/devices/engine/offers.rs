//! What is offered of a resource: its devices, and how the link of each looks.

use super::Engine;
use crate::devices::assignment::{Demand, Run, nowhere};
use crate::devices::offer::{LinkState, Offer, OfferedRun};
use crate::links::health::{Policy, Sight};
use crate::links::inventory::{self, Inventory};
use crate::links::link::Link;
use crate::pools::pool::{Naming, Pool};
use crate::pools::selection::{self, Selection};
use macvtap::device_id::ResourceName;
use macvtap::table::{DeviceTable, DeviceType, LowerLink, SlotRange};
use macvtap_crds::v1alpha1::reason::LinkReason;
use macvtap_crds::v1alpha1::settings::{Allocation, Topology};
use std::collections::BTreeMap;
use std::time::Instant;

impl Engine {
    #[expect(clippy::too_many_arguments, reason = "the results of the earlier parts of one step")]
    pub(super) fn offer(
        &mut self,
        resource: &ResourceName,
        runs: &[Run],
        demands: &BTreeMap<ResourceName, Demand>,
        table: &DeviceTable,
        selection: &Selection,
        now: Instant,
        wake: &mut Option<Instant>,
    ) -> Option<Offer> {
        let stored = table.resources.get(resource);
        let entry = stored.or_else(|| demands.get(resource).map(|demand| &demand.entry))?;
        let nics = entry.device_type == DeviceType::HostDevice;
        let claimed = selection.resources.get(resource).and_then(|claim| self.pools.get(claim.pool));
        let pool = claimed.or_else(|| {
            let named = |pool: &&Pool| pool.naming == Naming::Fixed(resource.clone());
            self.pools.iter().find(named)
        });
        let settings = pool.map(|pool| pool.settings.clone());
        let mut offered = Vec::with_capacity(runs.len());
        for run in runs {
            let slot = run.range.first_slot;
            let has = |link: &&LowerLink| link.ranges.iter().any(|range| range.ifindex_of(slot).is_some());
            let known = stored.and_then(|stored| stored.links.iter().find(has));
            let name = known.map(|link| link.name.clone()).unwrap_or_default();
            let identity = known.map_or_else(nowhere, |link| link.identity.clone());
            let pci = known.filter(|_| nics).and_then(|link| link.pci);
            let hint = settings.as_ref().is_some_and(|s| s.topology == Topology::Hint);
            let (state, numa_node) = match self.inventory.get(run.lower) {
                None => (LinkState::Unhealthy(LinkReason::LinkGone), None),
                Some(link) if self.inventory.is_in_pod(run.lower) => {
                    (LinkState::Healthy, link.hardware.numa_node.filter(|_| hint))
                }
                Some(link) => {
                    let policy = settings.as_ref().map_or_else(Policy::default, |s| Policy::from(&s.health));
                    let sight = if nics { Sight::of_nic(link) } else { Sight::of(link) };
                    let key = (resource.clone(), run.lower);
                    let (healthy, due) = self.tracker.observe(key, policy, sight, now);
                    *wake = (*wake).into_iter().chain(due).min();
                    let state = link_state(&self.inventory, link, healthy, entry.mtu, entry.device_type);
                    (state, link.hardware.numa_node.filter(|_| hint))
                }
            };
            let whole = OfferedRun { run: *run, link: name, identity, state, numa_node, pci };
            if state == LinkState::Healthy && !nics {
                offered.extend(without_taken(&self.inventory, &whole));
            } else {
                offered.push(whole);
            }
        }
        Some(Offer {
            resource: resource.clone(),
            full_name: format!("{}/{resource}", entry.prefix),
            tap_only: entry.tap_only,
            device_type: entry.device_type,
            allocation: settings.as_ref().map_or(Allocation::default(), |s| s.allocation),
            runs: offered,
        })
    }
}

/// A healthy run, cut at the devices whose index another link of the node's namespace has: the taps of pods without
/// network are made there. Pods' namespaces have indexes of their own.
fn without_taken(inventory: &Inventory, whole: &OfferedRun) -> Vec<OfferedRun> {
    let range = whole.run.range;
    let end = range.first_ifindex.saturating_add(range.count);
    let foreign = |link: &&Link| !(inventory::is_ours(link) && link.lower == Some(whole.run.lower));
    let mut cuts: Vec<OfferedRun> = Vec::new();
    let mut next = range.first_ifindex;
    let cut = |from: u32, to: u32, state| OfferedRun {
        run: Run {
            range: SlotRange {
                first_slot: range.first_slot + (from - range.first_ifindex),
                count: to - from,
                first_ifindex: from,
            },
            ..whole.run
        },
        state,
        ..whole.clone()
    };
    for link in inventory.within(range.first_ifindex..end).filter(foreign) {
        if link.ifindex > next {
            cuts.push(cut(next, link.ifindex, LinkState::Healthy));
        }
        next = link.ifindex + 1;
        cuts.push(cut(link.ifindex, next, LinkState::Unhealthy(LinkReason::IndexTaken)));
    }
    if next < end {
        cuts.push(cut(next, end, LinkState::Healthy));
    }
    cuts
}

fn link_state(
    inventory: &Inventory,
    link: &Link,
    healthy: bool,
    mtu: Option<u32>,
    device_type: DeviceType,
) -> LinkState {
    let obstacle = match device_type {
        DeviceType::Macvtap => selection::macvtap_obstacle(inventory, link),
        DeviceType::HostDevice => selection::obstacle(inventory, link),
    };
    let reason = if let Some(refusal) = obstacle {
        refusal.reason
    } else if mtu.is_some_and(|mtu| mtu > link.mtu) {
        LinkReason::MtuTooSmall
    } else if healthy {
        return LinkState::Healthy;
    } else if link.admin_up {
        LinkReason::NoCarrier
    } else {
        LinkReason::AdminDown
    };
    LinkState::Unhealthy(reason)
}
