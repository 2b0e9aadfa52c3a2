//! A pool that is edited under a running machine.

use crate::machine::Machine;
use crate::stage::{PATIENCE, RESOURCE, Stage, play};
use crate::watch::unnoticed;
use anyhow::Result;

/// Gives each node's link of the pool "machines" so many devices, and waits until the kubelets offer them.
fn resize(stage: &Stage, devices: u32) -> Result<()> {
    let patch = format!("{{\"spec\": {{\"capacity\": {{\"perLink\": {devices}}}}}}}");
    stage.kubectl.run(&["patch", "mrp", "machines", "--type", "merge", "-p", &patch])?;
    let wanted = devices.to_string();
    for node in stage.cluster.nodes() {
        let object = format!("node/{}", node.name());
        let offers = |node: &serde_json::Value| {
            (node["status"]["allocatable"][RESOURCE] == wanted.as_str()).then_some(())
        };
        stage.kubectl.wait_until("", &object, PATIENCE, offers)?;
    }
    Ok(())
}

#[test]
fn an_edited_pool_leaves_its_machine_alone() -> Result<()> {
    play(|stage| {
        let machine = Machine { networks: vec!["follow", "second"], ..Machine::on("last", 74, "") };
        stage.start(&machine)?;
        let edited = unnoticed(stage, &machine, "pool edited", || resize(stage, 39));
        resize(stage, 50)?;
        edited
    })
}
