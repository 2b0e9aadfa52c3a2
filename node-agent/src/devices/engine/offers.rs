//! What is offered of a resource: its devices, and how the link of each looks.

use super::{Memory, World};
use crate::devices::assignment::{LinkRun, Run, RunDevices};
use crate::devices::offer::{LinkState, Offer, OfferedRun};
use crate::links::health::{Policy, Sight};
use crate::links::inventory::{self, Inventory};
use crate::links::link::Link;
use crate::pools::pool::Pool;
use crate::pools::selection;
use macvtap::device_id::ResourceName;
use macvtap::table::{DeviceType, Resource, SlotRange};
use macvtap_crds::v1alpha1::reason::LinkReason;
use macvtap_crds::v1alpha1::settings::{Allocation, Topology};
use std::time::Instant;

impl Memory {
    /// Returns what is offered of a resource, and when a link may count as healthy or not without any other reason.
    pub(super) fn offer(
        &mut self,
        world: &World,
        resource: &ResourceName,
        entry: &Resource,
        pool: Option<&Pool>,
        runs: Vec<LinkRun>,
        now: Instant,
    ) -> (Offer, Option<Instant>) {
        let inventory = &world.inventory;
        let device_type = entry.device_type();
        let settings = pool.map(|pool| &pool.settings);
        let hint = settings.is_some_and(|settings| settings.topology == Topology::Hint);
        let policy = settings.map_or_else(Policy::default, |settings| Policy::from(&settings.health));
        let (mut offered, mut wake) = (Vec::with_capacity(runs.len()), None);
        for LinkRun { run, link: name, identity } in runs {
            let link = inventory.get(run.lower);
            let state = match link {
                None => LinkState::Unhealthy(LinkReason::LinkGone),
                Some(_) if inventory.is_in_pod(run.lower) => LinkState::Healthy,
                Some(link) => {
                    let sight = match device_type {
                        DeviceType::Macvtap => Sight::of(link),
                        DeviceType::HostDevice => Sight::of_nic(link),
                    };
                    let key = (resource.clone(), run.lower);
                    let (healthy, due) = self.tracker.observe(key, policy, sight, now);
                    wake = wake.into_iter().chain(due).min();
                    link_state(inventory, link, healthy, entry.mtu, device_type)
                }
            };
            let numa_node = link.and_then(|link| link.hardware.numa_node).filter(|_| hint);
            let whole = OfferedRun { run, link: name, identity, state, numa_node };
            match run.range().filter(|_| state == LinkState::Healthy) {
                Some(range) => offered.extend(without_taken(inventory, &whole, range)),
                None => offered.push(whole),
            }
        }
        let offer = Offer {
            resource: resource.clone(),
            full_name: format!("{}/{resource}", entry.prefix),
            tap_only: entry.tap_only,
            device_type,
            allocation: settings.map_or(Allocation::default(), |settings| settings.allocation),
            runs: offered,
        };
        (offer, wake)
    }
}

/// A healthy run, cut at the devices whose index another link of the node's namespace has: the taps of pods without
/// network are made there. Pods' namespaces have indexes of their own.
fn without_taken(inventory: &Inventory, whole: &OfferedRun, range: SlotRange) -> Vec<OfferedRun> {
    let end = range.first_ifindex.saturating_add(range.count);
    let foreign = |link: &&Link| !(inventory::is_ours(link) && link.lower == Some(whole.run.lower));
    let mut cuts: Vec<OfferedRun> = Vec::new();
    let mut next = range.first_ifindex;
    let cut = |from: u32, to: u32, state| OfferedRun {
        run: Run {
            devices: RunDevices::Macvtaps(SlotRange {
                first_slot: range.first_slot + (from - range.first_ifindex),
                count: to - from,
                first_ifindex: from,
            }),
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
