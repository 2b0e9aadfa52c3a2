//! What nodes do to a machine: its traffic is counted throughout.

use crate::machine::Machine;
use crate::stage::{PATIENCE, Stage, play};
use crate::watch::Watch;
use anyhow::{Context, Result, ensure};

/// So many pings of 0.1 s may be lost, or answered twice, during a fault that does not concern the machine: a busy host's hiccup.
const HICCUP: u32 = 3;

/// Does something under a running machine, and gives how many pings each place lost.
fn under(
    stage: &Stage,
    machine: &Machine,
    what: &str,
    fault: impl FnOnce() -> Result<()>,
) -> Result<Vec<u32>> {
    let watch = Watch::begin(stage, &machine.addresses()[0])?;
    fault().with_context(|| what.to_owned())?;
    stage.wait_reached(machine)?;
    let seen = watch.end()?;
    let shown: Vec<String> = seen.iter().map(ToString::to_string).collect();
    println!("{what:24} {}", shown.join("; "));
    ensure!(seen.iter().all(|seen| seen.doubled <= HICCUP), "{what}: frames were doubled");
    Ok(seen.iter().map(|seen| seen.lost).collect())
}

fn agent_pod(stage: &Stage, node: &str) -> Result<String> {
    let pods = stage.kubectl.get("macvtap-system", "pods")?;
    let mut pods = pods["items"].as_array().into_iter().flatten();
    let found = pods.find(|pod| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        name.starts_with("macvtap-node-agent") && pod["spec"]["nodeName"] == node
    });
    let pod = found.with_context(|| format!("no agent on {node}"))?;
    Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

/// The process of the agent's worker, by its number on the node: an agent whose parent is one.
fn worker(stage: &Stage, node: &str) -> Result<String> {
    // The brackets keep the shell from finding itself.
    let script = "for p in /proc/[0-9]*; do
        tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^[^ ]*[m]acvtap-node-agent' || continue
        parent=$(sed -n 's/^PPid:[[:space:]]*//p' $p/status)
        tr '\\0' ' ' </proc/$parent/cmdline | grep -q '^[^ ]*[m]acvtap-node-agent' && echo ${p#/proc/}
        done; true";
    let found = stage.node(node)?.exec(&["sh", "-c", script])?;
    ensure!(found.lines().count() == 1, "workers on {node}: {found:?}");
    Ok(found.trim().to_owned())
}

#[test]
fn what_happens_to_the_agent_does_not_concern_a_machine() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("steady", 71, "follow");
        stage.start(&machine)?;
        let name = stage.node_of(&machine)?;
        let node = stage.node(&name)?;
        let quiet = |what: &str, fault: &dyn Fn() -> Result<()>| -> Result<()> {
            let lost = under(stage, &machine, what, fault)?;
            ensure!(lost.iter().all(|lost| *lost <= HICCUP), "{what}: {lost:?} lost");
            Ok(())
        };
        quiet("agent's worker killed", &|| {
            let killed = worker(stage, &name)?;
            node.exec(&["kill", "-9", &killed])?;
            e2e::wait::until("another worker", PATIENCE, || {
                Ok(worker(stage, &name).is_ok_and(|now| now != killed).then_some(()))
            })
        })?;
        quiet("agent's pod deleted", &|| {
            let pod = agent_pod(stage, &name)?;
            stage.kubectl.run(&["-n", "macvtap-system", "delete", "pod", &pod, "--wait"])?;
            let status = ["-n", "macvtap-system", "rollout", "status", "daemonset/macvtap-node-agent"];
            stage.kubectl.run(&[&status[..], &["--timeout=90s"]].concat()).map(drop)
        })
    })
}

#[test]
fn a_lower_link_that_goes_down_and_up_interrupts_a_machine_and_no_longer() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("lower", 72, "follow");
        stage.start(&machine)?;
        let node = stage.node(&stage.node_of(&machine)?)?;
        under(stage, &machine, "lower link down and up", || {
            node.exec(&["ip", "link", "set", "dp0", "down"])?;
            node.exec(&["ip", "link", "set", "dp0", "up"]).map(drop)
        })
        .map(drop)
    })
}
