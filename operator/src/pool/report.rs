//! Pure: everything known of a pool to its status.

use super::assess::{Assessment, Obstacle};
use crate::acceptance::Rejection;
use crate::catalog::released;
use crate::network::NetworkReport;
use crate::node::{NodeView, silent};
use crate::rollout::{RolloutStep, Standing};
use crate::states::KnownPool;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use macvtap_crds::RELEASE_ANNOTATION;
use macvtap_crds::condition::{self, ConditionStatus, ConditionType, Finding};
use macvtap_crds::v1alpha1::pool::{
    DeviceCounts, LinkCounts, NetworkCounts, NodeCounts, NodeSample, SAMPLES_MAX,
};
use macvtap_crds::v1alpha1::reason::{PoolReason, SampleReason};
use macvtap_crds::v1alpha1::settings::Advertisement;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus, network::LINK_PLACEHOLDER};

/// How many nodes a message names.
const NAMED_IN_MESSAGE: usize = 3;

/// Everything that a pool's status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'o> {
    /// The pool.
    pub pool: &'o MacvtapResourcePool,
    /// Whether it has an effect.
    pub verdict: &'o Result<(), Rejection>,
    /// All nodes of the cluster.
    pub nodes: &'o [NodeView],
    /// How the nodes that it selects stand to it.
    pub assessments: &'o [Assessment<'o>],
    /// How its rollout goes on.
    pub rollout: &'o RolloutStep,
    /// What became of its networks.
    pub networks: &'o NetworkReport,
    /// The nodes that may still hold it although their states do not show it, if it is being deleted.
    pub remembered: &'o [String],
    /// The time.
    pub now: Timestamp,
}

/// Returns the status of a pool.
pub fn status(observed: &Observed<'_>) -> MacvtapResourcePoolStatus {
    let Observed { pool, assessments, networks, now, .. } = observed;
    let counts = count_nodes(assessments);
    let mut samples = samples(assessments);
    if pool.metadata.deletion_timestamp.is_some() || observed.verdict.is_err() {
        // No node has a change of it to apply.
        samples.retain(|sample| sample.reason != SampleReason::Updating.as_str());
    }
    let old = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let findings = findings(observed, &counts, &samples);
    MacvtapResourcePoolStatus {
        observed_generation: pool.metadata.generation,
        resource: Some(format!(
            "{}/{}",
            pool.spec.settings.resource_prefix,
            pool.resource_name().unwrap_or(LINK_PLACEHOLDER)
        )),
        conditions: condition::conditions(old, &findings, pool.metadata.generation, &Time(*now)),
        nodes: counts,
        links: count_links(assessments),
        devices: count_devices(assessments),
        networks: NetworkCounts { desired: small(networks.desired), ready: small(networks.ready) },
        samples,
    }
}

fn findings(observed: &Observed<'_>, counts: &NodeCounts, samples: &[NodeSample]) -> Vec<Finding> {
    let mut findings = vec![
        accepted(observed.verdict),
        ready(observed, counts, samples),
        available(observed.assessments),
        progressing(observed, counts, samples),
        degraded(counts, samples),
        networks_ready(observed),
    ];
    if observed.pool.metadata.deletion_timestamp.is_some() {
        findings.push(terminating(&observed.pool.metadata, observed.nodes, observed.remembered));
    } else {
        findings.extend(stalled(&findings));
    }
    findings
}

/// Whether any node serves the pool, with the settings it has or with former ones.
fn available(assessments: &[Assessment<'_>]) -> Finding {
    let serves = |assessment: &&Assessment<'_>| {
        let is_ready = |status: &KnownPool| status.ready.as_ref().is_none_or(|ready| ready.holds);
        let status = assessment.status.filter(|_| assessment.standing != Standing::Unreachable);
        status.is_some_and(|status| status.allocatable > 0 && is_ready(status))
    };
    let serving = assessments.iter().filter(serves).count();
    if serving > 0 {
        let message = format!("{serving} nodes serve healthy devices");
        finding(ConditionType::Available, true, PoolReason::NodesServing, message)
    } else {
        let message = "no node serves a healthy device";
        finding(ConditionType::Available, false, PoolReason::NoNodeServing, message)
    }
}

