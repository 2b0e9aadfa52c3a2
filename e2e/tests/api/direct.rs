//! A client of the API server within the test: it observes far more often than one process for each request could.

use anyhow::{Context as _, Result};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::path::Path;
use tokio::runtime::{Builder, Runtime};

/// A client for what the operator reads and writes.
pub(crate) struct Direct {
    runtime: Runtime,
    client: Client,
}

impl Direct {
    pub(crate) fn new(kubeconfig: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let file = Kubeconfig::read_from(kubeconfig)?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    /// All node states, with their pools where they name a configuration that has these.
    pub(crate) fn states(&self) -> Result<Vec<Value>> {
        let group = "macvtap.network.kubevirt.io";
        let mut states = self.list(group, "v1alpha1", "MacvtapNodeState", "macvtapnodestates")?;
        if states.iter().any(|state| state["spec"]["config"].is_string()) {
            // After the states: what they name is there.
            let configs = self.list(group, "v1alpha1", "MacvtapNodeConfig", "macvtapnodeconfigs")?;
            for state in &mut states {
                let name = &state["spec"]["config"];
                let config = configs.iter().find(|config| config["metadata"]["name"] == *name);
                if !name.is_null() {
                    let config = config.with_context(|| format!("configuration {name} does not exist"))?;
                    state["spec"]["pools"] = config["spec"]["pools"].clone();
                }
            }
        }
        Ok(states)
    }

    pub(crate) fn pools(&self) -> Result<Vec<Value>> {
        self.list("macvtap.network.kubevirt.io", "v1alpha1", "MacvtapResourcePool", "macvtapresourcepools")
    }

    pub(crate) fn networks(&self) -> Result<Vec<Value>> {
        self.list("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition", "network-attachment-definitions")
    }

    /// Replaces the status of a node's state.
    pub(crate) fn answer(&self, node: &str, status: &Value) -> Result<()> {
        let kind = GroupVersionKind::gvk("macvtap.network.kubevirt.io", "v1alpha1", "MacvtapNodeState");
        let kind = ApiResource::from_gvk_with_plural(&kind, "macvtapnodestates");
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        let patch = Patch::Merge(json!({"status": status}));
        let patched = self.runtime.block_on(api.patch_status(node, &PatchParams::default(), &patch));
        patched.map(drop).with_context(|| format!("answer for {node}"))
    }

    fn list(&self, group: &str, version: &str, kind: &str, plural: &str) -> Result<Vec<Value>> {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let all = self.runtime.block_on(api.list(&ListParams::default()));
        let all = all.with_context(|| format!("list {plural}"))?;
        all.items.into_iter().map(|object| Ok(serde_json::to_value(object)?)).collect()
    }
}
