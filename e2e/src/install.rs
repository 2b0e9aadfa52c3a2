//! The product on a cluster, as a user installs it: its Helm chart with the images built here.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::images::Image;
use crate::layout;
use crate::{Cluster, process};

/// Where operator and agents run.
pub const NAMESPACE: &str = "macvtap-system";
/// The release's name.
pub const RELEASE: &str = "macvtap";

/// Helm for a cluster; append what it should do.
pub fn helm(cluster: &Cluster) -> Command {
    let mut command = Command::new(cluster.checkout().bin().join("helm"));
    // Helm keeps caches below the user's home unless it is told otherwise.
    let home = cluster.checkout().artefacts().join("helm");
    command.env("HELM_CACHE_HOME", home.join("cache")).env("HELM_CONFIG_HOME", home.join("config"));
    command.env("HELM_DATA_HOME", home.join("data")).env("KUBECONFIG", cluster.kubectl().kubeconfig());
    command
}

/// Installs or upgrades the chart and waits until operator and agents are ready. `values` are further `--set` words.
pub fn product(cluster: &Cluster, values: &[&str]) -> Result<()> {
    product_for(cluster, None, values)
}

/// As [`product`], with the chart's file of values for a distribution.
pub fn product_for(cluster: &Cluster, distribution: Option<&str>, values: &[&str]) -> Result<()> {
    let chart = cluster.checkout().path("charts/macvtap-operator");
    let mut command = helm(cluster);
    command.args(["upgrade", "--install", RELEASE]).arg(&chart).args(["-n", NAMESPACE, "--create-namespace"]);
    if let Some(distribution) = distribution {
        command.arg("--values").arg(chart.join("values").join(format!("{distribution}.yaml")));
    }
    let own = [
        "imagePullPolicy=IfNotPresent",
        "global.imageRegistry=localhost",
        "operator.image.tag=dev",
        "agent.image.tag=dev",
    ];
    for value in own.iter().chain(values) {
        command.args(["--set", value]);
    }
    process::output(&mut command).context("install the chart")?;
    wait_ready(cluster)
}

/// Restarts the pods when the images are not those that they were started with: a reference like `:dev` stays the same.
pub fn restart_changed(cluster: &Cluster, images: &[Image]) -> Result<()> {
    let mut digests: Vec<&str> = images.iter().map(|image| image.digest.as_str()).collect();
    digests.sort_unstable();
    let digests = digests.join("\n");
    let Some(layout) = cluster.layout() else { return Ok(()) };
    let stamp = layout.dir().join("installed");
    match std::fs::read_to_string(&stamp) {
        Ok(old) if old == digests => return Ok(()),
        Ok(_) => {
            let workloads = ["deployment/macvtap-operator", "daemonset/macvtap-node-agent"];
            cluster.kubectl().run(&[&["-n", NAMESPACE, "rollout", "restart"], &workloads[..]].concat())?;
            wait_ready(cluster)?;
        }
        Err(_) => {}
    }
    layout::write(&stamp, digests)
}

/// Waits until operator and agents are rolled out.
pub fn wait_ready(cluster: &Cluster) -> Result<()> {
    for workload in ["deployment/macvtap-operator", "daemonset/macvtap-node-agent"] {
        let timeout = format!("--timeout={}s", Duration::from_secs(90).as_secs());
        let args = ["-n", NAMESPACE, "rollout", "status", workload, &timeout];
        cluster.kubectl().run(&args).with_context(|| format!("wait for {workload}"))?;
    }
    Ok(())
}

/// Removes the release and waits until its pods are gone. The kinds stay, and with them every pool.
pub fn remove(cluster: &Cluster) -> Result<()> {
    let mut command = helm(cluster);
    command.args(["uninstall", RELEASE, "-n", NAMESPACE, "--ignore-not-found", "--wait"]);
    process::output(&mut command).context("remove the chart").map(drop)
}
