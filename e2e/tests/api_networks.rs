//! Networks whose owner is not what it seems, and pools that only look, on a real API server.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use scene::{DEADLINE, NETWORKS, Scene, foreign, network};
use serde_json::{Value, json};

const POOL: &str = "macvtap.network.kubevirt.io/pool";
const POOL_UID: &str = "macvtap.network.kubevirt.io/pool-uid";

/// A network as a backup of an earlier pool `dp` has it.
fn restored(name: &str) -> Value {
    let mut network = foreign("default", name);
    network["metadata"]["labels"] = json!({POOL: "dp", POOL_UID: "6c4b1f2a-0000-4000-8000-000000000000"});
    network
}

fn uid(scene: &Scene, pool: &str) -> Result<String> {
    let pool = scene.api.kubectl.get("", &format!("mrp/{pool}"))?;
    Ok(pool["metadata"]["uid"].as_str().context("a pool without UID")?.to_owned())
}

/// Waits until the network is the pool's, with its configuration.
fn belongs(scene: &Scene, name: &str, uid: &str) -> Result<()> {
    scene.api.kubectl.wait_until("default", &format!("{NETWORKS}/{name}"), DEADLINE, |network| {
        let ours = network["metadata"]["labels"][POOL_UID] == uid;
        (ours && network["spec"]["config"].as_str()?.contains("macvtap")).then_some(())
    })
}

#[test]
fn networks_restored_from_a_backup_are_taken_over_in_either_order() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.api.replace(&restored("net"))?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let uid = uid(&scene, "dp")?;
    belongs(&scene, "net", &uid)?;
    scene.event("dp", "NetworkAdopted")?;
    scene.api.replace(&restored("net"))?;
    belongs(&scene, "net", &uid)?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--timeout=60s"])?;
    scene.gone("default", &format!("{NETWORKS}/net"))
}

#[test]
fn a_network_that_lost_its_labels_is_taken_back() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    let uid = uid(&scene, "dp")?;
    belongs(&scene, "net", &uid)?;
    for lost in [&[POOL][..], &[POOL_UID], &[POOL, POOL_UID]] {
        let labels: serde_json::Map<_, _> = lost.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
        let patch = json!({"metadata": {"labels": labels}}).to_string();
        scene.api.kubectl.run(&["-n", "default", "patch", NETWORKS, "net", "--type=merge", "-p", &patch])?;
        scene.api.kubectl.wait_until("default", &format!("{NETWORKS}/net"), DEADLINE, |network| {
            let labels = &network["metadata"]["labels"];
            (labels[POOL] == "dp" && labels[POOL_UID] == uid.as_str()).then_some(())
        })?;
    }
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--timeout=60s"])?;
    scene.gone("default", &format!("{NETWORKS}/net"))
}

#[test]
fn a_network_restored_for_the_living_pool_goes_with_it() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("dp", &network("net", &json!({"selector": {"matchLabels": {"macvtap": "yes"}}})))?;
    scene.namespace("first", &json!({"macvtap": "yes"}))?;
    scene.network("first", "net")?;
    let mut network = scene.api.kubectl.get("first", &format!("{NETWORKS}/net"))?;
    scene.namespace("later", &json!({"macvtap": "no"}))?;
    network["metadata"] = json!({
        "name": "net", "namespace": "later",
        "labels": network["metadata"]["labels"], "annotations": network["metadata"]["annotations"],
    });
    scene.api.create(&network)?;
    scene.namespace("later", &json!({"macvtap": "yes"}))?;
    scene.event("dp", "NetworkAdopted")?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--timeout=60s"])?;
    scene.gone("later", &format!("{NETWORKS}/net"))
}

