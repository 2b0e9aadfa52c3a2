//! KubeVirt on the nodes of a cluster: its real operator, controllers, launchers, libvirt and QEMU. Machines are emulated,
//! so no processor need help.
//!
//! A cluster for it has nodes with process namespaces of their own ([`crate::Options::kubevirt`]): virt-handler works on
//! its node through `/proc/1`.

mod archive;
mod base;
mod example;
mod guest;

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub use example::{bootable, peer};

use crate::layout::Checkout;
use crate::{Cluster, Kubectl, components, prerequisites};

/// Where KubeVirt is installed.
pub const NAMESPACE: &str = "kubevirt";

/// The image with the machines' kernel and first file system.
pub const GUEST: &str = "localhost/kubevirt/guest:dev";

const OPERATOR: &str = include_str!("../kubevirt/operator.yaml");
const KUBEVIRT: &str = include_str!("../kubevirt/kubevirt.yaml");

/// How long KubeVirt may take to install itself on a busy machine.
const PATIENCE: Duration = Duration::from_mins(5);

/// Builds KubeVirt's programs and all images.
pub fn build(checkout: &Checkout) -> Result<()> {
    prerequisites::ensure_guest_lab(checkout)?;
    components::build_kubevirt(checkout)?;
    let _lock = checkout.lock("kubevirt")?;
    archive::ensure(checkout).map(drop)
}

/// Installs KubeVirt with the binding of `examples/kubevirt`, unless it is there, and waits until machines can run.
pub fn install(cluster: &Cluster) -> Result<()> {
    let checkout = cluster.checkout();
    load(cluster)?;
    let kubectl = cluster.kubectl();
    kubectl.apply(&manifests(checkout)?)?;
    kubectl.wait_for("", "crd/kubevirts.kubevirt.io", "condition=Established", PATIENCE)?;
    kubectl.apply(KUBEVIRT)?;
    let binding = checkout.path("examples/kubevirt/binding.yaml").display().to_string();
    let patch = ["patch", "kubevirt", "kubevirt", "--type", "merge", "--patch-file", &binding];
    kubectl.run(&[&["-n", NAMESPACE], &patch[..]].concat()).context("register the binding")?;
    wait_ready(kubectl, cluster.nodes().len())
}

/// Not until KubeVirt says that it is deployed, which comes 24 s later.
fn wait_ready(kubectl: &Kubectl, nodes: usize) -> Result<()> {
    kubectl
        .wait_until(NAMESPACE, "daemonset/virt-handler", PATIENCE, |set| {
            (set["status"]["numberReady"].as_u64() == Some(nodes as u64)).then_some(())
        })
        .context("KubeVirt does not become ready")?;
    for deployment in ["deployment/virt-api", "deployment/virt-controller"] {
        kubectl.wait_for(NAMESPACE, deployment, "condition=Available", PATIENCE)?;
    }
    Ok(())
}

/// Loads the images, not with those of every cluster: they are half a gigabyte.
fn load(cluster: &Cluster) -> Result<()> {
    let archives = archive::ensure(cluster.checkout())?;
    // KubeVirt asks on the target of a migration for the image that the source has, by its ID; of an image that was
    // imported that is the configuration's digest, by which no registry knows it.
    let pinned = format!("{}@sha256:{}", GUEST.trim_end_matches(":dev"), archives.guest_digest);
    for node in cluster.nodes() {
        for archive in [&archives.kubevirt, &archives.guest] {
            node.load(archive)?;
        }
        node.ctr(&["images", "tag", "--force", GUEST, &pinned])?;
    }
    Ok(())
}

/// What stands in KubeVirt's own module, and its operator's Deployment, which is only there as a template.
fn manifests(checkout: &Checkout) -> Result<String> {
    let dir = components::kubevirt_sources(checkout)?.join("manifests/generated");
    let version = components::kubevirt_version(checkout)?;
    let mut all =
        vec![OPERATOR.replace("{image}", &image("virt-operator", &version)).replace("{version}", &version)];
    for file in
        ["kv-resource.yaml", "kubevirt-priority-class.yaml", "rbac-operator.authorization.k8s.yaml.in"]
    {
        let text = fs::read_to_string(dir.join(file)).with_context(|| format!("read KubeVirt's {file}"))?;
        all.push(text.replace("{{.Namespace}}", NAMESPACE));
    }
    Ok(all.iter().map(|text| text.trim().trim_start_matches("---")).collect::<Vec<_>>().join("\n---\n"))
}

/// The reference of one of KubeVirt's images; the operator takes its own for a pattern.
fn image(name: &str, version: &str) -> String {
    format!("localhost/kubevirt/{name}:{version}")
}
