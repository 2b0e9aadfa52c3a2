//! How large objects are on a real API server: there are as many node states as nodes, and every edit of a pool stores
//! all of them again.

#![allow(clippy::print_stdout, reason = "sizes belong in the test's output")]

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Result, ensure};
use macvtap_crds::v1alpha1::MacvtapNodeStateStatus;
use scene::{DEADLINE, Scene};
use serde_json::{Value, json};

const POOLS: usize = 20;

/// The most bytes of a node state with twenty pools, managed fields included.
const BYTES_MAX: usize = 8 * 1024;

/// The most bytes that an edit of a pool stores on so many nodes which have the same pools: each with the spec and again with
/// the answer.
const EDIT_MAX: usize = 40 * 1024 * 1024;
const NODES: usize = 5_000;

const NODE: &str = "worker-00017.example.com";

/// The node state once its spec has so many pools.
fn with_pools(scene: &Scene, pools: usize) -> Result<Value> {
    scene.api.kubectl.wait_until("", &format!("mns/{NODE}"), DEADLINE, |state| {
        (state.pointer("/spec/pools")?.as_array()?.len() == pools).then(|| state.clone())
    })
}

/// Writes a status as the agent does.
fn report(scene: &Scene, status: &Value) -> Result<()> {
    let patch = json!([{"op": "add", "path": "/status", "value": status}]).to_string();
    let manager = format!("--field-manager={}", macvtap_crds::AGENT_FIELD_MANAGER);
    let name = format!("mns/{NODE}");
    let args = ["patch", &name, "--subresource=status", "--type=json", &manager, "-p", &patch];
    scene.api.kubectl.run(&args).map(drop)
}

#[test]
fn an_agent_of_the_first_release_can_read_its_spec_until_it_is_upgraded() -> Result<()> {
    let scene = Scene::new(&[NODE], false)?;
    scene.pool("dp", &json!({}))?;
    scene.pool("named", &json!({"resourceName": "other"}))?;
    let state = with_pools(&scene, 2)?;
    let said = |state: &Value| -> Vec<Value> {
        let pools = state.pointer("/spec/pools").and_then(Value::as_array).into_iter().flatten();
        pools.map(|pool| json!([pool["name"], pool["phase"], pool["resourceName"]])).collect()
    };
    let full = [json!(["dp", "Active", "dp"]), json!(["named", "Active", "other"])];
    assert_eq!(said(&state), full, "no agent has reported yet");
    // The first release reports no observedGeneration.
    scene.answer(NODE, 0)?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.pool("dp", &json!({"macvtap": {"mtu": 9000}}))?;
    let edited = |state: &Value| state.pointer("/spec/pools/0/macvtap/mtu").is_some();
    let name = format!("mns/{NODE}");
    let state =
        scene.api.kubectl.wait_until("", &name, DEADLINE, |state| edited(state).then(|| state.clone()))?;
    assert_eq!(said(&state), full);
    report(&scene, &status(&state)?)?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    let kept = scene.api.kubectl.get("", &name)?;
    assert_eq!(kept["metadata"]["generation"], state["metadata"]["generation"], "an upgrade must not write");
    scene.pool("dp", &json!({}))?;
    let brief = [json!(["dp", null, null]), json!(["named", null, "other"])];
    scene.api.kubectl.wait_until("", &name, DEADLINE, |state| (said(state) == brief).then_some(()))
}

#[test]
fn a_node_state_of_twenty_pools_is_at_most_8_kib_with_its_managed_fields() -> Result<()> {
    let scene = Scene::new(&[NODE], false)?;
    report(&scene, &status(&with_pools(&scene, 0)?)?)?;
    twenty_pools(&scene)?;
    report(&scene, &status(&with_pools(&scene, POOLS)?)?)?;
    scene.ready_nodes("tenant-00", "1/1")?;
    let stored = stored(&scene)?;
    ensure!(bytes(&stored) <= BYTES_MAX, "{} bytes: {stored:#}", bytes(&stored));
    Ok(())
}

