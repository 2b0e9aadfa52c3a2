//! Which devices a pod's limits lack, and the patch that adds them.

use json_patch::Patch;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Returns the patch after which the pod requests at least `needed` of each resource. What it requests itself is kept and
/// counts: a device that is missing is added to the first container that requests the resource already, or else to the
/// first container of the pod.
pub fn patch(pod: &Value, needed: &BTreeMap<String, u64>) -> Patch {
    let mut changed = pod.clone();
    for (resource, count) in needed {
        // A pod without containers is refused by the API server, as is a quantity that is not a number.
        let _ = add(&mut changed, resource, *count);
    }
    json_patch::diff(pod, &changed)
}

fn add(pod: &mut Value, resource: &str, needed: u64) -> Option<()> {
    let held = containers(pod).map(|container| requested(container, resource)).collect::<Option<Vec<_>>>()?;
    let missing = needed.checked_sub(held.iter().sum()).filter(|missing| *missing > 0)?;
    let index = held.iter().position(|count| *count > 0).unwrap_or(0);
    let count = held.get(index)?.checked_add(missing)?;
    let container = containers_mut(pod).nth(index)?;
    let resources = object(container.as_object_mut()?, "resources")?;
    for kind in ["limits", "requests"] {
        object(resources, kind)?.insert(resource.to_owned(), Value::from(count.to_string()));
    }
    Some(())
}

/// The containers that hold devices while the pod runs: its containers, and its init containers that keep running.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| pod["spec"][name].as_array().into_iter().flatten();
    list("containers").chain(list("initContainers").filter(|container| keeps_running(container)))
}

/// The same, in the same order.
fn containers_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let (mut ordinary, mut init) = (None, None);
    for (name, list) in pod.get_mut("spec").and_then(Value::as_object_mut).into_iter().flatten() {
        match name.as_str() {
            "containers" => ordinary = list.as_array_mut(),
            "initContainers" => init = list.as_array_mut(),
            _ => {}
        }
    }
    let init = init.into_iter().flatten().filter(|container| keeps_running(container));
    ordinary.into_iter().flatten().chain(init)
}

fn keeps_running(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// How many of a resource a container requests; none if that is not a number.
fn requested(container: &Value, resource: &str) -> Option<u64> {
    let resources = &container["resources"];
    let given = |kind: &str| resources[kind].get(resource);
    match given("limits").or_else(|| given("requests")) {
        None => Some(0),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_u64(),
    }
}

/// The object below a key, created if it is absent or null; none if something else is there.
fn object<'o>(parent: &'o mut Map<String, Value>, key: &str) -> Option<&'o mut Map<String, Value>> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
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
        let patch = patch(&pod, &needed);
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
            json!({"containers": [{"resources": []}]}),
            json!({"containers": [{"resources": {"limits": {NET: "many"}}}]}),
        ] {
            assert_eq!(injected(&spec, &[(NET, 1)]), spec);
        }
    }
}
