//! What a real API server makes of our CRDs: which objects it takes and which it refuses with what words, the defaults
//! it fills in, and what `kubectl get` prints.

mod api;
#[path = "api/rules.rs"]
mod rules;

use anyhow::{Context as _, Result};
use api::Api;
use rules::{Rule, rules};
use serde_json::{Value, json};
use std::time::Duration;

/// A pool whose spec is a minimal one with these fields.
fn pool(name: &str, spec: &Value) -> Value {
    let mut full = json!({"links": [{"names": ["dp0"]}]});
    for (key, value) in spec.as_object().into_iter().flatten() {
        full[key] = value.clone();
    }
    json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapResourcePool",
        "metadata": {"name": name},
        "spec": full,
    })
}

#[test]
fn every_rule_lets_pass_what_it_should_and_refuses_what_it_should_not() -> Result<()> {
    let api = Api::shared()?;
    let mut problems = Vec::new();
    for (i, Rule { pass, refuse, words }) in rules().into_iter().enumerate() {
        let name = format!("rule-{i}");
        if let Err(refusal) = api.create_dry(&pool(&name, &pass)) {
            problems.push(format!("refused: {pass}\n    {refusal:#}"));
        }
        match api.create_dry(&pool(&name, &refuse)) {
            Ok(()) => problems.push(format!("taken: {refuse}")),
            Err(refusal) if !format!("{refusal:#}").contains(words) => {
                problems.push(format!("refused without the words {words:?}: {refuse}\n    {refusal:#}"));
            }
            Err(_) => {}
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn a_pools_name_must_fit_where_it_is_used() -> Result<()> {
    let api = Api::shared()?;
    api.create_dry(&pool(&"a".repeat(63), &json!({})))?;
    let refusal = api.create_dry(&pool(&"a".repeat(64), &json!({}))).expect_err("64 characters were taken");
    assert!(format!("{refusal:#}").contains("at most 63 characters"), "{refusal:#}");
    Ok(())
}

#[test]
fn what_names_a_resource_never_changes() -> Result<()> {
    let api = Api::shared()?;
    let cases = [
        (json!({"resourceName": "a"}), json!({"resourceName": "b"}), "resourceName is immutable"),
        (json!({"resourceName": "a"}), json!({}), "resourceName is immutable"),
        (json!({}), json!({"resourceName": "a"}), "resourceName is immutable"),
        (json!({}), json!({"resourcePrefix": "example.com"}), "resourcePrefix is immutable"),
        (json!({}), json!({"resourcePer": "Link"}), "resourcePer is immutable"),
        (json!({}), json!({"type": "HostDevice"}), "type is immutable"),
    ];
    for (i, (before, after, words)) in cases.iter().enumerate() {
        let name = format!("immutable-{i}");
        api.replace(&pool(&name, before))?;
        let refusal =
            api.replace(&pool(&name, after)).err().with_context(|| format!("{before} became {after}"))?;
        assert!(format!("{refusal:#}").contains(words), "{before} to {after}: {refusal:#}");
        let mut harmless = before.clone();
        harmless["priority"] = 7.into();
        api.replace(&pool(&name, &harmless))?;
        api.kubectl.run(&["delete", "mrp", &name])?;
    }
    Ok(())
}

#[test]
fn defaults_are_stored_with_the_object_but_not_in_items_of_lists() -> Result<()> {
    let api = Api::shared()?;
    let spec = json!({
        "health": {"carrier": "Ignored"},
        "macvtap": {"owner": {"uid": 1000}},
        "rollout": {"type": "Staged", "staged": {}},
        "networks": [{
            "name": "net",
            "namespaces": {"names": ["a"]},
            "ipam": {"kubeOVN": {}},
            "capabilities": {"mac": true},
        }],
    });
    api.replace(&pool("defaults-some", &spec))?;
    api.replace(&pool("defaults-none", &json!({})))?;
    let stored = |name: &str| api.kubectl.get("", &format!("mrp/{name}")).map(|pool| pool["spec"].clone());
    let common = json!({
        "advertisement": "Enabled",
        "allocation": "Spread",
        "excludeDefaultRoute": false,
        "links": [{"names": ["dp0"]}],
        "overlap": "Exclusive",
        "priority": 0,
        "resourcePer": "Pool",
        "resourcePrefix": "macvtap.network.kubevirt.io",
        "tapOnly": "Forbidden",
        "topology": "Hint",
        "type": "Macvtap",
        "health": {"carrier": "Required", "downDelaySeconds": 3, "upDelaySeconds": 5},
        "rollout": {"type": "AllAtOnce"},
    });
    assert_eq!(stored("defaults-none")?, common);
    let mut some = common;
    some["health"]["carrier"] = "Ignored".into();
    some["macvtap"] = json!({
        "mode": "Bridge", "promiscuous": false, "allMulticast": true, "owner": {"uid": 1000, "gid": 107},
    });
    some["rollout"] = json!({"type": "Staged", "staged": {"batch": "10%", "maxDegraded": 1}});
    // Argo CD compares items as a whole: what was added to one would be a difference for ever.
    some["networks"] = spec["networks"].clone();
    assert_eq!(stored("defaults-some")?, some);
    api.kubectl.run(&["delete", "mrp", "defaults-none", "defaults-some"])?;
    Ok(())
}

#[test]
fn unknown_fields_are_refused_by_name() -> Result<()> {
    let api = Api::shared()?;
    let refusal =
        api.create_dry(&pool("unknown", &json!({"lowerDevice": "eth0"}))).expect_err("it was taken");
    assert!(format!("{refusal:#}").contains("lowerDevice"), "{refusal:#}");
    Ok(())
}

#[test]
fn kubectl_get_prints_what_a_person_wants_to_see() -> Result<()> {
    let api = Api::shared()?;
    let time = "2026-01-01T00:00:00Z";
    let ready = json!({
        "type": "Ready", "status": "False", "reason": "NodesNotReady", "message": "1 of 2", "lastTransitionTime": time,
    });
    api.replace(&pool("columns", &json!({"priority": 7, "macvtap": {"mode": "VEPA"}})))?;
    let status = json!({
        "resource": "macvtap.network.kubevirt.io/columns",
        "nodes": {"summary": "1/2"},
        "devices": {"allocatable": 100, "allocated": 3},
        "links": {"claimed": 2},
        "conditions": [ready],
    });
    api.patch_status("mrp/columns", &status)?;
    let table = api.table(&["get", "mrp", "columns", "-o", "wide"])?;
    let shown = |header: &str| table.get(header).with_context(|| format!("no column {header}: {table:?}"));
    for (header, value) in [
        ("RESOURCE", "macvtap.network.kubevirt.io/columns"),
        ("NODES", "1/2"),
        ("DEVICES", "100"),
        ("ALLOCATED", "3"),
        ("READY", "False"),
        ("REASON", "NodesNotReady"),
        ("PRIORITY", "7"),
        ("TYPE", "Macvtap"),
        ("MODE", "VEPA"),
        ("LINKS", "2"),
    ] {
        assert_eq!(shown(header)?, value, "{header}");
    }
    let state = json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
        "kind": "MacvtapNodeState",
        "metadata": {"name": "columns"},
        "spec": {"configHash": "sha256:0", "pools": []},
    });
    api.replace(&state)?;
    let totals = json!({"pools": "1/1", "links": "1/3", "allocatable": 50, "allocated": 2});
    api.patch_status(
        "mns/columns",
        &json!({"totals": totals, "conditions": [ready], "agentVersion": "1.2.3"}),
    )?;
    let table = api.table(&["get", "mns", "columns", "-o", "wide"])?;
    let expected = [
        ("POOLS", "1/1"),
        ("LINKS", "1/3"),
        ("DEVICES", "50"),
        ("ALLOCATED", "2"),
        ("READY", "False"),
        ("AGENT", "1.2.3"),
    ];
    for (header, value) in expected {
        assert_eq!(table.get(header).map(String::as_str), Some(value), "{header}");
    }
    let all = api.kubectl.run(&["get", "macvtap", "-o", "name"])?;
    for kind in [
        "macvtapresourcepool.macvtap.network.kubevirt.io/columns",
        "macvtapnodestate.macvtap.network.kubevirt.io/columns",
    ] {
        assert!(all.contains(kind), "{kind} is not in category macvtap: {all}");
    }
    api.kubectl.run(&["delete", "mrp/columns", "mns/columns"])?;
    Ok(())
}

#[test]
fn spec_and_status_are_written_apart() -> Result<()> {
    let api = Api::shared()?;
    let mut pool = pool("apart", &json!({}));
    pool["status"] = json!({"resource": "smuggled"});
    api.replace(&pool)?;
    let fresh = api.kubectl.get("", "mrp/apart")?;
    assert_eq!(fresh["status"].get("resource"), None, "status was written with the spec");
    // What nobody has reported on is not healthy.
    for condition in fresh["status"]["conditions"].as_array().context("no conditions")? {
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("Unknown"), &json!("Pending")));
    }
    api.patch_status("mrp/apart", &json!({"resource": "told"}))?;
    api.replace(&pool)?;
    let found = api.kubectl.wait_until("", "mrp/apart", Duration::from_secs(5), |pool| {
        pool.pointer("/status/resource").and_then(Value::as_str).map(str::to_owned)
    })?;
    assert_eq!(found, "told");
    api.kubectl.run(&["delete", "mrp", "apart"])?;
    Ok(())
}

#[test]
fn every_field_explains_itself() -> Result<()> {
    let api = Api::shared()?;
    // The API server serves a new kind before it describes it.
    let explained = |field: &str| {
        let explain = || api.kubectl.run(&["explain", field]).map(Some);
        e2e::wait::until(&format!("{field} to be described"), Duration::from_mins(1), explain)
    };
    let text = explained("mrp.spec.links.names")?;
    assert!(text.contains("shell patterns"), "{text}");
    let text = explained("mns.status.links.reason")?;
    assert!(text.contains("Why no pool holds it"), "{text}");
    Ok(())
}
