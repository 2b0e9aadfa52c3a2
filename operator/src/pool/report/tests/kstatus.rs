//! How Flux, `kubectl wait` and other users of kstatus judge a pool.

use super::*;
use serde_json::Value;

/// The rules of sigs.k8s.io/cli-utils/pkg/kstatus/status for a kind that it does not know, in their order.
fn kstatus(object: &Value) -> &'static str {
    let is = |kind: &str, status: &str| {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == status)
    };
    if object["metadata"].get("deletionTimestamp").is_some() {
        return "Terminating";
    }
    let observed = object.pointer("/status/observedGeneration");
    if observed.is_some_and(|observed| *observed != object["metadata"]["generation"])
        || is("Reconciling", "True")
    {
        return "InProgress";
    }
    if is("Stalled", "True") {
        return "Failed";
    }
    if is("Ready", "False") || is("Ready", "Unknown") { "InProgress" } else { "Current" }
}

fn judged(pool: &MacvtapResourcePool, status: &MacvtapResourcePoolStatus) -> &'static str {
    let mut object = serde_json::to_value(pool).unwrap();
    object["status"] = serde_json::to_value(status).unwrap();
    kstatus(&object)
}

#[test]
fn a_pool_that_the_operator_has_not_reported_on_is_in_progress() {
    let crds = macvtap_crds::generate::crds().unwrap();
    let default = crds.iter().find_map(|(_, crd)| {
        crd.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status/default").cloned()
    });
    let mut object = serde_json::to_value(pool("dp", json!({}))).unwrap();
    object["status"] = default.expect("the status of a pool has no default");
    assert_eq!(kstatus(&object), "InProgress");
    let status: MacvtapResourcePoolStatus = serde_json::from_value(object["status"].clone()).unwrap();
    assert_eq!(status.conditions.len(), 3);
}

#[test]
fn a_pool_is_current_when_it_is_ready_and_failed_when_only_somebody_can_help() {
    let dp = pool("dp", json!({}));
    let nothing = NetworkReport::default();
    assert_eq!(judged(&dp, &status(&dp, &[healthy("n1", &dp)])), "Current");
    assert_eq!(judged(&dp, &status(&dp, &[])), "InProgress");
    let rejected = [
        Rejection::ResourceNameConflict { resource: "dp".into(), older: "first".into() },
        Rejection::InvalidSelector { field: "nodeSelector".into(), problem: "p".into() },
    ];
    for verdict in rejected {
        assert_eq!(judged(&dp, &status_with(&dp, &[], &Err(verdict), &nothing).status), "Failed");
    }
    let after = edited(&json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}}));
    assert_eq!(judged(&after, &status(&dp, &[healthy("n1", &dp)])), "InProgress", "of the former generation");
    assert_eq!(judged(&after, &status(&after, &[healthy("n1", &dp)])), "InProgress");
    assert_eq!(judged(&after, &halted(&dp, &after)), "Failed");
    let gone = deleted(dp.clone());
    assert_eq!(judged(&gone, &status(&gone, &[healthy("n1", &dp)])), "Terminating");
}
