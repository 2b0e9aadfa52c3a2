//! A pool of its own for what makes many pods of a real cluster: a namespace, a pool on every node's first link and its
//! network, all of one name, and pods that use them.

use std::time::Duration;

use anyhow::Result;

use crate::{Cluster, Kubectl, images};

/// The resource of the pool.
pub(crate) fn resource(name: &str) -> String {
    format!("macvtap.network.kubevirt.io/{name}")
}

/// Makes namespace, pool and network, and waits until every node offers so many devices.
pub(crate) fn prepare(cluster: &Cluster, name: &str, devices: u32) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n\
         apiVersion: macvtap.network.kubevirt.io/v1alpha1\nkind: MacvtapResourcePool\nmetadata: {{name: {name}}}\n\
         spec:\n  links: [{{names: [dp0]}}]\n  capacity: {{perLink: {devices}}}\n  \
         networks: [{{name: {name}, namespaces: {{names: [{name}]}}}}]\n"
    ))?;
    for node in cluster.nodes() {
        let allocatable =
            format!("jsonpath={{.status.allocatable.{}}}={devices}", resource(name).replace('.', "\\."));
        kubectl.wait_for("", &format!("node/{}", node.name()), &allocatable, Duration::from_mins(1))?;
    }
    kubectl.wait_until(name, &format!("net-attach-def/{name}"), Duration::from_secs(30), |_| Some(()))
}

/// A pod with these networks and so many devices of the pool.
pub(crate) fn pod(pool: &str, pod: &str, networks: &str, devices: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {pod}, namespace: {pool}, annotations: {{k8s.v1.cni.cncf.io/networks: '{networks}'}}}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: {image}\n    \
         imagePullPolicy: IfNotPresent\n    command: [sleep, infinity]\n    \
         resources: {{limits: {{{resource}: {devices}}}}}\n---\n",
        image = images::reference("busybox"),
        resource = resource(pool),
    )
}

/// Waits until all pods are Ready.
pub(crate) fn await_ready(kubectl: &Kubectl, name: &str, patience: Duration) -> Result<()> {
    let timeout = format!("--timeout={}s", patience.as_secs());
    kubectl.run(&["-n", name, "wait", "pods", "--all", "--for=condition=Ready", &timeout]).map(drop)
}

/// Deletes all pods and waits for their end.
pub(crate) fn delete(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.run(&["-n", name, "delete", "pods", "--all", "--wait", "--timeout=600s"]).map(drop)
}

/// Deletes everything but the pool, and waits for its end.
pub(crate) fn delete_namespace(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.run(&["delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=600s"]).map(drop)
}

/// Deletes the pool and waits for its end.
pub(crate) fn delete_pool(kubectl: &Kubectl, name: &str) -> Result<()> {
    kubectl.run(&["delete", "mrp", name, "--ignore-not-found", "--wait", "--timeout=90s"]).map(drop)
}
