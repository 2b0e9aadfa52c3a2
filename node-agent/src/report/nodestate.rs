//! The status of the node's `MacvtapNodeState`, from what the engine decided: pure.

mod links;
mod pools;

use crate::config::Configuration;
use crate::devices::engine::{Engine, Step};
use crate::devices::offer::{LinkState, OfferedRun};
use crate::kubelet::endpoint::Registration;
use crate::links::link::Link;
use crate::process::install::keep::Presence;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap_crds::condition::{self, ConditionStatus, ConditionType, Finding};
use macvtap_crds::v1alpha1::nodestate::LINKS_MAX;
use macvtap_crds::v1alpha1::reason::{LinkReason, NodePoolReason, NodeReason};
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
    /// Whether runtimes find the CNI plugin.
    pub plugin: &'v Presence,
    /// The boot.
    pub boot_id: &'v str,
    /// What was reported last: conditions keep their times.
    pub before: Option<&'v MacvtapNodeStateStatus>,
    /// This moment.
    pub now: &'v Time,
}

/// The status.
pub fn status(view: &View<'_>) -> MacvtapNodeStateStatus {
    let (links, truncated_links) = links::listed(view);
    let served =
        view.engine.world.pools.iter().enumerate().map(|(index, pool)| pools::status(view, index, pool));
    let is_served = |name: &str| view.engine.world.pools.iter().any(|pool| pool.name == name);
    let refused = view.configuration.refused.iter().filter(|refused| !is_served(&refused.name));
    let refused = refused.map(|refused| {
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
        observed_generation: view.configuration.generation,
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
    fn conditions_before(&self, pool: &str) -> &[Condition] {
        let pools = self.before.map_or(&[][..], |before| before.pools.as_slice());
        pools.iter().find(|before| before.name == pool).map_or(&[], |before| before.conditions.as_slice())
    }

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
        let ranges = taken.filter_map(|(resource, offered)| Some((resource, offered.run.range()?)));
        let named = ranges.take(TAKEN_MAX).map(|(resource, range)| {
            let by = self.names(&[range.first_ifindex]).join("");
            let device = DeviceId::new(resource.clone(), range.first_slot);
            format!(
                "index {} of device {device} is taken by link {by} of the node until that link is gone",
                range.first_ifindex
            )
        });
        named.collect::<Vec<_>>().join(", ")
    }

    fn names(&self, links: &[u32]) -> Vec<String> {
        let links = links.iter().filter_map(|ifindex| self.engine.world.inventory.get(*ifindex));
        links.take(LINKS_MAX).map(|link| self.name_of(link)).collect()
    }

    /// The name under which the status lists a link: no two links have one. Another link can have the name of a NIC that
    /// is in a pod; the NIC is then named by its PCI address.
    fn name_of(&self, link: &Link) -> String {
        let inventory = &self.engine.world.inventory;
        let has_namesake =
            || inventory.iter().any(|other| other.ifindex != link.ifindex && other.name == link.name);
        match link.pci_function() {
            Some(address) if inventory.is_in_pod(link.ifindex) && has_namesake() => address.to_string(),
            _ => link.name.clone(),
        }
    }
}

fn is_taken(offered: &OfferedRun) -> bool {
    offered.state == LinkState::Unhealthy(LinkReason::IndexTaken)
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
        None if view.plugin.missing.is_some() => {
            (NodeReason::PluginMissing, short(view.plugin.missing.clone().unwrap_or_default()))
        }
        None if unready.is_empty() => (NodeReason::AsExpected, "every pool is ready".to_owned()),
        None => (NodeReason::PoolsNotReady, format!("not ready: {}", unready.join(", "))),
    };
    let (sick_reason, sick_message) = match &view.plugin.doubt {
        _ if !sick.is_empty() => (NodeReason::PoolsDegraded, format!("degraded: {}", sick.join(", "))),
        Some(doubt) => (NodeReason::NoOtherPlugin, short(doubt.clone())),
        None => (NodeReason::AsExpected, "no pool is degraded".to_owned()),
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
