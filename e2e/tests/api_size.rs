//! How large objects are on a real API server: there are as many node states as nodes, and every edit of a pool stores
//! all of them again.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use macvtap_crds::v1alpha1::MacvtapNodeStateStatus;
use scene::{DEADLINE, Scene};
use serde_json::{Value, json};

const POOLS: usize = 20;

/// The most bytes of a node state with twenty pools, managed fields included.
const BYTES_MAX: usize = 8 * 1024;

const NODE: &str = "worker-00017.example.com";

#[test]
fn a_node_state_of_twenty_pools_is_at_most_8_kib_with_its_managed_fields() -> Result<()> {
    let scene = Scene::new(&[NODE], false)?;
    for number in 0..POOLS {
        let spec = json!({
            "nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}},
            "links": [{"names": ["ens*f0", "ens*f1"]}], "overlap": "Shared",
            "macvtap": {"mode": "Bridge", "mtu": 9000},
            "networks": [{"name": format!("tenant-{number:02}"), "namespaces": {"names": ["default"]}}],
        });
        scene.pool(&format!("tenant-{number:02}"), &spec)?;
    }
    scene.node(NODE, &json!({"kubernetes.io/os": "linux"}))?;
    let name = format!("mns/{NODE}");
    let state = scene.api.kubectl.wait_until("", &name, DEADLINE, |state| {
        (state.pointer("/spec/pools")?.as_array()?.len() == POOLS).then(|| state.clone())
    })?;
    let patch = json!([{"op": "add", "path": "/status", "value": status(&state)?}]).to_string();
    let manager = format!("--field-manager={}", macvtap_crds::AGENT_FIELD_MANAGER);
    let args = ["patch", &name, "--subresource=status", "--type=json", &manager, "-p", &patch];
    scene.api.kubectl.run(&args)?;
    scene.ready_nodes("tenant-00", "1/1")?;
    let address = format!("/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodestates/{NODE}");
    let stored = scene.api.kubectl.run(&["get", "--raw", &address])?;
    let stored: Value = serde_json::from_str(&stored)?;
    let bytes = |value: &Value| value.to_string().len();
    println!(
        "{} bytes: metadata {}, spec {}, status {}",
        bytes(&stored),
        bytes(&stored["metadata"]),
        bytes(&stored["spec"]),
        bytes(&stored["status"])
    );
    ensure!(bytes(&stored) <= BYTES_MAX, "{} bytes: {stored:#}", bytes(&stored));
    Ok(())
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
    let entries = state.pointer("/spec/pools").and_then(Value::as_array).context("no pools")?;
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
        "agentVersion": "0.1.0", "bootID": "5d4ff3a0-0000-4000-8000-000000000001",
        "links": links, "pools": pools.collect::<Vec<_>>(),
        "conditions": [condition("Ready", "True", "AsExpected"), condition("Degraded", "False", "AsExpected")],
    }))?;
    status.count();
    Ok(serde_json::to_value(status.brief())?)
}
