//! A NIC that is added to a running machine: KubeVirt ignores it until the machine is started again, and the devices are there
//! where it lets the request through.

use crate::machine::Machine;
use crate::migration::migrate;
use crate::stage::{NAMESPACE, PATIENCE, Place, Stage, play};
use anyhow::{Context, Result, ensure};
use serde_json::json;

/// As whom KubeVirt itself changes a running machine; it refuses everybody else.
const CONTROLLER: &str = "--as=system:serviceaccount:kubevirt:kubevirt-controller";

/// Adds a NIC on the network "fixed" to the specification at `below`.
fn add_nic(stage: &Stage, machine: &Machine, object: &str, below: &str, identity: &[&str]) -> Result<()> {
    let interface = json!({"name": "net1", "binding": {"name": "macvtap"}, "macAddress": machine.mac_of(1)});
    let network = json!({"name": "net1", "multus": {"networkName": "fixed"}});
    let patch = json!([
        {"op": "add", "path": format!("{below}/domain/devices/interfaces/-"), "value": interface},
        {"op": "add", "path": format!("{below}/networks/-"), "value": network},
    ])
    .to_string();
    let words = ["-n", NAMESPACE, "patch", object, machine.name, "--type", "json", "-p", &patch];
    stage.kubectl.run(&[identity, &words].concat()).map(drop)
}

/// How many taps the machine's only pod has.
fn taps(stage: &Stage, machine: &Machine) -> Result<usize> {
    let (_, pod) = stage.launchers(machine)?.pop().context("the machine has no pod")?;
    let listed = stage.kubectl.exec(NAMESPACE, &pod, &["sh", "-c", "ls /dev/tap*"])?;
    Ok(listed.lines().count())
}

fn wait_second_reached(stage: &Stage, machine: &Machine) -> Result<()> {
    let script = format!("ping -c 1 -W 1 10.91.0.{}", machine.number);
    e2e::wait::until("an answer of the second NIC", PATIENCE, || {
        Ok(stage.shell(Place::Third, &script).is_ok().then_some(()))
    })
}

#[test]
fn a_nic_added_to_a_machine_comes_with_its_next_start_and_where_kubevirt_lets_it_through_by_migration()
-> Result<()> {
    play(|stage| {
        let machine = Machine::on("plugged", 63, "follow");
        stage.start(&machine)?;
        add_nic(stage, &machine, "vm", "/spec/template/spec", &[])?;
        migrate(stage, &machine)?;
        let found = taps(stage, &machine)?;
        let vmi = stage.kubectl.get(NAMESPACE, &format!("vmi/{}", machine.name))?;
        println!("NIC added, migrated: {found} tap; conditions {}", vmi["status"]["conditions"]);
        ensure!(
            found == 1,
            "KubeVirt plugs in NICs of other bindings by now; docs/kubevirt.md says that it does not"
        );

        add_nic(stage, &machine, "vmi", "/spec", &[CONTROLLER])?;
        migrate(stage, &machine)?;
        ensure!(taps(stage, &machine)? == 2, "the target has no second device");
        wait_second_reached(stage, &machine)?;

        stage.kubectl.run(&["-n", NAMESPACE, "delete", "vmi", machine.name, "--wait", "--timeout=120s"])?;
        stage.wait_running(&machine)?;
        stage.wait_reached(&machine)?;
        ensure!(taps(stage, &machine)? == 2, "the machine was started again without its second NIC");
        wait_second_reached(stage, &machine)
    })
}
