//! What a reconcile may use: the client, the caches, and the pace of writing.

use crate::network::kind::NetworkAttachmentDefinition;
use crate::network::plan::is_ours;
use crate::pace::Pace;
use crate::refusal;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::{Event, Recorder};
use kube::runtime::reflector::Store;
use kube::{Client, Resource, ResourceExt};
use macvtap_crds::v1alpha1::settings::ResourcePer;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

/// An object of ours, or what is wrong with it: one that cannot be read must not stop a watch.
pub type Guarded<K> = DeserializeGuard<K>;

/// Whether the cluster has Multus' kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Nobody has answered yet.
    Unknown,
    /// It has not.
    Missing,
    /// It has, and the cache is filled.
    Present,
}

/// What a reconcile may use.
pub struct Context {
    /// Talks to the API server.
    pub client: Client,
    /// Publishes events.
    pub recorder: Recorder,
    /// All pools.
    pub pools: Store<Guarded<MacvtapResourcePool>>,
    /// All nodes, reduced to what we use.
    pub nodes: Store<Node>,
    /// All node states.
    pub states: Store<Guarded<MacvtapNodeState>>,
    /// All namespaces.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// Network attachment definitions with our label.
    pub networks: Store<NetworkAttachmentDefinition>,
    /// Whether they can exist.
    pub network_kind: watch::Receiver<NetworkKind>,
    /// How often things are done.
    pub pace: Pace,
}

impl Context {
    /// The networks the pool has made; none while nobody knows, or when the cluster has no such kind.
    pub fn networks_of(&self, pool: &MacvtapResourcePool) -> Option<Vec<NetworkAttachmentDefinition>> {
        let present = *self.network_kind.borrow() == NetworkKind::Present;
        let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
        present.then(|| {
            let ours = self.networks.state_filter(|network| is_ours(network, &name, &uid));
            ours.iter().map(|network| NetworkAttachmentDefinition::clone(network)).collect()
        })
    }

    /// With `resourcePer: Link`, the resources that nodes report for the pool.
    pub fn link_resources(&self, pool: &MacvtapResourcePool) -> BTreeSet<String> {
        match pool.spec.settings.resource_per {
            ResourcePer::Pool => BTreeSet::new(),
            ResourcePer::Link => readable(&self.states.state())
                .filter_map(|state| state.status.as_ref())
                .flat_map(|status| &status.pools)
                .filter(|entry| Some(&entry.name) == pool.metadata.name.as_ref())
                .flat_map(|entry| entry.resources.iter().cloned())
                .collect(),
        }
    }

    /// Publishes an event; a failure is logged, for nothing depends on it.
    pub async fn announce(&self, event: &Event, pool: &MacvtapResourcePool) {
        if let Err(error) = self.recorder.publish(event, &pool.object_ref(&())).await {
            let error = refusal::text(&error);
            tracing::warn!(pool = %pool.name_any(), reason = %event.reason, error, "event not published");
        }
    }
}

/// Those of the objects that can be read.
pub fn readable<K>(objects: &[Arc<Guarded<K>>]) -> impl Iterator<Item = &K> + Clone {
    objects.iter().filter_map(|object| object.0.as_ref().ok())
}
