//! What a pod asks for: networks by its annotation, resources by its limits.

use crate::facts::resource;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The annotation by which a pod names networks.
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// The annotation in which Multus reports what a pod got.
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// A network that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Wanted {
    /// Its namespace; that of the pod if absent.
    pub(super) namespace: Option<String>,
    /// Its name.
    pub(super) name: String,
    /// The name that the interface should have.
    #[serde(default)]
    pub(super) interface: Option<String>,
}

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

/// The networks that a pod names, in their order.
pub(super) fn networks(pod: &Pod) -> Result<Vec<Wanted>, String> {
    let Some(text) = pod.annotations().get(NETWORKS).map(|text| text.trim()).filter(|text| !text.is_empty())
    else {
        return Ok(Vec::new());
    };
    if text.starts_with('[') || text.starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| format!("annotation {NETWORKS} is not JSON: {error}"));
    }
    Ok(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(short).collect())
}

/// Reads `[namespace/]name[@interface]`.
fn short(word: &str) -> Wanted {
    let (place, interface) = match word.split_once('@') {
        Some((place, interface)) => (place, Some(interface.to_owned())),
        None => (word, None),
    };
    let (namespace, name) = match place.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name.to_owned()),
        None => (None, place.to_owned()),
    };
    Wanted { namespace, name, interface }
}

/// The interfaces that a pod got, by Multus' report.
pub(super) fn given(pod: &Pod) -> Vec<Given> {
    let text = pod.annotations().get(NETWORK_STATUS);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// How many of each resource the containers of a pod have in their limits.
pub(super) fn limits(pod: &Pod) -> BTreeMap<String, i64> {
    let mut sum = BTreeMap::new();
    let containers = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    for container in containers {
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
    fn networks_are_named_in_both_forms() {
        let pod = |text: &str| -> Pod {
            object(json!({"metadata": {"name": "p", "annotations": {NETWORKS: text}}}))
        };
        let short = networks(&pod("dataplane, other/net@eth5")).unwrap();
        assert_eq!((short[0].name.as_str(), short[0].namespace.as_deref()), ("dataplane", None));
        assert_eq!(
            (short[1].namespace.as_deref(), short[1].interface.as_deref()),
            (Some("other"), Some("eth5"))
        );
        let long =
            networks(&pod(r#"[{"name": "net", "namespace": "other", "mac": "02:00:00:00:00:01"}]"#)).unwrap();
        assert_eq!(long[0].namespace.as_deref(), Some("other"));
        assert!(networks(&pod("[{]")).unwrap_err().contains("not JSON"));
        assert!(networks(&pod(" ")).unwrap().is_empty());
    }

    #[test]
    fn limits_are_summed_over_containers() {
        let limited = |n: &str| json!({"name": "c", "resources": {"limits": {"x.io/a": n}}});
        let pod: Pod = object(json!({"metadata": {}, "spec": {"containers": [limited("1"), limited("2")]}}));
        assert_eq!(limits(&pod).get("x.io/a"), Some(&3));
    }
}
