//! Multus in front of a node's pod network, as its two kinds of installation do it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::kubectl::Kubectl;
use crate::layout::{self, API_ADDRESS, API_PORT};
use crate::node::{self, Node};
use crate::pki::Pki;
use crate::process::Processes;
use crate::wait;

/// Multus' user in the API.
pub const USER: &str = "multus";

/// The kind `NetworkAttachmentDefinition` and what Multus may do.
const MANIFEST: &str = include_str!("multus.yaml");

/// The configuration that containerd takes: the first by name.
const CONF: &str = "00-multus.conf";

/// The pod network in front of which the daemon puts its shim.
const PODS: &str = "10-pods.conf";

/// Writes the configuration of one node. With `thin` the plugin does everything itself.
pub fn install_thin(node: &Node, pki: &Pki) -> Result<()> {
    let bin = node.layout().cluster.checkout.bin();
    node::install(&bin.join("multus"), &node.cni_bin().join("multus"))?;
    let kubeconfig = node.layout().dir().join("multus.kubeconfig");
    pki.kubeconfig(&kubeconfig, USER, &format!("https://{API_ADDRESS}:{API_PORT}"))?;
    let conf = json!({
        "cniVersion": "0.4.0", "name": "multus-cni-network", "type": "multus",
        "kubeconfig": kubeconfig, "capabilities": {"portMappings": true},
        "logLevel": "verbose", "logToStderr": false,
        "logFile": node.layout().cluster.logs().join(format!("{}-multus.log", node.name())),
        "delegates": [node.pod_network()],
    });
    // Written in place: containerd does not notice a file that is renamed into its directory.
    write_changed(node, CONF, &format!("{conf:#}\n"))
}

/// Writes the configuration of one node with `thick`: a shim that asks the daemon.
pub fn install_thick(node: &Node, pki: &Pki, processes: &Processes) -> Result<()> {
    let bin = node.layout().cluster.checkout.bin();
    node::install(&bin.join("multus-shim"), &node.cni_bin().join("multus-shim"))?;
    write_changed(node, PODS, &format!("{:#}\n", alone(node.pod_network())))?;
    let conf = json!({
        "cniVersion": "0.4.0", "logLevel": "verbose", "logToStderr": true,
        "cniConfigDir": "/etc/cni/net.d", "multusAutoconfigDir": "/etc/cni/net.d",
        "multusConfigFile": "auto", "multusMasterCNI": PODS,
        "socketDir": "/run/multus/", "daemonSocketDir": "/run/multus", "binDir": "/opt/cni/bin",
    });
    let path = node.layout().dir().join("multus-daemon.json");
    layout::write(&path, format!("{conf:#}\n"))?;
    // The daemon knows no kubeconfig: the node gets the files that a pod would have.
    let account = "/run/secrets/kubernetes.io/serviceaccount";
    let script =
        format!("mkdir -p /run/multus {account} && cp \"$1\" {account}/token && cp \"$2\" {account}/ca.crt");
    let (token, authority) = (pki.file("multus.token"), pki.file("ca.crt"));
    node.exec(&["sh", "-c", &script, "sh", &token.display().to_string(), &authority.display().to_string()])?;
    let mut command = node.command()?;
    command.arg(bin.join("multus-daemon")).arg("-config").arg(&path);
    command.env("KUBERNETES_SERVICE_HOST", API_ADDRESS).env("KUBERNETES_SERVICE_PORT", API_PORT.to_string());
    command.env("MULTUS_NODE_NAME", node.name());
    processes.start(&format!("{}-multus-daemon", node.name()), &command)
}

/// The first plugin of a list, without the list: of a list, the daemon (4.2.4) keeps only the types for DEL, with which
/// `host-local` releases nothing, so that a node starts 254 pods and no more.
fn alone(mut list: Value) -> Value {
    let mut plugin = list["plugins"][0].take();
    for key in ["cniVersion", "name"] {
        plugin[key] = list[key].take();
    }
    plugin
}

/// Waits for the configuration that the daemon writes.
pub fn wait_thick(node: &Node) -> Result<()> {
    let conf = node.cni_conf().join(CONF);
    let what = format!("the Multus daemon of {}", node.name());
    wait::until(&what, Duration::from_secs(20), || Ok(conf.exists().then_some(())))
}

fn write_changed(node: &Node, file: &str, content: &str) -> Result<()> {
    let path = node.cni_conf().join(file);
    if fs::read_to_string(&path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    layout::write(&path, content).context("configure Multus")
}

/// Creates the kind and the rights, as far as they are missing.
pub fn apply(kubectl: &Kubectl) -> Result<()> {
    kubectl.apply(MANIFEST).context("create NetworkAttachmentDefinitions")
}
