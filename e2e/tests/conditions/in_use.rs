//! Devices that pods have, while their pool or their link changes.

use crate::pods::{Guest, Pod};
use crate::stage::PREFIX;
use crate::{NODE, Scene};
use anyhow::{Context as _, Result};
use serde_json::Value;

/// A pool with a network, and a pod on it that is Ready.
fn served(scene: &mut Scene<'_>, pool: &str, links: &str) -> Result<Pod> {
    let namespace = scene.stage.namespace.clone();
    scene.pool(
        pool,
        &format!(
            "  links: [{{names: [{links}]}}]\n  capacity: {{perLink: 5}}\n  \
             networks: [{{name: {pool}, namespaces: {{names: [{namespace}]}}}}]\n"
        ),
    )?;
    scene.heals(&format!("pool {pool} Ready True AllNodesReady"))?;
    scene.heals(&format!("pool {pool} NetworksReady True AllNetworksReady"))?;
    let resource = format!("{PREFIX}/{pool}");
    scene.stage.kubectl.wait_until("", &format!("node/{NODE}"), crate::stage::PATIENCE, |node| {
        crate::stage::allocatable(node, &resource).filter(|count| *count > 0).map(drop)
    })?;
    let pod = Pod::apply(scene.stage, pool, NODE, Guest::Asks, &resource, Some(pool), 1)?;
    pod.ready(scene.stage)?;
    scene.stage.kubectl.wait_until(
        "",
        &format!("macvtapnodestates/{NODE}"),
        crate::stage::PATIENCE,
        |state| {
            let pools = state.pointer("/status/pools")?.as_array()?;
            pools.iter().find(|status| status["name"] == pool && status["allocated"] == 1).map(drop)
        },
    )?;
    Ok(pod)
}

/// A mode that waits, and a link of the node with an index of ours.
pub(crate) fn devices(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(16..=16)?;
    let pod = served(scene, "cx-mode", "cx16")?;
    scene.edit("cx-mode", r#"{"spec": {"macvtap": {"mode": "Private"}}}"#)?;
    scene.reach("link n1/cx16 ModeChangePending")?;
    scene.reach("part n1/cx-mode Degraded True ModeChangePending")?;
    pod.delete(scene.stage)?;
    scene.heals("part n1/cx-mode Degraded False AsExpected")?;

    let index = last_index(scene, "cx-mode")?;
    scene.ip(&format!("link add cxsquat index {index} type veth peer name cysquat"))?;
    scene.reach("link n1/cx16 IndexTaken")?;
    scene.reach("part n1/cx-mode Degraded True IndexTaken")?;
    scene.ip("link del cxsquat")?;
    scene.heals("part n1/cx-mode Degraded False AsExpected")
}

/// The index of a resource's last device.
fn last_index(scene: &Scene<'_>, resource: &str) -> Result<u64> {
    let text = scene.stage.node(NODE)?.exec(&["cat", "/var/lib/macvtap/devices.json"])?;
    let table: Value = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
    let range =
        table.pointer(&format!("/resources/{resource}/links/0/ranges/0")).cloned().unwrap_or_default();
    let number = |name: &str| range[name].as_u64().with_context(|| format!("no {name} in {text}"));
    Ok(number("firstIfindex")? + number("count")? - 1)
}

/// A link that is deleted under a pod.
pub(crate) fn vanishing(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(17..=17)?;
    let pod = served(scene, "cx-gone", "cx17")?;
    scene.ip("link del cx17")?;
    scene.reach("part n1/cx-gone Degraded True DevicesDead")?;
    scene.links(17..=17)?;
    scene.heals("pool cx-gone Ready True AllNodesReady")?;
    pod.delete(scene.stage)?;
    scene.heals("part n1/cx-gone Degraded False AsExpected")
}

/// From the deletion of a pool whose devices are in use to its end.
pub(crate) fn draining(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(18..=19)?;
    let pod = served(scene, "cx-end", "cx18, cx19")?;
    let namespace = scene.stage.namespace.clone();
    let kubectl = scene.stage.kubectl;
    let finalizer = |finalizers: &str| {
        let patch = format!(r#"{{"metadata": {{"finalizers": {finalizers}}}}}"#);
        kubectl.run(&[
            "-n",
            &namespace,
            "patch",
            "network-attachment-definitions",
            "cx-end",
            "--type=merge",
            "-p",
            &patch,
        ])
    };
    finalizer(r#"["example.com/kept"]"#)?;
    kubectl.run(&["delete", "macvtapresourcepool", "cx-end", "--wait=false"])?;
    for fact in [
        "pool cx-end Terminating True DevicesInUse",
        "pool cx-end Ready False Terminating",
        "part n1/cx-end Ready False Draining",
    ] {
        scene.reach(fact)?;
    }
    let links = kubectl.get("", "macvtapnodestates/n1")?;
    let free =
        links["status"]["links"].as_array().into_iter().flatten().find(|link| link["reason"] == "Draining");
    let free = free.and_then(|link| link["name"].as_str()).context("no link is being drained")?.to_owned();
    scene.reach(&format!("link n1/{free} Draining"))?;
    pod.delete(scene.stage)?;
    scene.reach("part n1/cx-end Ready False Drained")?;
    // What somebody else's finalizer keeps is deleted, and holds up nothing.
    scene.stage.kubectl.wait_for("", "macvtapresourcepool/cx-end", "delete", crate::stage::PATIENCE)?;
    finalizer("null").map(drop)
}
