//! Reconciles network attachment definitions: one key is one pool.

use crate::clock;
use crate::context::{Context, Guarded, NetworkKind};
use crate::network::kind::NetworkAttachmentDefinition;
use crate::network::{NetworkReport, Problem, apply, plan};
use kube::api::ObjectMeta;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use macvtap_crds::POOL_FINALIZER;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::reason::{EventReason, PoolReason};
use macvtap_crds::v1alpha1::settings::Advertisement;
use std::sync::Arc;
use std::time::Duration;

/// How soon what no event announces is tried again: foreign networks that are in the way, a kind that is missing.
const RETRY: Duration = Duration::from_secs(30);

/// Brings the networks of the pool of this name up to date, apart from its status, which may have to wait for nobody's
/// webhooks; says when to look again although nothing happens.
pub async fn reconcile(name: &str, context: &Context) -> Option<Duration> {
    let turn = context.reports.turn(name);
    let _at_work = turn.lock().await;
    let found = context.pools.get(&ObjectRef::<Guarded<MacvtapResourcePool>>::new(name));
    let pool = found.as_ref().and_then(|pool| pool.0.as_ref().ok())?;
    let is_ending = pool.metadata.deletion_timestamp.is_some();
    // Its networks come with the finalizer, and until then nothing is said of them: none made is not all made.
    if !is_ending && !pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER) {
        return None;
    }
    // A pool that is not accepted keeps what it has: its networks work as long as its devices do. Nobody has compared them,
    // so there is nothing to report when it is accepted again.
    if is_ending || context.catalog().verdict(name).is_err() {
        context.reports.withdraw(name);
        return None;
    }
    let Some(report) = update(pool, context).await else {
        tracing::debug!(pool = name, "pool changed while its networks were being written, beginning again");
        return Some(Duration::ZERO);
    };
    let retry = report.retry().then_some(RETRY);
    let (uid, generation) = (pool.uid().unwrap_or_default(), pool.metadata.generation.unwrap_or_default());
    if context.reports.set(name, &uid, generation, report) {
        context.queues.pools.add(name);
    }
    retry
}

/// Compares the pool's networks with what is there and writes the difference. A dry run only compares. Returns none if
/// the pool has changed meanwhile.
async fn update(pool: &MacvtapResourcePool, context: &Context) -> Option<NetworkReport> {
    let Some(ours) = context.networks_of(pool) else {
        return Some(without_kind(pool, *context.network_kind.borrow()));
    };
    let namespaces = context.namespaces.state();
    let (links, are_all_links) = context.link_resources(pool);
    let desired = plan::desired(pool, namespaces.iter().map(Arc::as_ref), &links);
    let mut plan = plan::plan(&desired, &ours);
    if !are_all_links && !plan.delete.is_empty() {
        plan.delete.clear();
        // No event tells when a node is no longer waited for.
        context.queues.networks.add_within(&pool.name_any(), RETRY);
    }
    if pool.spec.settings.advertisement == Advertisement::DryRun {
        let (wanted, ready) = (desired.networks.len(), plan.keep.len());
        return Some(NetworkReport { desired: wanted, ready, ..NetworkReport::default() });
    }
    let pools = context.pools.state().iter().filter_map(|pool| pool.meta().uid.clone()).collect();
    let is_current = || is_as_it_was(pool, context);
    let pass = apply::apply(&context.client, desired, plan, &pools, is_current).await;
    if pass.has_lost {
        context.reports.lost(&pool.name_any(), clock::now());
    }
    let report = pass.is_complete.then_some(pass.report)?;
    announce(pool, &report, context).await;
    Some(report)
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
            "NetworkAttachmentDefinition {namespace}/{name} had the label of an earlier pool of this name and belongs to this one now"
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
