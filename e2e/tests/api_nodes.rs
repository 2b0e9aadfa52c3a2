//! Nodes that do not go as they should, on a real API server.

mod api;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use scene::{DEADLINE, Scene};
use serde_json::{Value, json};

/// Deletes a Node that somebody's finalizer keeps.
fn delete_but_keep(scene: &Scene, node: &str) -> Result<()> {
    let keep = r#"{"metadata": {"finalizers": ["test.example/keep"]}}"#;
    scene.api.kubectl.run(&["patch", "node", node, "--type=merge", "-p", keep])?;
    scene.api.kubectl.run(&["delete", "node", node, "--wait=false"]).map(drop)
}

#[test]
fn a_node_that_is_being_deleted_for_long_holds_up_no_rollout_and_no_deletion() -> Result<()> {
    let scene = Scene::new(&["n1", "n2"], false)?;
    for node in ["n1", "n2"] {
        scene.expect_pools(node, &[])?;
        scene.answer(node, 0)?;
    }
    delete_but_keep(&scene, "n1")?;
    let rollout = |kind: &str| json!({"rollout": {"type": kind}});
    scene.pool("dp", &rollout("Staged"))?;
    scene.expect_pools("n2", &[("dp", "Active")]).context("n1 is the first by name, and gets no turn")?;
    scene.answer("n2", 0)?;
    let message = scene.says("dp", "Ready", "True", "AllNodesReady")?;
    assert_eq!(message, "1 of 1 nodes offer devices");
    scene.api.kubectl.wait_until("", "mrp/dp", DEADLINE, |pool| {
        let sample = pool.pointer("/status/samples/0")?;
        (sample["node"] == "n1" && sample["reason"] == "NodeTerminating").then_some(())
    })?;
    assert_eq!(scene.spec_of("n1")?, json!([]));

    // Pods may run there: it hears of what is not staged, and of the end of the pool.
    scene.pool("dp", &rollout("AllAtOnce"))?;
    scene.expect_pools("n1", &[("dp", "Active")])?;
    scene.answer("n1", 1)?;
    scene.ready_nodes("dp", "2/2")?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    for node in ["n1", "n2"] {
        scene.expect_pools(node, &[("dp", "Draining")])?;
        scene.answer(node, 0)?;
    }
    scene.gone("", "mrp/dp")?;
    scene.expect_pools("n1", &[])?;
    // Without a state it gets none any more.
    scene.api.kubectl.run(&["delete", "mns", "n1"])?;
    scene.pool("probe", &json!({}))?;
    scene.expect_pools("n2", &[("probe", "Active")])?;
    scene.gone("", "mns/n1")
}

#[test]
fn each_node_that_is_let_go_without_a_drain_has_an_event_of_its_own() -> Result<()> {
    let mut scene = Scene::new(&["n1", "n2", "kept"], false)?;
    scene.pool("dp", &json!({}))?;
    for node in ["n1", "n2", "kept"] {
        scene.expect_pools(node, &[("dp", "Active")])?;
        scene.answer(node, 1)?;
    }
    delete_but_keep(&scene, "kept")?;
    for node in ["n1", "n2", "kept"] {
        scene.not_ready(node)?;
    }
    scene.restart()?;
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    let release = "macvtap.network.kubevirt.io/release-without-drain=n1,n2,kept";
    scene.api.kubectl.run(&["annotate", "mrp", "dp", release])?;
    scene.gone("", "mrp/dp")?;
    e2e::wait::until("an event for each node", DEADLINE, || {
        let args = ["get", "events", "-A", "--field-selector=reason=ReleasedWithoutDrain", "-o", "json"];
        let events: Value = serde_json::from_str(&scene.api.kubectl.run(&args)?)?;
        let events = events["items"].as_array().map_or(&[][..], Vec::as_slice);
        let mut nodes: Vec<&str> =
            events.iter().filter_map(|event| event["related"]["name"].as_str()).collect();
        nodes.sort_unstable();
        Ok((nodes == ["kept", "n1", "n2"]).then_some(()))
    })
}

#[test]
fn a_change_of_a_pool_is_written_to_no_node_that_it_does_not_concern() -> Result<()> {
    let scene = Scene::new(&[], false)?;
    for zone in ["a", "b"] {
        scene.node(zone, &json!({"zone": zone}))?;
    }
    let zoned = |zone: &str, mtu: u32| json!({"nodeSelector": {"matchLabels": {"zone": zone}}, "macvtap": {"mtu": mtu}});
    for zone in ["a", "b"] {
        scene.pool(&format!("dp-{zone}"), &zoned(zone, 1500))?;
        scene.expect_pools(zone, &[(&format!("dp-{zone}"), "Active")])?;
    }
    let generation = |state: &Value| state.pointer("/metadata/generation")?.as_i64();
    let before = scene.api.kubectl.wait_until("", "mns/b", DEADLINE, generation)?;
    scene.pool("dp-a", &zoned("a", 9000))?;
    scene.api.kubectl.wait_until("", "mns/a", DEADLINE, |state| {
        (state.pointer("/spec/pools/0/macvtap/mtu")? == 9000).then_some(())
    })?;
    // Nodes are looked at in turn: a later change of b shows that the earlier one did nothing to it.
    scene.pool("dp-b", &zoned("b", 9000))?;
    scene.api.kubectl.wait_until("", "mns/b", DEADLINE, |state| {
        (state.pointer("/spec/pools/0/macvtap/mtu")? == 9000).then_some(())
    })?;
    let after = scene.api.kubectl.wait_until("", "mns/b", DEADLINE, generation)?;
    assert_eq!(after, before + 1, "the change of the other pool was written too");
    Ok(())
}

#[test]
fn a_node_may_have_the_longest_name() -> Result<()> {
    let part = "n".repeat(63);
    let long = format!("{part}.{part}.{part}.{}", "n".repeat(61));
    ensure!(long.len() == 253);
    let mut scene = Scene::new(&[&long], false)?;
    scene.pool("dp", &json!({}))?;
    scene.expect_pools(&long, &[("dp", "Active")])?;
    scene.answer(&long, 1)?;
    scene.ready_nodes("dp", "1/1")?;
    scene.not_ready(&long)?;
    scene.restart()?;
    let message = scene.says("dp", "Degraded", "True", "NodesUnreachable")?;
    ensure!(message.contains(&long), "{message}");
    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    let message = scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    ensure!(message.contains(&format!("{long} (1, no answer since ")), "{message}");
    let release = format!("macvtap.network.kubevirt.io/release-without-drain={long}");
    scene.api.kubectl.run(&["annotate", "mrp", "dp", &release])?;
    scene.gone("", "mrp/dp")
}
