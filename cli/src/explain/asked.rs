//! What a pod asks for: networks by its annotation, resources by its limits.

use crate::facts::resource;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
pub(super) use macvtap_operator::webhook::networks::Wanted;
use macvtap_operator::webhook::networks::{self, DEFAULT_NETWORK, NETWORKS};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The annotation in which Multus reports what a pod got.
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// An interface that a pod got.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Given {
    /// `namespace/name` of the network.
    #[serde(default)]
    pub(super) name: String,
    /// The interface.
    #[serde(default)]
    pub(super) interface: String,
    /// Its MAC address.
    #[serde(default)]
    pub(super) mac: String,
    /// Its addresses.
    #[serde(default)]
    pub(super) ips: Vec<String>,
}

/// The networks that a pod names, in their order. One for its interface eth0 that names no namespace is left out: Multus looks
/// for it in its own one.
pub(super) fn networks(pod: &Pod) -> Result<Vec<Wanted>, String> {
    let mut named = networks::read(pod.annotations(), DEFAULT_NETWORK)?;
    named.retain(|network| network.namespace.is_some());
    named.extend(networks::read(pod.annotations(), NETWORKS)?);
    Ok(named)
}

/// The interfaces that a pod got, by Multus' report.
pub(super) fn given(pod: &Pod) -> Vec<Given> {
    let text = pod.annotations().get(NETWORK_STATUS);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// How many of each resource the containers of a pod have in their limits, with the init containers that keep running.
pub(super) fn limits(pod: &Pod) -> BTreeMap<String, i64> {
    let mut sum = BTreeMap::new();
    let containers = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    for container in containers.iter().chain(sidecars) {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        for (name, quantity) in limits.into_iter().flatten() {
            *sum.entry(name.clone()).or_default() += resource::count(quantity);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    #[test]
    fn limits_are_summed_over_containers() {
        let limited = |n: &str| json!({"name": "c", "resources": {"limits": {"x.io/a": n}}});
        let pod: Pod = object(json!({"metadata": {}, "spec": {"containers": [limited("1"), limited("2")]}}));
        assert_eq!(limits(&pod).get("x.io/a"), Some(&3));
    }

    #[test]
    fn an_init_container_counts_if_it_keeps_running() {
        let limited = |policy: Option<&str>| {
            let limits = json!({"limits": {"x.io/a": "1"}});
            json!({"name": "c", "restartPolicy": policy, "resources": limits})
        };
        let init = [limited(Some("Always")), limited(None)];
        let spec = json!({"containers": [{"name": "c"}], "initContainers": init});
        let pod: Pod = object(json!({"metadata": {}, "spec": spec}));
        assert_eq!(limits(&pod).get("x.io/a"), Some(&1));
    }

    #[test]
    fn the_network_of_eth0_is_named_too() {
        let annotations = |default: &str| json!({"k8s.v1.cni.cncf.io/networks": "b", "v1.multus-cni.io/default-network": default});
        let names = |default: &str| {
            let metadata = json!({"annotations": annotations(default)});
            let pod: Pod = object(json!({"metadata": metadata, "spec": {"containers": []}}));
            networks(&pod).unwrap().into_iter().map(|network| network.name).collect::<Vec<_>>()
        };
        assert_eq!(names("tenant/a"), ["a", "b"]);
        assert_eq!(names("a"), ["b"]);
    }
}