#[test]
fn an_edit_where_5000_nodes_share_20_pools_stores_at_most_40_mib() -> Result<()> {
    let mut scene = Scene::new(&[NODE], false)?;
    scene.restart_with(&["--share-configs-from", "1"])?;
    report(&scene, &status(&with_pools(&scene, 0)?)?)?;
    twenty_pools(&scene)?;
    report(&scene, &status(&sharing(&scene, 9000)?)?)?;
    scene.ready_nodes("tenant-00", "1/1")?;
    scene.pool("tenant-00", &pool(0, 8900))?;
    let edited = sharing(&scene, 8900)?;
    let with_spec = bytes(&stored(&scene)?);
    report(&scene, &status(&edited)?)?;
    scene.ready_nodes("tenant-00", "1/1")?;
    let with_answer = bytes(&stored(&scene)?);
    let edit = (with_spec + with_answer) * NODES;
    println!("{edit} bytes for {NODES} nodes");
    ensure!(edit <= EDIT_MAX, "{edit} bytes are more than {EDIT_MAX}");
    Ok(())
}

/// The node state with the pools of the configuration that it names, once these are all and one has this MTU.
fn sharing(scene: &Scene, mtu: u32) -> Result<Value> {
    e2e::wait::until("the node to share its pools", DEADLINE, || {
        let mut state = scene.api.kubectl.get("", &format!("mns/{NODE}"))?;
        let Some(name) = state["spec"]["config"].as_str() else { return Ok(None) };
        ensure!(state["spec"].get("pools").is_none(), "pools beside the name: {state:#}");
        let pools = scene.api.kubectl.get("", &format!("mnc/{name}"))?["spec"]["pools"].clone();
        let is_edited = pools.pointer("/0/macvtap/mtu") == Some(&mtu.into());
        let is_whole = pools.as_array().is_some_and(|pools| pools.len() == POOLS);
        state["spec"]["pools"] = pools;
        Ok((is_whole && is_edited).then_some(state))
    })
}

/// Pools as operators of large clusters make them.
fn pool(number: usize, mtu: u32) -> Value {
    json!({
        "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
        "links": [{"names": ["ens*f0", "ens*f1"]}], "overlap": "Shared",
        "macvtap": {"mode": "Bridge", "mtu": mtu},
        "networks": [{"name": format!("tenant-{number:02}"), "namespaces": {"names": ["default"]}}],
    })
}

fn twenty_pools(scene: &Scene) -> Result<()> {
    for number in 0..POOLS {
        scene.pool(&format!("tenant-{number:02}"), &pool(number, 9000))?;
    }
    scene.node(NODE, &json!({"kubernetes.io/os": "linux"}))
}

fn bytes(value: &Value) -> usize {
    value.to_string().len()
}

/// The node state as the API server has it.
fn stored(scene: &Scene) -> Result<Value> {
    let address = format!("/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodestates/{NODE}");
    let stored: Value = serde_json::from_str(&scene.api.kubectl.run(&["get", "--raw", &address])?)?;
    println!(
        "{} bytes: metadata {}, spec {}, status {}",
        bytes(&stored),
        bytes(&stored["metadata"]),
        bytes(&stored["spec"]),
        bytes(&stored["status"])
    );
    Ok(stored)
}

/// What an agent with two links in every pool reports, as it writes it.
fn status(state: &Value) -> Result<Value> {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "199 of 200 devices are healthy",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let links = ["ens1f0", "ens1f1"];
    let entries = state.pointer("/spec/pools").and_then(Value::as_array).cloned().unwrap_or_default();
    let pools = entries.iter().map(|pool| {
        json!({
            "name": pool["name"], "generation": pool["generation"], "links": links,
            "capacity": 200, "allocatable": 200, "allocated": 17,
            "conditions": [condition("Ready", "True", "Serving"), condition("Degraded", "False", "AsExpected")],
        })
    });
    let names: Vec<&Value> = entries.iter().map(|pool| &pool["name"]).collect();
    let links = links.map(|name| {
        json!({
            "name": name, "kind": "Physical", "mac": "b8:ce:f6:00:00:01", "mtu": 9000, "carrier": true,
            "speedMbps": 25000, "driver": "mlx5_core", "pciAddress": "0000:3b:00.0", "vendor": "15b3",
            "numaNode": 0, "pools": names,
        })
    });
    let mut status: MacvtapNodeStateStatus = serde_json::from_value(json!({
        "observedGeneration": state["metadata"]["generation"], "observedHash": state["spec"]["configHash"],
        "agentVersion": "0.2.0", "bootID": "5d4ff3a0-0000-4000-8000-000000000001",
        "links": links, "pools": pools.collect::<Vec<_>>(),
        "conditions": [condition("Ready", "True", "AsExpected"), condition("Degraded", "False", "AsExpected")],
    }))?;
    status.count();
    Ok(serde_json::to_value(status.brief())?)
}
