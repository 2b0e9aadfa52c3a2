//! The status of the node's `MacvtapNodeState`, from what the engine decided: pure.

use crate::engine::{Engine, Step};
use crate::kubelet::endpoint::Registration;
use crate::link::{Kind, Link};
use crate::offer::{Counts, LinkState, OfferedRun};
use crate::pool::Pool;
use crate::selection::{self, PoolOutcome, Refusal};
use crate::source::Configuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap_crds::condition::{self, ConditionStatus, ConditionType, Finding};
use macvtap_crds::v1alpha1::nodestate::{LINKS_MAX, NodeLink};
use macvtap_crds::v1alpha1::reason::{LinkReason, NodePoolReason, NodeReason};
use macvtap_crds::v1alpha1::settings::ResourcePer;
use macvtap_crds::v1alpha1::{MacvtapNodeStateStatus, NodePoolStatus};
use std::collections::{BTreeMap, BTreeSet};

/// The longest message of a link, in bytes.
const MESSAGE_MAX: usize = 1024;

/// So many devices without an index are named in one message.
const TAKEN_MAX: usize = 5;

/// Everything a status is made of.
pub struct View<'v> {
    /// Links and pools.
    pub engine: &'v Engine,
    /// What was decided last.
    pub step: &'v Step,
    /// What is served.
    pub configuration: &'v Configuration,
    /// What the kubelet knows.
    pub registrations: &'v BTreeMap<ResourceName, Registration>,
    /// Devices pods have.
    pub in_use: &'v BTreeSet<DeviceId>,
    /// Those whose link vanished.
    pub dead: &'v BTreeSet<DeviceId>,
    /// Why the table could not be written.
    pub table_error: Option<&'v str>,
    /// The boot.
    pub boot_id: &'v str,
    /// What was reported last: conditions keep their times.
    pub before: Option<&'v MacvtapNodeStateStatus>,
    /// This moment.
    pub now: &'v Time,
}

/// The status.
pub fn status(view: &View<'_>) -> MacvtapNodeStateStatus {
    let (links, truncated_links) = links(view);
    let served = view.engine.pools.iter().enumerate().map(|(index, pool)| pool_status(view, index, pool));
    let refused = view.configuration.refused.iter().map(|refused| {
        let finding = [unready(NodePoolReason::NotSupported, refused.message.clone())];
        let before = view.conditions_before(&refused.name);
        NodePoolStatus {
            name: refused.name.clone(),
            generation: refused.generation,
            conditions: condition::conditions(before, &finding, Some(refused.generation), view.now),
            ..NodePoolStatus::default()
        }
    });
    let mut status = MacvtapNodeStateStatus {
        observed_hash: view.configuration.hash.clone(),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        boot_id: Some(view.boot_id.to_owned()),
        links,
        truncated_links,
        pools: served.chain(refused).collect(),
        ..MacvtapNodeStateStatus::default()
    };
    let before = view.before.map_or(&[][..], |before| before.conditions.as_slice());
    status.conditions = condition::conditions(before, &node_findings(view, &status), None, view.now);
    status.count();
    status
}

impl View<'_> {
    fn conditions_before(&self, pool: &str) -> &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition] {
        let pools = self.before.map_or(&[][..], |before| before.pools.as_slice());
        pools.iter().find(|before| before.name == pool).map_or(&[], |before| before.conditions.as_slice())
    }

    /// The worst that is wrong with a link's devices, of any resource.
    fn trouble(&self, link: &Link) -> Option<Refusal> {
        let runs = self.step.offers.values().flat_map(|offer| &offer.runs);
        let unhealthy = runs.filter(|offered| offered.run.lower == link.ifindex && offered.run.advertised);
        let reason = unhealthy.into_iter().find_map(|offered| match offered.state {
            LinkState::Healthy => None,
            LinkState::Unhealthy(reason) => Some(reason),
        });
        let name = &link.name;
        if let Some(reason) = reason {
            let message = match reason {
                LinkReason::AdminDown => format!("{name} is switched off; `ip link set {name} up`"),
                LinkReason::NoCarrier => format!("{name} has no carrier"),
                LinkReason::MtuTooSmall => {
                    format!("the MTU of {name} is {}, smaller than the pool's", link.mtu)
                }
                LinkReason::IndexTaken => self.taken(|_, offered| offered.run.lower == link.ifindex),
                _ => selection::obstacle(&self.engine.inventory, link)
                    .map_or_else(|| format!("devices of {name} are unhealthy"), |obstacle| obstacle.message),
            };
            return Some(Refusal { reason, message });
        }
        let evolution = &self.step.evolution;
        let refusal = |reason, message| Some(Refusal { reason, message });
        if evolution.mode_pending.iter().any(|(_, ifindex)| *ifindex == link.ifindex) {
            let message = format!("devices in use on {name} keep the earlier mode until they are free");
            return refusal(LinkReason::ModeChangePending, message);
        }
        if evolution.replaced.iter().any(|(_, replaced)| replaced == name) {
            let message = format!("{name} is another link than before; devices of the former one are in use");
            return refusal(LinkReason::LinkReplaced, message);
        }
        let mut runs = self.step.offers.values().flat_map(|offer| &offer.runs);
        if !runs.any(|offered| offered.run.lower == link.ifindex && offered.run.advertised) {
            let message =
                format!("other links have all devices that this node offers, none is left for {name}");
            return refusal(LinkReason::CapacityReached, message);
        }
        None
    }
}

