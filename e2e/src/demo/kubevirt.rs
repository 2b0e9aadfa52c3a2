//! `make demo-kubevirt`: a machine of the real KubeVirt boots, answers pods of both nodes, and migrates meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{NAME, NAMESPACE, print};
use crate::progress::say;
use crate::{Cluster, Kubectl, Options, kubevirt, prerequisites, process};

/// How long an emulated machine may take to boot, or to migrate.
const PATIENCE: Duration = Duration::from_mins(3);

/// The machine of `examples/kubevirt/vm.yaml`, and its address.
const MACHINE: &str = "vmi/macvtap-vm";
const ADDRESS: &str = "10.90.0.50";

const RESOURCE: &str = "macvtap.network.kubevirt.io/machines";
const NODES: [&str; 2] = ["n1", "n2"];

/// Runs the demo and leaves the cluster up.
pub fn run() -> Result<()> {
    let start = Instant::now();
    prerequisites::check_root()?;
    say("== build, and a cluster of two nodes; the first time KubeVirt is built too: a quarter of an hour");
    let cluster = Cluster::with_product(NAME, Options { kubevirt: true, ..Options::default() })?;
    say("== KubeVirt, and its binding for macvtaps: examples/kubevirt/binding.yaml");
    let installing = Instant::now();
    kubevirt::install(&cluster)?;
    say(format_args!("   ready for machines {:.0} s later", installing.elapsed().as_secs_f64()));
    cluster.explain(|| show(&cluster))?;
    say(format_args!("== done in {:.0} s", start.elapsed().as_secs_f64()));
    hint(&cluster);
    Ok(())
}

fn show(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let examples = cluster.checkout().path("examples/kubevirt");
    say("== examples/kubevirt/pool.yaml: links for machines, and a network whose addresses follow them");
    kubectl.run(&["apply", "-f", &examples.join("pool.yaml").display().to_string()])?;
    kubectl.wait_for("", "macvtapresourcepool/machines", "condition=Ready", PATIENCE)?;
    kubectl.wait_until(NAMESPACE, "network-attachment-definition/machines", PATIENCE, |_| Some(()))?;
    for (number, node) in NODES.iter().enumerate() {
        kubectl.apply(&kubevirt::peer(NAMESPACE, node, number + 1, RESOURCE))?;
    }
    for node in NODES {
        kubectl.wait_for(NAMESPACE, &format!("pod/peer-{node}"), "condition=Ready", PATIENCE)?;
    }

    say("== examples/kubevirt/vm.yaml, which boots a kernel in place of a disk; its processor is emulated");
    let booting = Instant::now();
    let addresses = format!("guest.ip0={ADDRESS}/24 guest.ip6_0=fd90::50/64");
    let machine = kubevirt::bootable(kubectl, &examples.join("vm.yaml"), &addresses)?;
    kubectl.apply(&machine.to_string())?;
    kubectl.wait_until(NAMESPACE, MACHINE, PATIENCE, |vmi| {
        (vmi["status"]["phase"] == "Running").then_some(())
    })?;
    for node in NODES {
        crate::wait::until(&format!("an answer of the machine to {node}"), PATIENCE, || {
            Ok(shell(kubectl, node, &format!("ping -c 1 -W 1 {ADDRESS}")).is_ok().then_some(()))
        })?;
    }
    say(format_args!("   answers pods of both nodes {:.0} s later", booting.elapsed().as_secs_f64()));
    print(kubectl, "get vmi,pods -o wide")?;

    say("\n== examples/kubevirt/migration.yaml, while both pods ping the machine ten times a second");
    let pings = NODES.map(|node| start_ping(kubectl, node));
    let from = node_of_machine(kubectl)?;
    let moving = Instant::now();
    migrate(kubectl, &examples.join("migration.yaml").display().to_string())?;
    let (to, took) = (node_of_machine(kubectl)?, moving.elapsed().as_secs_f64());
    say(format_args!("   moved from {from} to {to}, and the former pod has ended, after {took:.0} s"));
    for (node, ping) in NODES.iter().zip(pings) {
        say(format_args!("   pod on {node}: {}", end_ping(kubectl, node, &ping?)?));
    }
    say("   What is lost is QEMU's own pause, at the end of the copy: each ping stands for 0.1 s.");
    print(kubectl, "get vmi,vmim,pods -o wide")
}

fn node_of_machine(kubectl: &Kubectl) -> Result<String> {
    let vmi = kubectl.get(NAMESPACE, MACHINE)?;
    Ok(vmi["status"]["nodeName"].as_str().context("the machine is on no node")?.to_owned())
}

fn shell(kubectl: &Kubectl, node: &str, script: &str) -> Result<String> {
    kubectl.exec(NAMESPACE, &format!("peer-{node}"), &["sh", "-c", script])
}

/// Returns the process.
fn start_ping(kubectl: &Kubectl, node: &str) -> Result<String> {
    Ok(shell(kubectl, node, &format!("ping -i 0.1 {ADDRESS} >/tmp/ping 2>&1 & echo $!"))?.trim().to_owned())
}

/// Returns the line of the summary.
fn end_ping(kubectl: &Kubectl, node: &str, pid: &str) -> Result<String> {
    let script = format!("kill -INT {pid}; until grep transmitted /tmp/ping; do sleep 0.1; done");
    Ok(shell(kubectl, node, &script)?.trim().to_owned())
}

/// Migrates the machine, and waits until its former pod has ended.
fn migrate(kubectl: &Kubectl, example: &str) -> Result<()> {
    let mut command = kubectl.command();
    let name = process::output(command.args(["create", "-f", example, "-o", "jsonpath={.metadata.name}"]))?;
    let object = format!("vmim/{}", name.trim());
    let phase = kubectl.wait_until(NAMESPACE, &object, PATIENCE, |migration| {
        let phase = migration["status"]["phase"].as_str()?;
        ["Succeeded", "Failed"].contains(&phase).then(|| phase.to_owned())
    })?;
    ensure!(phase == "Succeeded", "{object} ended as {phase}");
    kubectl
        .wait_until(NAMESPACE, "pods", PATIENCE, |pods| {
            let pods = pods["items"].as_array()?.iter();
            let running = pods.filter(|pod| {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                name.starts_with("virt-launcher") && pod["status"]["phase"] == "Running"
            });
            (running.count() == 1).then_some(())
        })
        .context("the machine's former pod does not end")
}

fn hint(cluster: &Cluster) {
    let kubectl = cluster.checkout().bin().join("kubectl");
    let kubectl = kubectl.display();
    say(format_args!(
        "
The cluster stays up. Try it:
  export KUBECONFIG={}
  {kubectl} exec peer-n1 -- ping -i 0.1 {ADDRESS}    # from the pod on n1, or on n2; leave it running
  {kubectl} create -f examples/kubevirt/migration.yaml    # moves the machine to the other node, each time
  {kubectl} get vmim,vmi -w
  {kubectl} logs -l app=macvtap-vm -c guest-console-log    # what the machine printed
  {kubectl} delete vm macvtap-vm
`make demo-kubevirt` again is quick; `make cluster-down` ends the cluster.",
        cluster.kubectl().kubeconfig().display(),
    ));
}
