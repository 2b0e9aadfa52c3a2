//! Reads the facts: the only part that asks the API server.

use super::network::Network;
use super::{AGENT, Facts, LEASE, NETWORK_KIND, OPERATOR, OUR_KINDS};
use crate::cluster::{Cluster, Read, Unread, list};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource};
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use serde::de::DeserializeOwned;
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
        Self {
            version: version.map(|info| info.git_version).map_err(Unread::from),
            kinds,
            deployments,
            leases,
            daemon_sets,
            agents,
            nodes,
            pools: sorted_out(pools, &mut unreadable),
            states: sorted_out(states, &mut unreadable),
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
