//! The check before an installation: API server, Multus, rights, nodes, namespace.

use super::{concluded, installation};
use crate::advice::anchor;
use crate::args::Check;
use crate::cluster::{Cluster, Read, Unread};
use crate::facts::{Facts, OUR_KINDS};
use crate::report::{Diagnostic, Report, Section};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{Api, ResourceExt as _};
use std::collections::BTreeSet;

/// The oldest Linux that docs/versions.md promises.
const OLDEST_LINUX: (u32, u32) = (5, 4);

/// Architectures that there are programs for.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// The label of a namespace that limits which pods it admits.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// The report.
pub(super) async fn report(facts: &Facts, cluster: &Cluster, args: &Check, rights: Section) -> Report {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = api.get_opt(&args.namespace).await.map_err(Unread::from);
    let mut section = vec![installation::api(facts, &cluster.address)];
    section.extend(installation::multus(facts));
    section.extend(kept_kinds(facts));
    section.push(pod_security(&args.namespace, &namespace));
    concluded(vec![Section::new("cluster", section), rights, Section::new("nodes", nodes(&facts.nodes))])
}

/// The kinds that an earlier installation left.
fn kept_kinds(facts: &Facts) -> Option<Diagnostic> {
    if facts.kinds.is_err() {
        return None;
    }
    let kept: Vec<&str> = OUR_KINDS.into_iter().filter(|name| facts.kind(name).is_some()).collect();
    Some(if kept.is_empty() {
        Diagnostic::ok("no earlier installation left its kinds")
    } else {
        let owner = kept.iter().filter_map(|name| facts.kind(name)).find_map(|kind| {
            let annotations = kind.annotations();
            Some(format!(
                "{} in namespace {}",
                annotations.get("meta.helm.sh/release-name")?,
                annotations.get("meta.helm.sh/release-namespace")?
            ))
        });
        let owner = owner.map(|owner| format!(", of Helm release {owner}")).unwrap_or_default();
        Diagnostic::warning(format!("kinds of an earlier installation exist{owner}: {}", kept.join(", ")))
            .because("CRDsKept")
            .remedy("install under the same release name and namespace, or see docs/operations.md for another one")
            .see(anchor::INSTALLATION)
    })
}

fn pod_security(name: &str, namespace: &Read<Option<Namespace>>) -> Diagnostic {
    match namespace {
        Err(unread) => Diagnostic::skipped(format!("namespace {name} cannot be read: {}", unread.text())),
        Ok(None) => Diagnostic::ok(format!("namespace {name} does not exist yet")),
        Ok(Some(namespace)) => match namespace.labels().get(POD_SECURITY).map(String::as_str) {
            None | Some("privileged") => Diagnostic::ok(format!("namespace {name} takes privileged pods")),
            Some(level) => Diagnostic::failed(format!(
                "namespace {name} enforces pod security {level}: it takes no agents"
            ))
            .because("PodSecurity")
            .remedy(format!("kubectl label --overwrite namespace {name} {POD_SECURITY}=privileged"))
            .see(anchor::INSTALLATION),
        },
    }
}

/// Whether the agent can run on the nodes.
fn nodes(nodes: &Read<Vec<Node>>) -> Vec<Diagnostic> {
    let nodes = match nodes {
        Err(unread) => {
            return vec![Diagnostic::skipped(format!("the nodes cannot be read: {}", unread.text()))];
        }
        Ok(nodes) if nodes.is_empty() => {
            return vec![Diagnostic::failed("the cluster has no node").see(anchor::INSTALLATION)];
        }
        Ok(nodes) => nodes,
    };
    let mut found: Vec<_> = nodes.iter().filter_map(unsuitable).collect();
    let kernels: BTreeSet<&str> = nodes
        .iter()
        .filter_map(|node| Some(node.status.as_ref()?.node_info.as_ref()?.kernel_version.as_str()))
        .collect();
    let kernels: Vec<&str> = kernels.into_iter().take(5).collect();
    let good = nodes.len() - found.len();
    found.push(Diagnostic::ok(format!(
        "{good} of {} nodes can run the agent (Linux {})",
        nodes.len(),
        kernels.join(", ")
    )));
    found.push(Diagnostic::skipped(
        "whether the kernels have macvtap, and where the runtimes look for CNI plugins, only the agents can report: run `check` after the installation",
    ));
    found
}

fn unsuitable(node: &Node) -> Option<Diagnostic> {
    let name = node.name_any();
    let Some(info) = node.status.as_ref().and_then(|status| status.node_info.as_ref()) else {
        return Some(Diagnostic::warning(format!(
            "node {name} reports nothing about itself: is it a virtual one?"
        )));
    };
    let problem = if info.operating_system != "linux" {
        format!("runs {}", info.operating_system)
    } else if !ARCHITECTURES.contains(&info.architecture.as_str()) {
        format!("is of architecture {}", info.architecture)
    } else if linux(&info.kernel_version).is_some_and(|version| version < OLDEST_LINUX) {
        format!("runs Linux {}, older than {}.{}", info.kernel_version, OLDEST_LINUX.0, OLDEST_LINUX.1)
    } else {
        return None;
    };
    let remedy = "leave it out with the chart's agent.nodeSelector, or upgrade it";
    Some(
        Diagnostic::warning(format!("node {name} {problem}: the agent does not run there"))
            .remedy(remedy)
            .see(anchor::INSTALLATION),
    )
}

fn linux(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, object};
    use serde_json::json;

    #[test]
    fn nodes_that_cannot_run_the_agent_are_named() {
        let of = |name: &str, system: &str, architecture: &str, kernel: &str| {
            node(
                name,
                json!({"nodeInfo": {
                    "operatingSystem": system, "architecture": architecture, "kernelVersion": kernel, "bootID": "",
                    "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": "",
                }}),
            )
        };
        let all = vec![
            of("a", "linux", "amd64", "6.1.0-27-amd64"),
            of("b", "windows", "amd64", "10"),
            of("c", "linux", "arm64", "5.3.18-lp152"),
            node("d", json!({})),
        ];
        let found: Vec<_> = nodes(&Ok(all)).into_iter().map(|found| found.fact).collect();
        assert!(
            found[0].contains("node b runs windows") && found[1].contains("node c runs Linux 5.3.18-lp152"),
            "{found:?}"
        );
        assert!(found[2].contains("virtual") && found[3].starts_with("1 of 4"), "{found:?}");
    }

    #[test]
    fn a_namespace_that_takes_no_privileged_pods_fails() {
        let namespace = |labels| -> Read<Option<Namespace>> {
            Ok(Some(object(json!({"metadata": {"name": "s", "labels": labels}}))))
        };
        assert_eq!(
            pod_security("s", &namespace(json!({POD_SECURITY: "restricted"}))).reason.as_deref(),
            Some("PodSecurity")
        );
        assert_eq!(pod_security("s", &namespace(json!({}))).reason, None);
    }
}
