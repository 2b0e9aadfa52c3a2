//! Configurations that node states name, on a real API server.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Result, ensure};
use scene::{DEADLINE, Scene, answered, condition};
use serde_json::{Value, json};
use std::time::Duration;

const NODE: &str = "n1";

/// The operator compares configurations with node states every minute.
const SWEPT: Duration = Duration::from_secs(80);

const KIND: &str = "macvtapnodeconfigs.macvtap.network.kubevirt.io";

/// Answers as an agent that reads specs in every form.
fn answer(scene: &Scene, state: &Value) -> Result<()> {
    let mut status = answered(state, 0, &condition("Ready", "True", "Serving"));
    status["agentVersion"] = json!("0.2.0");
    scene.api.patch_status(&format!("mns/{NODE}"), &status)
}

/// The node state with its pools, once the first of them has this MTU.
fn with_mtu(scene: &Scene, mtu: u32) -> Result<Value> {
    e2e::wait::until("the node to receive its pool", DEADLINE, || {
        let mut state = scene.api.kubectl.get("", &format!("mns/{NODE}"))?;
        if let Some(name) = state["spec"]["config"].as_str().map(str::to_owned) {
            state["spec"]["pools"] =
                scene.api.kubectl.get("", &format!("mnc/{name}"))?["spec"]["pools"].clone();
            state["spec"]["named"] = json!(name);
        }
        Ok((state.pointer("/spec/pools/0/macvtap/mtu") == Some(&mtu.into())).then_some(state))
    })
}

/// A node whose agent has reported once, and an operator that shares from the first node on.
fn scene() -> Result<Scene> {
    let mut scene = Scene::new(&[NODE], false)?;
    scene.restart_with(&["--share-configs-from", "1"])?;
    scene.pool("dp", &json!({"macvtap": {"mtu": 1400}}))?;
    let state = with_mtu(&scene, 1400)?;
    ensure!(state["spec"]["named"].is_null(), "no agent has said that it reads this form: {state:#}");
    answer(&scene, &state)?;
    Ok(scene)
}

fn edited(scene: &Scene, mtu: u32) -> Result<Value> {
    scene.pool("dp", &json!({"macvtap": {"mtu": mtu}}))?;
    let state = with_mtu(scene, mtu)?;
    answer(scene, &state)?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    Ok(state)
}

#[test]
fn one_that_somebody_deletes_comes_back_also_when_the_operator_has_no_memory_of_it() -> Result<()> {
    let mut scene = scene()?;
    let state = edited(&scene, 1401)?;
    let name = state["spec"]["named"].as_str().unwrap_or_default().to_owned();
    ensure!(!name.is_empty(), "the state has its pools itself: {state:#}");
    let edit = json!({"spec": {"pools": []}}).to_string();
    let refused = scene.api.kubectl.run(&["patch", "mnc", &name, "--type=merge", "-p", &edit]);
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("never changes")));
    for has_memory in [true, false] {
        scene.api.kubectl.run(&["delete", "mnc", &name])?;
        if !has_memory {
            scene.restart_with(&["--share-configs-from", "1"])?;
        }
        scene
            .api
            .kubectl
            .wait_until("", "mnc", SWEPT, |all| (!all["items"].as_array()?.is_empty()).then_some(()))?;
    }
    let now = with_mtu(&scene, 1401)?;
    ensure!(now["spec"]["configHash"] == state["spec"]["configHash"], "{now:#}");
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.expect_pools(NODE, &[("dp", "Draining")]).or_else(|_| {
        let state = scene.api.kubectl.get("", &format!("mns/{NODE}"))?;
        let name = state["spec"]["config"].as_str().unwrap_or_default().to_owned();
        let config = scene.api.kubectl.get("", &format!("mnc/{name}"))?;
        ensure!(config.pointer("/spec/pools/0/phase") == Some(&json!("Draining")), "{config:#}");
        Ok(())
    })
}

#[test]
fn where_a_kind_is_of_an_older_release_each_state_has_its_pools_itself() -> Result<()> {
    let scene = scene()?;
    let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/config";
    let older = json!([{"op": "remove", "path": field}]).to_string();
    let states = "crd/macvtapnodestates.macvtap.network.kubevirt.io";
    scene.api.kubectl.run(&["patch", states, "--type=json", "-p", &older])?;
    // The API server takes a while to use it.
    e2e::wait::until("the older kind", DEADLINE, || {
        let text = scene.api.kubectl.run(&["explain", "mns.spec"])?;
        Ok((!text.contains("config\t") && !text.contains("config <")).then_some(()))
    })?;
    let state = edited(&scene, 1401)?;
    ensure!(state["spec"]["named"].is_null() && state["spec"]["pools"].is_array(), "{state:#}");
    Ok(())
}

#[test]
fn without_their_kind_each_state_has_its_pools_itself() -> Result<()> {
    let scene = scene()?;
    scene.api.kubectl.run(&["delete", "crd", KIND])?;
    let state = edited(&scene, 1401)?;
    ensure!(state["spec"]["named"].is_null() && state["spec"]["pools"].is_array(), "{state:#}");
    Ok(())
}
