//! A cluster of Nodes that are objects only, and the pools on them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use macvtap_crds::v1alpha1::nodeconfig::name_of;
use macvtap_crds::v1alpha1::{MacvtapNodeConfig, MacvtapNodeState, MacvtapResourcePool, NodePool};
use serde_json::json;

/// How many Nodes are made at the same time.
const MADE_AT_ONCE: usize = 32;

/// The MTU of the edited pool at the beginning.
pub(crate) const FIRST_MTU: u32 = 1500;

/// Name of a Node.
pub(crate) fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

/// Name of a pool; the first is the one that is edited.
pub(crate) fn pool_name(number: usize) -> String {
    format!("pool-{number:02}")
}

/// Makes the Nodes, each with about as much in it as a small real one.
pub(crate) async fn make_nodes(client: &Client, count: usize) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    stream::iter(0..count)
        .map(|number| {
            let nodes = nodes.clone();
            async move {
                let node = node(number)?;
                nodes.create(&PostParams::default(), &node).await.context("make a Node").map(drop)
            }
        })
        .buffer_unordered(MADE_AT_ONCE)
        .try_collect::<()>()
        .await
}

fn node(number: usize) -> Result<Node> {
    let name = node_name(number);
    let images: Vec<_> = (0..10)
        .map(|image| {
            let digest = format!("registry.example/image-{image}@sha256:{:064x}", image * 7919 + 1);
            json!({"names": [digest, format!("registry.example/image-{image}:v1")], "sizeBytes": 50_000_000})
        })
        .collect();
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": format!("zone-{}", number % 3), "dataplane": "yes",
        }},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "images": images,
        },
    });
    serde_json::from_value(node).context("write a Node")
}

/// Makes the pools; each means every Node and has a network.
pub(crate) async fn make_pools(client: &Client, count: usize) -> Result<()> {
    let pools: Api<MacvtapResourcePool> = Api::all(client.clone());
    for number in 0..count {
        let name = pool_name(number);
        let pool = json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"matchLabels": {"dataplane": "yes"}},
                "links": [{"names": ["ens*f0", "ens*f1"]}], "overlap": "Shared",
                "macvtap": {"mode": "Bridge", "mtu": FIRST_MTU},
                "networks": [{"name": name, "namespaces": {"names": ["default"]}}],
            },
        });
        let pool = serde_json::from_value(pool).context("write a pool")?;
        pools.create(&PostParams::default(), &pool).await.context("make a pool")?;
    }
    Ok(())
}

/// Edits a pool so that every node must be told.
pub(crate) async fn edit_pool(client: &Client, name: &str, mtu: u32) -> Result<()> {
    let pools: Api<MacvtapResourcePool> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"spec": {"macvtap": {"mtu": mtu}}}));
    pools.patch(name, &PatchParams::default(), &patch).await.context("edit the pool").map(drop)
}

