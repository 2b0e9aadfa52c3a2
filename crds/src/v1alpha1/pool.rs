//! `MacvtapResourcePool`: which links of which nodes become which resource, and the networks that use it.

use super::network::NetworkTemplate;
use super::settings::PoolSettings;
use crate::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name of a pool, and of a resource.
pub const NAME_MAX: usize = 63;

/// The most samples in a pool's status.
pub const SAMPLES_MAX: usize = 10;

/// Links of nodes that become one schedulable resource, and the networks that attach its devices to pods.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "macvtap.network.kubevirt.io",
    version = "v1alpha1",
    kind = "MacvtapResourcePool",
    plural = "macvtapresourcepools",
    shortname = "mrp",
    category = "macvtap",
    status = "MacvtapResourcePoolStatus",
    derive = "PartialEq",
    doc = "Links of nodes that become one schedulable resource, and the networks that attach its devices to pods.",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("a pool's name is part of names that Kubernetes limits; use at most 63 characters"),
    printcolumn(name = "Resource", type_ = "string", json_path = ".status.resource", description = "Resource that pods request"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.summary", description = "Nodes ready / matched"),
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.devices.allocatable", description = "Healthy devices"),
    printcolumn(name = "Allocated", type_ = "integer", json_path = ".status.devices.allocated", description = "Devices assigned to pods"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority", priority = 1),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type", priority = 1),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.macvtap.mode", priority = 1),
    printcolumn(name = "Links", type_ = "integer", json_path = ".status.links.claimed", description = "Links the pool holds", priority = 1),
    printcolumn(name = "Networks", type_ = "integer", json_path = ".status.networks.ready", description = "Network attachment definitions in place", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "has(self.resourceName) == has(oldSelf.resourceName) && (!has(self.resourceName) || self.resourceName == oldSelf.resourceName)"
    ).message("resourceName is immutable; make another pool"),
    validation = Rule::new("self.resourcePrefix == oldSelf.resourcePrefix").message("resourcePrefix is immutable; make another pool"),
    validation = Rule::new("self.resourcePer == oldSelf.resourcePer").message("resourcePer is immutable; make another pool"),
    validation = Rule::new("self.type == oldSelf.type").message("type is immutable; make another pool"),
    validation = Rule::new("self.type == 'Macvtap' ? !has(self.hostDevice) : !has(self.macvtap)")
        .message("only the settings of the pool's own type may be set: macvtap with type Macvtap, hostDevice with type HostDevice"),
    validation = Rule::new(
        "!(self.type == 'HostDevice' || (has(self.macvtap) && self.macvtap.mode == 'Passthru')) || !has(self.capacity) || !has(self.capacity.perLink) || self.capacity.perLink == 1"
    ).message("mode Passthru and type HostDevice give a link to one pod: capacity.perLink must be 1 or absent"),
    validation = Rule::new(
        "!(self.type == 'HostDevice' || (has(self.macvtap) && self.macvtap.mode == 'Passthru')) || self.overlap != 'Shared'"
    ).message("mode Passthru and type HostDevice take whole links: overlap cannot be Shared"),
    validation = Rule::new("self.type != 'HostDevice' || self.tapOnly == 'Forbidden'")
        .message("a NIC has no tap: tapOnly cannot be Allowed with type HostDevice"),
    validation = Rule::new("self.resourcePer != 'Link' || !has(self.resourceName)")
        .message("with resourcePer: Link each resource is named after its link; leave resourceName out"),
    validation = Rule::new("!has(self.networks) || self.networks.all(n, n.name.contains('{link}') == (self.resourcePer == 'Link'))")
        .message("a network's name contains {link} with resourcePer: Link, and only then"),
)]
pub struct MacvtapResourcePoolSpec {
    /// Name of the resource, without prefix. Absent: the pool's name. Immutable. A name is unique on a node, whatever
    /// the prefix: of two pools with the same name the older has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"))]
    pub resource_name: Option<String>,
    /// Nodes of the pool. Absent: every node that runs the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: Option<LabelSelector>,
    /// The part of the pool that nodes receive.
    #[serde(flatten)]
    pub settings: PoolSettings,
    /// How changes are rolled out to the nodes.
    #[serde(default)]
    pub rollout: Rollout,
    /// Network attachment definitions for the pool's resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub networks: Option<Vec<NetworkTemplate>>,
}

