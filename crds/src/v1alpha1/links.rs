//! Selectors of links.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of link: Physical (a NIC), Bond, Vlan, Team, Bridge, Veth, Dummy, or Other for every other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum LinkKind {
    /// A NIC: a link with a hardware device that is not built on another link.
    Physical,
    /// A bond.
    Bond,
    /// A VLAN link.
    Vlan,
    /// A team.
    Team,
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A dummy link.
    Dummy,
    /// Any other.
    Other,
}

impl LinkKind {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Physical => "Physical",
            Self::Bond => "Bond",
            Self::Vlan => "Vlan",
            Self::Team => "Team",
            Self::Bridge => "Bridge",
            Self::Veth => "Veth",
            Self::Dummy => "Dummy",
            Self::Other => "Other",
        }
    }
}

/// Selects links: every field that is set must match, and one value of a field's list is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.kinds) || has(self.names) || has(self.pciAddresses) || has(self.vendors) || has(self.drivers) || has(self.macAddresses) || has(self.numaNodes) || has(self.minSpeedMbps)"
).message("an empty entry would match every link; set at least one field, for example kinds: [Physical, Bond]"))]
pub struct LinkSelector {
    /// Kinds of link. Absent: Physical and Bond; any kind when names, pciAddresses or macAddresses are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub kinds: Option<Vec<LinkKind>>,
    /// Names as shell patterns (`*`, `?`, `[...]`), compared with a link's name and its alternative names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 127), regex(pattern = r"^[^\s/]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub names: Option<Vec<String>>,
    /// PCI addresses of NICs, as lspci -D prints them: `0000:3b:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 16), regex(pattern = r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub pci_addresses: Option<Vec<String>>,
    /// PCI vendor IDs of NICs, four hexadecimal digits: `15b3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 4), regex(pattern = r"^[0-9a-f]{4}$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub vendors: Option<Vec<String>>,
    /// Kernel drivers, as ethtool -i prints them: `mlx5_core`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 64), regex(pattern = r"^[^\s/]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub drivers: Option<Vec<String>>,
    /// Permanent MAC addresses; the current one of a link that has no permanent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 17), regex(pattern = r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub mac_addresses: Option<Vec<String>>,
    /// NUMA nodes of NICs. A link whose NUMA node is not known never matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(range(min = 0, max = 1023)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub numa_nodes: Option<Vec<u32>>,
    /// Lowest link speed in Mbit/s. A link whose speed is not known never matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub min_speed_mbps: Option<u32>,
}
