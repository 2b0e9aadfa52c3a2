use super::super::plan as report;
use crate::facts::Facts;
use crate::report::{Level, Report};
use crate::testing::{node, nothing, object, pool};
use jiff::Timestamp;
use macvtap_crds::v1alpha1::MacvtapNodeState;
use serde_json::{Value, json};

fn state(links: &Value, pools: &Value, status: &Value) -> MacvtapNodeState {
    object(json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeState", "metadata": {"name": "n1"},
        "spec": {"configHash": "h", "pools": pools},
        "status": {"observedHash": "h", "links": links, "pools": status},
    }))
}

fn entry(name: &str, link: &str) -> Value {
    json!({"name": name, "uid": format!("uid-{name}"), "generation": 1, "links": [{"names": [link]}]})
}

/// Pool `old` has eth1 of n1; eth2 is free.
fn scene(allocated: u32) -> Facts {
    let mut facts = nothing();
    facts.now = Timestamp::from_second(1_800_000_000).unwrap();
    facts.nodes = Ok(vec![node("n1", json!({}))]);
    facts.pools = Ok(vec![pool("old", json!({"links": [{"names": ["eth1"]}]}))]);
    let links = json!([
        {"name": "eth1", "kind": "Physical", "carrier": true, "mtu": 1500, "pools": ["old"]},
        {"name": "eth2", "kind": "Physical", "carrier": true, "mtu": 1500, "reason": "NotSelected"},
    ]);
    let status =
        json!([{"name": "old", "generation": 1, "capacity": 100, "allocated": allocated, "links": ["eth1"]}]);
    facts.states = Ok(vec![state(&links, &json!([entry("old", "eth1")]), &status)]);
    facts
}

fn facts_of(report: &Report, level: Level) -> Vec<&str> {
    report.of_level(level).map(|found| found.fact.as_str()).collect()
}

#[test]
fn a_pool_takes_what_is_free_and_is_refused_what_an_older_one_has() {
    let planned = pool("new", json!({"links": [{"names": ["eth*"]}], "capacity": {"perLink": 10}}));
    let report = report(&scene(0), &[planned], Vec::new());
    assert_eq!(facts_of(&report, Level::Ok), ["pool new takes eth2: 10 devices"]);
    assert_eq!(facts_of(&report, Level::Warning), ["pool new does not get a link: pool old has eth1"]);
    assert_eq!(report.conclusion, "pool new: 1 links on 1 of 1 nodes, 10 devices; no pool loses a link");
}

#[test]
fn a_pool_of_higher_priority_takes_a_link_unless_its_devices_are_in_use() {
    let planned = || pool("new", json!({"links": [{"names": ["eth1"]}], "priority": 10}));
    let free = report(&scene(0), &[planned()], Vec::new());
    assert_eq!(facts_of(&free, Level::Failed), ["pool old loses eth1: 0 devices instead of 100"]);
    assert!(free.conclusion.ends_with("pools that lose links: old"), "{}", free.conclusion);
    let used = report(&scene(1), &[planned()], Vec::new());
    let failed = facts_of(&used, Level::Failed);
    assert!(
        failed.len() == 1 && failed[0].starts_with("pool new would have no link: pool old has eth1"),
        "{failed:?}"
    );
}

#[test]
fn a_conflict_of_resource_names_and_a_selector_without_nodes_are_named() {
    let planned = pool("new", json!({"resourceName": "old"}));
    let conflict = report(&scene(0), &[planned], Vec::new());
    assert!(facts_of(&conflict, Level::Failed)[0].contains("belongs to pool old"), "{conflict:?}");
    let planned = pool("new", json!({"nodeSelector": {"matchLabels": {"zone": "a"}}}));
    let nowhere = report(&scene(0), &[planned], Vec::new());
    assert_eq!(facts_of(&nowhere, Level::Failed), ["no node with an agent would get these pools"]);
}

#[test]
fn what_a_node_state_does_not_tell_is_named() {
    let planned = pool("new", json!({"links": [{"kinds": ["Physical"]}], "macvtap": {"mode": "Passthru"}}));
    let report = report(&scene(0), &[planned], Vec::new());
    let unknown = facts_of(&report, Level::Skipped);
    assert!(unknown.iter().any(|text| text.contains("whether the host itself uses eth2")), "{unknown:?}");
}
