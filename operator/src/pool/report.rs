//! Pure: everything known of a pool to its status.

use super::assess::{Assessment, NodeView, Obstacle, Standing, Subject, assess};
use crate::acceptance::Rejection;
use crate::catalog::Catalog;
use crate::network::NetworkReport;
use crate::rollout::{self, Grants, Member, Plan};
use crate::states::KnownState;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use macvtap_crds::condition::{self, ConditionStatus, ConditionType, Finding};
use macvtap_crds::v1alpha1::pool::{
    DeviceCounts, LinkCounts, NetworkCounts, NodeCounts, NodeSample, SAMPLES_MAX,
};
use macvtap_crds::v1alpha1::reason::PoolReason;
use macvtap_crds::v1alpha1::settings::Advertisement;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus, network::LINK_PLACEHOLDER};
use std::fmt::Write;
use std::time::Duration;

/// How many nodes or networks a message names.
const NAMED_IN_MESSAGE: usize = 3;

/// Everything known of a pool.
#[derive(Debug)]
pub struct Observed<'o> {
    /// The pool.
    pub pool: &'o MacvtapResourcePool,
    /// Whether it has an effect.
    pub verdict: &'o Result<(), Rejection>,
    /// All nodes of the cluster.
    pub nodes: &'o [NodeView<'o>],
    /// All pools as nodes are told of them.
    pub catalog: &'o Catalog,
    /// The turns that were given in staged rollouts.
    pub grants: &'o Grants,
    /// What became of its networks.
    pub networks: &'o NetworkReport,
    /// The time.
    pub now: Timestamp,
}

/// What to say.
#[derive(Debug)]
pub struct Report {
    /// The status.
    pub status: MacvtapResourcePoolStatus,
    /// When to look again although nothing happened.
    pub recheck: Option<Duration>,
    /// How a staged rollout goes on.
    pub rollout: Plan,
}

/// Whether a node still has the pool in its spec, in whatever phase.
pub fn holds_entry(state: &KnownState, pool: &MacvtapResourcePool) -> bool {
    state.pools.iter().any(|entry| Some(&entry.uid) == pool.metadata.uid.as_ref())
}

/// The status of a pool.
pub fn report(observed: &Observed<'_>) -> Report {
    let Observed { pool, nodes, networks, now, .. } = observed;
    let subject = Subject::new(pool, observed.catalog, observed.grants);
    let assessments: Vec<Assessment<'_>> =
        nodes.iter().filter_map(|node| assess(&subject, node, *now)).collect();
    let rollout = plan_rollout(observed, &subject, &assessments);
    let counts = count_nodes(&assessments);
    let samples = samples(&assessments);
    let old = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let findings = findings(observed, &counts, &samples, &rollout);
    let status = MacvtapResourcePoolStatus {
        observed_generation: pool.metadata.generation,
        resource: Some(format!(
            "{}/{}",
            pool.spec.settings.resource_prefix,
            pool.resource_name().unwrap_or(LINK_PLACEHOLDER)
        )),
        conditions: condition::conditions(old, &findings, pool.metadata.generation, &Time(*now)),
        nodes: counts,
        links: count_links(&assessments),
        devices: count_devices(&assessments),
        networks: NetworkCounts { desired: small(networks.desired), ready: small(networks.ready) },
        samples,
    };
    let deadline = assessments.iter().filter_map(|assessment| assessment.deadline).min();
    let recheck = deadline.map(|deadline| {
        Duration::try_from(deadline.duration_since(*now)).unwrap_or_default() + Duration::from_secs(1)
    });
    Report { status, recheck, rollout }
}

