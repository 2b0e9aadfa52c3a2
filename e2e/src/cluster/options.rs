//! What a cluster is made of.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::node::Kind;

/// How Multus is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Multus {
    /// The plugin alone.
    #[default]
    Thin,
    /// A daemon on each node and a shim.
    Thick,
}

/// The settings of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// 1 or 2.
    pub nodes: u8,
    /// How Multus is installed.
    pub multus: Multus,
    /// Whether kube-ovn gives addresses to further networks.
    #[serde(default)]
    pub kube_ovn: bool,
    /// Whether its nodes are of the kinds that the tests' own nodes are not.
    #[serde(default)]
    pub field: bool,
    /// Whether KubeVirt runs machines: each node then has a process namespace of its own.
    #[serde(default)]
    pub kubevirt: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, multus: Multus::Thin, kube_ovn: false, field: false, kubevirt: false }
    }
}

impl Options {
    pub(super) fn kind(self, index: u8) -> Kind {
        match (self.field, index) {
            (true, _) => Kind::Moved,
            (false, 1) => Kind::Current,
            (false, _) => Kind::Debian,
        }
    }

    /// What the running cluster `name` becomes when somebody asks for `new`: more, never something else.
    pub(super) fn with(self, name: &str, new: Self) -> Result<Self> {
        ensure!(
            self.multus == new.multus,
            "cluster {name:?} runs Multus {:?}; end it first with: macvtap-cluster down --name {name}",
            self.multus
        );
        ensure!(
            self.field == new.field,
            "cluster {name:?} has nodes of other kinds; end it first with: macvtap-cluster down --name {name}"
        );
        ensure!(
            self.kubevirt == new.kubevirt,
            "the nodes of cluster {name:?} have other process namespaces; end it first with: macvtap-cluster down --name {name}"
        );
        Ok(Self { nodes: self.nodes.max(new.nodes), kube_ovn: self.kube_ovn || new.kube_ovn, ..new })
    }
}