/// What stops the pool until somebody acts: it is not accepted, or its rollout halted.
fn stalled(findings: &[Finding]) -> Option<Finding> {
    let stops = |finding: &&Finding| {
        let is_rejected =
            finding.condition == ConditionType::Accepted && finding.status == ConditionStatus::False;
        is_rejected || finding.reason == PoolReason::RolloutHalted.as_str()
    };
    let cause = findings.iter().find(stops)?;
    Some(Finding { condition: ConditionType::Stalled, status: ConditionStatus::True, ..cause.clone() })
}

fn accepted(verdict: &Result<(), Rejection>) -> Finding {
    match verdict {
        Ok(()) => finding(ConditionType::Accepted, true, PoolReason::Valid, "the pool has an effect"),
        Err(rejection) => finding(ConditionType::Accepted, false, rejection.reason(), rejection.to_string()),
    }
}

fn ready(observed: &Observed<'_>, counts: &NodeCounts, samples: &[NodeSample]) -> Finding {
    let not = |reason, message: String| finding(ConditionType::Ready, false, reason, message);
    let answering = counts.matched.saturating_sub(counts.unreachable);
    if observed.pool.metadata.deletion_timestamp.is_some() {
        not(PoolReason::Terminating, "the pool is being deleted".to_owned())
    } else if let Err(rejection) = observed.verdict {
        not(PoolReason::NotAccepted, rejection.to_string())
    } else if counts.matched == 0 && counts.without_links > 0 {
        let message = format!("no link matches on the {} nodes that the pool selects", counts.without_links);
        not(PoolReason::NoMatchingLinks, message + &named(samples))
    } else if counts.matched == 0 {
        let meant = match observed.pool.spec.node_selector {
            Some(_) => "no node with the labels that nodeSelector asks for runs the agent",
            None => "no node runs the agent",
        };
        not(PoolReason::NoMatchingNodes, meant.to_owned())
    } else if observed.pool.spec.settings.advertisement == Advertisement::DryRun {
        let message = format!("dry run on {} nodes: no device is registered", counts.matched);
        not(PoolReason::DryRun, message)
    } else if answering == 0 || counts.ready < answering {
        let bad = counts.matched.saturating_sub(counts.ready);
        not(
            PoolReason::NodesNotReady,
            format!("{bad} of {} nodes not ready{}", counts.matched, named(samples)),
        )
    } else {
        let message = format!("{} of {} nodes offer devices", counts.ready, counts.matched);
        finding(ConditionType::Ready, true, PoolReason::AllNodesReady, message)
    }
}

fn progressing(observed: &Observed<'_>, counts: &NodeCounts, samples: &[NodeSample]) -> Finding {
    let stands = |reason, message: String| finding(ConditionType::Progressing, false, reason, message);
    if observed.pool.metadata.deletion_timestamp.is_some() {
        return stands(PoolReason::Terminating, "the pool is being deleted".to_owned());
    }
    if let Err(rejection) = observed.verdict {
        return stands(PoolReason::NotAccepted, rejection.to_string());
    }
    if let Some(bad) = observed.rollout.halted {
        let message = format!(
            "the rollout stopped before the last {} nodes, for {bad} of those that have the change got worse{}; heal them, or change the pool",
            observed.rollout.waiting,
            named(samples)
        );
        return stands(PoolReason::RolloutHalted, message);
    }
    let answering = counts.matched.saturating_sub(counts.unreachable);
    let waiting = answering.saturating_sub(counts.updated);
    if waiting > 0 {
        let message = format!("{} of {answering} nodes have applied the last change", counts.updated);
        finding(ConditionType::Progressing, true, PoolReason::NodesUpdating, message)
    } else {
        stands(PoolReason::UpToDate, "every node that answers has applied the last change".to_owned())
    }
}

fn degraded(counts: &NodeCounts, samples: &[NodeSample]) -> Finding {
    if counts.degraded > 0 {
        let message =
            format!("{} of {} nodes report problems{}", counts.degraded, counts.matched, named(samples));
        finding(ConditionType::Degraded, true, PoolReason::NodesDegraded, message)
    } else if counts.unreachable > 0 {
        let message =
            format!("{} of {} nodes do not answer{}", counts.unreachable, counts.matched, named(samples));
        finding(ConditionType::Degraded, true, PoolReason::NodesUnreachable, message)
    } else {
        finding(ConditionType::Degraded, false, PoolReason::AsExpected, "no node reports a problem")
    }
}

