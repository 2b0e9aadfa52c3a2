//! `MacvtapNodeState`: what one node should offer, and what it offers.
//!
//! `spec` is written by the operator alone, `status` by the agent of that node alone.

#![expect(clippy::duplicated_attributes, reason = "each printer column has a type and a path of its own")]

use super::settings::{PoolSettings, ResourcePer};
use crate::condition::{self, ConditionType};
use crate::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most pools of one node.
pub const POOLS_MAX: usize = 64;

/// The most links a node reports.
pub const LINKS_MAX: usize = 128;

/// The pools one node should serve.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "macvtap.network.kubevirt.io",
    version = "v1alpha1",
    kind = "MacvtapNodeState",
    plural = "macvtapnodestates",
    shortname = "mns",
    category = "macvtap",
    status = "MacvtapNodeStateStatus",
    derive = "PartialEq",
    doc = "The pools one node should serve (spec, written by the operator) and what it serves (status, written by the node's agent). It has the name of the node.",
    printcolumn(
        name = "Pools",
        type_ = "string",
        json_path = ".status.totals.pools",
        description = "Pools ready / in spec"
    ),
    printcolumn(
        name = "Links",
        type_ = "string",
        json_path = ".status.totals.links",
        description = "Links used / known"
    ),
    printcolumn(
        name = "Devices",
        type_ = "integer",
        json_path = ".status.totals.allocatable",
        description = "Healthy devices"
    ),
    printcolumn(
        name = "Allocated",
        type_ = "integer",
        json_path = ".status.totals.allocated",
        description = "Devices assigned to pods"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Dead",
        type_ = "integer",
        json_path = ".status.totals.dead",
        description = "Devices whose link vanished under a running pod",
        priority = 1
    ),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agentVersion",
        description = "Version of the agent",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
pub struct MacvtapNodeStateSpec {
    /// Identifies the content of pools. The agent repeats it in status.observedHash when it has applied them.
    #[schemars(length(max = 80))]
    pub config_hash: String,
    /// Name of the MacvtapNodeConfig that has the pools of this node, where many nodes have the same. Absent: they are in
    /// pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub config: Option<String>,
    /// The pools of this node, in the order in which they choose links. Absent where config has them.
    // Atomic, because the order has a meaning and one writer owns the whole list: merging a map by name would keep
    // the old order of entries that are there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub pools: Option<Vec<NodePool>>,
}

impl MacvtapNodeStateSpec {
    /// Returns the pools that the state has itself.
    pub fn pools(&self) -> &[NodePool] {
        self.pools.as_deref().unwrap_or_default()
    }
}

/// One pool, as a node needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePool {
    /// Name of the pool.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// UID of the pool.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Generation of the pool in which these settings were changed last.
    pub generation: i64,
    /// Active; Draining: offer no free device, keep those in use until their pods are gone; or Unchanged: serve the pool as it
    /// was sent last, if it ever was. Absent: Active.
    #[serde(default, skip_serializing_if = "PoolPhase::is_active")]
    pub phase: PoolPhase,
    /// Name of the resource, without prefix. Absent: the pool's name, or the link's with resourcePer: Link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub resource_name: Option<String>,
    /// The settings of the pool, without those that equal their default.
    #[serde(flatten, serialize_with = "PoolSettings::serialize_brief")]
    #[schemars(with = "PoolSettings")]
    pub settings: PoolSettings,
}

impl NodePool {
    /// Returns the name of the pool's resource, without prefix; none when each link has its own.
    pub fn resource(&self) -> Option<&str> {
        match self.settings.resource_per {
            ResourcePer::Pool => Some(self.resource_name.as_deref().unwrap_or(&self.name)),
            ResourcePer::Link => None,
        }
    }
}

/// What a node does with a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolPhase {
    /// It offers its devices.
    #[default]
    Active,
    /// It keeps devices in use and offers no other.
    Draining,
    /// It serves the pool as it was sent last, if it ever was; the settings of the entry have no effect.
    Unchanged,
}

impl PoolPhase {
    // serde hands `skip_serializing_if` a reference.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
    fn is_active(&self) -> bool {
        *self == Self::Active
    }
}

/// What one node serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MacvtapNodeStateStatus {
    /// The generation of the object whose spec the agent has applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// spec.configHash of what the agent has applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    pub observed_hash: Option<String>,
    /// Version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// ID of the node's boot that this status is about.
    #[serde(rename = "bootID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,
    /// Sums over the node, for people.
    pub totals: NodeTotals,
    /// Links that pools can use, each with the pools that hold it or the reason why none does: NICs, bonds, VLANs and
    /// what a pool matches. At most 128.
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub links: Vec<NodeLink>,
    /// Number of links that are left out because the list is full.
    #[serde(skip_serializing_if = "is_zero")]
    pub truncated_links: u32,
    /// The pools of spec, as they are on this node.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub pools: Vec<NodePoolStatus>,
    /// Ready, Degraded.
    #[schemars(schema_with = "schema::atomic_conditions")]
    pub conditions: Vec<Condition>,
}