impl View<'_> {
    /// Which devices of these runs have no index of their own, and who has it. Empty when each has.
    fn taken(&self, of: impl Fn(&ResourceName, &OfferedRun) -> bool) -> String {
        let runs = self
            .step
            .offers
            .iter()
            .flat_map(|(resource, offer)| offer.runs.iter().map(move |offered| (resource, offered)));
        let taken = runs.filter(|(resource, offered)| {
            offered.run.advertised && is_taken(offered) && of(resource, offered)
        });
        let told = taken.take(TAKEN_MAX).map(|(resource, offered)| {
            let range = offered.run.range;
            let by = self.names(&[range.first_ifindex]).join("");
            let device = DeviceId::new(resource.clone(), range.first_slot);
            format!(
                "index {} of device {device} is taken by link {by}; `ip link del {by}`",
                range.first_ifindex
            )
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

fn is_taken(offered: &OfferedRun) -> bool {
    offered.state == LinkState::Unhealthy(LinkReason::IndexTaken)
}

/// NICs, bonds, VLANs, and what a pool matches; those in pools first when there are too many.
fn links(view: &View<'_>) -> (Vec<NodeLink>, u32) {
    let mut listed: Vec<NodeLink> = view
        .engine
        .inventory
        .iter()
        .filter_map(|link| {
            let outcome = view.step.selection.links.get(&link.ifindex)?;
            let matched = !outcome.pools.is_empty() || !outcome.refusals.is_empty();
            let candidate = matches!(link.kind, Kind::Physical | Kind::Bond | Kind::Vlan);
            let meant = candidate || (matched && !matches!(link.kind, Kind::Loopback | Kind::Macvtap));
            meant.then(|| {
                let pools =
                    outcome.pools.iter().map(|index| view.engine.pools[*index].name.clone()).collect();
                let refusal = if outcome.pools.is_empty() {
                    outcome
                        .refusals
                        .first()
                        .map(|(_, refusal)| refusal.clone())
                        .or_else(|| Some(not_selected(link)))
                } else {
                    view.trouble(link)
                };
                node_link(link, pools, refusal)
            })
        })
        .collect();
    listed.sort_by_key(|link| link.pools.is_empty());
    let truncated = listed.len().saturating_sub(LINKS_MAX);
    listed.truncate(LINKS_MAX);
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    (listed, u32::try_from(truncated).unwrap_or(u32::MAX))
}

fn not_selected(link: &Link) -> Refusal {
    Refusal { reason: LinkReason::NotSelected, message: format!("no pool selects {}", link.name) }
}

fn node_link(link: &Link, pools: Vec<String>, refusal: Option<Refusal>) -> NodeLink {
    NodeLink {
        name: link.name.clone(),
        alt_names: link.altnames.iter().take(16).cloned().collect(),
        kind: link.kind.api().as_str().to_owned(),
        mac: link.own_mac().map(|mac| mac.to_string()),
        mtu: Some(link.mtu),
        speed_mbps: link.hardware.speed_mbps,
        driver: link.hardware.driver.clone(),
        pci_address: link.hardware.pci_address.clone(),
        vendor: link.hardware.vendor.clone(),
        numa_node: link.hardware.numa_node,
        carrier: link.carrier,
        pools,
        reason: refusal.as_ref().map(|refusal| refusal.reason.as_str().to_owned()),
        message: refusal.map(|refusal| short(refusal.message)),
    }
}

fn pool_status(view: &View<'_>, index: usize, pool: &Pool) -> NodePoolStatus {
    let outcome = &view.step.selection.pools[index];
    let resources = resources_of(view, index, pool);
    let mut counts = Counts::default();
    let mut unhealthy = BTreeSet::new();
    for offer in resources.iter().filter_map(|resource| view.step.offers.get(*resource)) {
        let offered = offer.counts();
        counts.capacity += offered.capacity;
        counts.allocatable += offered.allocatable;
        let sick = offer.runs.iter().filter(|run| run.run.advertised && run.state != LinkState::Healthy);
        // Of such a link only some devices are.
        let sick = sick.filter(|run| !is_taken(run));
        unhealthy.extend(sick.map(|run| run.link.clone()));
    }
    let of = |devices: &BTreeSet<DeviceId>| {
        let ours = devices.iter().filter(|device| resources.contains(&device.resource()));
        u32::try_from(ours.count()).unwrap_or(u32::MAX)
    };
    let pools = &view.engine.pools;
    let mut status = NodePoolStatus {
        name: pool.name.clone(),
        generation: pool.generation,
        capacity: counts.capacity,
        allocatable: counts.allocatable,
        allocated: of(view.in_use),
        dead: of(view.dead),
        links: view.names(&outcome.links),
        unhealthy_links: unhealthy.into_iter().filter(|name| !name.is_empty()).take(LINKS_MAX).collect(),
        contested_links: view.names(&outcome.contested),
        contenders: outcome.contenders.iter().map(|other| pools[*other].name.clone()).collect(),
        resources: match pool.settings.resource_per {
            ResourcePer::Pool => Vec::new(),
            ResourcePer::Link => resources.iter().take(LINKS_MAX).map(ToString::to_string).collect(),
        },
        conditions: Vec::new(),
    };
    let findings = [ready(view, pool, outcome, &resources, &status), degraded(view, &resources, &status)];
    let before = view.conditions_before(&pool.name);
    status.conditions = condition::conditions(before, &findings, Some(pool.generation), view.now);
    status
}

impl View<'_> {
    fn names(&self, links: &[u32]) -> Vec<String> {
        let links = links.iter().filter_map(|ifindex| self.engine.inventory.get(*ifindex));
        links.take(LINKS_MAX).map(|link| link.name.clone()).collect()
    }
}

fn resources_of<'v>(view: &View<'v>, index: usize, pool: &Pool) -> BTreeSet<&'v ResourceName> {
    let claimed = view.step.selection.resources.iter().filter(|(_, claim)| claim.pool == index);
    let mut resources: BTreeSet<&ResourceName> = claimed.map(|(resource, _)| resource).collect();
    if view.step.selection.pools[index].name_taken_by.is_none() {
        let fixed = view
            .step
            .offers
            .keys()
            .filter(|resource| pool.naming == crate::pool::Naming::Fixed((*resource).clone()));
        resources.extend(fixed);
    }
    resources
}

