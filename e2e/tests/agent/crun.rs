//! Pods whose containers are started by crun, under containerd 2 on `n1` and containerd 1.6 on `n2`.

use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PREFIX, Stage, play};
use anyhow::{Result, ensure};

const CLASS: &str = "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: crun}, handler: crun}";

#[test]
fn pods_whose_containers_crun_starts_have_their_taps_and_are_counted() -> Result<()> {
    play("crun", |stage| {
        e2e::crun::ensure(stage.cluster.checkout())?;
        stage.kubectl.apply(CLASS)?;
        stage.pool("crun", &churn::pool("dp0", "crun"))?;
        let resource = format!("{PREFIX}/crun");
        stage.wait_allocatable(&resource, 20)?;
        // The second time with the names and devices of the first.
        for [answers, asks] in [["n1", "n2"], ["n2", "n1"]] {
            let answers = apply(stage, answers, 1, Guest::Answers, &resource)?;
            let asks = apply(stage, asks, 2, Guest::Asks, &resource)?;
            for pod in [&answers, &asks] {
                pod.ready(stage)?;
                let found = pod.attachment(stage)?;
                ensure!(found.node == format!("107:107 {}", found.link_device), "{found:?}");
                started_by_crun(stage, pod)?;
            }
            asks.pings(stage, "net1", &answers)?;
            answers.delete(stage)?;
            asks.delete(stage)?;
        }
        let last = apply(stage, "n1", 1, Guest::Answers, &resource)?;
        last.ready(stage)?;
        churn::counted(stage, "crun", 1)?;
        last.delete(stage)?;
        churn::counted(stage, "crun", 0)?;
        stage.kubectl.run(&["delete", "runtimeclass", "crun"])?;
        churn::nothing_stays(stage, "crun")
    })
}

fn apply(stage: &Stage, node: &str, number: u8, guest: Guest, resource: &str) -> Result<Pod> {
    let pod = Pod::new(stage, &format!("crun-{node}"), node, number);
    let manifest = pod.manifest(guest, resource, Some("crun"));
    stage.kubectl.apply(&manifest.replacen("spec:\n", "spec:\n  runtimeClassName: crun\n", 1))?;
    Ok(pod)
}

/// containerd's shim notes which program started each container.
fn started_by_crun(stage: &Stage, pod: &Pod) -> Result<()> {
    let notes =
        "grep -lx '.*/crun/crun' /run/containerd/io.containerd.runtime.v2.task/k8s.io/*/runtime | wc -l";
    let count = pod.node(stage)?.exec(&["sh", "-c", notes])?;
    ensure!(count.trim() == "2", "{} containers of {} were started by crun, not 2", count.trim(), pod.name);
    Ok(())
}
