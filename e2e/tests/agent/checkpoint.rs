//! A kubelet that has lost its device checkpoint, or finds it damaged: it lists the pods that run without their devices.
//! What runs keeps what it has.

use crate::api_outage::Outage;
use crate::churn;
use crate::pods::{Attachment, Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, play};
use anyhow::{Result, ensure};
use e2e::{Node, chaos, wait};
use std::time::{Duration, Instant};

/// Where the kubelet keeps it.
const CHECKPOINT: &str = "/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint";

/// An agent that takes what it believes to be left over has done so by then: it believes a kubelet a minute after that
/// one's start, and looks twice, ten seconds apart.
const JUDGED: Duration = Duration::from_secs(85);

/// A node and what is done to the kubelet's checkpoint there.
const DAMAGES: [(&str, &str); 2] =
    [("n1", "rm \"$1\""), ("n2", "head -c 40 \"$1\" >\"$1.cut\" && mv \"$1.cut\" \"$1\"")];

fn damage(node: &Node, script: &str) -> Result<()> {
    node.kill_kubelet()?;
    node.exec(&["sh", "-c", script, "sh", CHECKPOINT])?;
    node.start_kubelet()
}

/// What runs keeps what it has, for as long as it takes to judge it.
fn nothing_is_taken(stage: &Stage, pods: &[Pod], before: &[Attachment]) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < JUDGED {
        for (pod, before) in pods.iter().zip(before) {
            let node = pod.node(stage)?;
            let sandbox = node.pause_pid(&pod.namespace, &pod.name)?.to_string();
            let link = node.exec(&["nsenter", "-t", &sandbox, "-n", "ip", "-o", "link", "show", "net1"]);
            ensure!(
                link.is_ok_and(|link| link.contains(&before.mac)),
                "{} lost its link {:?} after its kubelet's start",
                pod.name,
                begun.elapsed()
            );
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

#[test]
fn a_kubelet_without_its_checkpoint_takes_nothing_from_pods_that_run() -> Result<()> {
    play("checkpoint", |stage| {
        stage.pool("checkpoint", &churn::pool("dp0", "checkpoint"))?;
        let resource = format!("{PREFIX}/checkpoint");
        stage.wait_allocatable(&resource, 20)?;
        let pod = |name: &str, node, guest, number| {
            Pod::apply(stage, name, node, guest, &resource, Some("checkpoint"), number)
        };
        let pods = [
            pod("answers", "n1", Guest::Answers, 1)?,
            pod("asks", "n2", Guest::Asks, 2)?,
            pod("idle", "n1", Guest::Asks, 3)?,
        ];
        for pod in &pods {
            pod.ready(stage)?;
        }
        let before = pods.iter().map(|pod| pod.attachment(stage)).collect::<Result<Vec<_>>>()?;
        // With the API server away the kubelet lists no pod at all.
        let outages = if chaos::is_full() { &[false, true][..] } else { &[false] };
        for away in outages {
            let outage = away.then(|| Outage::begin(stage.cluster)).transpose()?;
            for (node, script) in DAMAGES {
                damage(stage.node(node)?, script)?;
            }
            nothing_is_taken(stage, &pods, &before)?;
            outage.map_or(Ok(()), Outage::end)?;
            stage.wait_allocatable(&resource, 20)?;
        }
        for (pod, before) in pods.iter().zip(&before) {
            let after = wait::until("a kubelet that answers", PATIENCE, || Ok(pod.attachment(stage).ok()))?;
            ensure!(after == *before, "{}: {before:?} became {after:?}", pod.name);
        }
        pods[1].pings(stage, "net1", &pods[0])?;
        churn::counted(stage, "checkpoint", 3)?;
        churn::nothing_stays(stage, "checkpoint")
    })
}
