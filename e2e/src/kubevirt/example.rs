//! Machines of `examples/kubevirt` that boot here, and pods to reach them from.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::GUEST;
use crate::{Kubectl, images};

/// Reads an example of a machine and lets it boot the tests' guest in place of a disk, with these addresses
/// (`guest.ip0=10.90.0.50/24`). All else is as the example says.
pub fn bootable(kubectl: &Kubectl, example: &Path, addresses: &str) -> Result<Value> {
    let path = example.display().to_string();
    let text = kubectl.run(&["create", "--dry-run=client", "-o", "json", "-f", &path])?;
    let mut vm: Value = serde_json::from_str(&text).with_context(|| format!("read {path}"))?;
    let name = vm["metadata"]["name"].clone();
    vm["spec"]["template"]["metadata"]["labels"]["app"] = name;
    let spec = &mut vm["spec"]["template"]["spec"];
    spec["terminationGracePeriodSeconds"] = json!(0);
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("volumes");
    }
    let domain = &mut spec["domain"];
    domain["memory"]["guest"] = json!("128Mi");
    domain["firmware"]["kernelBoot"] = json!({
        "kernelArgs": format!("console=ttyS0 quiet {addresses}"),
        "container": {
            "image": GUEST,
            "imagePullPolicy": "IfNotPresent",
            "kernelPath": "/boot/vmlinuz",
            "initrdPath": "/boot/initrd.img",
        },
    });
    let devices = &mut domain["devices"];
    if let Some(devices) = devices.as_object_mut() {
        devices.remove("disks");
    }
    devices["autoattachGraphicsDevice"] = json!(false);
    devices["autoattachMemBalloon"] = json!(false);
    devices["logSerialConsole"] = json!(true);
    Ok(vm)
}

/// A pod `peer-NODE` with the addresses 10.90.0.1N and `fd90::1N` on a device of a resource, and the network that gives them.
pub fn peer(namespace: &str, node: &str, number: usize, resource: &str) -> String {
    format!(
        r#"apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {{name: peer-{node}, namespace: {namespace}, annotations: {{k8s.v1.cni.cncf.io/resourceName: {resource}}}}}
spec:
  config: '{{"cniVersion": "1.0.0", "name": "peer-{node}", "type": "macvtap", "ipam": {{"type": "static", "addresses":
    [{{"address": "10.90.0.1{number}/24"}}, {{"address": "fd90::1{number}/64"}}]}}}}'
---
apiVersion: v1
kind: Pod
metadata: {{name: peer-{node}, namespace: {namespace}, annotations: {{k8s.v1.cni.cncf.io/networks: peer-{node}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  tolerations: [{{operator: Exists}}]
  containers:
  - {{name: peer, image: {image}, imagePullPolicy: IfNotPresent, command: [sleep, infinity], resources: {{limits: {{{resource}: 1}}}}}}
"#,
        image = images::reference("busybox"),
    )
}
