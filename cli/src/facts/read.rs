//! Reads the facts: the only part that asks the API server.

use super::network::Network;
use super::{AGENT, Facts, LEASE, NETWORK_KIND, OPERATOR, OUR_KINDS};
use crate::cluster::{Cluster, Read, Unread, list};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource, ResourceExt as _};
use macvtap_crds::v1alpha1::{
    MacvtapNodeConfig, MacvtapNodeState, MacvtapNodeStateStatus, MacvtapResourcePool,
};
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Where to look for what is in namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// The namespace of the installation, for users who may not list in all.
    pub(crate) installation: String,
    /// The namespace of networks and quotas; all of them if absent.
    pub(crate) namespace: Option<String>,
}

impl Facts {
    /// Reads a cluster.
    pub(crate) async fn read(cluster: &Cluster, scope: &Scope) -> Self {
        let client = &cluster.client;
        let named = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
        let labelled = |labels: &str| ListParams::default().labels(labels);
        let installed = scope.installation.as_str();
        let (version, kinds, nodes, pools, states) = tokio::join!(
            client.apiserver_version(),
            kinds(client),
            list(Api::all(client.clone()), ListParams::default()),
            guarded::<MacvtapResourcePool>(client, "MacvtapResourcePool"),
            guarded::<MacvtapNodeState>(client, "MacvtapNodeState"),
        );
        // After the states: what they name is there.
        let configs = guarded::<MacvtapNodeConfig>(client, "MacvtapNodeConfig").await;
        let (deployments, leases, daemon_sets, agents) = tokio::join!(
            anywhere(client, installed, labelled(OPERATOR)),
            anywhere(client, installed, named(LEASE)),
            anywhere(client, installed, labelled(AGENT)),
            anywhere(client, installed, labelled(AGENT)),
        );
        let (networks, quotas) = tokio::join!(
            namespaced_first::<NetworkAttachmentDefinition>(client, scope.namespace.as_deref()),
            namespaced_first(client, scope.namespace.as_deref()),
        );
        let mut unreadable = Vec::new();
        let states = with_pools(sorted_out(states, &mut unreadable), configs, &mut unreadable);
        Self {
            version: version.map(|info| info.git_version).map_err(Unread::from),
            kinds,
            deployments,
            leases,
            daemon_sets,
            agents,
            nodes,
            pools: sorted_out(pools, &mut unreadable),
            states,
            networks: networks.map(|all| all.iter().map(Network::from).collect()),
            quotas,
            unreadable,
            now: Timestamp::now(),
        }
    }
}

/// The kinds that matter, without those that do not exist.
async fn kinds(client: &Client) -> Read<Vec<CustomResourceDefinition>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut found = Vec::new();
    for name in OUR_KINDS.into_iter().chain([NETWORK_KIND]) {
        found.extend(api.get_opt(name).await.map_err(Unread::from)?);
    }
    Ok(found)
}

/// What of a list can be read, and what cannot.
type Guarded<K> = Read<(Vec<K>, Vec<String>)>;

async fn guarded<K>(client: &Client, kind: &str) -> Guarded<K>
where
    K: Clone + DeserializeOwned + Debug + Resource<DynamicType = ()>,
{
    let all: Vec<DeserializeGuard<K>> = list(Api::all(client.clone()), ListParams::default()).await?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for object in all {
        match object.0 {
            Ok(object) => good.push(object),
            Err(invalid) => {
                let name = invalid.metadata.name.as_deref().unwrap_or_default();
                bad.push(format!("{kind} {name}: {}", invalid.error));
            }
        }
    }
    Ok((good, bad))
}

fn sorted_out<K: Resource<DynamicType = ()>>(list: Guarded<K>, unreadable: &mut Vec<String>) -> Read<Vec<K>> {
    let (mut good, bad) = list?;
    unreadable.extend(bad);
    good.sort_by_key(kube::ResourceExt::name_any);
    Ok(good)
}

/// Gives node states the pools of the configurations that they name, and their links those that share them.
fn with_pools(
    states: Read<Vec<MacvtapNodeState>>,
    configs: Guarded<MacvtapNodeConfig>,
    unreadable: &mut Vec<String>,
) -> Read<Vec<MacvtapNodeState>> {
    let mut states = states?;
    for state in &mut states {
        state.status = state.status.take().map(MacvtapNodeStateStatus::with_pools_of_links);
    }
    let configs = match configs {
        Ok((configs, bad)) => {
            unreadable.extend(bad);
            Ok(configs)
        }
        Err(unread) => Err(unread.text().to_owned()),
    };
    let mut missing = BTreeMap::new();
    for state in &mut states {
        let Some(name) = state.spec.config.as_ref().filter(|_| state.spec.pools.is_none()) else { continue };
        let found = configs.as_ref().map(|configs| configs.iter().find(|config| config.name_any() == *name));
        match found {
            Ok(Some(config)) => state.spec.pools = Some(config.spec.pools.clone()),
            Ok(None) => drop(missing.insert(name.clone(), "it does not exist".to_owned())),
            Err(unread) => drop(missing.insert(name.clone(), unread.clone())),
        }
    }
    let text =
        |(name, why): (String, String)| format!("MacvtapNodeConfig {name}, which node states name: {why}");
    unreadable.extend(missing.into_iter().map(text));
    Ok(states)
}

/// Lists in all namespaces or, for a user who may not, in one.
async fn anywhere<K>(client: &Client, namespace: &str, params: ListParams) -> Read<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match list(Api::all(client.clone()), params.clone()).await {
        Err(Unread::Forbidden(_)) => list(Api::namespaced(client.clone(), namespace), params).await,
        other => other,
    }
}

/// Lists in one namespace, or in all.
pub(crate) async fn namespaced_first<K>(client: &Client, namespace: Option<&str>) -> Read<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let api = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    list(api, ListParams::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    #[test]
    fn a_state_has_the_pools_of_what_it_names_and_what_is_missing_is_reported_once() {
        let state = |name: &str, config: &str| -> MacvtapNodeState {
            object(json!({
                "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeState",
                "metadata": {"name": name}, "spec": {"configHash": "h", "config": config},
            }))
        };
        let config: MacvtapNodeConfig = object(json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapNodeConfig",
            "metadata": {"name": "there"},
            "spec": {"pools": [{"name": "dp", "uid": "u", "generation": 1, "links": [{"names": ["dp0"]}]}]},
        }));
        let states = vec![state("n1", "there"), state("n2", "missing"), state("n3", "missing")];
        let mut unreadable = Vec::new();
        let states = with_pools(Ok(states), Ok((vec![config], Vec::new())), &mut unreadable).unwrap();
        assert_eq!(states.iter().map(|state| state.spec.pools().len()).collect::<Vec<_>>(), [1, 0, 0]);
        assert_eq!(unreadable, ["MacvtapNodeConfig missing, which node states name: it does not exist"]);
    }
}
