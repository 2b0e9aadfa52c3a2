//! The servers' surroundings: clients, the chart's objects, and an eye on what pools say.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::api_server::{ACCOUNTS_NAMESPACE, ApiServer};
use e2e::layout::Checkout;
use e2e::process;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::cluster;

/// Makes a client.
pub(crate) async fn connect(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Client::try_from(config).context("make a client")
}

/// Applies the chart: kinds, rights and flow schemas. Nobody runs its workloads here.
pub(crate) fn install(server: &ApiServer, chart: &Path) -> Result<()> {
    let mut helm = Command::new(Checkout::here().bin().join("helm"));
    helm.args(["template", "release"]).arg(chart).args(["--namespace", ACCOUNTS_NAMESPACE]);
    // A token of these agents names no node.
    helm.args(["--kube-version=1.36.0", "--set", "nodeFence.enabled=false"]);
    let objects = process::output(&mut helm)?;
    server.kubectl().run(&["create", "namespace", ACCOUNTS_NAMESPACE])?;
    server.kubectl().apply(&objects)
}

/// Follows what pools say of nodes: every agent answers, so none is ever unreachable.
pub(crate) fn watch_verdicts(client: Client) -> Arc<AtomicU32> {
    let worst = Arc::new(AtomicU32::new(0));
    let seen = Arc::downgrade(&worst);
    tokio::spawn(async move {
        while let Some(worst) = seen.upgrade() {
            if let Ok(unreachable) = cluster::unreachable(&client).await {
                worst.fetch_max(unreachable, Ordering::Relaxed);
            }
            drop(worst);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    worst
}
