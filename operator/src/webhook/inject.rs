//! Which devices a pod's limits lack, and the patch that adds them.

use super::pod::{Container, Place, Pod};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Where a container names the resources it needs. The API server rejects a device that is not in both.
const KINDS: [&str; 2] = ["limits", "requests"];

/// Returns the patch after which the pod requests at least `needed` of each resource. What it requests itself is kept and
/// counts: a device that is missing is added to the first container that requests the resource already, or else to the
/// first container of the pod.
pub fn patch(pod: &Pod, needed: &BTreeMap<String, u64>) -> Patch {
    let containers: Vec<_> = pod.containers().collect();
    let mut added: BTreeMap<usize, Map<String, Value>> = BTreeMap::new();
    for (resource, count) in needed {
        // A pod without containers is rejected by the API server, as is a quantity that is not a number.
        if let Some((index, count)) = missing(&containers, resource, *count) {
            added.entry(index).or_default().insert(resource.clone(), Value::from(count.to_string()));
        }
    }
    let changed =
        added.into_iter().filter_map(|(index, quantities)| Some((containers.get(index)?, quantities)));
    let operations = changed.flat_map(|((place, container), quantities)| add(*place, container, &quantities));
    Patch(operations.collect())
}

/// The container that lacks devices of a resource, and how many it has to request.
fn missing(containers: &[(Place, &Container)], resource: &str, needed: u64) -> Option<(usize, u64)> {
    let held = containers.iter().map(|(_, container)| requested(container, resource));
    let held = held.collect::<Option<Vec<_>>>()?;
    let total = held.iter().try_fold(0_u64, |total, count| total.checked_add(*count))?;
    let missing = needed.checked_sub(total).filter(|missing| *missing > 0)?;
    let index = held.iter().position(|count| *count > 0).unwrap_or(0);
    Some((index, held.get(index)?.checked_add(missing)?))
}

/// The operations that set these quantities of a container. An `add` replaces what is at its path already.
fn add(place: Place, container: &Container, quantities: &Map<String, Value>) -> Vec<PatchOperation> {
    let operation = |path: &[&str], value: Value| {
        let index = place.index.to_string();
        let container = ["spec", place.list, &index, "resources"];
        let tokens = container.into_iter().chain(path.iter().copied());
        PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(tokens), value })
    };
    let Some(resources) = &container.resources else {
        return vec![operation(&[], json!({"limits": quantities, "requests": quantities}))];
    };
    let mut operations = Vec::new();
    for (kind, given) in KINDS.into_iter().zip([&resources.limits, &resources.requests]) {
        if given.is_none() {
            operations.push(operation(&[kind], Value::Object(quantities.clone())));
            continue;
        }
        operations.extend(quantities.iter().map(|(name, count)| operation(&[kind, name], count.clone())));
    }
    operations
}

/// How many of a resource a container requests; none if that is not a number.
fn requested(container: &Container, resource: &str) -> Option<u64> {
    let Some(resources) = &container.resources else { return Some(0) };
    let given = |kind: &Option<BTreeMap<String, Value>>| kind.as_ref()?.get(resource).cloned();
    match given(&resources.limits).or_else(|| given(&resources.requests)) {
        None => Some(0),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_u64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NET: &str = "macvtap.network.kubevirt.io/net";

    /// The containers after the patch.
    fn injected(spec: &Value, needed: &[(&str, u64)]) -> Value {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec, "unknown": {"field": 1}});
        let needed = needed.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        // The API server gives the webhook only pods that it can read itself.
        let Ok(read) = serde_json::from_value::<Pod>(pod.clone()) else { return spec.clone() };
        let patch = patch(&read, &needed);
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod["unknown"]["field"], 1);
        pod["spec"].take()
    }

    fn resources(count: &str) -> Value {
        json!({"limits": {NET: count}, "requests": {NET: count}})
    }

    #[test]
    fn the_first_container_gets_a_device_for_each_network() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let spec = injected(&spec, &[(NET, 2), ("kernel.org/virt", 1)]);
        let limits = json!({NET: "2", "kernel.org/virt": "1"});
        assert_eq!(spec["containers"][0]["resources"], json!({"limits": limits, "requests": limits}));
        assert_eq!(spec["containers"][1], json!({"name": "b"}));
    }

    #[test]
    fn what_the_pod_requests_is_kept_and_counts() {
        let own = json!({"containers": [{"name": "a"}, {"name": "b", "resources": resources("2")}]});
        assert_eq!(injected(&own, &[(NET, 2)]), own);
        assert_eq!(injected(&own, &[(NET, 1)]), own);
        let more = injected(&own, &[(NET, 3)]);
        assert_eq!(more["containers"][0], json!({"name": "a"}));
        assert_eq!(more["containers"][1]["resources"], resources("3"));
        let limits = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "1", NET: 1}}}]});
        let more = injected(&limits, &[(NET, 2)]);
        assert_eq!(more["containers"][0]["resources"]["limits"], json!({"cpu": "1", NET: "2"}));
        assert_eq!(more["containers"][0]["resources"]["requests"], json!({NET: "2"}));
    }

    #[test]
    fn only_what_is_missing_is_in_the_patch() {
        let own = json!({"limits": {"cpu": "1"}, "requests": null});
        let pod =
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": own}, {"name": "c"}]}});
        let needed = BTreeMap::from([(NET.to_owned(), 1), ("a.io/b".to_owned(), 2)]);
        let text = serde_json::to_string(&patch(&serde_json::from_value(pod).unwrap(), &needed)).unwrap();
        let both = r#"{"a.io/b":"2","macvtap.network.kubevirt.io/net":"1"}"#;
        let value = format!(r#"{{"limits":{both},"requests":{both}}}"#);
        assert_eq!(
            text,
            format!(r#"[{{"op":"add","path":"/spec/containers/0/resources","value":{value}}}]"#)
        );
        let pod = json!({"spec": {"containers": [{"resources": own}]}});
        let patch = patch(&serde_json::from_value(pod).unwrap(), &needed);
        let paths: Vec<_> = patch.0.iter().map(|operation| operation.path().to_string()).collect();
        let resources = "/spec/containers/0/resources";
        let own = ["limits/a.io~1b", "limits/macvtap.network.kubevirt.io~1net", "requests"];
        assert_eq!(paths, own.map(|path| format!("{resources}/{path}")));
    }

    #[test]
    fn init_containers_count_if_they_keep_running() {
        let init = |policy: Value| {
            json!({
                "initContainers": [{"name": "i", "restartPolicy": policy, "resources": resources("1")}],
                "containers": [{"name": "a"}],
            })
        };
        let sidecar = init(json!("Always"));
        assert_eq!(injected(&sidecar, &[(NET, 1)]), sidecar);
        assert_eq!(injected(&sidecar, &[(NET, 2)])["initContainers"][0]["resources"], resources("2"));
        let ordinary = init(Value::Null);
        assert_eq!(injected(&ordinary, &[(NET, 1)])["containers"][0]["resources"], resources("1"));
    }

    #[test]
    fn a_pod_that_cannot_be_read_is_left_alone() {
        for spec in [
            json!(null),
            json!([]),
            json!({"containers": []}),
            json!({"containers": ["a"]}),
            json!({"containers": [{"resources": "many"}]}),
            json!({"containers": [{"resources": {"limits": {NET: "many"}}}]}),
        ] {
            assert_eq!(injected(&spec, &[(NET, 1)]), spec);
        }
    }
}
