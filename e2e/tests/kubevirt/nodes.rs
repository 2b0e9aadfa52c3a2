//! A node that gives its machine away, and one that loses it.

use crate::machine::Machine;
use crate::stage::{NAMESPACE, PATIENCE, Place, Stage, play};
use crate::watch::{under, under_from};
use anyhow::{Result, ensure};
use e2e::Node;

#[test]
fn a_drained_node_gives_its_machine_away() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("drained", 73, "follow");
        stage.start(&machine)?;
        let from = stage.node_of(&machine)?;
        let drained = under(stage, &machine, "node drained", || {
            let selector = format!("--pod-selector=app={}", machine.name);
            let words = ["drain", &from, &selector, "--delete-emptydir-data", "--timeout=150s"];
            stage.kubectl.run(&words)?;
            ensure!(stage.node_of(&machine)? != from, "the machine is still on {from}");
            e2e::wait::until("the end of the old pod", PATIENCE, || {
                Ok((stage.launchers(&machine)?.len() == 1).then_some(()))
            })
        });
        stage.kubectl.run(&["uncordon", &from])?;
        drained.map(drop)
    })
}

/// Kills every container of a node and forgets what a reboot forgets, its kernel's boot ID apart: attachment records, device
/// nodes, network namespaces.
fn lose_everything(node: &Node) -> Result<()> {
    node.kill_kubelet()?;
    for line in node.ctr(&["tasks", "ls", "-q"])?.lines() {
        // A sandbox takes the processes of its containers with it.
        let _ = node.ctr(&["tasks", "kill", "--all", "--signal", "SIGKILL", line]);
    }
    node.exec(&[
        "sh",
        "-c",
        "for netns in /run/netns/*; do umount $netns; rm $netns; done; rm -r /run/macvtap/*",
    ])?;
    node.start_kubelet()
}

#[test]
fn a_node_that_lost_all_its_processes_starts_its_machine_again() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("reborn", 77, "follow");
        stage.start(&machine)?;
        let node = stage.node(&stage.node_of(&machine)?)?;
        // The pod that pings from there is killed too. Nobody starts a pod without a controller again that the new
        // kubelet refused because the agent was not there yet.
        let others = Place::ALL.into_iter().filter(|place| *place != Place::on(&node.name()));
        let others: Vec<Place> = others.collect();
        let seen = under_from(stage, &machine, &others, "node's processes killed", || {
            lose_everything(node)?;
            stage.replace_peer(&node.name())
        })?;
        ensure!(seen.iter().all(|seen| seen.longest > 1), "the machine survived");
        only_its_own_remain(stage, &machine)
    })
}

/// Of the machine's former pod nothing is left: as many records on the nodes as devices that pods hold.
pub(crate) fn only_its_own_remain(stage: &Stage, machine: &Machine) -> Result<()> {
    let count = |node: &Node, directory: &str| -> Result<usize> {
        let listed = node.exec(&["sh", "-c", &format!("ls {directory}")])?;
        Ok(listed.lines().count())
    };
    e2e::wait::until("the records of the pods that run, and no other", PATIENCE, || {
        let mut records = 0;
        for node in stage.cluster.nodes() {
            records += count(node, "/run/macvtap/attachments")?;
        }
        let launchers = stage.launchers(machine)?.len();
        let pods = stage.kubectl.get(NAMESPACE, "pods")?;
        let peers = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("peer-")));
        Ok((records == peers.count() + launchers).then_some(()))
    })
}
