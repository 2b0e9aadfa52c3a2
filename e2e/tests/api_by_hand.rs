//! What people do to pools by hand, against a real API server: it is made right, or at least does no harm.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use scene::{DEADLINE, NETWORKS, Scene, network};
use serde_json::{Value, json};

/// Sets the finalizers of a pool.
fn finalizers(scene: &Scene, pool: &str, finalizers: &Value) -> Result<()> {
    let patch = json!({"metadata": {"finalizers": finalizers}}).to_string();
    scene.api.kubectl.run(&["patch", "mrp", pool, "--type=merge", "-p", &patch]).map(drop)
}

/// Waits until the operator's metrics name the pool, or name it no more.
fn measured(scene: &Scene, pool: &str, wanted: bool) -> Result<()> {
    let operator = scene.operator.as_ref().context("no operator")?;
    let series = format!("pool=\"{pool}\"");
    e2e::wait::until(&format!("metrics of {pool}: {wanted}"), DEADLINE, || {
        Ok((operator.ask("/metrics")?.contains(&series) == wanted).then_some(()))
    })
}

#[test]
fn a_status_that_somebody_wiped_is_written_again() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 1)?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.ready_nodes("dp", "1/1")?;
    scene.api.patch_status("mrp/dp", &json!({"conditions": [], "nodes": null, "samples": []}))?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.ready_nodes("dp", "1/1")
}

#[test]
fn a_pool_whose_finalizer_was_taken_away_is_forgotten_and_its_successor_waits_for_its_devices() -> Result<()>
{
    let scene = Scene::new(&["n1"], false)?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 2)?;
    scene.ready_nodes("dp", "1/1")?;
    measured(&scene, "dp", true)?;
    let uid = |pool: &Value| pool.pointer("/metadata/uid").cloned();
    let first = scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, uid)?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    finalizers(&scene, "dp", &json!([]))?;
    scene.gone("", "mrp/dp")?;
    measured(&scene, "dp", false)?;

    scene.pool("dp", &json!({"nodeSelector": {}}))?;
    scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
        let sample = pool.pointer("/status/samples/0")?;
        let why = sample["message"].as_str()?;
        (sample["reason"] == "Waiting" && why.contains("earlier pool")).then_some(())
    })?;
    scene.expect_pools("n1", &[("dp", "Draining")])?;
    let entry = scene.spec_of("n1")?[0]["uid"].clone();
    assert_eq!(entry, first);
    scene.answer("n1", 0)?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 0)?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    Ok(())
}

#[test]
fn a_pool_that_is_replaced_without_its_finalizer_stays_on_its_nodes() -> Result<()> {
    let scene = Scene::new(&["n1", "n2"], false)?;
    scene.pool("dp", &json!({"rollout": {"type": "Staged", "staged": {"batch": 1}}}))?;
    for node in ["n1", "n2"] {
        scene.api.kubectl.wait_until("", &format!("mns/{node}"), DEADLINE, |_| Some(()))?;
        scene.answer(node, 0)?;
        scene.expect_pools(node, &[("dp", "Active")])?;
        scene.answer(node, 0)?;
    }
    scene.ready_nodes("dp", "2/2")?;
    finalizers(&scene, "dp", &json!([]))?;
    scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
        (pool.pointer("/metadata/finalizers/0")? == "macvtap.network.kubevirt.io/drain").then_some(())
    })?;
    // Once the nodes have another pool, the operator has looked at them since.
    scene.pool("probe", &json!({"links": [{"names": ["dp1"]}]}))?;
    for node in ["n1", "n2"] {
        scene.expect_pools(node, &[("dp", "Active"), ("probe", "Active")])?;
    }
    Ok(())
}

#[test]
fn a_drained_pool_says_why_its_networks_cannot_be_removed() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.network("default", "net")?;
    let rules = json!([{"apiGroups": ["k8s.cni.cncf.io"], "apiVersions": ["*"], "operations": ["DELETE"], "resources": ["*"]}]);
    let validations = json!([{"expression": "false", "message": "networks are under change control"}]);
    let kind = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "keep"}, "spec": spec});
    let policy = json!({"failurePolicy": "Fail", "matchConstraints": {"resourceRules": rules}, "validations": validations});
    scene.api.create(&kind("ValidatingAdmissionPolicy", policy))?;
    let binding = json!({"policyName": "keep", "validationActions": ["Deny"]});
    scene.api.create(&kind("ValidatingAdmissionPolicyBinding", binding))?;
    e2e::wait::until("the policy", DEADLINE, || {
        let attempt = ["-n", "default", "delete", NETWORKS, "net", "--dry-run=server"];
        Ok(scene.api.kubectl.run(&attempt).is_err().then_some(()))
    })?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
        let conditions = pool.pointer("/status/conditions")?.as_array()?;
        let terminating = conditions.iter().find(|condition| condition["type"] == "Terminating")?;
        terminating["message"].as_str()?.contains("networks are under change control").then_some(())
    })?;
    scene.api.kubectl.run(&["delete", "validatingadmissionpolicybinding", "keep"])?;
    scene.gone("", "mrp/dp")?;
    scene.gone("default", &format!("{NETWORKS}/net"))
}

