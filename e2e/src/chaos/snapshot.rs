//! The state of the cluster as it was observed from outside of the product at one moment.

use std::time::Duration;

/// What the agent's range of indexes of links is; above it are placeholders for tap numbers.
pub(super) const DEVICES: std::ops::Range<u32> = 0x0100_0000..0x7ff0_0000;

/// The namespace of the load, its pools, and the prefix of their resources.
pub(super) const NAMESPACE: &str = "chaos";
pub(super) const POOLS: [&str; 2] = ["chaos-a", "chaos-b"];
pub(super) const PREFIX: &str = "macvtap.network.kubevirt.io";

/// One observation.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// When, after the begin of the run.
    pub(super) at: Duration,
    /// Containers that ran before and after everything else was read.
    pub(super) containers: Vec<Container>,
    /// All macvtaps in network namespaces of nodes and of processes of pods.
    pub(super) links: Vec<Link>,
    /// Attachment records.
    pub(super) records: Vec<Record>,
    /// Device nodes below the product's directory: node and index.
    pub(super) device_nodes: Vec<(String, u32)>,
    /// Pods whose processes still exist, sandboxes included: node and UID.
    pub(super) running: Vec<(String, String)>,
    /// Pods of the load; nothing while the API server does not answer.
    pub(super) pods: Option<Vec<Pod>>,
    /// Pools of the load; nothing while the API server does not answer, or when they were not asked for.
    pub(super) pools: Option<Vec<Pool>>,
    /// What kube-ovn has recorded of the addresses of the load; nothing whenever there are no pools.
    pub(super) addresses: Option<Vec<Assigned>>,
}

/// A container that runs, without the ones that hold sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) node: String,
    pub(super) pod: String,
    pub(super) id: String,
    /// Inode of its network namespace.
    pub(super) netns: u64,
    /// Taps that it can open: index in the name, `major:minor`.
    pub(super) taps: Vec<(u32, String)>,
}

/// A macvtap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) node: String,
    /// Inode of its network namespace.
    pub(super) netns: u64,
    pub(super) name: String,
    pub(super) ifindex: u32,
    pub(super) mac: String,
    /// Index of its lower link, on the node.
    pub(super) lower: u32,
    /// `major:minor` of its tap, where it could be read.
    pub(super) tap: Option<String>,
    /// Its addresses, without those that the kernel makes.
    pub(super) addresses: Vec<String>,
}

/// An attachment record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) node: String,
    pub(super) device: String,
    /// UID of the pod; empty in a record of a tap without network.
    pub(super) pod: String,
    pub(super) ifindex: u32,
}

/// A pod as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) ready: bool,
    /// It has failed for good.
    pub(super) failed: Option<String>,
    pub(super) terminating: bool,
    /// The address that kube-ovn has assigned to it.
    pub(super) address: Option<String>,
}

impl Pod {
    /// Whether it is to run.
    pub(super) fn lives(&self) -> bool {
        self.failed.is_none() && !self.terminating
    }
}

/// kube-ovn's record of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assigned {
    /// The name of its pod.
    pub(super) pod: String,
    pub(super) address: String,
}

/// A pool as the API server has it, and what the Nodes offer of its resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) allocatable: u64,
    pub(super) allocated: u64,
    pub(super) dead: u64,
    pub(super) unreachable: u64,
    /// The sum over all Nodes of what the kubelets offer.
    pub(super) offered: u64,
}
