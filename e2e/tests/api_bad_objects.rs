//! Objects that the schema of today would refuse: another release or a looser schema let them in. They stop no watch, what
//! can be repaired is repaired, and the rest is said.

mod api;

use anyhow::{Context as _, Result};
use api::{Api, Program};
use e2e::layout::Checkout;
use serde_json::{Value, json};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);
const GROUP: &str = "macvtap.network.kubevirt.io";

/// Lets anything into a kind.
fn loosen(api: &Api, plural: &str) -> Result<()> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"type": "object", "properties": {"spec": anything, "status": anything}});
    let patch =
        json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
    let crd = format!("{plural}.{GROUP}");
    api.kubectl.run(&["patch", "crd", &crd, "--type=json", "-p", &patch.to_string()]).map(drop)
}

/// Stores an object as soon as the loose schema is in force.
fn store(api: &Api, object: &Value) -> Result<()> {
    e2e::wait::until("the loose schema", DEADLINE, || api.replace(object).map(Some))
}

fn pool(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "MacvtapResourcePool", "metadata": {"name": name}, "spec": spec})
}

/// Waits until a node was told of these pools and no others.
fn expect_pools(api: &Api, node: &str, pools: &[(&str, u64)]) -> Result<()> {
    api.kubectl.wait_until("", &format!("mns/{node}"), DEADLINE, |state| {
        let entries = state.pointer("/spec/pools")?.as_array()?;
        let found: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry["name"].as_str().zip(entry.pointer("/macvtap/mtu")?.as_u64()))
            .collect();
        (found == pools).then_some(())
    })
}

/// Waits until condition Accepted of a pool has this reason.
fn accepted(api: &Api, pool: &str, reason: &str) -> Result<()> {
    api.kubectl.wait_until("", &format!("mrp/{pool}"), DEADLINE, |pool| {
        let conditions = pool.pointer("/status/conditions")?.as_array()?;
        conditions.iter().find(|c| c["type"] == "Accepted" && c["reason"] == reason).map(drop)
    })
}

#[test]
fn objects_that_cannot_be_read_stop_no_watch_and_are_repaired_or_told() -> Result<()> {
    let api = Api::own()?;
    for node in ["n1", "n2", "n3", "n4"] {
        api.replace(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}))?;
    }
    loosen(&api, "macvtapresourcepools")?;
    loosen(&api, "macvtapnodestates")?;
    let strange = [
        pool("strange-mode", &json!({"links": [{"names": ["dp0"]}], "macvtap": {"mode": "Teleport"}})),
        pool("strange-type", &json!({"links": "all of them", "priority": "highest"})),
        pool("strange-nothing", &json!({})),
    ];
    let labels =
        |operator: &str| json!({"matchExpressions": [{"key": "a", "operator": operator, "values": ["1"]}]});
    let selecting = |operator| {
        pool("strange-selector", &json!({"links": [{"names": ["dp1"]}], "nodeSelector": labels(operator)}))
    };
    for object in &strange {
        store(&api, object)?;
    }
    for (node, spec) in [
        ("n1", json!({"configHash": 7, "pools": "none"})),
        ("n2", json!({"configHash": "sha256:0", "pools": [{"name": "old", "mode": "unknown"}, 5]})),
    ] {
        let metadata = json!({"name": node});
        let kind = json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "MacvtapNodeState"});
        let mut object = json!({"metadata": metadata, "spec": spec});
        object["apiVersion"] = kind["apiVersion"].clone();
        object["kind"] = kind["kind"].clone();
        store(&api, &object)?;
        api.patch_status(&format!("mns/{node}"), &json!({"observedHash": ["?"], "pools": {"a": 1}}))?;
    }

    // They are there before the operator is, and their changes come while it runs.
    let args = ["--listen", "127.0.0.1:0"];
    let running = Program::start("macvtap-operator", &args, api.kubectl.kubeconfig())?;
    let sound =
        |mtu: u64| pool("well-formed", &json!({"links": [{"names": ["dp0"]}], "macvtap": {"mtu": mtu}}));
    api.replace(&sound(1400))?;
    for node in ["n1", "n2", "n3"] {
        expect_pools(&api, node, &[("well-formed", 1400)])
            .with_context(|| format!("with bad objects from the start, {node}"))?;
    }
    for object in &strange {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        api.kubectl.run(&["annotate", "mrp", name, "seen=again"])?;
        accepted(&api, name, "NotReadable")?;
    }

    store(&api, &selecting("Gt"))?;
    accepted(&api, "strange-selector", "InvalidSelector")?;

    // An agent of another release: its answer to the spec of today cannot be read.
    let state = api.kubectl.get("", "mns/n3")?;
    let status = json!({"observedHash": state["spec"]["configHash"], "pools": [{"name": "well-formed", "conditions": "fine"}]});
    api.patch_status("mns/n3", &status)?;
    api.kubectl.wait_until("", "mrp/well-formed", DEADLINE, |pool| {
        let samples = pool.pointer("/status/samples")?.as_array()?;
        samples.iter().find(|s| s["node"] == "n3" && s["reason"] == "StatusNotReadable").map(drop)
    })?;
    api.replace(&sound(1300))?;
    for node in ["n1", "n2", "n3"] {
        expect_pools(&api, node, &[("well-formed", 1300)])
            .with_context(|| format!("after changes of bad objects, {node}"))?;
    }

    // The schema of today comes back; the objects are still there. An apply is refused as long as what is there has other
    // types than the schema, so what is ours of it is replaced.
    let crds = Checkout::here().path("crds/yaml");
    api.kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", &crds.to_string_lossy()])?;
    api.replace(&sound(1200))?;
    for node in ["n1", "n2", "n3", "n4"] {
        expect_pools(&api, node, &[("well-formed", 1200)])
            .with_context(|| format!("with today's schema, {node}"))?;
    }
    let quiet = running.log().lines().count();
    assert_eq!(running.terminate()?, Some(0), "it ends as it should");

    // Another operator, which finds them as they are.
    let running = Program::start("macvtap-operator", &args, api.kubectl.kubeconfig())?;
    api.replace(&sound(1250))?;
    for node in ["n1", "n2", "n3", "n4"] {
        expect_pools(&api, node, &[("well-formed", 1250)])
            .with_context(|| format!("by another operator, {node}"))?;
    }
    let log = running.log();
    let failed = log.lines().skip(quiet).filter(|line| line.contains("reconcile failed")).count();
    assert_eq!(failed, 0, "{log}");

    // Pools that are repaired have their effect. The server takes no apply of this one either.
    let repair = json!({"spec": {"links": [{"names": ["dp1"]}], "priority": null, "macvtap": {"mtu": 1100}}});
    api.kubectl.run(&["patch", "mrp", "strange-type", "--type=merge", "-p", &repair.to_string()])?;
    accepted(&api, "strange-type", "Valid")?;
    api.replace(&selecting("NotIn"))?;
    accepted(&api, "strange-selector", "Valid")?;
    expect_pools(&api, "n4", &[("strange-type", 1100), ("well-formed", 1250)])?;
    Ok(())
}
