//! Writes a pool's status when that is worth a write.

use super::announce;
use crate::context::Context;
use crate::overwrite::{self, Part};
use kube::api::Api;
use kube::{Resource, ResourceExt};
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus};
use serde_json::json;
use std::time::Duration;

/// Counts alone are written at most this often on a large cluster.
const COUNTS_EVERY_MAX: Duration = Duration::from_secs(30);

/// How often on the smallest, and how much longer for each node.
const COUNTS_EVERY_MIN: Duration = Duration::from_secs(2);
const COUNTS_PER_NODE: Duration = Duration::from_millis(10);

/// How a new status differs from the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    Nothing,
    /// In numbers of devices and links only.
    Counts,
    /// In what people wait for.
    Facts,
}

/// How `new` differs from `old`.
pub fn change(old: Option<&MacvtapResourcePoolStatus>, new: &MacvtapResourcePoolStatus) -> Change {
    let Some(old) = old else { return Change::Facts };
    if old == new {
        return Change::Nothing;
    }
    let with_counts_of_new =
        MacvtapResourcePoolStatus { devices: new.devices.clone(), links: new.links.clone(), ..old.clone() };
    if with_counts_of_new == *new { Change::Counts } else { Change::Facts }
}

/// How often counts alone are written: they change with every pod, so the more nodes a pool has, the rarer.
fn counts_every(nodes: u32) -> Duration {
    COUNTS_EVERY_MIN.saturating_add(COUNTS_PER_NODE.saturating_mul(nodes)).min(COUNTS_EVERY_MAX)
}

/// Writes the status if need be and announces what changed; says how long counts must wait for their turn.
pub async fn publish(
    pool: &MacvtapResourcePool,
    status: MacvtapResourcePoolStatus,
    context: &Context,
) -> Result<Option<Duration>, kube::Error> {
    let name = pool.name_any();
    context.metrics.pool(&name, &status);
    match change(pool.status.as_ref(), &status) {
        Change::Nothing => return Ok(None),
        Change::Counts => {
            if let Some(wait) = context.pace.counts(&name, counts_every(status.nodes.matched)) {
                return Ok(Some(wait));
            }
        }
        Change::Facts => {}
    }
    let body = json!({
        "apiVersion": MacvtapResourcePool::api_version(&()),
        "kind": MacvtapResourcePool::kind(&()),
        "metadata": {"name": name, "uid": pool.uid()},
        "status": status,
    });
    let pools: Api<MacvtapResourcePool> = Api::all(context.client.clone());
    match overwrite::apply(&pools, &name, Part::Status, &body).await {
        Ok(()) => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use macvtap_crds::v1alpha1::pool::{DeviceCounts, NodeCounts};

    #[test]
    fn counts_are_written_the_rarer_the_more_nodes_there_are() {
        assert_eq!(counts_every(0), Duration::from_secs(2));
        assert_eq!(counts_every(1000), Duration::from_secs(12));
        assert_eq!(counts_every(u32::MAX), COUNTS_EVERY_MAX);
    }

    #[test]
    fn numbers_of_devices_can_wait_and_everything_else_cannot() {
        let old = MacvtapResourcePoolStatus::default();
        let devices = DeviceCounts { allocated: 1, ..Default::default() };
        let counts = MacvtapResourcePoolStatus { devices: devices.clone(), ..Default::default() };
        let nodes = NodeCounts { ready: 1, ..Default::default() };
        let facts = MacvtapResourcePoolStatus { devices, nodes, ..Default::default() };
        assert_eq!(change(None, &old), Change::Facts);
        assert_eq!(change(Some(&old), &old.clone()), Change::Nothing);
        assert_eq!(change(Some(&old), &counts), Change::Counts);
        assert_eq!(change(Some(&old), &facts), Change::Facts);
    }
}
