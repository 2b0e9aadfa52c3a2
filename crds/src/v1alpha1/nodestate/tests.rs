//! What is written of a node state.

use super::*;
use serde_json::{Value, json};

fn written(pool: &Value) -> Value {
    let mut full = json!({"name": "dp", "uid": "u", "generation": 1, "links": [{"names": ["dp0"]}]});
    full.as_object_mut().unwrap().extend(pool.as_object().unwrap().clone());
    serde_json::to_value(serde_json::from_value::<NodePool>(full).unwrap()).unwrap()
}

#[test]
fn what_equals_its_default_is_not_written_and_everything_else_is() {
    let least = json!({"name": "dp", "uid": "u", "generation": 1, "links": [{"names": ["dp0"]}]});
    let with = |pool: &Value| {
        let mut full = least.clone();
        full.as_object_mut().unwrap().extend(pool.as_object().unwrap().clone());
        full
    };
    let defaults = json!({
        "phase": "Active", "resourcePrefix": crate::GROUP, "priority": 0, "overlap": "Exclusive",
        "type": "Macvtap", "health": {"carrier": "Required", "downDelaySeconds": 3, "upDelaySeconds": 5},
        "macvtap": {"mode": "Bridge", "promiscuous": false, "allMulticast": true, "owner": {"uid": 107, "gid": 107}},
    });
    assert_eq!(written(&defaults), least);
    for other in [
        json!({"phase": "Draining"}),
        json!({"resourceName": "other", "priority": 7, "overlap": "Shared"}),
        json!({"health": {"downDelaySeconds": 0}, "capacity": {"perLink": 100}}),
        json!({"macvtap": {"allMulticast": false, "mtu": 9000, "owner": {"gid": 0}}}),
        json!({"type": "HostDevice", "tapOnly": "Allowed", "topology": "None", "allocation": "Pack"}),
    ] {
        assert_eq!(written(&other), with(&other));
    }
}

#[test]
fn a_status_says_what_is_wrong_and_not_what_is_well() {
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "R", "message": "m", "observedGeneration": 3,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let status: MacvtapNodeStateStatus = serde_json::from_value(json!({
        "pools": [
            {"name": "well", "generation": 3, "conditions": [condition("Ready", "True"), condition("Degraded", "False")]},
            {"name": "sick", "generation": 3, "conditions": [condition("Ready", "True"), condition("Degraded", "True")]},
        ],
        "conditions": [condition("Ready", "False"), condition("Degraded", "False")],
    }))
    .unwrap();
    let brief = status.brief();
    assert_eq!(brief.pools[0].conditions, []);
    let [sick] = brief.pools[1].conditions.as_slice() else { panic!("{:?}", brief.pools[1]) };
    assert_eq!(
        (sick.type_.as_str(), sick.message.as_str(), sick.observed_generation),
        ("Degraded", "m", None)
    );
    let messages: Vec<&str> = brief.conditions.iter().map(|condition| condition.message.as_str()).collect();
    assert_eq!(messages, ["m", ""]);
}

#[test]
fn pools_that_share_a_link_are_found_where_the_link_does_not_repeat_them() {
    let pool = |name: &str, links: &[&str]| json!({"name": name, "generation": 1, "links": links});
    let link = |name: &str, pools: &[&str]| json!({"name": name, "kind": "Physical", "pools": pools});
    let full: MacvtapNodeStateStatus = serde_json::from_value(json!({
        "pools": [pool("a", &["e0", "e1"]), pool("b", &["e1"])],
        "links": [link("e0", &["a"]), link("e1", &["a", "b"]), link("e2", &[])],
    }))
    .unwrap();
    let brief = full.clone().brief();
    let pools: Vec<_> = brief.links.iter().map(|link| link.pools.len()).collect();
    assert_eq!(pools, [1, 0, 0]);
    assert_eq!(brief.with_pools_of_links(), full);
}