fn plan_rollout(observed: &Observed<'_>, subject: &Subject<'_>, assessments: &[Assessment<'_>]) -> Plan {
    let Some(wanted) = subject.wanted.filter(|wanted| wanted.staged) else {
        return Plan::default();
    };
    let settings = observed.pool.spec.rollout.staged.clone().unwrap_or_default();
    let granted = observed.grants.given(&wanted.entry);
    // How a node ends that is being deleted tells nothing about the change.
    let staying = assessments.iter().filter(|assessment| !assessment.is_terminating);
    let members = staying.map(|assessment| Member {
        node: assessment.node,
        told: assessment.told,
        granted: granted.contains(assessment.node),
        is_blocked: assessment.obstacle.is_some(),
        standing: assessment.standing,
    });
    rollout::plan(members, &settings)
}

fn findings(
    observed: &Observed<'_>,
    counts: &NodeCounts,
    samples: &[NodeSample],
    rollout: &Plan,
) -> Vec<Finding> {
    let mut findings = vec![
        accepted(observed.verdict),
        ready(observed, counts, samples),
        progressing(counts, samples, rollout),
        degraded(counts, samples),
        networks_ready(observed),
    ];
    if observed.pool.metadata.deletion_timestamp.is_some() {
        findings.push(terminating(observed));
    }
    findings
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
    } else if counts.matched == 0 {
        let meant = match observed.pool.spec.node_selector {
            Some(_) => "no node has the labels that nodeSelector asks for",
            None => "no node runs the agent",
        };
        not(PoolReason::NoMatchingNodes, meant.to_owned())
    } else if observed.pool.spec.settings.advertisement == Advertisement::DryRun {
        let message = format!("dry run on {} nodes: nothing is registered", counts.matched);
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

fn progressing(counts: &NodeCounts, samples: &[NodeSample], rollout: &Plan) -> Finding {
    if let Some(bad) = rollout.halted {
        let message = format!(
            "the rollout stopped before the last {} nodes, for {bad} of those that have the change are not well{}; heal them, or change the pool",
            rollout.waiting,
            named(samples)
        );
        return finding(ConditionType::Progressing, false, PoolReason::RolloutHalted, message);
    }
    let answering = counts.matched.saturating_sub(counts.unreachable);
    let waiting = answering.saturating_sub(counts.updated);
    if waiting > 0 {
        let message = format!("{} of {answering} nodes have applied the last change", counts.updated);
        finding(ConditionType::Progressing, true, PoolReason::NodesUpdating, message)
    } else {
        let message = "every node that answers has applied the last change";
        finding(ConditionType::Progressing, false, PoolReason::UpToDate, message)
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

fn networks_ready(observed: &Observed<'_>) -> Finding {
    let networks = observed.networks;
    let state = |status: bool, reason, message: String| {
        finding(ConditionType::NetworksReady, status, reason, message)
    };
    if observed.pool.metadata.deletion_timestamp.is_some() {
        state(false, PoolReason::Terminating, "the pool is being deleted".to_owned())
    } else if observed.verdict.is_err() {
        state(false, PoolReason::NotAccepted, "the pool is not accepted".to_owned())
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

/// Names the nodes that are being waited for, those with most devices in use first.
fn terminating(observed: &Observed<'_>) -> Finding {
    let name = observed.pool.name_any();
    let mut holders: Vec<(u32, &str)> = observed
        .nodes
        .iter()
        .filter(|node| node.state.is_some_and(|state| holds_entry(state, observed.pool)))
        .map(|node| {
            let entry = node.state.and_then(|state| state.pool(&name));
            (entry.map_or(0, |entry| entry.allocated), node.name)
        })
        .collect();
    if holders.is_empty() {
        let kept = &observed.networks.kept;
        let mut message = format!("{} networks are being removed", kept.len());
        for (i, (namespace, name)) in kept.iter().take(NAMED_IN_MESSAGE).enumerate() {
            // Writing to a String cannot fail.
            let _ =
                write!(message, "{} {namespace}/{name}", if i == 0 { ", kept by finalizers:" } else { "," });
        }
        return finding(ConditionType::Terminating, true, PoolReason::RemovingNetworks, message);
    }
    holders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let devices: u64 = holders.iter().map(|(allocated, _)| u64::from(*allocated)).sum();
    let mut message = format!("{devices} devices in use on {} nodes:", holders.len());
    for (i, (allocated, node)) in holders.iter().take(SAMPLES_MAX).enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(message, "{} {node} ({allocated})", if i == 0 { "" } else { "," });
    }
    finding(ConditionType::Terminating, true, PoolReason::DevicesInUse, message)
}

fn count_nodes(assessments: &[Assessment<'_>]) -> NodeCounts {
    let count =
        |standing: &[Standing]| small(assessments.iter().filter(|a| standing.contains(&a.standing)).count());
    let is_waited_for = |assessment: &&Assessment<'_>| assessment.obstacle != Some(Obstacle::Terminating);
    let matched = small(assessments.iter().filter(is_waited_for).count());
    let ready = small(assessments.iter().filter(|assessment| assessment.ready).count());
    NodeCounts {
        summary: format!("{ready}/{matched}"),
        matched,
        updated: small(
            assessments
                .iter()
                .filter(|a| a.told)
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
