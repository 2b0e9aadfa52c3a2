//! `examples/kubevirt`: machines and migration, applied as they are but that machines boot a kernel in place of a disk.
//! The stage stands on the examples' binding and pools.

use crate::machines::said_of;
use crate::stage::{PATIENCE, Stage, apply_example, play};
use anyhow::{Result, ensure};

/// Where the examples' networks are.
const NAMESPACE: &str = "default";

fn wait_running(stage: &Stage, machine: &str) -> Result<()> {
    let object = format!("vmi/{machine}");
    let is_running = |vmi: &serde_json::Value| (vmi["status"]["phase"] == "Running").then_some(());
    stage.kubectl.wait_until(NAMESPACE, &object, PATIENCE, is_running)
}

#[test]
fn every_example_works_as_it_is_written() -> Result<()> {
    play(|stage| {
        for network in ["machines", "storage"] {
            let network = format!("network-attachment-definition/{network}");
            stage.kubectl.wait_until(NAMESPACE, &network, PATIENCE, |_| Some(()))?;
        }
        let done = machines(stage);
        stage.kubectl.run(&["-n", NAMESPACE, "delete", "vm,vmim", "--all", "--wait", "--timeout=120s"])?;
        done
    })
}

fn machines(stage: &Stage) -> Result<()> {
    stage.example("vm.yaml", "guest.ip0=10.90.0.81/24 guest.ip6_0=fd90::81/64")?;
    stage.example("vm-two-networks.yaml", "guest.ip0=10.90.0.82/24 guest.ip1=10.91.0.82/24")?;
    for machine in ["macvtap-vm", "macvtap-vm-two-networks"] {
        wait_running(stage, machine)?;
    }
    stage.wait_for_answers(&["10.90.0.81".to_owned(), "fd90::81".to_owned(), "10.90.0.82".to_owned()])?;
    for interface in 0..2 {
        let said = said_of(stage, NAMESPACE, "macvtap-vm-two-networks", interface)?;
        println!("{said}");
        ensure!(said.contains("queues 2"), "{said}");
    }
    apply_example(stage.cluster, "create", "migration.yaml")?;
    let succeeded = |list: &serde_json::Value| {
        let phase = list["items"][0]["status"]["phase"].as_str()?;
        ["Succeeded", "Failed"].contains(&phase).then(|| phase.to_owned())
    };
    let phase = stage.kubectl.wait_until(NAMESPACE, "vmim", PATIENCE, succeeded)?;
    ensure!(phase == "Succeeded", "migration.yaml: {phase}");
    stage.wait_for_answers(&["10.90.0.81".to_owned()])
}
