//! Pure: how much of a pool's status changed.

use macvtap_crds::v1alpha1::MacvtapResourcePoolStatus;
use std::time::Duration;

/// Numbers alone are written at most this often on a large cluster.
const NUMBERS_EVERY_MAX: Duration = Duration::from_secs(30);

/// How often on the smallest, and how much longer for each node.
const NUMBERS_EVERY_MIN: Duration = Duration::from_secs(2);
const NUMBERS_PER_NODE: Duration = Duration::from_millis(10);

/// How a new status differs from the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusChange {
    /// Not at all.
    Nothing,
    /// In numbers, in the words of conditions around them and in the samples: how far things are.
    Numbers,
    /// In what people wait for.
    Facts,
}

/// How `new` differs from `old`.
pub fn change(old: Option<&MacvtapResourcePoolStatus>, new: &MacvtapResourcePoolStatus) -> StatusChange {
    let Some(old) = old else { return StatusChange::Facts };
    if old == new {
        return StatusChange::Nothing;
    }
    let mut with_numbers_of_new = MacvtapResourcePoolStatus {
        devices: new.devices.clone(),
        links: new.links.clone(),
        nodes: new.nodes.clone(),
        networks: new.networks.clone(),
        samples: new.samples.clone(),
        ..old.clone()
    };
    for (old, new) in with_numbers_of_new.conditions.iter_mut().zip(&new.conditions) {
        old.message.clone_from(&new.message);
    }
    if with_numbers_of_new == *new { StatusChange::Numbers } else { StatusChange::Facts }
}

/// How often numbers alone are written: they change with every pod and every node, so the more nodes a pool has, the rarer.
pub fn numbers_every(nodes: u32) -> Duration {
    NUMBERS_EVERY_MIN.saturating_add(NUMBERS_PER_NODE.saturating_mul(nodes)).min(NUMBERS_EVERY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use macvtap_crds::v1alpha1::pool::{DeviceCounts, NodeCounts};

    #[test]
    fn numbers_are_written_the_rarer_the_more_nodes_there_are() {
        assert_eq!(numbers_every(0), Duration::from_secs(2));
        assert_eq!(numbers_every(1000), Duration::from_secs(12));
        assert_eq!(numbers_every(u32::MAX), NUMBERS_EVERY_MAX);
    }

    #[test]
    fn how_far_things_are_can_wait_and_everything_else_cannot() {
        let condition = |status: &str, reason: &str, message: &str| Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: Some(1),
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        };
        let with =
            |conditions: Vec<Condition>| MacvtapResourcePoolStatus { conditions, ..Default::default() };
        let old = with(vec![condition("False", "NodesNotReady", "2 of 3 nodes not ready")]);
        let nodes = NodeCounts { ready: 1, ..Default::default() };
        let devices = DeviceCounts { allocated: 1, ..Default::default() };
        let on = with(vec![condition("False", "NodesNotReady", "1 of 3 nodes not ready")]);
        let on = MacvtapResourcePoolStatus { nodes, devices, ..on };
        assert_eq!(change(None, &old), StatusChange::Facts);
        assert_eq!(change(Some(&old), &old.clone()), StatusChange::Nothing);
        assert_eq!(change(Some(&old), &on), StatusChange::Numbers);
        for other in [
            with(vec![condition("True", "NodesNotReady", "2 of 3 nodes not ready")]),
            with(vec![condition("False", "NoMatchingNodes", "2 of 3 nodes not ready")]),
            with(vec![]),
            MacvtapResourcePoolStatus { observed_generation: Some(2), ..old.clone() },
        ] {
            assert_eq!(change(Some(&old), &other), StatusChange::Facts, "{other:?}");
        }
    }
}
