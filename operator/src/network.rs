//! Network attachment definitions of a pool.

pub mod apply;
pub mod config;
pub mod kind;
pub mod plan;

use crate::context::Context;
use kind::NetworkAttachmentDefinition;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::reason::{EventReason, PoolReason};
use std::sync::Arc;

/// What became of a pool's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkReport {
    /// How many there should be.
    pub desired: usize,
    /// How many are there as they should be.
    pub ready: usize,
    /// What is wrong, the first being the most important.
    pub problems: Vec<Problem>,
    /// Those that somebody had changed, and that are as they should be again.
    pub repaired: Vec<plan::Key>,
    /// Those of a pool that is being deleted which somebody's finalizer keeps.
    pub kept: Vec<plan::Key>,
}

/// Something that is wrong with a pool's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: PoolReason,
    /// For people.
    pub message: String,
}

impl NetworkReport {
    /// Whether trying again without any event may help.
    pub fn retry(&self) -> bool {
        self.problems.iter().any(|problem| {
            matches!(
                problem.reason,
                PoolReason::NADConflict | PoolReason::NADKindMissing | PoolReason::NetworkWriteFailed
            )
        })
    }
}

/// Brings the networks of a pool that is not being deleted up to date.
pub async fn reconcile(pool: &MacvtapResourcePool, context: &Context) -> NetworkReport {
    let Some(ours) = context.networks_of(pool) else {
        return missing_kind(pool);
    };
    let namespaces = context.namespaces.state();
    let links = context.link_resources(pool);
    let desired = plan::desired(pool, namespaces.iter().map(Arc::as_ref), &links);
    let plan = plan::plan(&desired, &ours);
    let report = apply::apply(&context.client, desired, plan).await;
    // What a new spec changes is no repair.
    let status = pool.status.as_ref();
    if status.is_some_and(|status| status.observed_generation == pool.metadata.generation) {
        for (namespace, name) in &report.repaired {
            let note = format!(
                "NetworkAttachmentDefinition {namespace}/{name} had been changed and is again as the pool has it; change the pool instead"
            );
            context.announce(&repaired(note, namespace, name), pool).await;
        }
    }
    report
}

fn repaired(note: String, namespace: &str, name: &str) -> Event {
    let network = ObjectRef::<NetworkAttachmentDefinition>::new(name).within(namespace);
    Event {
        type_: EventType::Warning,
        reason: EventReason::NetworkRepaired.to_string(),
        note: Some(note),
        action: "Repair".to_owned(),
        // Each network has an event of its own.
        secondary: Some(network.into()),
    }
}

/// Removes every network of a pool that is being deleted; gives those that are left.
pub async fn remove(pool: &str, uid: &str, context: &Context) -> Result<Vec<plan::Key>, kube::Error> {
    apply::remove_all(&context.client, pool, uid).await
}

fn missing_kind(pool: &MacvtapResourcePool) -> NetworkReport {
    let desired = pool.spec.networks.as_ref().map_or(0, Vec::len);
    let problems = (desired > 0).then(|| Problem {
        reason: PoolReason::NADKindMissing,
        message: "the cluster has no NetworkAttachmentDefinitions; install Multus".to_owned(),
    });
    NetworkReport { desired, problems: problems.into_iter().collect(), ..NetworkReport::default() }
}
