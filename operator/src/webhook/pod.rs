//! The part of a pod that the webhook reads: everything else of it is not kept in memory.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A pod.
#[derive(Debug, Default, Deserialize)]
pub struct Pod {
    /// Its metadata.
    #[serde(default)]
    pub metadata: PodMetadata,
    /// Its specification.
    #[serde(default)]
    pub spec: PodSpec,
}

/// The metadata of a pod.
#[derive(Debug, Default, Deserialize)]
pub struct PodMetadata {
    /// Its annotations.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The specification of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Its containers.
    #[serde(default)]
    pub containers: Option<Vec<Container>>,
    /// Its init containers.
    #[serde(default)]
    pub init_containers: Option<Vec<Container>>,
}

/// A container of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// `Always` if it is an init container that keeps running.
    #[serde(default)]
    pub restart_policy: Option<String>,
    /// The resources it requests.
    #[serde(default)]
    pub resources: Option<Resources>,
}

/// The resources of a container.
#[derive(Debug, Default, Deserialize)]
pub struct Resources {
    /// At most this much.
    #[serde(default)]
    pub limits: Option<BTreeMap<String, Value>>,
    /// At least this much.
    #[serde(default)]
    pub requests: Option<BTreeMap<String, Value>>,
}

/// The place of a container in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `containers` or `initContainers`.
    pub list: &'static str,
    /// The position in the list.
    pub index: usize,
}

impl Pod {
    /// Returns the containers that hold devices while the pod runs: its containers, and its init containers that keep running.
    pub fn containers(&self) -> impl Iterator<Item = (Place, &Container)> {
        let ordinary = self.spec.containers.iter().flatten().enumerate();
        let init = self.spec.init_containers.iter().flatten().enumerate();
        let init = init.filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
        ordinary
            .map(|(index, container)| (Place { list: "containers", index }, container))
            .chain(init.map(|(index, container)| (Place { list: "initContainers", index }, container)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_large_pod_is_not_kept_in_memory() {
        let env = vec![json!({"name": "n", "value": "v".repeat(1000)}); 700];
        let resources = json!({"limits": {"a.io/b": "1"}});
        let container = json!({"name": "c", "image": "i", "env": env, "resources": resources});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [container], "volumes": env}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let limits =
            pod.containers().find_map(|(_, container)| container.resources.as_ref()?.limits.as_ref());
        assert_eq!(limits.unwrap()["a.io/b"], "1");
        let kept = format!("{pod:?}").len();
        assert!(kept < 1000, "{kept}");
    }
}
