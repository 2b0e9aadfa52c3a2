//! Reconciles network attachment definitions: one key is one pool.

use crate::clock;
use crate::context::{Context, Guarded, NetworkKind};
use crate::controller::{Again, Controller, ReconcileError};
use crate::network::kind::{NetworkAttachmentDefinition, NetworkKey};
use crate::network::plan::{self, Desired, NetworkPlan};
use crate::network::{NetworkReport, Problem, apply, former};
use crate::queue::Queue;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use macvtap_crds::POOL_FINALIZER;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::reason::{EventReason, PoolReason};
use macvtap_crds::v1alpha1::settings::Advertisement;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// How soon to try again what no event announces: a foreign network in the way, a kind that is missing.
const RETRY: Duration = Duration::from_secs(30);

/// Reconciles the networks of pools, apart from pools' status, which never waits for the webhooks of others.
#[derive(Debug)]
pub struct Networks;

/// What the networks of a pool depend on.
#[derive(Debug)]
pub struct NetworkSnapshot {
    pool: MacvtapResourcePool,
    /// Whether it is accepted and not being deleted.
    has_effect: bool,
    kind: NetworkKind,
    /// Those that the pool has made, if that is known.
    ours: Option<Vec<Arc<NetworkAttachmentDefinition>>>,
    /// Those of earlier pools of its name.
    of_former: Vec<Arc<NetworkAttachmentDefinition>>,
    namespaces: Vec<Arc<PartialObjectMeta<Namespace>>>,
    /// With `resourcePer: Link`, the resources that nodes report, and whether these are all.
    links: (BTreeSet<String>, bool),
    /// Held while networks are written.
    _turn: OwnedMutexGuard<()>,
}

/// What to do about the networks of a pool.
#[derive(Debug)]
pub enum NetworkAction {
    /// Report nothing: nobody has compared them.
    Withdraw,
    /// Report this.
    Report(NetworkReport),
    /// Write the difference and report what became of it, and these networks of an earlier pool that are left alone.
    Write(Desired, NetworkPlan, Vec<NetworkKey>),
    /// Reconcile again after this time.
    Recheck(Duration),
}

impl Controller for Networks {
    const NAME: &'static str = "networks";
    type Snapshot = NetworkSnapshot;
    type Action = NetworkAction;

    fn queue(context: &Context) -> &Queue {
        &context.queues.networks
    }

    async fn observe(name: &str, context: &Context) -> Result<NetworkSnapshot, Again> {
        let turn = context.reports.turn(name).lock_owned().await;
        let found = context.pools.get(&ObjectRef::<Guarded<MacvtapResourcePool>>::new(name));
        let pool = found.as_ref().and_then(|pool| pool.0.as_ref().ok()).ok_or(None)?;
        let is_ending = pool.metadata.deletion_timestamp.is_some();
        // Its networks come with the finalizer. Until then nothing is reported: none made does not mean all made.
        if !is_ending && !pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER) {
            return Err(None);
        }
        Ok(NetworkSnapshot {
            pool: pool.clone(),
            has_effect: !is_ending && context.catalog().verdict(name).is_ok(),
            kind: *context.network_kind.borrow(),
            ours: context.networks_of(pool),
            of_former: context.networks_of_former(name),
            namespaces: context.namespaces.state(),
            links: context.link_resources(pool),
            _turn: turn,
        })
    }

    fn decide(snapshot: &NetworkSnapshot) -> Vec<NetworkAction> {
        let NetworkSnapshot { pool, has_effect, kind, ours, of_former, namespaces, links, .. } = snapshot;
        // A pool that is not accepted keeps what it has: its networks work as long as its devices do. Nobody has compared
        // them, so there is nothing to report when it is accepted again.
        if !has_effect {
            return vec![NetworkAction::Withdraw];
        }
        let Some(ours) = ours else {
            return vec![NetworkAction::Report(without_kind(pool, *kind))];
        };
        let (links, are_all_links) = links;
        let desired = plan::desired(pool, namespaces.iter().map(Arc::as_ref), links);
        let mut plan = plan::plan(&desired, ours.iter().map(Arc::as_ref));
        let (written, mut restored) = former::unwanted(&desired, of_former.iter().map(Arc::as_ref));
        plan.delete.extend(written);
        let mut actions = Vec::new();
        if !are_all_links && (!plan.delete.is_empty() || !restored.is_empty()) {
            plan.delete.clear();
            restored.clear();
            // No event announces that a node is no longer waited for.
            actions.push(NetworkAction::Recheck(RETRY));
        }
        actions.push(if pool.spec.settings.advertisement == Advertisement::DryRun {
            let (desired, ready) = (desired.networks.len(), plan.keep.len());
            NetworkAction::Report(NetworkReport { desired, ready, ..NetworkReport::default() })
        } else {
            NetworkAction::Write(desired, plan, restored)
        });
        actions
    }

    async fn perform(
        action: NetworkAction,
        snapshot: &NetworkSnapshot,
        context: &Context,
    ) -> Result<Again, ReconcileError> {
        let pool = &snapshot.pool;
        let report = match action {
            NetworkAction::Withdraw => {
                context.reports.withdraw(&pool.name_any());
                return Ok(None);
            }
            NetworkAction::Recheck(wait) => return Ok(Some(wait)),
            NetworkAction::Report(report) => report,
            NetworkAction::Write(desired, plan, restored) => {
                match write(pool, desired, plan, context).await {
                    Some(report) => NetworkReport { restored, ..report },
                    None => return Ok(Some(Duration::ZERO)),
                }
            }
        };
        let retry = report.retry().then_some(RETRY);
        let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
        if context.reports.set(&name, &uid, pool.metadata.generation.unwrap_or_default(), report) {
            context.queues.pools.add(&name);
        }
        Ok(retry)
    }
}

