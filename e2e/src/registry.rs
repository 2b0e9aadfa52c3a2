//! A registry in the cluster, in the place of Docker Hub: manifests that say `image: busybox` run unchanged, although a
//! kubelet pulls such an image whatever it has, and the machine reaches no registry.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::layout::{self, API_ADDRESS, Layout, NodeLayout};
use crate::process::Processes;
use crate::{Node, images, namespaces, wait};

/// Where it listens on the management network.
const PORT: u16 = 5000;

/// Its name among the cluster's daemons.
const DAEMON: &str = "docker-registry";

/// Starts Debian's docker-registry beside the API server, unless it runs.
pub fn ensure(cluster: &Layout, processes: &Processes) -> Result<()> {
    let dir = cluster.dir().join("registry");
    let config = dir.join("config.yml");
    let storage = dir.join("storage");
    layout::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {}}}\n",
            storage.display(),
            address()
        ),
    )?;
    let mut command: Command = namespaces::in_netns(&cluster.netns("cp"));
    command.arg(cluster.checkout.debian().join("usr/bin/docker-registry")).arg("serve").arg(&config);
    processes.start(DAEMON, &command)
}

/// Publishes the image that manifests call `busybox`.
pub fn publish(node: &Node) -> Result<()> {
    let reference = format!("{}/library/busybox:latest", address());
    node.ctr(&["images", "tag", "--force", &images::reference("busybox"), &reference])?;
    wait::until("the registry", Duration::from_secs(20), || {
        node.ctr(&["images", "push", "--plain-http", &reference]).map(|_| Some(()))
    })
}

/// Tells a node's containerd to ask here instead of Docker Hub. Gives the directory to name in its configuration.
pub fn mirror(node: &NodeLayout) -> Result<std::path::PathBuf> {
    let directory = node.dir().join("registries");
    let address = address();
    let hosts = format!(
        "server = \"http://{address}\"\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    layout::write(&directory.join("docker.io/hosts.toml"), hosts)?;
    Ok(directory)
}

fn address() -> String {
    format!("{API_ADDRESS}:{PORT}")
}
