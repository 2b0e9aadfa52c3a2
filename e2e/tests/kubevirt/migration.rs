//! Live migration: what pods on both nodes and a third host lose of a machine that moves, with the key and without.

use crate::machine::Machine;
use crate::stage::{NAMESPACE, PATIENCE, Place, Stage, play};
use crate::watch::{Seen, Watch};
use anyhow::{Context, Result, ensure};
use std::time::Instant;

/// How often a machine is moved for the figures; more with this variable set.
const VARIABLE: &str = "MACVTAP_MIGRATIONS";

/// What each place lost in one migration.
struct Loss {
    third: u32,
    target: u32,
    origin: u32,
}

/// Moves a machine to the other node, and waits until it is there and its old pod has ended.
pub(crate) fn migrate(stage: &Stage, machine: &Machine) -> Result<String> {
    let from = stage.node_of(machine)?;
    let manifest = format!(
        "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstanceMigration, \
         metadata: {{generateName: move-, namespace: {NAMESPACE}}}, spec: {{vmiName: {}}}}}",
        machine.name
    );
    let mut command = stage.kubectl.command();
    command.args(["create", "-f", "-", "-o", "jsonpath={.metadata.name}"]);
    let name = e2e::process::output_with_input(&mut command, &manifest)?;
    let object = format!("vmim/{}", name.trim());
    let phase = stage.kubectl.wait_until(NAMESPACE, &object, PATIENCE, |migration| {
        let phase = migration["status"]["phase"].as_str()?;
        ["Succeeded", "Failed"].contains(&phase).then(|| phase.to_owned())
    })?;
    ensure!(phase == "Succeeded", "{object}: {phase}");
    let to = stage.node_of(machine)?;
    ensure!(to != from, "{object} succeeded, but the machine is still on {from}");
    e2e::wait::until("the end of the old pod", PATIENCE, || {
        Ok((stage.launchers(machine)?.len() == 1).then_some(()))
    })?;
    wait_forgotten(stage, machine, &from)?;
    Ok(to)
}

/// Waits until virt-handler has forgotten a machine that left its node, which it does a moment after the old pod's end. If
/// the machine comes back before, virt-handler of 1.7 waits for that pod's socket, and the migration gets no further.
fn wait_forgotten(stage: &Stage, machine: &Machine, node: &str) -> Result<()> {
    let vmi = stage.kubectl.get(NAMESPACE, &format!("vmi/{}", machine.name))?;
    let uid = vmi["metadata"]["uid"].as_str().context("the machine has no UID")?;
    let is_gone = format!("test ! -e /var/run/kubevirt-private/ghost-records/{uid}");
    let node = stage.node(node)?;
    e2e::wait::until("virt-handler to forget the machine", PATIENCE, || {
        Ok(node.exec(&["sh", "-c", &is_gone]).is_ok().then_some(()))
    })
}

fn moved(stage: &Stage, machine: &Machine) -> Result<Loss> {
    let address = machine.addresses()[0].clone();
    let watch = Watch::begin(stage, &address)?;
    let start = Instant::now();
    let to = migrate(stage, machine)?;
    stage.wait_reached(machine)?;
    let seen = watch.end()?;
    let of = |place: Place| -> Result<u32> {
        let found = seen.iter().find(|seen: &&Seen| seen.place == place);
        found.map(|seen| seen.lost).context("a place is missing")
    };
    let target = Place::on(&to);
    let origin = if target == Place::N1 { Place::N2 } else { Place::N1 };
    let loss = Loss { third: of(Place::Third)?, target: of(target)?, origin: of(origin)? };
    println!(
        "{} to {to} in {:.1} s: third host {}, target node {}, source node {} pings of 0.1 s lost",
        machine.name,
        start.elapsed().as_secs_f64(),
        loss.third,
        loss.target,
        loss.origin
    );
    Ok(loss)
}

fn percentile(mut values: Vec<u32>, percent: usize) -> f64 {
    values.sort_unstable();
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    f64::from(values.get(index).copied().unwrap_or_default()) / 10.0
}

fn figures(title: &str, losses: &[Loss]) {
    let line = |name: &str, pick: fn(&Loss) -> u32| {
        let at = |percent| percentile(losses.iter().map(pick).collect(), percent);
        println!("  {name:12} p50 {:4.1} s  p99 {:4.1} s  max {:4.1} s", at(50), at(99), at(100));
    };
    println!("{title}, {} migrations, time without an answer:", losses.len());
    line("third host", |loss| loss.third);
    line("target node", |loss| loss.target);
    line("source node", |loss| loss.origin);
}

fn count() -> usize {
    std::env::var(VARIABLE).ok().and_then(|count| count.parse().ok()).unwrap_or(2)
}

/// A pod of either node loses no more than a third host, for which only QEMU's own pause counts. Two pings more are the
/// way of the announcement, and of the first answer to it.
#[test]
fn a_machine_that_migrates_is_lost_on_no_node_longer_than_elsewhere() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("mover", 61, "follow");
        stage.start(&machine)?;
        let losses = (0..count()).map(|_| moved(stage, &machine)).collect::<Result<Vec<_>>>()?;
        figures("migration: Follow", &losses);
        for Loss { third, target, origin } in losses {
            ensure!(target <= third + 5, "target node lost {target}, a third host {third}");
            ensure!(origin <= third + 5, "source node lost {origin}, a third host {third}");
        }
        Ok(())
    })
}

/// What the key is for. Without it nothing has changed.
#[test]
fn without_the_key_pods_of_both_nodes_lose_the_machine_while_two_links_have_its_address() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("stayer", 62, "fixed");
        stage.start(&machine)?;
        let losses = (0..count()).map(|_| moved(stage, &machine)).collect::<Result<Vec<_>>>()?;
        figures("without the key", &losses);
        let both = losses.iter().all(|loss| loss.target > loss.third && loss.origin > loss.third);
        ensure!(both, "the kernel no longer delivers to the idle link; docs/kubevirt.md says that it does");
        Ok(())
    })
}