/// Sums over a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTotals {
    /// Pools that are ready / all.
    #[schemars(length(max = 32))]
    pub pools: String,
    /// Links that a pool holds / all.
    #[schemars(length(max = 32))]
    pub links: String,
    /// Devices offered, healthy or not.
    pub capacity: u32,
    /// Devices offered and healthy.
    pub allocatable: u32,
    /// Devices assigned to pods.
    pub allocated: u32,
    /// Devices whose link vanished under a running pod.
    pub dead: u32,
}

/// One link of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeLink {
    /// Name of the link.
    #[schemars(length(min = 1, max = 15))]
    pub name: String,
    /// Alternative names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 127)), extend("x-kubernetes-list-type" = "atomic"))]
    pub alt_names: Vec<String>,
    /// Physical, Bond, Vlan, Team, Bridge, Veth, Dummy or Other.
    #[schemars(length(max = 32))]
    pub kind: String,
    /// MAC address, the permanent one where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub mac: Option<String>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Speed in Mbit/s, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// Kernel driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub driver: Option<String>,
    /// PCI address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub pci_address: Option<String>,
    /// PCI vendor ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub vendor: Option<String>,
    /// NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Whether the link is up and has carrier.
    #[serde(default)]
    pub carrier: bool,
    /// The pool that holds it. Absent where several share it, which have it in their own lists of links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub pools: Vec<String>,
    /// Why no pool holds it, or why its devices are unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// The reason in detail, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// One pool on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePoolStatus {
    /// Name of the pool.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The generation in spec that these values are about.
    pub generation: i64,
    /// Devices offered, healthy or not.
    #[serde(default)]
    pub capacity: u32,
    /// Devices offered and healthy.
    #[serde(default)]
    pub allocatable: u32,
    /// Devices assigned to pods.
    #[serde(default)]
    pub allocated: u32,
    /// Devices whose link vanished under a running pod.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead: u32,
    /// Links the pool holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 15)), extend("x-kubernetes-list-type" = "atomic"))]
    pub links: Vec<String>,
    /// Those of links that are unhealthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 15)), extend("x-kubernetes-list-type" = "atomic"))]
    pub unhealthy_links: Vec<String>,
    /// Links that the pool matches and another pool holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 15)), extend("x-kubernetes-list-type" = "atomic"))]
    pub contested_links: Vec<String>,
    /// Other pools that match a link this pool holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub contenders: Vec<String>,
    /// Resources by bare name, with resourcePer: Link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    pub resources: Vec<String>,
    /// Ready when it is not True, Degraded when it is not False. A pool without conditions offers healthy devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::atomic_conditions")]
    pub conditions: Vec<Condition>,
}

impl MacvtapNodeStateStatus {
    /// Returns the status as it is written: without what a reader assumes. There are many nodes with many pools, nearly
    /// all of them well, and each write costs the cluster the whole object.
    #[must_use]
    pub fn brief(mut self) -> Self {
        for pool in &mut self.pools {
            pool.conditions.retain(|condition| !condition::is_normal(condition));
            for condition in &mut pool.conditions {
                // The pool's own generation says it.
                condition.observed_generation = None;
            }
        }
        for condition in self.conditions.iter_mut().filter(|condition| condition::is_normal(condition)) {
            condition.message.clear();
        }
        // The pools have the link, too.
        for link in self.links.iter_mut().filter(|link| link.pools.len() > 1) {
            link.pools.clear();
        }
        self
    }

    /// Returns the status with the pools of each link.
    #[must_use]
    pub fn with_pools_of_links(mut self) -> Self {
        for link in self.links.iter_mut().filter(|link| link.pools.is_empty()) {
            let pools = self.pools.iter().filter(|pool| pool.links.contains(&link.name));
            link.pools = pools.map(|pool| pool.name.clone()).collect();
        }
        self
    }

    /// Fills the sums from links and pools.
    pub fn count(&mut self) {
        use crate::condition::holds;
        let ready = self.pools.iter().filter(|pool| holds(&pool.conditions, ConditionType::Ready)).count();
        let used = self.links.iter().filter(|link| !link.pools.is_empty()).count();
        let sum =
            |field: fn(&NodePoolStatus) -> u32| self.pools.iter().map(field).fold(0, u32::saturating_add);
        self.totals = NodeTotals {
            pools: format!("{ready}/{}", self.pools.len()),
            links: format!("{used}/{}", self.links.len()),
            capacity: sum(|pool| pool.capacity),
            allocatable: sum(|pool| pool.allocatable),
            allocated: sum(|pool| pool.allocated),
            dead: sum(|pool| pool.dead),
        };
    }
}

// serde hands `skip_serializing_if` a reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests;
