//! The objects of a connectivity test. Pure.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use macvtap_crds::RESOURCE_NAME_ANNOTATION;
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use serde_json::json;

/// The label of everything that is made.
const LABEL: &str = "macvtap.network.kubevirt.io/connectivity";

/// The label for the role of a pod: answering or asking.
const PART: &str = "macvtap.network.kubevirt.io/connectivity-part";

/// Seconds after which pods end although nobody removed them.
const LIFETIME: u32 = 900;

/// Bytes of IPv6 and `ICMPv6` before the data of an echo.
const HEADERS: u32 = 48;

/// A node with free devices.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    /// Its name.
    pub(super) node: String,
    /// The lowest MTU of its links of the pool.
    pub(super) mtu: u32,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) namespace: String,
    pub(super) pool: String,
    pub(super) resource: String,
    pub(super) image: String,
    pub(super) spots: Vec<Spot>,
    pub(super) mtu: u32,
    /// Whether pods of one node reach each other without the switch.
    pub(super) same_node: bool,
    pub(super) number: u32,
}

impl Run {
    /// The name of the network, and the beginning of those of the pods.
    pub(super) fn name(&self) -> String {
        format!("macvtap-connectivity-{}", self.number)
    }

    /// The label selector of the pods, of one part of them if given.
    pub(super) fn selector(&self, part: Option<&str>) -> String {
        let all = format!("{LABEL}={}", self.number);
        part.map_or(all.clone(), |part| format!("{all},{PART}={part}"))
    }

    /// The network.
    pub(super) fn network(&self) -> Result<NetworkAttachmentDefinition> {
        let config = json!({"cniVersion": "1.0.0", "name": self.name(), "type": "macvtap", "mtu": self.mtu});
        serde_json::from_value(json!({
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {
                "name": self.name(), "labels": {LABEL: self.number.to_string()},
                "annotations": {RESOURCE_NAME_ANNOTATION: self.resource},
            },
            "spec": {"config": config.to_string()},
        }))
        .context("make a network")
    }

    /// Name of the pod that asks from a node.
    pub(super) fn asking_name(&self, index: usize) -> String {
        format!("{}-asks-{index}", self.name())
    }

    /// The pod that answers on a node.
    pub(super) fn answering(&self, index: usize) -> Result<Pod> {
        let (v4, v6) = addresses(index, 1);
        let name = format!("{}-answers-{index}", self.name());
        self.pod(&name, "answering", index, &["tapguest", "respond", "auto", "-", &v4, &v6])
    }

    /// The pod that asks all of them from a node. It succeeds whatever it finds: the result is in its log.
    pub(super) fn asking(&self, index: usize) -> Result<Pod> {
        let (v4, v6) = addresses(index, 2);
        let mut command = ["tapguest", "ask", "auto", "-", &v4, &v6, "3"].map(str::to_owned).to_vec();
        for (target, spot) in self.spots.iter().enumerate() {
            if target == index && !self.same_node {
                continue;
            }
            let (to4, to6) = addresses(target, 1);
            for (what, address, bytes) in [
                ("IPv4", &to4, 0),
                ("IPv6 and multicast", &to6, 0),
                ("full MTU", &to6, self.mtu.saturating_sub(HEADERS)),
            ] {
                command.push(format!("{}|{what}={address},{bytes}", spot.node));
            }
        }
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.pod(&self.asking_name(index), "asking", index, &command)
    }

    fn pod(&self, name: &str, part: &str, index: usize, command: &[&str]) -> Result<Pod> {
        let node = &self.spots.get(index).context("a node")?.node;
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "labels": {LABEL: self.number.to_string(), PART: part},
                "annotations": {"k8s.v1.cni.cncf.io/networks": self.name()},
            },
            "spec": {
                "nodeName": null,
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
                ]}}},
                "tolerations": [{"operator": "Exists"}],
                "restartPolicy": "Never",
                "activeDeadlineSeconds": LIFETIME,
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                // What KubeVirt runs a virtual machine as; the tap is its.
                "securityContext": {"runAsUser": 107, "runAsGroup": 107, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "guest",
                    "image": self.image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "resources": {"limits": {&self.resource: "1"}},
                }],
            },
        }))
        .context("make a pod")
    }
}

/// Addresses that no host has: of the ranges for benchmarks (RFC 2544, RFC 5180).
fn addresses(index: usize, host: u8) -> (String, String) {
    (format!("198.18.{index}.{host}"), format!("2001:2::{index:x}:{host}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::connectivity) fn run() -> Run {
        Run {
            namespace: "default".to_owned(),
            pool: "dp".to_owned(),
            resource: "macvtap.network.kubevirt.io/dp".to_owned(),
            image: "tapguest".to_owned(),
            spots: ["n1", "n2"].map(|node| Spot { node: node.to_owned(), mtu: 9000 }).to_vec(),
            mtu: 9000,
            same_node: true,
            number: 7,
        }
    }

    #[test]
    fn a_pod_asks_every_other_one_over_both_families_and_with_the_full_mtu() {
        let command = |run: &Run| run.asking(0).unwrap().spec.unwrap().containers[0].command.clone().unwrap();
        let all = command(&run());
        assert_eq!(all[..7], ["tapguest", "ask", "auto", "-", "198.18.0.2", "2001:2::0:2", "3"]);
        assert_eq!(all.len(), 7 + 6, "{all:?}");
        assert_eq!(all[12], "n2|full MTU=2001:2::1:1,8952");
        let vepa = command(&Run { same_node: false, ..run() });
        assert!(!vepa.iter().any(|word| word.starts_with("n1|")), "{vepa:?}");
        let network = run().network().unwrap();
        assert!(network.spec.config.contains("\"mtu\":9000"));
    }
}