fn ready(
    view: &View<'_>,
    pool: &Pool,
    outcome: &PoolOutcome,
    resources: &BTreeSet<&ResourceName>,
    status: &NodePoolStatus,
) -> Finding {
    if let Some(owner) = outcome.name_taken_by {
        let message = format!("pool {} has this resource name", view.engine.pools[owner].name);
        return unready(NodePoolReason::ResourceNameTaken, message);
    }
    if !pool.is_served() {
        let message = "this agent does not serve type HostDevice, and leaves the links to other pools";
        return unready(NodePoolReason::NotSupported, message.to_owned());
    }
    if pool.is_dry_run() {
        return unready(NodePoolReason::DryRun, format!("would have {} links", outcome.links.len()));
    }
    if pool.draining {
        return if status.allocated == 0 {
            unready(NodePoolReason::Drained, "no device is in use".to_owned())
        } else {
            unready(NodePoolReason::Draining, format!("{} devices are in use", status.allocated))
        };
    }
    if let Some(reason) = view.table_error {
        return unready(NodePoolReason::TableNotWritten, reason.to_owned());
    }
    if outcome.links.is_empty() {
        let pools = &view.engine.pools;
        let index = pools.iter().position(|other| other.name == pool.name).unwrap_or_default();
        let why = selection::why_empty(pools, &view.engine.inventory, &view.step.selection, index);
        return unready(NodePoolReason::NoMatchingLink, why.unwrap_or_default());
    }
    let missing = resources.iter().find_map(|resource| match view.registrations.get(*resource) {
        Some(Registration::Done | Registration::HandedOver) => None,
        Some(Registration::Failed(reason)) => Some((NodePoolReason::RegistrationFailed, reason.clone())),
        Some(Registration::Unreachable(reason)) => Some((NodePoolReason::KubeletUnreachable, reason.clone())),
        Some(Registration::Pending) | None => {
            Some((NodePoolReason::Registering, format!("resource {resource} is being registered")))
        }
    });
    if let Some((reason, message)) = missing {
        return unready(reason, message);
    }
    if status.allocatable == 0 {
        return unready(
            NodePoolReason::NoHealthyLink,
            format!("unhealthy: {}", status.unhealthy_links.join(", ")),
        );
    }
    Finding {
        condition: ConditionType::Ready,
        status: ConditionStatus::True,
        reason: NodePoolReason::Serving.as_str(),
        message: format!("{} of {} devices are healthy", status.allocatable, status.capacity),
    }
}

