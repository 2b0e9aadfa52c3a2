//! Writes a pool's status when that is worth a write.

use crate::context::Context;
use crate::overwrite::{self, Part};
use crate::pool::announce;
use crate::pool::difference::{StatusChange, change, numbers_every};
use kube::api::Api;
use kube::{Resource, ResourceExt};
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus};
use serde_json::json;
use std::time::Duration;

/// Writes the status if need be and announces what changed; says how long numbers must wait for their turn.
pub(super) async fn publish(
    pool: &MacvtapResourcePool,
    status: MacvtapResourcePoolStatus,
    context: &Context,
) -> Result<Option<Duration>, kube::Error> {
    let name = pool.name_any();
    context.metrics.pool(pool, &status);
    match change(pool.status.as_ref(), &status) {
        StatusChange::Nothing => return Ok(None),
        StatusChange::Numbers => {
            if let Some(wait) = context.pace.numbers(&name, numbers_every(status.nodes.matched)) {
                return Ok(Some(wait));
            }
        }
        StatusChange::Facts => {}
    }
    let body = json!({
        "apiVersion": MacvtapResourcePool::api_version(&()),
        "kind": MacvtapResourcePool::kind(&()),
        "metadata": {"name": name, "uid": pool.uid()},
        "status": status,
    });
    let pools: Api<MacvtapResourcePool> = Api::all(context.client.clone());
    match overwrite::apply(&pools, &name, Part::Status, &body).await {
        Ok(version) => context.published.note(pool, version, status.clone()),
        // It has just gone, and so has what is to be said of it.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error),
    }
    let before = pool.status.as_ref().map_or(&[][..], |status| &status.conditions);
    for event in announce::events(before, &status.conditions) {
        tracing::info!(pool = %name, reason = %event.reason, "{}", event.note.as_deref().unwrap_or_default());
        context.announce(&event, pool).await;
    }
    Ok(None)
}
