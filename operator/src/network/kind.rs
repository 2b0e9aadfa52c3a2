//! Multus' kind, as far as we use it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Namespace and name of a network.
pub type NetworkKey = (String, String);

/// A network that pods can name in their annotation.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    derive = "PartialEq",
    namespaced
)]
pub struct NetworkAttachmentDefinitionSpec {
    /// CNI configuration, as JSON.
    #[serde(default)]
    pub config: String,
}
