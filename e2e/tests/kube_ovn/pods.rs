//! Pods as a user writes them, and what they have, as the node and the container see it.

use crate::stage::{RESOURCE, Stage};
use anyhow::{Context, Result, ensure};
use e2e::Kubectl;
use std::fmt::Write as _;

/// A pod that sleeps.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    /// Where it runs.
    pub(crate) node: String,
    /// Annotations and what they say.
    pub(crate) annotations: Vec<(String, String)>,
    /// How many macvtaps it asks for.
    pub(crate) devices: u8,
    /// Further lines of its `spec`, indented by two.
    pub(crate) spec: String,
    /// Further words of its `metadata`, in braces' form.
    pub(crate) metadata: String,
}

/// What a pod's interface has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) mac: String,
    /// With prefix length, without those of the link itself.
    pub(crate) addresses: Vec<String>,
    /// The default routes of the pod: interface and gateway of each.
    pub(crate) default_routes: Vec<String>,
}

impl Pod {
    /// A pod with one macvtap on node n1, without annotations.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: "n1".to_owned(),
            annotations: Vec::new(),
            devices: 1,
            spec: String::new(),
            metadata: String::new(),
        }
    }

    /// One that is attached to a network of the test.
    pub(crate) fn on(name: &str, network: &str) -> Self {
        Self::new(name).says("k8s.v1.cni.cncf.io/networks", network)
    }

    /// One whose only interface is on a network of the test.
    pub(crate) fn only_on(stage: &Stage, name: &str, network: &str) -> Self {
        let network = format!("{}/{network}", stage.namespace);
        Self::new(name).says("v1.multus-cni.io/default-network", &network)
    }

    pub(crate) fn says(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn on_node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    pub(crate) fn manifest(&self, namespace: &str) -> String {
        let mut annotations = String::new();
        for (key, value) in &self.annotations {
            let _ = writeln!(annotations, "    {key}: '{value}'");
        }
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
{metadata}  annotations:
    test: kube-ovn
{annotations}spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
{spec}  containers:
  - name: c
    image: localhost/tapguest:dev
    imagePullPolicy: Never
    command: [sleep, infinity]
    # To ping, and to see what is so.
    securityContext: {{runAsUser: 0}}
    resources: {{limits: {{{RESOURCE}: {devices}}}}}
",
            name = self.name,
            metadata = self.metadata,
            node = self.node,
            spec = self.spec,
            devices = self.devices,
        )
    }
}

/// What an interface of a pod has.
pub(crate) fn interface(stage: &Stage, pod: &str, name: &str) -> Result<Interface> {
    interface_in(stage.kubectl, &stage.namespace, pod, name)
}

/// As [`interface`], in another namespace than the test's.
pub(crate) fn interface_in(kubectl: &Kubectl, namespace: &str, pod: &str, name: &str) -> Result<Interface> {
    let script = format!(
        "cat /sys/class/net/{name}/address; ip -o addr show dev {name} scope global; ip route; ip -6 route"
    );
    let text = kubectl.exec(namespace, pod, &["sh", "-c", &script])?;
    let mut lines = text.lines();
    let mac = lines.next().context("an interface has an address")?.trim().to_owned();
    let mut found = Interface { mac, addresses: Vec::new(), default_routes: Vec::new() };
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, _, "inet" | "inet6", address, ..] => found.addresses.push(address.to_owned()),
            ["default", "via", gateway, "dev", device, ..] => {
                found.default_routes.push(format!("{device} {gateway}"));
            }
            _ => {}
        }
    }
    found.addresses.sort();
    Ok(found)
}

/// Pings an address from a pod.
pub(crate) fn ping(stage: &Stage, pod: &str, address: &str) -> Result<()> {
    ping_in(stage.kubectl, &stage.namespace, pod, address)
}

/// As [`ping`], in another namespace than the test's.
pub(crate) fn ping_in(kubectl: &Kubectl, namespace: &str, pod: &str, address: &str) -> Result<()> {
    let said = kubectl.exec(namespace, pod, &["ping", "-c", "2", "-W", "5", address])?;
    ensure!(said.contains(" 0% packet loss"), "{pod} to {address}: {said}");
    let summary = said.lines().last().unwrap_or_default();
    println!("{pod} to {address}: {summary}");
    Ok(())
}
