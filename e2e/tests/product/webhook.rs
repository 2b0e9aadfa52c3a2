//! The webhook of the chart, called by the API server: a pod that requests no device gets the one of its network.

use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, play};
use anyhow::{Result, ensure};
use e2e::{install, process, wait};
use serde_json::{Value, json};
use std::time::Instant;

/// What runs the webhook.
const WEBHOOK: &str = "deployment/macvtap-webhook";

#[test]
fn a_pod_without_limits_runs_with_its_device_and_a_webhook_that_is_gone_stops_nobody() -> Result<()> {
    play("webhook", |stage| {
        install::product(stage.cluster, &["webhook.enabled=true"])?;
        let outcome = serves_and_goes(stage);
        // The other tests of this cluster do without it.
        install::product(stage.cluster, &[])?;
        outcome
    })
}

fn serves_and_goes(stage: &mut Stage) -> Result<()> {
    stage.pool(
        "webhook",
        "  links: [{names: [dp0]}]\n  capacity: {perLink: 5}\n  networks: [{name: webhook, namespaces: {names: [webhook]}}]\n",
    )?;
    let resource = format!("{PREFIX}/webhook");
    stage.wait_allocatable(&resource, 5)?;
    stage.pool_condition("webhook", "NetworksReady", "True", "AllNetworksReady")?;
    let system = ["-n", install::NAMESPACE];
    stage.kubectl.run(&[&system[..], &["rollout", "status", WEBHOOK, "--timeout=90s"]].concat())?;
    // The API server observes the certificate a moment later.
    wait::until("the webhook to add a device", PATIENCE, || {
        Ok((limits(&dry_run(stage)?) == json!({"cpu": "1", &resource: "1"})).then_some(()))
    })?;

    let begun = Instant::now();
    let plain = Pod::apply(stage, "plain", "n1", Guest::Answers, "cpu", Some("webhook"), 1)?;
    plain.ready(stage)?;
    println!("a pod without limits is ready after {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(plain.attachment(stage)?.kind == "macvtap", "{:?}", plain.attachment(stage)?);

    stage.kubectl.run(&[&system[..], &["scale", WEBHOOK, "--replicas=0"]].concat())?;
    let label = "app.kubernetes.io/name=macvtap-webhook";
    let gone = ["wait", "pod", "-l", label, "--for=delete", "--timeout=60s"];
    stage.kubectl.run(&[&system[..], &gone].concat())?;
    let begun = Instant::now();
    let without = limits(&dry_run(stage)?);
    println!("without the webhook a pod is admitted after {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(without == json!({"cpu": "1"}), "{without}");
    let own = Pod::apply(stage, "own", "n2", Guest::Asks, &resource, Some("webhook"), 2)?;
    own.ready(stage)?;
    own.pings(stage, "net1", &plain)
}

/// A pod that requests no device, as the API server would store it.
fn dry_run(stage: &Stage) -> Result<Value> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "dry", "namespace": stage.namespace, "annotations": {"k8s.v1.cni.cncf.io/networks": "webhook"},
        },
        "spec": {"containers": [{"name": "c", "image": "none", "resources": {"limits": {"cpu": "1"}}}]},
    });
    let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let stored = process::output_with_input(stage.kubectl.command().args(args), &pod.to_string())?;
    Ok(serde_json::from_str(&stored)?)
}

fn limits(pod: &Value) -> Value {
    pod["spec"]["containers"][0]["resources"]["limits"].clone()
}