#[test]
fn of_an_earlier_pools_networks_that_the_pool_does_not_want_ours_go_and_restored_ones_are_named() -> Result<()>
{
    let mut scene = Scene::new(&["n1"], true)?;
    let places = json!({"names": ["default"]});
    let mut spec = network("net", &places);
    spec["networks"] = json!([{"name": "net", "namespaces": places}, {"name": "old", "namespaces": places}]);
    scene.pool("dp", &spec)?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    scene.operator.take().context("no operator")?.terminate()?;
    scene.api.kubectl.run(&[
        "patch",
        "mrp",
        "dp",
        "--type=merge",
        "-p",
        r#"{"metadata": {"finalizers": null}}"#,
    ])?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--timeout=60s"])?;
    scene.api.create(&restored("restored"))?;
    scene.pool("dp", &network("net", &places))?;
    scene.start()?;
    let uid = uid(&scene, "dp")?;
    belongs(&scene, "net", &uid)?;
    scene.gone("default", &format!("{NETWORKS}/old"))?;
    let message = |scene: &Scene, holds: bool| {
        scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
            let conditions = pool.pointer("/status/conditions")?.as_array()?;
            let found = conditions.iter().find(|condition| condition["type"] == "NetworksReady")?;
            let names =
                found["message"].as_str()?.contains("earlier pool dp and are left alone: default/restored;");
            (found["reason"] == "AllNetworksReady" && names == holds).then_some(())
        })
    };
    message(&scene, true)?;
    scene.api.kubectl.run(&["-n", "default", "delete", NETWORKS, "restored"])?;
    message(&scene, false)
}

#[test]
fn a_network_of_another_living_pool_or_of_nobody_is_not_taken_over() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.api.replace(&foreign("default", "net"))?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.says("dp", "NetworksReady", "False", "NADConflict")?;
    let found = scene.api.kubectl.get("default", &format!("{NETWORKS}/net"))?;
    assert_eq!(found["spec"]["config"], "{\"type\": \"bridge\"}");
    Ok(())
}

#[test]
fn a_dry_run_neither_makes_nor_removes_networks_and_is_not_degraded() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    let mut spec = network("net", &json!({"names": ["default"]}));
    spec["advertisement"] = "DryRun".into();
    scene.pool("dp", &spec)?;
    let message = scene.says("dp", "NetworksReady", "False", "DryRun")?;
    ensure!(message.contains("0 of 1 networks exist"), "{message}");
    scene.says("dp", "Degraded", "False", "AsExpected")?;
    scene.gone("default", &format!("{NETWORKS}/net"))?;
    spec["advertisement"] = "Enabled".into();
    scene.pool("dp", &spec)?;
    scene.network("default", "net")?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    spec["advertisement"] = "DryRun".into();
    scene.pool("dp", &spec)?;
    let message = scene.says("dp", "NetworksReady", "False", "DryRun")?;
    ensure!(message.contains("1 of 1 networks exist"), "{message}");
    scene.network("default", "net").map(drop)
}

#[test]
fn a_tenants_copy_of_our_labels_is_not_ours_and_holds_up_no_deletion() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.network("default", "net")?;
    let mut copy = foreign("default", "copy");
    copy["metadata"]["labels"] = json!({POOL: "dp", POOL_UID: uid(&scene, "dp")?});
    copy["metadata"]["finalizers"] = json!(["example.com/kept"]);
    scene.api.create(&copy)?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--timeout=60s"])?;
    let copy = scene.api.kubectl.get("default", &format!("{NETWORKS}/copy"))?;
    ensure!(copy["metadata"].get("deletionTimestamp").is_none(), "a tenant's network was deleted: {copy:#}");
    Ok(())
}

#[test]
fn a_pool_that_cannot_be_read_says_what_its_deletion_waits_for() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 2)?;
    scene.ready_nodes("dp", "1/1")?;
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    let loose = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    scene.api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", loose])?;
    let odd = r#"{"spec": {"macvtap": {"mode": "Teleport"}}}"#;
    e2e::wait::until("the loose schema", DEADLINE, || {
        scene.api.kubectl.run(&["patch", "mrp", "dp", "--type=merge", "-p", odd]).map(Some)
    })?;
    scene.says("dp", "Stalled", "True", "NotReadable")?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    let message = scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    ensure!(message.contains("n1 (2)"), "{message}");
    scene.expect_pools("n1", &[("dp", "Draining")])?;
    scene.answer("n1", 0)?;
    scene.gone("", "mrp/dp")
}
