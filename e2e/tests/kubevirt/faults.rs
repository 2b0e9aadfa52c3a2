//! Faults of the agent, the operator, the kubelet and the lower link, under a running machine whose traffic is
//! counted throughout.

use crate::machine::Machine;
use crate::nodes::only_its_own_remain;
use crate::stage::{NAMESPACE, PATIENCE, Place, RESOURCE, Stage, play};
use crate::watch::{under, unnoticed};
use anyhow::{Context, Result, ensure};
use e2e::Node;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The namespace of agent and operator.
const PRODUCT: &str = "macvtap-system";

const AGENT: &str = "daemonset/macvtap-node-agent";
const OPERATOR: &str = "deployment/macvtap-operator";

/// Where the kubelet keeps which pod has which device.
const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";

/// By then an agent has deleted what it takes for leaked: it trusts a kubelet one minute after that one started, and
/// scans twice, ten seconds apart.
const JUDGED: Duration = Duration::from_secs(85);

fn agent_pod(stage: &Stage, node: &str) -> Result<String> {
    let pods = stage.kubectl.get(PRODUCT, "pods")?;
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

fn kill_worker(stage: &Stage, node: &Node) -> Result<()> {
    let name = node.name();
    let killed = worker(stage, &name)?;
    node.exec(&["kill", "-9", &killed])?;
    e2e::wait::until("another worker", PATIENCE, || {
        Ok(worker(stage, &name).is_ok_and(|now| now != killed).then_some(()))
    })
}

fn rollout(stage: &Stage, verb: &str, object: &str) -> Result<()> {
    let mut words = vec!["-n", PRODUCT, "rollout", verb, object];
    words.extend((verb == "status").then_some("--timeout=120s"));
    stage.kubectl.run(&words).map(drop)
}

/// The operator is gone for as long as it takes to notice that.
fn replace_operator(stage: &Stage) -> Result<()> {
    let scale = |count: &str| stage.kubectl.run(&["-n", PRODUCT, "scale", OPERATOR, count]).map(drop);
    let before = stage.kubectl.get(PRODUCT, OPERATOR)?["spec"]["replicas"].as_u64().unwrap_or(1);
    scale("--replicas=0")?;
    let gone = stage.kubectl.wait_until(PRODUCT, "pods", PATIENCE, |pods| {
        let mut names = pods["items"].as_array()?.iter().map(|pod| pod["metadata"]["name"].as_str());
        names.all(|name| !name.unwrap_or_default().starts_with("macvtap-operator")).then_some(())
    });
    scale(&format!("--replicas={before}"))?;
    rollout(stage, "status", OPERATOR)?;
    gone
}

/// Kills the kubelet, does something while it is away, and starts it again.
fn restart_kubelet(stage: &Stage, node: &Node, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let log = kubelet_log(stage, node)?;
    let before = registrations(&log)?;
    node.kill_kubelet()?;
    let done = meanwhile();
    node.start_kubelet()?;
    // A node stays Ready for 40 s after its kubelet died: its condition does not show when the kubelet is back.
    e2e::wait::until("the agent's registration with the new kubelet", PATIENCE, || {
        Ok((registrations(&log)? > before).then_some(()))
    })?;
    done
}

fn kubelet_log(stage: &Stage, node: &Node) -> Result<PathBuf> {
    let processes = stage.cluster.processes().context("a local cluster has processes")?;
    Ok(processes.log(&format!("{}-kubelet", node.name())))
}

/// How often device plugins of the pool have registered with the node's kubelets.
fn registrations(log: &Path) -> Result<usize> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let is_registration = |line: &&str| line.contains("Got registration request") && line.contains(RESOURCE);
    Ok(text.lines().filter(is_registration).count())
}

#[test]
fn what_happens_to_the_agent_does_not_concern_a_machine() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("steady", 71, "follow");
        stage.start(&machine)?;
        let name = stage.node_of(&machine)?;
        let node = stage.node(&name)?;
        unnoticed(stage, &machine, "agent's worker killed", || kill_worker(stage, node))?;
        unnoticed(stage, &machine, "agent's pod deleted", || {
            let pod = agent_pod(stage, &name)?;
            stage.kubectl.run(&["-n", PRODUCT, "delete", "pod", &pod, "--wait"])?;
            rollout(stage, "status", AGENT)
        })?;
        unnoticed(stage, &machine, "agent upgraded", || {
            rollout(stage, "restart", AGENT)?;
            rollout(stage, "status", AGENT)
        })
    })
}

#[test]
fn what_happens_to_the_operator_does_not_concern_a_machine() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("managed", 75, "follow");
        stage.start(&machine)?;
        unnoticed(stage, &machine, "operator away", || replace_operator(stage))
    })
}

#[test]
fn a_restarted_kubelet_does_not_concern_a_machine() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("kept", 76, "follow");
        stage.start(&machine)?;
        let node = stage.node(&stage.node_of(&machine)?)?;
        unnoticed(stage, &machine, "kubelet restarted", || restart_kubelet(stage, node, || Ok(())))
    })
}

/// A kubelet without its checkpoint admits running pods again, and may refuse a machine's for lack of
/// `devices.kubevirt.io/tun`, when virt-handler registers too late. KubeVirt then starts the machine again. The resource of
/// the pool is there in time: the pod on the same node that needs no other keeps its device.
#[test]
fn a_kubelet_that_lost_its_checkpoint_refuses_no_pod_for_our_device() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("readmitted", 78, "follow");
        stage.start(&machine)?;
        let node = stage.node(&stage.node_of(&machine)?)?;
        // The pods that ping from there run on throughout, or there would be no figures.
        under(stage, &machine, "kubelet's checkpoint lost", || {
            let begun = Instant::now();
            restart_kubelet(stage, node, || node.exec(&["rm", CHECKPOINT]).map(drop))?;
            while begun.elapsed() < JUDGED {
                stage.wait_reached(&machine)?;
                std::thread::sleep(Duration::from_secs(1));
            }
            Ok(())
        })?;
        let events = stage.kubectl.get(NAMESPACE, "events")?;
        for event in events["items"].as_array().into_iter().flatten() {
            let reason = event["reason"].as_str().unwrap_or_default();
            ensure!(!reason.contains(RESOURCE), "refused for our device: {event}");
            let pod = event["involvedObject"]["name"].as_str().unwrap_or_default();
            if reason.starts_with("OutOf") && pod.contains(machine.name) {
                println!("refused: {}", event["message"]);
            }
        }
        only_its_own_remain(stage, &machine)
    })
}

#[test]
fn a_lower_link_that_goes_down_and_up_interrupts_a_machine_and_no_longer() -> Result<()> {
    play(|stage| {
        let machine = Machine::on("lower", 72, "follow");
        stage.start(&machine)?;
        let node = stage.node(&stage.node_of(&machine)?)?;
        under(stage, &machine, "lower link held down", || {
            node.exec(&["ip", "link", "set", "dp0", "down"])?;
            let ping = format!("ping -c 1 -W 1 {}", machine.addresses()[0]);
            ensure!(stage.shell(Place::Third, &ping).is_err(), "a third host reaches it without the link");
            node.exec(&["ip", "link", "set", "dp0", "up"]).map(drop)
        })
        .map(drop)
    })
}
