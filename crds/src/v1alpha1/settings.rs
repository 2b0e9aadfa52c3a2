//! The settings that pools and node states have in common, under the same names.

use super::links::LinkSelector;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

/// How many devices a link offers by default, as macvtap-cni does.
pub const DEFAULT_PER_LINK: u32 = 100;

/// The node-relevant part of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSettings {
    /// Part of the resource's name before the `/`. Immutable.
    #[serde(default = "defaults::resource_prefix")]
    #[schemars(
        length(min = 1, max = 244),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[x_kube(validation = Rule::new("!self.endsWith('kubernetes.io')").message("kubernetes.io belongs to Kubernetes; use a domain of your own"))]
    #[x_kube(validation = Rule::new("!self.startsWith('requests.')").message("requests. is reserved for quotas"))]
    pub resource_prefix: String,
    /// Decides which of several matching pools holds a link: the higher number, then the older pool, then the first by name.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub priority: u32,
    /// The links of the pool: those that match one of the entries.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub links: Vec<LinkSelector>,
    /// Links to leave out even if an entry of links matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub exclude: Option<Vec<LinkSelector>>,
    /// Leave out links that carry a default route. Passthru and HostDevice never take such a link, nor one with a host
    /// address or an upper device.
    #[serde(default)]
    pub exclude_default_route: bool,
    /// Exclusive: a link belongs to one pool. Shared: other pools that are Shared, too, may use it.
    #[serde(default)]
    pub overlap: Overlap,
    /// Pool: one resource for all links. Link: one resource for each matched link, named after it. Immutable.
    #[serde(default)]
    pub resource_per: ResourcePer,
    /// Enabled, or DryRun: match and report, but register nothing with the kubelet.
    #[serde(default)]
    pub advertisement: Advertisement,
    /// How many devices are offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Which free device a pod is assigned: Spread takes it from the link with the fewest in use, Pack from the one with the most.
    #[serde(default)]
    pub allocation: Allocation,
    /// Whether a pod may take a tap device without a network (by resource limit alone): Allowed or Forbidden.
    #[serde(default)]
    pub tap_only: TapOnly,
    /// Hint: report the NUMA node of each device to the kubelet. None: do not.
    #[serde(default)]
    pub topology: Topology,
    /// When a link's devices count as healthy.
    #[serde(default)]
    pub health: Health,
    /// What a device is: Macvtap (a macvtap on the link) or HostDevice (the NIC itself, which moves into the pod and is
    /// known by its PCI address). Immutable.
    #[serde(default, rename = "type")]
    pub device_type: DeviceType,
    /// Settings of type Macvtap; absent means all defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macvtap: Option<Macvtap>,
    /// Settings of type HostDevice; it has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_device: Option<HostDevice>,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            resource_prefix: defaults::resource_prefix(),
            priority: 0,
            links: Vec::new(),
            exclude: None,
            exclude_default_route: false,
            overlap: Overlap::default(),
            resource_per: ResourcePer::default(),
            advertisement: Advertisement::default(),
            capacity: None,
            allocation: Allocation::default(),
            tap_only: TapOnly::default(),
            topology: Topology::default(),
            health: Health::default(),
            device_type: DeviceType::default(),
            macvtap: None,
            host_device: None,
        }
    }
}

impl PoolSettings {
    /// Serializes the settings without those that equal their default.
    pub(super) fn serialize_brief<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let defaults = Self { macvtap: Some(Macvtap::default()), ..Self::default() };
        let object = |settings: &Self| match serde_json::to_value(settings) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err(S::Error::custom("settings are not an object")),
            Err(error) => Err(S::Error::custom(error)),
        };
        let mut fields = object(self)?;
        without_defaults(&mut fields, &object(&defaults)?);
        fields.serialize(serializer)
    }

    /// How many devices a link offers.
    pub fn per_link(&self) -> u32 {
        let default = if self.takes_whole_links() { 1 } else { DEFAULT_PER_LINK };
        self.capacity.as_ref().and_then(|c| c.per_link).unwrap_or(default)
    }

    /// The most devices of the pool on one node, if there is a limit in addition to that of each link.
    pub fn per_node(&self) -> Option<u32> {
        self.capacity.as_ref().and_then(|c| c.per_node)
    }

    /// Whether a device leaves nothing of its link to anybody else: Passthru and HostDevice.
    pub fn takes_whole_links(&self) -> bool {
        match self.device_type {
            DeviceType::Macvtap => self.macvtap.as_ref().is_some_and(|m| m.mode == Mode::Passthru),
            DeviceType::HostDevice => true,
        }
    }
}

