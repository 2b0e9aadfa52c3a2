//! What breaks on a node in the middle of things.

use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, play};
use anyhow::{Context, Result, ensure};
use e2e::{Node, wait};
use std::time::{Duration, Instant};

#[test]
fn a_killed_sandbox_comes_back_with_the_same_device() -> Result<()> {
    play("sandbox", |stage| {
        stage.pool("sandbox", &pool("dp0", "sandbox"))?;
        let resource = format!("{PREFIX}/sandbox");
        stage.wait_allocatable(&resource, 20)?;
        for (number, node) in [(1, "n1"), (2, "n2")] {
            let name = format!("victim-{node}");
            let pod = Pod::apply(stage, &name, node, Guest::Answers, &resource, Some("sandbox"), number)?;
            pod.ready(stage)?;
            let before = pod.attachment(stage)?;
            let sandbox = pod.node(stage)?.pause_pid(&pod.namespace, &pod.name)?;
            let killed = Instant::now();
            signal(sandbox, "KILL")?;
            stage.kubectl.wait_until(&pod.namespace, &format!("pod/{name}"), PATIENCE, |object| {
                let status = object["status"]["containerStatuses"].get(0)?;
                (status["restartCount"].as_u64()? >= 1 && status["ready"] == true).then_some(())
            })?;
            println!(
                "{name}: Ready again {:.1} s after its sandbox was killed",
                killed.elapsed().as_secs_f64()
            );
            let after = pod.attachment(stage)?;
            ensure!(
                after.ifindex == before.ifindex && after.mac == before.mac,
                "{before:?} became {after:?}"
            );
            ensure!(after.node == format!("107:107 {}", after.link_device), "{after:?}");
            let asks = Pod::apply(
                stage,
                &format!("asks-{node}"),
                node,
                Guest::Asks,
                &resource,
                Some("sandbox"),
                number + 10,
            )?;
            asks.ready(stage)?;
            asks.pings(stage, "net1", &pod)?;
        }
        Ok(())
    })
}

#[test]
fn killing_the_agents_worker_loses_no_pod_that_was_admitted() -> Result<()> {
    const KILLS: u32 = 5;
    play("worker", |stage| {
        stage.pool("worker", &pool("dp0", "worker"))?;
        let resource = format!("{PREFIX}/worker");
        stage.wait_allocatable(&resource, 20)?;
        let steady = Pod::apply(stage, "steady", "n1", Guest::Answers, &resource, Some("worker"), 1)?;
        steady.ready(stage)?;
        let before = steady.attachment(stage)?;
        let mut gaps = Vec::new();
        let mut refused = 0;
        for round in 0..KILLS {
            let node = stage.node("n1")?;
            let (supervisor, worker) = agent(node)?;
            // Some pods are past admission, some before it, when the worker dies.
            let pods: Result<Vec<_>> = (0..3)
                .map(|i| {
                    let name = format!("churn-{round}-{i}");
                    Pod::apply(
                        stage,
                        &name,
                        "n1",
                        Guest::Asks,
                        &resource,
                        Some("worker"),
                        u8::try_from(10 + i)?,
                    )
                })
                .collect();
            signal(worker, "KILL")?;
            let killed = Instant::now();
            wait::until("a new worker that is registered", Duration::from_secs(10), || {
                let (parent, child) = agent(node)?;
                ensure!(parent == supervisor, "the supervisor changed");
                Ok((child != worker && probe(node, child)).then_some(()))
            })?;
            gaps.push(killed.elapsed());
            for pod in pods? {
                refused += u32::from(ends_refused(stage, &pod)?);
                pod.delete(stage)?;
            }
        }
        gaps.sort_unstable();
        println!(
            "{KILLS} kills: ready again after {gaps:?}; {refused} of {} pods refused in the gap",
            3 * KILLS
        );
        ensure!(steady.attachment(stage)? == before, "the running pod was touched");
        let asks = Pod::apply(stage, "asks", "n1", Guest::Asks, &resource, Some("worker"), 2)?;
        asks.ready(stage)?;
        asks.pings(stage, "net1", &steady)?;
        asks.delete(stage)?;
        steady.delete(stage)?;
        stage.nothing_left("worker")
    })
}

/// Waits until the pod is Ready or was refused at admission, which only the gap may cause; gives whether it was.
fn ends_refused(stage: &Stage, pod: &Pod) -> Result<bool> {
    stage.kubectl.wait_until(&pod.namespace, &format!("pod/{}", pod.name), PATIENCE, |object| {
        let status = &object["status"];
        if status["phase"] == "Failed" {
            return (status["reason"] == "UnexpectedAdmissionError").then_some(true);
        }
        let conditions = status["conditions"].as_array()?;
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(false)
    })
}

fn pool(link: &str, namespace: &str) -> String {
    format!(
        "  links: [{{names: [{link}]}}]\n  capacity: {{perLink: 20}}\n  \
         networks: [{{name: {namespace}, namespaces: {{names: [{namespace}]}}}}]\n"
    )
}

/// The agent's supervisor and worker on a node.
fn agent(node: &Node) -> Result<(u32, u32)> {
    let supervisor = agent_pid(node)?;
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
    let worker = children.split_whitespace().next().context("the supervisor has no worker")?;
    Ok((supervisor, worker.parse()?))
}

fn agent_pid(node: &Node) -> Result<u32> {
    let pids = node.ctr(&["tasks", "ls"])?;
    let mut found = Vec::new();
    for pid in pids.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok()) {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.split('\0').next().is_some_and(|program| program.ends_with("macvtap-node-agent")) {
            found.push(pid);
        }
    }
    match found[..] {
        [pid] => Ok(pid),
        _ => anyhow::bail!("{} agents run on {}", found.len(), node.name()),
    }
}

/// Whether the worker says that it is registered with every resource.
fn probe(node: &Node, worker: u32) -> bool {
    let target = worker.to_string();
    node.exec(&["nsenter", "-t", &target, "-a", "/usr/bin/macvtap-node-agent", "probe", "ready"]).is_ok()
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let status = std::process::Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    ensure!(status.success(), "kill -{name} {pid}: {status}");
    Ok(())
}
