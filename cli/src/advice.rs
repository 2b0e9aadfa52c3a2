//! What to do about each reason, and where the documentation explains it.

use crate::report::{Diagnostic, Level};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Headings of docs/troubleshooting.md.
pub(crate) mod anchor {
    /// Operator, agents, kinds.
    pub(crate) const INSTALLATION: &str = "installation";
    /// Conditions of pools.
    pub(crate) const POOLS: &str = "pools-macvtapresourcepool-statusconditions";
    /// Conditions of nodes, pools on nodes and links.
    pub(crate) const NODES: &str = "nodes-macvtapnodestate";
    /// Networks that pods name, and quotas.
    pub(crate) const NETWORKS: &str = "networks-and-quotas";
    /// Events of pods.
    pub(crate) const PODS: &str = "pods";
}

/// What to do about a reason of a pool's condition.
pub(crate) fn of_pool(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "ResourceNameConflict" => "delete this pool and apply it with another resourceName",
        "InvalidSelector" => "correct the selector that the message names",
        "NotReadable" => "correct the object, or run the release of the operator that knows it",
        "Pending" => "if it stays so, check that the operator runs",
        "NoMatchingNodes" => "correct nodeSelector, or check the agents' DaemonSet",
        "NoMatchingLinks" => {
            "correct links or nodeSelector; `kubectl macvtap explain pool` lists the links of each node"
        }
        "NoNodeServing" | "NodesNotReady" | "NodesDegraded" => {
            "see the nodes below, or `kubectl macvtap explain pool`"
        }
        "DryRun" => "set advertisement: Enabled",
        "NotAccepted" => "see condition Accepted",
        "NodesUpdating" | "NetworksUpdating" => "wait; if it stays so, read the operator's log",
        "RolloutHalted" => {
            "heal the nodes that got worse, or change the pool (also back): the rollout goes on by itself"
        }
        "NodesUnreachable" => "check the agent's pod on these nodes",
        "NADConflict" => {
            "rename the network in the pool, or delete the NetworkAttachmentDefinition that is not the pool's"
        }
        "NamespaceNotFound" => "create the namespace, or correct the pool's networks",
        "NADKindMissing" => "install Multus",
        "NetworkWriteFailed" => "read the message; the operator tries again",
        "NetworkNameNotUsable" => "change the name of the network in the pool",
        "DevicesInUse" => "delete the pods that use devices of the pool",
        "NodesDraining" => "if a node does not answer, see \"Delete a pool\" in docs/operations.md",
        "RemovingNetworks" => "read the message: an admission policy or a missing right keeps the networks",
        _ => return None,
    })
}

/// What to do about a reason of a node, or of a pool on a node.
pub(crate) fn of_node(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "KubeletUnreachable" => {
            "check that the kubelet runs and that agent.devicePluginDir is its directory for device plugins"
        }
        "PluginMissing" => {
            "read the message: a read-only or full disk, or an exchanged directory, which a new agent pod sees"
        }
        "NoOtherPlugin" => {
            "set agent.cniBinDir to the directory from which the container runtime runs CNI plugins"
        }
        "SpecNotReadable" | "StatusNotReadable" | "NotSupported" => "run agents of the operator's release",
        "PoolsNotReady" | "PoolsDegraded" => "see the pools of the node",
        "NoMatchingLink" => "correct links or nodeSelector of the pool",
        "NoHealthyLink" | "LinksUnhealthy" => {
            "switch the links on and restore their carrier, or set health.carrier: Ignored"
        }
        "DevicesDead" => "delete the pods that lost their link: only new ones have a working tap",
        "RegistrationFailed" => "read the message: the kubelet refused the resource",
        "TableNotWritten" => "free the disk of the node, or make it writable",
        "ResourceNameTaken" => "give one of the two pools another resourceName",
        "MtuTooSmall" => "raise the MTU of the link, or lower macvtap.mtu",
        "Registering" | "Updating" | "Waiting" => "wait; if it stays so, read the log of the node's agent",
        "Unreachable" => "check the agent's pod on this node",
        "AgentNotStarted" => "read the events of the agent's pod on this node, or of the agents' DaemonSet",
        "TooManyPools" => "narrow the node selectors: a node can have 64 pools",
        "Draining" | "Drained" => "nothing: the pool is being deleted",
        _ => return None,
    })
}

