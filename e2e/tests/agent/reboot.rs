//! A node that loses its power: Deployments run again without anybody's hand, nothing of before is left, and the other node
//! notices nothing.

use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, play};
use anyhow::{Context, Result, ensure};
use e2e::{Node, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The kubelet starts, the agent, and then pods: on a machine that does much else meanwhile.
const AGAIN: Duration = Duration::from_mins(3);

/// Two pods on the first node, which are made again whatever becomes of them.
fn deployment(namespace: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: vms, namespace: {namespace}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: vms}}}}
  template:
    metadata:
      labels: {{app: vms}}
      annotations: {{k8s.v1.cni.cncf.io/networks: reboot}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: n1}}
      terminationGracePeriodSeconds: 1
      containers:
      - name: guest
        image: localhost/tapguest:dev
        imagePullPolicy: Never
        command: [sleep, infinity]
        resources: {{limits: {{{PREFIX}/reboot: 1}}}}
"
    )
}

/// The containers of the Deployment's pods that are Ready.
fn containers(list: &Value) -> BTreeSet<String> {
    let pods = list["items"].as_array().into_iter().flatten();
    let is_vm = |pod: &&Value| pod["metadata"]["labels"]["app"] == "vms";
    let containers = pods.filter(is_vm).map(|pod| &pod["status"]["containerStatuses"][0]);
    let ready = containers.filter(|container| container["ready"] == true);
    ready.filter_map(|container| container["containerID"].as_str().map(str::to_owned)).collect()
}

/// Waits until two pods are Ready whose containers are none of these.
fn two_others(stage: &Stage, former: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    stage.kubectl.wait_until(&stage.namespace, "pods", AGAIN, |list| {
        let now = containers(list);
        (now.len() == 2 && now.is_disjoint(former)).then_some(now)
    })
}

/// The sandboxes of the records of a node.
fn recorded(node: &Node) -> Result<BTreeSet<String>> {
    let text = node.exec(&[
        "sh",
        "-c",
        "for file in /run/macvtap/attachments/rebootMvp*; do cat \"$file\"; echo; done",
    ])?;
    let records = text.lines().filter(|line| !line.is_empty()).map(|line| {
        let record: Value = serde_json::from_str(line).with_context(|| format!("read {line}"))?;
        let sandbox = record["holder"]["containerId"].as_str().context("a record has a sandbox")?;
        Ok(sandbox.to_owned())
    });
    records.collect()
}

#[test]
fn deployments_run_again_after_a_reboot_and_nothing_of_before_is_left() -> Result<()> {
    play("reboot", |stage| {
        stage.pool("reboot", &churn::pool("dp0", "reboot"))?;
        let resource = format!("{PREFIX}/reboot");
        stage.wait_allocatable(&resource, 20)?;
        stage.kubectl.apply(&deployment(&stage.namespace))?;
        let other = Pod::apply(stage, "other", "n2", Guest::Asks, &resource, Some("reboot"), 1)?;
        other.ready(stage)?;
        let former = two_others(stage, &BTreeSet::new())?;
        let node = stage.node("n1")?;
        let (records, attachment) = (recorded(node)?, other.attachment(stage)?);

        let begun = Instant::now();
        node.power_off()?;
        node.power_on()?;
        two_others(stage, &former)?;
        println!("two pods Ready {:.0} s after the power came back", begun.elapsed().as_secs_f64());
        // What was left is found and removed within two looks of the agent.
        wait::until("records of the new pods alone", PATIENCE, || {
            let now = recorded(node)?;
            Ok((now.len() == 2 && now.is_disjoint(&records)).then_some(()))
        })?;
        let links = "ls /run/macvtap/dev | grep -vc '^\\.'";
        ensure!(node.exec(&["sh", "-c", links])?.trim() == "2", "device nodes of before are left");
        ensure!(other.attachment(stage)? == attachment, "the other node's pod has another link");
        stage.wait_allocatable(&resource, 20)?;
        stage.kubectl.run(&["-n", &stage.namespace, "delete", "deployment", "vms", "--wait"])?;
        churn::nothing_stays(stage, "reboot")
    })
}