/// Waits until every pool says that all nodes are ready with its last generation.
pub(crate) async fn pools_ready(client: &Client, nodes: usize, deadline: Duration) -> Result<()> {
    let api: Api<MacvtapResourcePool> = Api::all(client.clone());
    let summary = format!("{nodes}/{nodes}");
    let begun = Instant::now();
    loop {
        let pools = api.list(&ListParams::default()).await.context("list the pools")?;
        let waiting = pools.iter().find(|pool| {
            pool.status.as_ref().is_none_or(|status| {
                status.observed_generation != pool.metadata.generation
                    || status.nodes.summary != summary
                    || status.nodes.updated as usize != nodes
            })
        });
        let Some(waiting) = waiting else { return Ok(()) };
        ensure!(begun.elapsed() < deadline, "pool is not ready: {:?}", waiting.status);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All node states, as they are.
pub(crate) async fn states(client: &Client) -> Result<Vec<MacvtapNodeState>> {
    let api: Api<MacvtapNodeState> = Api::all(client.clone());
    let mut found = Vec::new();
    let mut page = ListParams::default().limit(500);
    loop {
        let list = api.list(&page).await.context("list the node states")?;
        found.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// The states with the edit in them, as far as anybody can tell from outside, and the configurations that they name.
pub(crate) async fn edited(
    client: &Client,
    states: &[MacvtapNodeState],
    pool: &str,
    mtu: u32,
) -> Result<Vec<MacvtapNodeState>> {
    let configs: Api<MacvtapNodeConfig> = Api::all(client.clone());
    let (mut states, mut renamed) = (states.to_vec(), BTreeMap::new());
    for state in &mut states {
        state.spec.config_hash = format!("{mtu:016x}");
        edit(state.spec.pools.iter_mut().flatten(), pool, mtu);
        let Some(name) = &mut state.spec.config else { continue };
        if !renamed.contains_key(name) {
            let mut config = configs.get(name).await.context("read a configuration")?;
            edit(config.spec.pools.iter_mut(), pool, mtu);
            let new = name_of(&serde_json::to_value(&config.spec.pools)?);
            let made = MacvtapNodeConfig::new(&new, config.spec);
            configs.create(&PostParams::default(), &made).await.context("make a configuration")?;
            renamed.insert(name.clone(), new);
        }
        if let Some(new) = renamed.get(name) {
            name.clone_from(new);
        }
    }
    Ok(states)
}

fn edit<'p>(pools: impl Iterator<Item = &'p mut NodePool>, pool: &str, mtu: u32) {
    for entry in pools.filter(|entry| entry.name == pool) {
        entry.generation += 1;
        if let Some(macvtap) = &mut entry.settings.macvtap {
            macvtap.mtu = Some(mtu);
        }
    }
}

/// Writes specs as the operator would, with nobody deciding anything: the same objects by the same client, so many at
/// once. What is left is the API server's own time.
pub(crate) async fn write_specs(client: &Client, states: &[MacvtapNodeState], at_once: usize) -> Result<()> {
    let api: Api<MacvtapNodeState> = Api::all(client.clone());
    let params = PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
    stream::iter(states)
        .map(|state| {
            let (api, params) = (api.clone(), params.clone());
            async move {
                let name = state.metadata.name.clone().unwrap_or_default();
                let body = json!([
                    {"op": "add", "path": "/spec", "value": state.spec},
                    {"op": "add", "path": "/metadata/ownerReferences", "value": state.metadata.owner_references},
                ]);
                let patch = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
                api.patch_metadata(&name, &params, &Patch::<()>::Json(patch)).await.map(drop)
            }
        })
        .buffer_unordered(at_once)
        .try_collect::<()>()
        .await
        .context("write a node state")
}

/// The bytes of the first node's state as etcd has it: JSON with managed fields.
pub(crate) async fn state_bytes(client: &Client) -> Result<u64> {
    let path = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapnodestates";
    let request = Request::new(path).get(&node_name(0), &GetParams::default())?;
    let text = client.request_text(request).await.context("read a node state")?;
    Ok(text.trim_end().len() as u64)
}

/// The most nodes that any pool calls unreachable at this moment.
pub(crate) async fn unreachable(client: &Client) -> Result<u32> {
    let pools: Api<MacvtapResourcePool> = Api::all(client.clone());
    let pools = pools.list(&ListParams::default()).await.context("list the pools")?;
    let counts = pools.iter().filter_map(|pool| Some(pool.status.as_ref()?.nodes.unreachable));
    Ok(counts.max().unwrap_or_default())
}

/// Deletes Nodes.
pub(crate) async fn delete_nodes(client: &Client, numbers: std::ops::Range<usize>) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    stream::iter(numbers)
        .map(|number| {
            let nodes = nodes.clone();
            async move { nodes.delete(&node_name(number), &DeleteParams::default()).await.map(drop) }
        })
        .buffer_unordered(MADE_AT_ONCE)
        .try_collect::<()>()
        .await
        .context("delete a Node")
}