/// What to do about a reason of a link.
pub(crate) fn of_link(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "KernelWithoutMacvtap" => "load or install the kernel module on the node: `modprobe macvtap`",
        "NoCarrier" => {
            "restore the carrier: cable, switch port or upper link; or set health.carrier: Ignored"
        }
        "AdminDown" => "switch the link on: `ip link set LINK up`",
        "LinkGone" => "bring the link back, or delete the pods that use it",
        "LinkReplaced" => "delete the pods that use devices of the former link",
        "MtuTooSmall" => "raise the MTU of the link, or lower macvtap.mtu of the pool",
        "MtuLowered" => "recreate the pods on this link",
        "HeadersNotReordered" => "`ip link set LINK type vlan reorder_hdr on`",
        "FewMacFilters" => {
            "trust the virtual function (`ip link set PF vf N trust on`), or limit capacity.perLink"
        }
        "LostToPool" => {
            "give this pool a higher priority, narrow the other one, or set overlap: Shared in both"
        }
        "EnslavedTo" => "select the bond, bridge or team instead",
        "DefaultRoute" | "HostAddress" | "HasUpper" => "choose a link that the host does not use itself",
        "PassthruInUse" => "remove the macvtap in passthru mode, or choose another link",
        "KindNotSupported" => "choose a link of another kind",
        "NameNotUsable" => "rename the link, or use resourcePer: Pool",
        "Excluded" => "remove it from exclude if it should be in the pool",
        "NotSelected" => "add its name to links of a pool if it should be in one",
        "CapacityReached" => "raise capacity.perNode if its devices are needed",
        "ModeChangePending" | "Draining" => "delete the pods that use its devices, or wait for their end",
        _ => return None,
    })
}

/// Whether a link in a pool cannot serve for this reason.
pub(crate) fn breaks_link(reason: &str) -> bool {
    ["KernelWithoutMacvtap", "NoCarrier", "AdminDown", "LinkGone", "MtuTooSmall"].contains(&reason)
}

/// A condition that is not as it should be, as a fact.
pub(crate) fn condition(subject: &str, condition: &Condition, remedy: Option<&str>, see: &str) -> Diagnostic {
    let waiting =
        ["NodesUpdating", "DryRun", "Terminating", "Registering", "Draining", "Drained", "NetworksUpdating"];
    let level = if waiting.contains(&condition.reason.as_str()) { Level::Warning } else { Level::Failed };
    let fact = match condition.message.as_str() {
        "" => format!("{subject}: {} is {}", condition.type_, condition.status),
        message => format!("{subject}: {} is {}: {message}", condition.type_, condition.status),
    };
    let mut found = match level {
        Level::Warning => Diagnostic::warning(fact),
        Level::Ok | Level::Skipped | Level::Failed => Diagnostic::failed(fact),
    };
    found = found.because(&condition.reason).see(see);
    match remedy {
        Some(remedy) => found.remedy(remedy),
        None => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use macvtap_crds::v1alpha1::reason::{LinkReason, NodePoolReason, NodeReason, PoolReason, SampleReason};

    #[test]
    fn every_reason_that_is_a_problem_has_a_remedy() {
        let well = [
            "Valid",
            "AllNodesReady",
            "NodesServing",
            "UpToDate",
            "AsExpected",
            "AllNetworksReady",
            "NoNetworks",
            "Terminating",
        ];
        for reason in PoolReason::ALL.iter().map(|reason| reason.as_str()) {
            assert!(of_pool(reason).is_some() != well.contains(&reason), "{reason}");
        }
        let well = ["AsExpected", "Serving", "DryRun", "ModeChangePending", "IndexTaken", "NodeTerminating"];
        let reasons = NodePoolReason::ALL.iter().map(|reason| reason.as_str());
        let reasons = reasons.chain(NodeReason::ALL.iter().map(|reason| reason.as_str()));
        for reason in reasons.chain(SampleReason::ALL.iter().map(|reason| reason.as_str())) {
            assert!(of_node(reason).is_some() != well.contains(&reason), "{reason}");
        }
        for reason in LinkReason::ALL.iter().map(|reason| reason.as_str()) {
            assert!(of_link(reason).is_some() != ["InPod", "IndexTaken"].contains(&reason), "{reason}");
        }
    }

    #[test]
    fn every_anchor_is_a_heading_of_the_guide() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let slug = |heading: &str| -> String {
            let kept = heading.to_lowercase();
            kept.trim()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        };
        let slugs: Vec<String> =
            guide.lines().filter_map(|line| line.strip_prefix("## ")).map(slug).collect();
        for anchor in [anchor::INSTALLATION, anchor::POOLS, anchor::NODES, anchor::NETWORKS, anchor::PODS] {
            assert!(slugs.iter().any(|slug| slug == anchor), "{anchor} is not among {slugs:?}");
        }
    }
}
