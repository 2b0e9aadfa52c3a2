//! Pods and what they have: made from text a user could have written, inspected as the node and the container see them.

use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use e2e::Node;
use serde_json::Value;
use std::time::Duration;

/// How long a pod may take to become Ready on a busy machine.
const READY: Duration = Duration::from_mins(1);

/// A pod that a test made.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    /// The guest's addresses.
    pub(crate) v4: String,
    pub(crate) v6: String,
}

/// The link `net1` and the tap of a pod, as the node and the container see them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) kind: String,
    pub(crate) mode: String,
    pub(crate) mtu: u64,
    pub(crate) mac: String,
    pub(crate) ifindex: u64,
    pub(crate) up: bool,
    /// `major:minor` of the link's tap, from the sysfs of the pod's namespace.
    pub(crate) link_device: String,
    /// `uid:gid major:minor` of `/dev/tap<ifindex>` in the container.
    pub(crate) node: String,
}

/// What a pod's container does. Each open of a tap takes a share of its frames, so only one program may have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// It has the tap and answers.
    Answers,
    /// It sleeps; the test pings from it.
    Asks,
}

impl Pod {
    /// A pod on `node`. `network` is what its annotation says; none for the tap alone. `number` ends its addresses.
    pub(crate) fn apply(
        stage: &Stage,
        name: &str,
        node: &str,
        guest: Guest,
        resource: &str,
        network: Option<&str>,
        number: u8,
    ) -> Result<Self> {
        let pod = Self::new(stage, name, node, number);
        stage.kubectl.apply(&pod.manifest(guest, resource, network))?;
        Ok(pod)
    }

    /// A pod that is not applied.
    pub(crate) fn new(stage: &Stage, name: &str, node: &str, number: u8) -> Self {
        Self {
            namespace: stage.namespace.clone(),
            name: name.to_owned(),
            node: node.to_owned(),
            v4: format!("198.51.100.{number}"),
            v6: format!("fd00:5::{number}"),
        }
    }

    /// Its manifest.
    pub(crate) fn manifest(&self, guest: Guest, resource: &str, network: Option<&str>) -> String {
        let annotations =
            network.map(|network| format!("k8s.v1.cni.cncf.io/networks: {network}")).unwrap_or_default();
        let Self { namespace, name, node, v4, v6 } = self;
        let device = if network.is_some() { "net1" } else { "auto" };
        let command = match guest {
            Guest::Answers => format!("exec tapguest respond {device} - {v4} {v6}"),
            Guest::Asks => "exec sleep 100000".to_owned(),
        };
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  annotations: {{{annotations}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: guest
    image: localhost/tapguest:dev
    imagePullPolicy: Never
    command: [sh, -c, '{command}']
    securityContext: {{runAsUser: 107, runAsGroup: 107, allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
    resources: {{limits: {{{resource}: 1}}}}
"
        )
    }

    pub(crate) fn ready(&self, stage: &Stage) -> Result<()> {
        stage.kubectl.wait_for(&self.namespace, &format!("pod/{}", self.name), "condition=Ready", READY)
    }

    pub(crate) fn delete(&self, stage: &Stage) -> Result<()> {
        stage
            .kubectl
            .run(&["-n", &self.namespace, "delete", "pod", &self.name, "--wait", "--timeout=60s"])
            .map(drop)
    }

    pub(crate) fn exec(&self, stage: &Stage, program: &[&str]) -> Result<String> {
        stage.kubectl.exec(&self.namespace, &self.name, program)
    }

    pub(crate) fn node(&self, stage: &Stage) -> Result<&'static Node> {
        stage.node(&self.node)
    }

    /// What the pod has.
    pub(crate) fn attachment(&self, stage: &Stage) -> Result<Attachment> {
        let node = self.node(stage)?;
        let sandbox = node.pause_pid(&self.namespace, &self.name)?.to_string();
        let text = node.exec(&["nsenter", "-t", &sandbox, "-n", "ip", "-j", "-d", "link", "show", "net1"])?;
        let links: Value = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
        let link = &links[0];
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ifindex = link["ifindex"].as_u64().context("net1 has no index")?;
        Ok(Attachment {
            kind: word(&link["linkinfo"]["info_kind"]),
            mode: word(&link["linkinfo"]["info_data"]["mode"]),
            mtu: link["mtu"].as_u64().unwrap_or_default(),
            mac: word(&link["address"]),
            ifindex,
            up: link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP")),
            link_device: self
                .exec(stage, &["sh", "-c", "cat /sys/class/net/net1/tap*/dev"])?
                .trim()
                .to_owned(),
            node: self.tap_node(stage, ifindex)?,
        })
    }

    /// `uid:gid major:minor` of the tap's node in the container.
    pub(crate) fn tap_node(&self, stage: &Stage, ifindex: u64) -> Result<String> {
        let text = self.exec(stage, &["stat", "-c", "%u:%g %t:%T", &format!("/dev/tap{ifindex}")])?;
        let (owner, number) = text.trim().split_once(' ').with_context(|| format!("stat said {text:?}"))?;
        let (major, minor) = number.split_once(':').with_context(|| format!("stat said {text:?}"))?;
        let decimal = |hex| u32::from_str_radix(hex, 16).with_context(|| format!("stat said {text:?}"));
        Ok(format!("{owner} {}:{}", decimal(major)?, decimal(minor)?))
    }

    /// Pings another pod's guest through this pod's tap, by IPv4 and IPv6.
    pub(crate) fn pings(&self, stage: &Stage, device: &str, other: &Self) -> Result<()> {
        for target in [&other.v4, &other.v6] {
            let words = ["tapguest", "ping", device, "-", &self.v4, &self.v6, target, "10"];
            let said = self.exec(stage, &words)?;
            ensure!(said.contains(" 0% packet loss"), "{} to {}: {said}", self.name, other.name);
            println!("{} on {} to {} on {}: {}", self.name, self.node, other.name, other.node, said.trim());
        }
        Ok(())
    }
}
