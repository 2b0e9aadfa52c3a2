//! A drained pool that is still there: the API server refused to remove its networks or its finalizer.

use super::PoolSnapshot;
use crate::context::Context;
use crate::controller::ReconcileError;
use crate::pool::report;
use crate::refusal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::error_boundary::InvalidObject;
use macvtap_crds::condition::ConditionType;
use macvtap_crds::v1alpha1::MacvtapResourcePool;

/// Reports it in the condition of the pool, with the API server's words.
pub(super) async fn explain(
    snapshot: &PoolSnapshot,
    pool: &Result<MacvtapResourcePool, InvalidObject>,
    error: &ReconcileError,
    context: &Context,
) -> Result<(), ReconcileError> {
    let why = format!("; the last attempt failed: {}", refusal::chain(error));
    match pool {
        Ok(pool) => {
            let (mut status, ..) = super::status(snapshot, pool);
            let is_terminating = |found: &&mut Condition| found.type_ == ConditionType::Terminating.as_str();
            for condition in status.conditions.iter_mut().filter(is_terminating) {
                condition.message.push_str(&why);
            }
            let written = super::publish::publish(pool, status, context).await;
            let failed = |error| ReconcileError::new("write the status of pool", &snapshot.name, error);
            written.map(drop).map_err(failed)
        }
        Err(invalid) => {
            let mut finding =
                report::terminating(&invalid.metadata, &snapshot.nodes, &snapshot.drain.remembered);
            finding.message.push_str(&why);
            super::unreadable::say(&invalid.metadata, &invalid.error, Some(finding), context).await
        }
    }
}
