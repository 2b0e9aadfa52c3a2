//! A pool that is edited or deleted under a running machine.

use crate::machine::Machine;
use crate::stage::{NAMESPACE, PATIENCE, POOLS, RESOURCE, Stage, apply_example, play};
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
fn an_edited_pool_leaves_its_machine_alone_and_a_deleted_one_waits_for_it() -> Result<()> {
    play(|stage| {
        let pool = "macvtapresourcepool/storage";
        let machine = Machine { networks: vec!["follow", "second"], ..Machine::on("last", 74, "") };
        stage.start(&machine)?;
        let edited = unnoticed(stage, &machine, "pool edited", || resize(stage, 39));
        resize(stage, 50)?;
        edited?;
        let kept = unnoticed(stage, &machine, "pool deleted", || {
            stage.kubectl.run(&["delete", pool, "--wait=false"])?;
            stage.kubectl.wait_until("", pool, PATIENCE, |pool| {
                let mut conditions = pool["status"]["conditions"].as_array()?.iter();
                conditions
                    .find(|found| found["type"] == "Terminating" && found["reason"] == "DevicesInUse")?;
                Some(())
            })
        });
        stage.kubectl.run(&["-n", NAMESPACE, "delete", "vm", machine.name, "--wait", "--timeout=120s"])?;
        stage.kubectl.wait_for("", pool, "delete", PATIENCE)?;
        POOLS.iter().try_for_each(|pool| apply_example(stage.cluster, "apply", pool))?;
        stage.kubectl.wait_for("", pool, "condition=Ready", PATIENCE)?;
        kept
    })
}