/// Reports on the networks, and names those of an earlier pool that are left alone: they do not make the pool less ready,
/// because anybody who may write networks can copy labels.
fn networks_ready(observed: &Observed<'_>) -> Finding {
    let mut finding = wanted_networks(observed);
    let restored = &observed.networks.restored;
    let has_effect = observed.pool.metadata.deletion_timestamp.is_none() && observed.verdict.is_ok();
    if has_effect && !restored.is_empty() {
        let names = restored.iter().take(SAMPLES_MAX).map(|(namespace, name)| format!("{namespace}/{name}"));
        let names = names.collect::<Vec<_>>().join(", ");
        let more = if restored.len() > SAMPLES_MAX { ", ..." } else { "" };
        let note = format!(
            "; {} NetworkAttachmentDefinitions name an earlier pool {} and are left alone: {names}{more}; delete them, or add the networks to the pool",
            restored.len(),
            observed.pool.name_any()
        );
        finding.message.push_str(&note);
    }
    finding
}

fn wanted_networks(observed: &Observed<'_>) -> Finding {
    let networks = observed.networks;
    let state = |status: bool, reason, message: String| {
        finding(ConditionType::NetworksReady, status, reason, message)
    };
    if observed.pool.metadata.deletion_timestamp.is_some() {
        state(false, PoolReason::Terminating, "the pool is being deleted".to_owned())
    } else if observed.verdict.is_err() {
        state(false, PoolReason::NotAccepted, "the pool is not accepted".to_owned())
    } else if observed.pool.spec.settings.advertisement == Advertisement::DryRun && networks.desired > 0 {
        let message = format!(
            "dry run: {} of {} networks exist; none is made or removed",
            networks.ready, networks.desired
        );
        state(false, PoolReason::DryRun, message)
    } else if let Some(problem) = networks.problems.first() {
        let more = networks.problems.len().saturating_sub(1);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        state(false, problem.reason, format!("{}{more}", problem.message))
    } else if observed.pool.spec.networks.iter().flatten().next().is_none() {
        state(true, PoolReason::NoNetworks, "the pool asks for no network".to_owned())
    } else if networks.ready < networks.desired {
        let message = format!("{} of {} networks are in place", networks.ready, networks.desired);
        state(false, PoolReason::NetworksUpdating, message)
    } else {
        let message = format!("{} networks are in place", networks.ready);
        state(true, PoolReason::AllNetworksReady, message)
    }
}

/// Names the nodes that a pool being deleted waits for, and the names in its annotation that are not those of a node. Its
/// metadata is enough, so it also works for a pool that cannot be read. `remembered` are nodes that may hold it although their
/// states do not show it.
pub fn terminating(meta: &ObjectMeta, nodes: &[NodeView], remembered: &[String]) -> Finding {
    let mut finding = holders(meta, nodes, remembered);
    let mut unknown = released(meta);
    unknown.retain(|name| nodes.iter().all(|node| node.name() != name));
    if finding.reason != PoolReason::RemovingNetworks.as_str() && !unknown.is_empty() {
        let named = unknown.iter().take(SAMPLES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = format!("; annotation {RELEASE_ANNOTATION} names nodes that do not exist: {named}");
        finding.message.push_str(&more);
    }
    finding
}

/// Names the nodes that a pool being deleted waits for, those with most devices in use first.
fn holders(meta: &ObjectMeta, nodes: &[NodeView], remembered: &[String]) -> Finding {
    let (name, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    let mut holders: Vec<(u32, &NodeView)> = nodes
        .iter()
        .filter_map(|node| {
            let state = node.state().filter(|state| state.entry(uid).is_some())?;
            Some((state.pool(name).map_or(0, |entry| entry.allocated), node))
        })
        .collect();
    if holders.is_empty() && !remembered.is_empty() {
        let named = remembered.iter().take(SAMPLES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "waiting for {} nodes whose states are missing and may have had the pool: {named}",
            remembered.len()
        );
        return finding(ConditionType::Terminating, true, PoolReason::NodesDraining, message);
    }
    if holders.is_empty() {
        let message = "no node has the pool any more; its networks are being removed";
        return finding(ConditionType::Terminating, true, PoolReason::RemovingNetworks, message);
    }
    holders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.name().cmp(b.1.name())));
    let named = |holders: &[(u32, &NodeView)]| {
        let named = holders.iter().take(SAMPLES_MAX).map(|(allocated, node)| {
            let name = node.name();
            match (allocated, silent(node)) {
                (0, Err(_)) => name.to_owned(),
                (0, Ok(since)) => format!("{name} (no answer since {since})"),
                (allocated, Err(_)) => format!("{name} ({allocated})"),
                (allocated, Ok(since)) => format!("{name} ({allocated}, no answer since {since})"),
            }
        });
        named.collect::<Vec<_>>().join(", ")
    };
    let in_use = holders.iter().take_while(|(allocated, _)| *allocated > 0).count();
    if in_use == 0 {
        let message =
            format!("waiting for {} nodes to withdraw the pool: {}", holders.len(), named(&holders));
        return finding(ConditionType::Terminating, true, PoolReason::NodesDraining, message);
    }
    holders.truncate(in_use);
    let devices: u64 = holders.iter().map(|(allocated, _)| u64::from(*allocated)).sum();
    let message = format!("{devices} devices in use on {in_use} nodes: {}", named(&holders));
    finding(ConditionType::Terminating, true, PoolReason::DevicesInUse, message)
}

