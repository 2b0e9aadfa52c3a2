//! Templates for network attachment definitions.

use crate::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The placeholder of the link's name in the name of a network, with `resourcePer: Link`.
pub const LINK_PLACEHOLDER: &str = "{link}";

/// A network attachment definition that is created in each of the namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.ipam) || !has(self.migration) || self.migration != 'Follow'")
    .message("migration Follow excludes ipam: the pod would answer for a machine that is still on another node; leave one of them out"))]
pub struct NetworkTemplate {
    /// Name of the network attachment definition, a DNS label as Multus wants it. With resourcePer: Link it contains
    /// `{link}`, which stands for the link's name.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^([a-z0-9]|\{link\})(([-a-z0-9]|\{link\})*([a-z0-9]|\{link\}))?$")
    )]
    pub name: String,
    /// Namespaces in which it is created.
    pub namespaces: NamespaceSelector,
    /// CNI version of its configuration. Absent: 1.0.0.
    #[serde(default)]
    pub cni_version: CniVersion,
    /// MTU in bytes. Absent: the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68, max = 65535))]
    pub mtu: Option<u32>,
    /// Set interfaces promiscuous: they receive every multicast frame, and with mode Passthru also frames for others. Absent:
    /// the pool's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promisc_mode: Option<bool>,
    /// Auto: announce the addresses of a new interface (gratuitous ARP, unsolicited neighbour
    /// advertisement). Never: do not, as live migration of a virtual machine needs it. Absent: Auto.
    #[serde(default)]
    pub announce: Announce,
    /// Whether new IPv6 addresses are checked for duplicates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dad: Option<Dad>,
    /// Follow: an interface has its MAC address while the virtual machine that it belongs to is behind it, so that a
    /// machine that migrates is reached from the pods of both nodes at any time. Fixed: from the beginning to the end.
    /// Excludes ipam. Absent: Fixed.
    #[serde(default)]
    pub migration: Migration,
    /// DNS settings in the result of the plugin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Source of IP addresses. Absent: interfaces get none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// What a pod may request in its network annotation, in addition to what Multus always passes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Plugins that run after macvtap, each with its own configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::plugins")]
    pub meta_plugins: Option<Vec<Map<String, Value>>>,
}

/// Namespaces by name, by label, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.names) || has(self.selector)")
    .message("no namespace is selected; set names, selector or both"))]
pub struct NamespaceSelector {
    /// Names of namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub names: Option<Vec<String>>,
    /// Labels of namespaces; `{}` selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: Option<LabelSelector>,
}

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CniVersion {
    /// 0.3.1
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// 0.4.0
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// 1.0.0
    #[default]
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// 1.1.0
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// Whether new addresses are announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Announce {
    /// The addresses are announced.
    #[default]
    Auto,
    /// The addresses are not announced.
    Never,
}

/// Auto: check new IPv6 addresses for duplicates on the network, and fail the attachment if another host has one. Never: do
/// not. Absent: Never with announce Never, else Auto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Dad {
    /// They are, and one that another host has fails the attachment.
    Auto,
    /// They are not.
    Never,
}

/// The MAC address of an interface whose virtual machine migrates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Migration {
    /// The interface keeps it.
    #[default]
    Fixed,
    /// It follows the machine.
    Follow,
}

/// DNS settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 2, max = 45), regex(pattern = r"^[0-9a-fA-F.:]+$")),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub nameservers: Option<Vec<String>>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub domain: Option<String>,
    /// Domains to search, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub search: Option<Vec<String>>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub options: Option<Vec<String>>,
}

/// Source of IP addresses: exactly one of the members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.kubeOVN) != has(self.raw)")
    .message("set exactly one of kubeOVN and raw; leave ipam out for none"))]
pub struct Ipam {
    /// Kube-OVN; the provider of its subnet is `<network>.<namespace>`.
    #[serde(default, rename = "kubeOVN", skip_serializing_if = "Option::is_none")]
    pub kube_ovn: Option<KubeOvn>,
    /// Any other plugin: the `ipam` object of the CNI configuration as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::plugin")]
    pub raw: Option<Map<String, Value>>,
}

/// Addresses from Kube-OVN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeOvn {
    /// Socket of the Kube-OVN daemon on the node. Absent: /run/openvswitch/kube-ovn-daemon.sock.
    #[schemars(length(min = 2, max = 107), regex(pattern = r"^/[^\s]+$"))]
    pub server_socket: String,
}

impl Default for KubeOvn {
    fn default() -> Self {
        Self { server_socket: "/run/openvswitch/kube-ovn-daemon.sock".to_owned() }
    }
}

/// CNI capabilities that the network declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// A pod may choose its MAC address. Absent: false.
    pub mac: bool,
    /// A pod may choose its IP addresses. Absent: false.
    pub ips: bool,
}
