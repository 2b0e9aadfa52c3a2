//! What is read of a cluster before anything is decided.

pub(crate) mod network;
pub(crate) mod pod;
mod read;
pub(crate) mod resource;

pub(crate) use read::Scope;

use crate::cluster::Read;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool, NodePoolStatus};
use network::Network;

/// Label selector of the operator's objects.
pub(crate) const OPERATOR: &str = "app.kubernetes.io/name=macvtap-operator";

/// Label selector of the agents' objects.
pub(crate) const AGENT: &str = "app.kubernetes.io/name=macvtap-node-agent";

/// Label selector of the webhook's objects.
pub(crate) const WEBHOOK: &str = "app.kubernetes.io/name=macvtap-webhook";

/// Name of the operator's lease.
pub(crate) const LEASE: &str = "macvtap-operator";

/// Name of Multus' kind.
pub(crate) const NETWORK_KIND: &str = "network-attachment-definitions.k8s.cni.cncf.io";

/// Names of the kinds of this project.
pub(crate) const OUR_KINDS: [&str; 3] = [
    "macvtapresourcepools.macvtap.network.kubevirt.io",
    "macvtapnodestates.macvtap.network.kubevirt.io",
    "macvtapnodeconfigs.macvtap.network.kubevirt.io",
];

/// A cluster as the user can read it.
pub(crate) struct Facts {
    /// Version of the API server.
    pub(crate) version: Read<String>,
    /// Multus' kind and those of this project, as far as they exist.
    pub(crate) kinds: Read<Vec<CustomResourceDefinition>>,
    /// The operator's Deployments.
    pub(crate) deployments: Read<Vec<Deployment>>,
    /// The operator's leases.
    pub(crate) leases: Read<Vec<Lease>>,
    /// The agents' `DaemonSet`s.
    pub(crate) daemon_sets: Read<Vec<DaemonSet>>,
    /// The agents' pods.
    pub(crate) agents: Read<Vec<Pod>>,
    /// The nodes.
    pub(crate) nodes: Read<Vec<Node>>,
    /// The pools that can be read.
    pub(crate) pools: Read<Vec<MacvtapResourcePool>>,
    /// The node states that can be read.
    pub(crate) states: Read<Vec<MacvtapNodeState>>,
    /// The networks.
    pub(crate) networks: Read<Vec<Network>>,
    /// The quotas.
    pub(crate) quotas: Read<Vec<ResourceQuota>>,
    /// Objects of this project that cannot be read: kind, name and why.
    pub(crate) unreadable: Vec<String>,
    /// When all this was read.
    pub(crate) now: Timestamp,
}

/// Whether the agent of a node runs.
#[derive(Debug)]
pub(crate) enum Agent<'f> {
    /// Its pod is ready.
    Ready,
    /// It has a pod that is not ready.
    NotReady(&'f Pod),
    /// It has no pod.
    Missing,
    /// The user cannot read the agents' pods.
    Unknown,
}

/// The items of a list, none if it cannot be read.
pub(crate) fn items<T>(list: &Read<Vec<T>>) -> &[T] {
    list.as_ref().map_or(&[], Vec::as_slice)
}

impl Facts {
    /// Returns the state of a node.
    pub(crate) fn state(&self, node: &str) -> Option<&MacvtapNodeState> {
        items(&self.states).iter().find(|state| state.name_any() == node)
    }

    /// Returns the pool with this name.
    pub(crate) fn pool(&self, name: &str) -> Option<&MacvtapResourcePool> {
        items(&self.pools).iter().find(|pool| pool.name_any() == name)
    }

    /// Returns what the agent of a node reports of a pool.
    pub(crate) fn pool_status(&self, node: &str, pool: &str) -> Option<&NodePoolStatus> {
        self.state(node)?.status.as_ref()?.pools.iter().find(|of_node| of_node.name == pool)
    }

    /// Returns the kind with this name.
    pub(crate) fn kind(&self, name: &str) -> Option<&CustomResourceDefinition> {
        items(&self.kinds).iter().find(|kind| kind.name_any() == name)
    }

    /// Returns whether the agent of a node runs.
    pub(crate) fn agent(&self, node: &str) -> Agent<'_> {
        let Ok(pods) = &self.agents else { return Agent::Unknown };
        let on_node = |pod: &&Pod| pod::node(pod) == Some(node);
        let mut pods = pods.iter().filter(on_node);
        if pods.clone().any(pod::is_ready) {
            return Agent::Ready;
        }
        pods.next().map_or(Agent::Missing, Agent::NotReady)
    }
}
