//! What the status of a pod comes to.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

/// The node of a pod.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Its phase.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// A condition of it.
pub(crate) fn condition<'p>(pod: &'p Pod, kind: &str) -> Option<&'p PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether it is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Why it is not ready, in one sentence.
pub(crate) fn why_not_ready(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = |list: Option<&Vec<ContainerStatus>>| list.into_iter().flatten().find_map(trouble);
    let container = containers(status.and_then(|status| status.init_container_statuses.as_ref()))
        .or_else(|| containers(status.and_then(|status| status.container_statuses.as_ref())));
    let scheduling = condition(pod, "PodScheduled").filter(|scheduled| scheduled.status == "False");
    container
        .or_else(|| scheduling?.message.clone())
        .or_else(|| status?.message.clone())
        .unwrap_or_else(|| format!("its phase is {}", phase(pod)))
}

fn trouble(container: &ContainerStatus) -> Option<String> {
    let name = &container.name;
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        let message = waiting.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        return Some(format!("container {name}: {reason}{message}"));
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    Some(format!("container {name} ended with exit code {}", ended.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_that_waits_says_why_a_pod_is_not_ready() {
        let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        let container = json!({"name": "agent", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": waiting});
        let status = json!({"phase": "Pending", "containerStatuses": [container]});
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}, "status": status})).unwrap();
        assert!(!is_ready(&pod));
        assert_eq!(why_not_ready(&pod), "container agent: ImagePullBackOff: no such image");
        let pod = Pod::default();
        assert_eq!(why_not_ready(&pod), "its phase is Pending");
    }
}