/// Whether other pools may use the same links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Overlap {
    /// A link belongs to one pool.
    #[default]
    Exclusive,
    /// Pools that are all Shared share their links.
    Shared,
}

/// What one resource stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResourcePer {
    /// All links of the pool.
    #[default]
    Pool,
    /// One link.
    Link,
}

/// Whether devices are registered with the kubelet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Advertisement {
    /// They are.
    #[default]
    Enabled,
    /// They are not; links and counts are reported only.
    DryRun,
}

/// Limits on the number of devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Devices per link. Absent: 100; 1 with mode Passthru and with type HostDevice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub per_link: Option<u32>,
    /// The most devices on one node, over all its links. Absent: no further limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub per_node: Option<u32>,
}

/// Which free device is preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Allocation {
    /// One of the link with the fewest devices in use.
    #[default]
    Spread,
    /// One of the link with the most devices in use.
    Pack,
}

/// Whether a pod may take the tap alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TapOnly {
    /// It may.
    Allowed,
    /// It may not: any pod anywhere could take a tap otherwise.
    #[default]
    Forbidden,
}

/// Whether the kubelet learns the NUMA node of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Topology {
    /// It does.
    #[default]
    Hint,
    /// It does not.
    None,
}

/// When the devices of a link count as healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Required: a link without carrier is unhealthy; a NIC of type HostDevice only while it is on. Ignored: carrier does not
    /// matter.
    pub carrier: Carrier,
    /// Seconds a link must be without carrier before its devices become unhealthy.
    #[schemars(range(min = 0, max = 3600))]
    pub down_delay_seconds: u32,
    /// Seconds a link must have carrier again before its devices become healthy. One that has it at start is healthy at once.
    #[schemars(range(min = 0, max = 3600))]
    pub up_delay_seconds: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { carrier: Carrier::Required, down_delay_seconds: 3, up_delay_seconds: 5 }
    }
}

/// Whether carrier decides about health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Carrier {
    /// It does.
    #[default]
    Required,
    /// It does not.
    Ignored,
}

/// What a device of a pool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeviceType {
    /// A macvtap on the link.
    #[default]
    Macvtap,
    /// The NIC itself.
    HostDevice,
}

/// Settings of the macvtaps of a pool. They hold for devices made from now on, never for those in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Macvtap {
    /// Bridge: devices of a link reach each other. VEPA: through the switch only. Private: never. Passthru: one device
    /// takes the whole link. A change takes effect on a link when its last device is free.
    pub mode: Mode,
    /// MTU in bytes. Absent: the link's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68, max = 65535))]
    pub mtu: Option<u32>,
    /// Set devices promiscuous. The kernel then delivers every multicast frame of their link to them, and with mode
    /// Passthru also frames for others; with other modes never, whatever the link is set to.
    pub promiscuous: bool,
    /// Devices receive every multicast frame. Without it a guest's own multicast groups, hence IPv6, do not work.
    pub all_multicast: bool,
    /// Owner of the device node in the container.
    pub owner: Owner,
}

impl Default for Macvtap {
    fn default() -> Self {
        Self {
            mode: Mode::Bridge,
            mtu: None,
            promiscuous: false,
            all_multicast: true,
            owner: Owner::default(),
        }
    }
}

/// Macvtap operating modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Devices of a link reach each other directly.
    #[default]
    Bridge,
    /// Every frame goes out to the switch, which may send it back.
    #[serde(rename = "VEPA")]
    Vepa,
    /// Devices of a link never reach each other.
    Private,
    /// One device takes the whole link, with its MAC address.
    Passthru,
}

impl Mode {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "Bridge",
            Self::Vepa => "VEPA",
            Self::Private => "Private",
            Self::Passthru => "Passthru",
        }
    }
}

/// Owner of a device node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Owner {
    /// User ID; 107 is KubeVirt's qemu user.
    #[schemars(range(min = 0, max = 4_294_967_294_u32))]
    pub uid: u32,
    /// Group ID.
    #[schemars(range(min = 0, max = 4_294_967_294_u32))]
    pub gid: u32,
}

impl Default for Owner {
    fn default() -> Self {
        Self { uid: 107, gid: 107 }
    }
}

/// Settings of whole NICs; there are none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostDevice {}

fn without_defaults(fields: &mut Map<String, Value>, defaults: &Map<String, Value>) {
    fields.retain(|key, value| match (value, defaults.get(key)) {
        (value, Some(default)) if value == default => false,
        (Value::Object(inner), Some(Value::Object(defaults))) => {
            without_defaults(inner, defaults);
            true
        }
        _ => true,
    });
}

mod defaults {
    pub(super) fn resource_prefix() -> String {
        crate::GROUP.to_owned()
    }
}