/// Writes the networks of a pool. Returns none if the pool has changed meanwhile.
async fn write(
    pool: &MacvtapResourcePool,
    desired: Desired,
    plan: NetworkPlan,
    context: &Context,
) -> Option<NetworkReport> {
    let name = pool.name_any();
    let pools = context.pool_uids();
    let is_current = || is_as_it_was(pool, context);
    let pass = apply::apply(&context.client, desired, plan, &pools, is_current).await;
    if pass.has_lost {
        context.reports.lost(&name, clock::now());
    }
    if !pass.is_complete {
        tracing::debug!(pool = name, "pool changed while its networks were being written, beginning again");
        return None;
    }
    announce(pool, &pass.report, context).await;
    Some(pass.report)
}

/// Whether the watch shows the pool with the spec that was read, and not deleted.
fn is_as_it_was(pool: &MacvtapResourcePool, context: &Context) -> bool {
    let now = context.pools.get(&ObjectRef::new(&pool.name_any()));
    let facts = |meta: &ObjectMeta| (meta.uid.clone(), meta.generation, meta.deletion_timestamp.is_some());
    now.is_some_and(|now| facts(now.meta()) == facts(&pool.metadata))
}

/// Publishes an event for each network that was taken over or changed back.
async fn announce(pool: &MacvtapResourcePool, report: &NetworkReport, context: &Context) {
    for (namespace, name) in &report.adopted {
        let note = format!(
            "NetworkAttachmentDefinition {namespace}/{name} was restored from a backup, had the labels of an earlier pool or had lost its own, and belongs to this pool now"
        );
        let event = about(EventType::Normal, EventReason::NetworkAdopted, note, (namespace, name));
        context.announce(&event, pool).await;
    }
    // What a new spec changes is not a repair.
    let status = pool.status.as_ref();
    if status.is_some_and(|status| status.observed_generation == pool.metadata.generation) {
        for (namespace, name) in &report.repaired {
            let note = format!(
                "NetworkAttachmentDefinition {namespace}/{name} had been changed and is again as the pool has it; change the pool instead"
            );
            let event = about(EventType::Warning, EventReason::NetworkRepaired, note, (namespace, name));
            context.announce(&event, pool).await;
        }
    }
}

fn about(type_: EventType, reason: EventReason, note: String, network: (&str, &str)) -> Event {
    let network = ObjectRef::<NetworkAttachmentDefinition>::new(network.1).within(network.0);
    Event {
        type_,
        reason: reason.to_string(),
        note: Some(note),
        action: "Repair".to_owned(),
        // Each network has an event of its own.
        secondary: Some(network.into()),
    }
}

/// The report of a pool whose networks cannot be compared with what is there.
fn without_kind(pool: &MacvtapResourcePool, kind: NetworkKind) -> NetworkReport {
    let desired = pool.spec.networks.as_ref().map_or(0, Vec::len);
    let (reason, message) = match kind {
        NetworkKind::Missing => {
            (PoolReason::NADKindMissing, "the cluster has no NetworkAttachmentDefinitions; install Multus")
        }
        NetworkKind::Unknown | NetworkKind::Present => (
            PoolReason::NetworksUpdating,
            "the operator has not read the NetworkAttachmentDefinitions yet; if this stays, its log says why",
        ),
    };
    let problems = (desired > 0).then(|| Problem { reason, message: message.to_owned() });
    NetworkReport { desired, problems: problems.into_iter().collect(), ..NetworkReport::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn networks_that_could_not_be_read_are_not_taken_for_a_cluster_without_multus() {
        let networks = json!([{"name": "net", "namespaces": {"names": ["a"]}}]);
        let pool = crate::testing::pool("dp", json!({"networks": networks}));
        let reason = |kind| without_kind(&pool, kind).problems[0].reason;
        assert_eq!(reason(NetworkKind::Missing), PoolReason::NADKindMissing);
        assert_eq!(reason(NetworkKind::Unknown), PoolReason::NetworksUpdating);
    }
}