#[test]
fn a_finalizer_of_somebody_else_keeps_a_pool_without_a_write_and_a_network_without_the_pool() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.network("default", "net")?;
    let theirs = "test.example/keep";
    finalizers(&scene, "dp", &json!(["macvtap.network.kubevirt.io/drain", theirs]))?;
    let keep = json!({"metadata": {"finalizers": [theirs]}}).to_string();
    scene.api.kubectl.run(&["-n", "default", "patch", NETWORKS, "net", "--type=merge", "-p", &keep])?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
        (pool.pointer("/metadata/finalizers")? == &json!([theirs])).then_some(())
    })?;
    scene.event("dp", "NetworksKept")?;
    let kept = scene.api.kubectl.get("default", &format!("{NETWORKS}/net"))?;
    ensure!(kept["metadata"].get("deletionTimestamp").is_some(), "the network was not deleted: {kept:#}");
    let release = r#"{"metadata": {"finalizers": []}}"#;
    scene.api.kubectl.run(&["-n", "default", "patch", NETWORKS, "net", "--type=merge", "-p", release])?;
    scene.gone("default", &format!("{NETWORKS}/net"))?;
    // What comes after it was looked at is served, and it is left as it is.
    let before = scene.api.kubectl.get("", "mrp/dp")?["metadata"]["resourceVersion"].clone();
    scene.pool("probe", &json!({"nodeSelector": {"matchLabels": {"none": "such"}}}))?;
    scene.says("probe", "Ready", "False", "NoMatchingNodes")?;
    let after = scene.api.kubectl.get("", "mrp/dp")?["metadata"]["resourceVersion"].clone();
    ensure!(before == after, "version {before} became {after}");
    finalizers(&scene, "dp", &json!([]))?;
    scene.gone("", "mrp/dp")
}

#[test]
fn namespaces_that_change_while_a_pool_is_being_deleted_neither_get_nor_lose_a_network() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.namespace("a", &json!({"macvtap": "yes"}))?;
    scene.namespace("b", &json!({"macvtap": "no"}))?;
    scene.pool("dp", &network("net", &json!({"selector": {"matchLabels": {"macvtap": "yes"}}})))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 1)?;
    scene.network("a", "net")?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    scene.namespace("a", &json!({"macvtap": "no"}))?;
    scene.namespace("b", &json!({"macvtap": "yes"}))?;
    // Once another pool was served that selects b, the operator has heard of both.
    let selector = json!({"selector": {"matchLabels": {"macvtap": "yes"}}});
    scene.pool("probe", &network("other", &selector))?;
    scene.network("b", "other")?;
    scene.network("a", "net").context("a pod that is being started still looks it up")?;
    scene.gone("b", &format!("{NETWORKS}/net"))?;
    scene.answer("n1", 0)?;
    scene.gone("", "mrp/dp")?;
    scene.gone("a", &format!("{NETWORKS}/net"))
}

#[test]
fn each_network_that_is_repaired_has_an_event_of_its_own() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.namespace("other", &json!({}))?;
    scene.pool("dp", &network("net", &json!({"names": ["default", "other"]})))?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let edit = r#"{"spec": {"config": "{}"}}"#;
    for namespace in ["default", "other"] {
        scene.api.kubectl.run(&["-n", namespace, "patch", NETWORKS, "net", "--type=merge", "-p", edit])?;
    }
    e2e::wait::until("an event for each network", DEADLINE, || {
        let args = ["get", "events", "-A", "--field-selector=reason=NetworkRepaired", "-o", "json"];
        let events: Value = serde_json::from_str(&scene.api.kubectl.run(&args)?)?;
        let events = events["items"].as_array().map_or(&[][..], Vec::as_slice);
        let mut places: Vec<&str> =
            events.iter().filter_map(|event| event["related"]["namespace"].as_str()).collect();
        places.sort_unstable();
        Ok((places == ["default", "other"]).then_some(()))
    })
}