impl MacvtapResourcePool {
    /// The bare name of the pool's resource; none when each link has its own.
    pub fn resource_name(&self) -> Option<&str> {
        match self.spec.settings.resource_per {
            super::settings::ResourcePer::Pool => {
                self.spec.resource_name.as_deref().or(self.metadata.name.as_deref())
            }
            super::settings::ResourcePer::Link => None,
        }
    }
}

/// How changes are rolled out to the nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type == 'Staged' || !has(self.staged)").message("staged needs type: Staged"))]
pub struct Rollout {
    /// AllAtOnce, or Staged: a few nodes at a time, halting when too many of them degrade.
    #[serde(default, rename = "type")]
    pub rollout_type: RolloutType,
    /// Settings of type Staged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Staged>,
}

/// How changes are rolled out to the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutType {
    /// All nodes together.
    #[default]
    AllAtOnce,
    /// A few nodes at a time.
    Staged,
}

/// Settings of a staged rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Staged {
    /// Number of nodes that change together, or a share in percent.
    #[schemars(schema_with = "schema::batch")]
    pub batch: IntOrString,
    /// How many nodes the change may degrade, or make unreachable, before it halts.
    #[schemars(range(min = 0, max = 5000))]
    pub max_degraded: u32,
}

impl Default for Staged {
    fn default() -> Self {
        Self { batch: IntOrString::String("10%".to_owned()), max_degraded: 1 }
    }
}

/// What the operator observes of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MacvtapResourcePoolStatus {
    /// The generation this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Resource that pods request in their limits: prefix and name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 317))]
    pub resource: Option<String>,
    /// Accepted; Ready: every matched node that reports has applied the pool and serves a healthy device; Available: at
    /// least one node does, also during a change; Progressing; Degraded; NetworksReady; while it is deleted Terminating;
    /// and Stalled when the pool needs a change by its user.
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Nodes.
    pub nodes: NodeCounts,
    /// Links over all nodes.
    pub links: LinkCounts,
    /// Devices over all nodes.
    pub devices: DeviceCounts,
    /// Network attachment definitions.
    pub networks: NetworkCounts,
    /// Nodes that do not serve the pool as they should, the worst first; at most ten.
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub samples: Vec<NodeSample>,
}

/// How many nodes are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// ready / matched, for people.
    #[schemars(length(max = 32))]
    pub summary: String,
    /// Nodes the pool selects, without those of withoutLinks and those that are being deleted and did not receive its
    /// last change.
    pub matched: u32,
    /// Nodes the pool selects that have no matching link.
    pub without_links: u32,
    /// Matched nodes that have applied the current pool.
    pub updated: u32,
    /// Updated nodes that offer a healthy device.
    pub ready: u32,
    /// Matched nodes that report a problem.
    pub degraded: u32,
    /// Matched nodes whose agent has not responded for 90 seconds.
    pub unreachable: u32,
}

/// How many links are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkCounts {
    /// Links the pool holds.
    pub claimed: u32,
    /// Claimed links that are unhealthy.
    pub unhealthy: u32,
    /// Links that the pool matches and another pool holds.
    pub contested: u32,
}

/// How many devices are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceCounts {
    /// Devices offered, healthy or not.
    pub capacity: u64,
    /// Devices offered and healthy.
    pub allocatable: u64,
    /// Devices assigned to pods.
    pub allocated: u64,
    /// Devices whose link vanished under a running pod.
    pub dead: u64,
}

/// How many network attachment definitions are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkCounts {
    /// Network attachment definitions the pool asks for.
    pub desired: u32,
    /// Those that exist as the pool describes them.
    pub ready: u32,
}

/// A node that does not serve the pool as it should.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSample {
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The reason, one word for programs.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// The reason in detail, for people.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}