fn degraded(view: &View<'_>, resources: &BTreeSet<&ResourceName>, status: &NodePoolStatus) -> Finding {
    let pending = view.step.evolution.mode_pending.iter().any(|(resource, _)| resources.contains(resource));
    let small = resources
        .iter()
        .filter_map(|resource| view.step.offers.get(*resource))
        .any(|offer| offer.runs.iter().any(|run| run.state == LinkState::Unhealthy(LinkReason::MtuTooSmall)));
    let taken = view.taken(|resource, _| resources.contains(resource));
    let (reason, message) = if status.dead > 0 {
        let message =
            format!("{} devices lost their link under running pods; only new pods cure it", status.dead);
        (NodePoolReason::DevicesDead, message)
    } else if let Some(reason) = view.table_error {
        (NodePoolReason::TableNotWritten, reason.to_owned())
    } else if small {
        let links = status.unhealthy_links.join(", ");
        (NodePoolReason::MtuTooSmall, format!("smaller than the pool's mtu: {links}"))
    } else if !status.unhealthy_links.is_empty() {
        (NodePoolReason::LinksUnhealthy, format!("unhealthy: {}", status.unhealthy_links.join(", ")))
    } else if !taken.is_empty() {
        (NodePoolReason::IndexTaken, taken)
    } else if pending {
        let message = "devices in use keep the earlier mode until they are free";
        (NodePoolReason::ModeChangePending, message.to_owned())
    } else {
        (NodePoolReason::AsExpected, "nothing is wrong".to_owned())
    };
    Finding {
        condition: ConditionType::Degraded,
        status: (reason != NodePoolReason::AsExpected).into(),
        reason: reason.as_str(),
        message: short(message),
    }
}

fn node_findings(view: &View<'_>, status: &MacvtapNodeStateStatus) -> [Finding; 2] {
    let count = |condition, wanted: bool| {
        let pools =
            status.pools.iter().filter(|pool| condition::holds(&pool.conditions, condition) == wanted);
        pools.map(|pool| pool.name.as_str()).collect::<Vec<_>>()
    };
    let unreachable = view.registrations.values().find_map(|registration| match registration {
        Registration::Unreachable(reason) => Some(reason.clone()),
        Registration::Pending | Registration::Done | Registration::Failed(_) | Registration::HandedOver => {
            None
        }
    });
    let (unready, sick) = (count(ConditionType::Ready, false), count(ConditionType::Degraded, true));
    let (ready_reason, ready_message) = match &view.configuration.problem {
        Some(problem) => (NodeReason::SpecNotReadable, short(problem.clone())),
        None if unreachable.is_some() => {
            (NodeReason::KubeletUnreachable, short(unreachable.unwrap_or_default()))
        }
        None if unready.is_empty() => (NodeReason::AsExpected, "every pool is ready".to_owned()),
        None => (NodeReason::PoolsNotReady, format!("not ready: {}", unready.join(", "))),
    };
    let (sick_reason, sick_message) = if sick.is_empty() {
        (NodeReason::AsExpected, "no pool is degraded".to_owned())
    } else {
        (NodeReason::PoolsDegraded, format!("degraded: {}", sick.join(", ")))
    };
    [
        Finding {
            condition: ConditionType::Ready,
            status: (ready_reason == NodeReason::AsExpected).into(),
            reason: ready_reason.as_str(),
            message: ready_message,
        },
        Finding {
            condition: ConditionType::Degraded,
            status: (sick_reason != NodeReason::AsExpected).into(),
            reason: sick_reason.as_str(),
            message: sick_message,
        },
    ]
}

fn unready(reason: NodePoolReason, message: String) -> Finding {
    Finding {
        condition: ConditionType::Ready,
        status: ConditionStatus::False,
        reason: reason.as_str(),
        message: short(message),
    }
}

fn short(mut message: String) -> String {
    let end = (0..=message.len().min(MESSAGE_MAX)).rev().find(|at| message.is_char_boundary(*at));
    message.truncate(end.unwrap_or_default());
    message
}

#[cfg(test)]
mod tests;
