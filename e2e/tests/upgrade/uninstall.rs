//! Uninstallation by the commands of docs/operations.md: nothing of the product stays in the cluster or on its nodes.

use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage};
use crate::{OPERATORS, helm, turn};
use anyhow::{Context, Result, ensure};
use e2e::layout::Checkout;
use e2e::{Cluster, Options, images, install, wait};
use serde_json::json;
use std::time::{Duration, Instant};

/// A cluster of its own: the kubelets of the other one know more resources of ours.
const NAME: &str = "uninstall";

/// The kubelet's five minutes, and some.
const FORGOTTEN: Duration = Duration::from_mins(8);

/// The kubelet writes its Node every ten seconds when something has changed.
const STATUS_UPDATES: Duration = Duration::from_secs(30);

/// Kinds of the cluster that the chart makes objects of.
const KINDS: &str = "crd,clusterrole,clusterrolebinding,flowschema,prioritylevelconfiguration,\
    mutatingwebhookconfiguration,validatingadmissionpolicy,validatingadmissionpolicybinding";

/// Directories of a node in which anything of the product can be.
const DIRECTORIES: &str = "/opt/cni/bin /etc/cni /var/lib/kubelet/device-plugins /var/lib /run";

#[test]
fn an_uninstallation_leaves_nothing_and_the_kinds_serve_a_release_of_another_name() -> Result<()> {
    if !Cluster::permitted()? {
        return Ok(());
    }
    let _turn = turn();
    images::build(&Checkout::here(), &images::ALL)?;
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::up(NAME, Options::default())?));
    cluster.explain(|| {
        install::product(cluster, &["webhook.enabled=true"])?;
        used_once(cluster, "first")?;
        // The kinds are kept; a release of another name takes them over.
        helm(cluster, &["uninstall", install::RELEASE, "--wait"])?;
        let chart = cluster.checkout().path("charts/macvtap-operator");
        let chart = chart.to_str().context("the path of the checkout is not UTF-8")?;
        let mut words = vec!["install", "other", chart, "--take-ownership"];
        for value in ["global.imageRegistry=localhost", "operator.image.tag=dev", "agent.image.tag=dev"] {
            words.extend(["--set", value]);
        }
        helm(cluster, &words)?;
        install::wait_ready(cluster)?;
        used_once(cluster, "second")?;
        helm(cluster, &["uninstall", "other", "--wait"])?;
        let kinds = ["macvtapresourcepools", "macvtapnodestates", "macvtapnodeconfigs"];
        let kinds = kinds.map(|kind| format!("{kind}.{PREFIX}"));
        cluster.kubectl().run(&["delete", "crd", &kinds[0], &kinds[1], &kinds[2], "--timeout=60s"])?;
        cluster.kubectl().run(&["delete", "namespace", install::NAMESPACE, "--timeout=90s"])?;
        nothing_in_the_cluster(cluster)?;
        nothing_on_the_nodes(cluster)?;
        no_resource_stays(cluster)
    })
}

/// A pool and a pod on each node, which then go.
fn used_once(cluster: &'static Cluster, name: &str) -> Result<()> {
    let mut stage = Stage::on(cluster, name)?;
    stage.pool(name, &churn::pool("dp0", name))?;
    let resource = format!("{PREFIX}/{name}");
    stage.wait_allocatable(&resource, 20)?;
    for (number, node) in [(1, "n1"), (2, "n2")] {
        let pod = Pod::apply(&stage, node, node, Guest::Answers, &resource, Some(name), number)?;
        pod.ready(&stage)?;
    }
    churn::nothing_stays(&stage, name)?;
    stage.kubectl.run(&["delete", &format!("macvtapresourcepool/{name}"), "--timeout=60s"])?;
    stage.wait_allocatable(&resource, 0).map(drop)
}

fn nothing_in_the_cluster(cluster: &Cluster) -> Result<()> {
    let objects = cluster.kubectl().run(&["get", KINDS, "-o", "name"])?;
    let ours: Vec<&str> = objects.lines().filter(|name| name.contains("macvtap")).collect();
    ensure!(ours.is_empty(), "of the cluster's objects stay: {ours:?}; {OPERATORS} is gone");
    Ok(())
}

/// By the command of the documentation. The kubelet writes a resource again until its plugin has been away for five
/// minutes.
fn no_resource_stays(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let name = format!("node/{}", node.name());
        let mut clean_since = Instant::now();
        wait::until("a Node to which no resource of ours comes back", FORGOTTEN, || {
            let now = cluster.kubectl().get("", &name)?;
            let keys = |list: &str| {
                let resources = now["status"][list].as_object();
                let names = resources.into_iter().flat_map(|all| all.keys());
                let ours = names.filter(|name| name.starts_with(PREFIX));
                ours.map(|name| format!("/status/{list}/{}", name.replace('/', "~1"))).collect::<Vec<_>>()
            };
            let keys = [keys("capacity"), keys("allocatable")].concat();
            if keys.is_empty() {
                return Ok((clean_since.elapsed() > STATUS_UPDATES).then_some(()));
            }
            clean_since = Instant::now();
            let remove: Vec<_> = keys.iter().map(|path| json!({"op": "remove", "path": path})).collect();
            let patch = json!(remove).to_string();
            let words = ["patch", &name, "--subresource=status", "--type=json", "-p", &patch];
            cluster.kubectl().run(&words).map(|_| None)
        })?;
    }
    Ok(())
}

fn nothing_on_the_nodes(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let links = node.exec(&["sh", "-c", "ip -o link show type macvtap | wc -l"])?;
        ensure!(links.trim() == "0", "{} keeps macvtaps: {links}", node.name());
        // Each node of this cluster has a mount at /var/lib/macvtap, which stays.
        let remove = "rm -rf /opt/cni/bin/macvtap /run/macvtap && find /var/lib/macvtap -mindepth 1 -delete";
        node.exec(&["sh", "-c", remove])?;
        let find = format!(
            "find {DIRECTORIES} -maxdepth 2 -name '*macvtap*' ! -path /var/lib/macvtap 2>/dev/null | sort -u"
        );
        wait::until("no file of the product", PATIENCE, || {
            let left = node.exec(&["sh", "-c", &find])?;
            ensure!(left.trim().is_empty(), "{} keeps {left}", node.name());
            Ok(Some(()))
        })?;
    }
    Ok(())
}