fn count_nodes(assessments: &[Assessment<'_>]) -> NodeCounts {
    let count =
        |standing: &[Standing]| small(assessments.iter().filter(|a| standing.contains(&a.standing)).count());
    let is_waited_for = |assessment: &&Assessment<'_>| {
        assessment.obstacle != Some(Obstacle::Terminating) && assessment.standing != Standing::WithoutLinks
    };
    let matched = small(assessments.iter().filter(is_waited_for).count());
    let ready = small(assessments.iter().filter(|assessment| assessment.ready).count());
    NodeCounts {
        summary: format!("{ready}/{matched}"),
        matched,
        without_links: count(&[Standing::WithoutLinks]),
        updated: small(
            assessments
                .iter()
                .filter(|a| a.sent)
                .filter(|a| matches!(a.standing, Standing::Ready | Standing::Degraded | Standing::NotReady))
                .count(),
        ),
        ready,
        degraded: count(&[Standing::Degraded, Standing::NotReady]),
        unreachable: count(&[Standing::Unreachable]),
    }
}

fn count_links(assessments: &[Assessment<'_>]) -> LinkCounts {
    let mut counts = LinkCounts::default();
    for status in assessments.iter().filter_map(|assessment| assessment.status) {
        counts.claimed = counts.claimed.saturating_add(status.links);
        counts.unhealthy = counts.unhealthy.saturating_add(status.unhealthy);
        counts.contested = counts.contested.saturating_add(status.contested);
    }
    counts
}

fn count_devices(assessments: &[Assessment<'_>]) -> DeviceCounts {
    let mut counts = DeviceCounts::default();
    for status in assessments.iter().filter_map(|assessment| assessment.status) {
        counts.capacity += u64::from(status.capacity);
        counts.allocatable += u64::from(status.allocatable);
        counts.allocated += u64::from(status.allocated);
        counts.dead += u64::from(status.dead);
    }
    counts
}

/// The worst nodes, in an order that does not change while nothing else does.
fn samples(assessments: &[Assessment<'_>]) -> Vec<NodeSample> {
    let mut worst: Vec<(Standing, &NodeSample)> = assessments
        .iter()
        .filter_map(|assessment| Some((assessment.standing, assessment.sample.as_ref()?)))
        .collect();
    worst.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.node.cmp(&b.1.node)));
    worst.into_iter().take(SAMPLES_MAX).map(|(_, sample)| sample.clone()).collect()
}

fn named(samples: &[NodeSample]) -> String {
    let named: Vec<String> = samples
        .iter()
        .take(NAMED_IN_MESSAGE)
        .map(|sample| format!("{}: {}", sample.node, sample.reason))
        .collect();
    let more = if samples.len() > named.len() { ", ..." } else { "" };
    if named.is_empty() { String::new() } else { format!(" ({}{more})", named.join(", ")) }
}

fn finding(condition: ConditionType, holds: bool, reason: PoolReason, message: impl Into<String>) -> Finding {
    Finding {
        condition,
        status: ConditionStatus::from(holds),
        reason: reason.as_str(),
        message: message.into(),
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
