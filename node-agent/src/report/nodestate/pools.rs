//! The pools of the status: counts, links, conditions.

use super::{View, is_taken, short, unready};
use crate::devices::offer::{Counts, LinkState};
use crate::kubelet::endpoint::Registration;
use crate::pools::pool::{Naming, Pool};
use crate::pools::selection::{self, PoolOutcome};
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap_crds::condition::{self, ConditionStatus, ConditionType, Finding};
use macvtap_crds::v1alpha1::NodePoolStatus;
use macvtap_crds::v1alpha1::nodestate::LINKS_MAX;
use macvtap_crds::v1alpha1::reason::{LinkReason, NodePoolReason};
use macvtap_crds::v1alpha1::settings::ResourcePer;
use std::collections::BTreeSet;

/// What is said about the pool at this index of the engine.
pub(super) fn status(view: &View<'_>, index: usize, pool: &Pool) -> NodePoolStatus {
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
    let pools = &view.engine.world.pools;
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

fn resources_of<'v>(view: &View<'v>, index: usize, pool: &Pool) -> BTreeSet<&'v ResourceName> {
    let claimed = view.step.selection.resources.iter().filter(|(_, claim)| claim.pool == index);
    let mut resources: BTreeSet<&ResourceName> = claimed.map(|(resource, _)| resource).collect();
    if view.step.selection.pools[index].name_taken_by.is_none() {
        let fixed =
            view.step.offers.keys().filter(|resource| pool.naming == Naming::Fixed((*resource).clone()));
        resources.extend(fixed);
    }
    // Pods keep their devices when the link is gone, or the pool has it no longer.
    let claims = &view.step.selection.resources;
    let is_kept = |resource: &&ResourceName| {
        !claims.contains_key(*resource) && view.in_use.iter().any(|device| device.resource() == *resource)
    };
    resources.extend(view.engine.resources_of(pool).filter(is_kept));
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
        let message = format!("pool {} has this resource name", view.engine.world.pools[owner].name);
        return unready(NodePoolReason::ResourceNameTaken, message);
    }
    if pool.draining {
        return if status.allocated == 0 {
            unready(NodePoolReason::Drained, "no device is in use".to_owned())
        } else {
            unready(NodePoolReason::Draining, format!("{} devices are in use", status.allocated))
        };
    }
    if let Some(refused) = view.configuration.refused.iter().find(|refused| refused.name == pool.name) {
        let message = format!("{}; its former settings stay in force", refused.message);
        return unready(NodePoolReason::NotSupported, message);
    }
    if pool.is_dry_run() {
        return unready(NodePoolReason::DryRun, format!("would have {} links", outcome.links.len()));
    }
    if let Some(reason) = view.table_error {
        return unready(NodePoolReason::TableNotWritten, reason.to_owned());
    }
    if let Some(reason) = &view.plugin.missing {
        return unready(NodePoolReason::PluginMissing, reason.clone());
    }
    if outcome.links.is_empty() {
        let pools = &view.engine.world.pools;
        let index = pools.iter().position(|other| other.name == pool.name).unwrap_or_default();
        let why = selection::why_empty(pools, &view.engine.world.inventory, &view.step.selection, index);
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
        let taken = view.taken(|resource, _| resources.contains(resource));
        let message = match status.unhealthy_links.as_slice() {
            [] if status.capacity == 0 => "no device is offered".to_owned(),
            [] => taken,
            links => format!("unhealthy: {}", links.join(", ")),
        };
        return unready(NodePoolReason::NoHealthyLink, message);
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
