//! The resource whose devices a network needs, as its annotation names it.
//!
//! The author of a network also writes the annotation. Only the name of an extended resource reaches a pod: the API server rejects
//! pods with other names in their limits, and `memory` or `cpu` would limit the container instead of adding a device.

use crate::network::kind::NetworkAttachmentDefinition;
use kube::ResourceExt as _;
use serde_json::Value;

/// The annotation of a network that names its resource.
const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// The names under which the CNI plugin of this project is installed.
const PLUGINS: [&str; 2] = ["macvtap", "ehost-device"];

/// What the API server puts in front of the name to count the resource in a quota.
const QUOTA_PREFIX: &str = "requests.";

/// How long a DNS subdomain may be.
const SUBDOMAIN: usize = 253;

/// How long a label of a DNS subdomain, or a name after the domain, may be.
const LABEL: usize = 63;

/// How many characters of an invalid value are reported.
const REPORTED: usize = 80;

/// Returns the resource whose devices a network needs; none if it needs none, or another project's plugin uses them. The
/// error is a value that is not the name of an extended resource, shortened.
pub fn of(network: &NetworkAttachmentDefinition) -> Result<Option<&str>, String> {
    let Some(resource) = annotated(network) else { return Ok(None) };
    if is_extended(resource) { Ok(Some(resource)) } else { Err(resource.chars().take(REPORTED).collect()) }
}

fn annotated(network: &NetworkAttachmentDefinition) -> Option<&str> {
    let config: Value = serde_json::from_str(&network.spec.config).ok()?;
    let chained = config["plugins"].as_array().into_iter().flatten();
    let mut types = std::iter::once(&config).chain(chained).filter_map(|plugin| plugin["type"].as_str());
    let resource = network.annotations().get(RESOURCE_NAME)?.trim();
    (types.any(|name| PLUGINS.contains(&name)) && !resource.is_empty()).then_some(resource)
}

/// Whether the API server accepts this as the name of an extended resource in the limits of a container.
fn is_extended(resource: &str) -> bool {
    let Some((domain, name)) = resource.split_once('/') else { return false };
    // The API server takes every domain with this end for its own.
    let is_native = domain.ends_with("kubernetes.io");
    let fits = domain.len() + QUOTA_PREFIX.len() <= SUBDOMAIN;
    is_subdomain(domain) && fits && !is_native && !domain.starts_with(QUOTA_PREFIX) && is_name(name)
}

/// Whether this is a DNS subdomain, as the names of namespaces and networks are.
pub fn is_subdomain(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= SUBDOMAIN && text.split('.').all(is_label)
}

/// Whether this may stand behind the domain of a qualified name.
fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= LABEL
        && text.bytes().all(is_inner)
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::kind::NetworkAttachmentDefinitionSpec;
    use serde_json::json;

    const NET: &str = "macvtap.network.kubevirt.io/net";

    fn network(config: &Value, annotation: &str) -> NetworkAttachmentDefinition {
        let spec = NetworkAttachmentDefinitionSpec { config: config.to_string() };
        let mut network = NetworkAttachmentDefinition::new("n", spec);
        network.annotations_mut().insert(RESOURCE_NAME.to_owned(), annotation.to_owned());
        network
    }

    #[test]
    fn only_networks_of_this_projects_plugin_need_a_device() {
        let macvtap = json!({"type": "macvtap"});
        assert_eq!(of(&network(&macvtap, NET)), Ok(Some(NET)));
        let chained = json!({"plugins": [{"type": "ehost-device"}, {"type": "tuning"}]});
        assert_eq!(of(&network(&chained, " a.io/b ")), Ok(Some("a.io/b")));
        // What other plugins make of their annotation is left to other injectors.
        for resource in [NET, "memory"] {
            assert_eq!(of(&network(&json!({"type": "sriov"}), resource)), Ok(None));
            assert_eq!(of(&network(&json!([]), resource)), Ok(None));
        }
        assert_eq!(of(&network(&macvtap, "")), Ok(None));
    }

    #[test]
    fn only_names_of_extended_resources_are_accepted() {
        let macvtap = json!({"type": "macvtap"});
        let longest =
            format!("{}/{}", ["d".repeat(61).as_str(); 4].join(".").split_at(244).0, "n".repeat(63));
        for valid in [NET, "kernel.org/virt", "a/B_c.d-9", "kubernetes.io.example/x", &longest] {
            assert!(is_extended(valid), "{valid}");
        }
        let long = format!("a.io/{}", "n".repeat(64));
        let domain = format!("d{longest}");
        for invalid in [
            "dataplane",
            "memory",
            "cpu",
            "ephemeral-storage",
            "hugepages-2Mi",
            "/",
            "a.io/",
            "/n",
            "a.io/b/c",
            "A.io/b",
            "a..io/b",
            "-a.io/b",
            "a-.io/b",
            "a.io/-b",
            "a.io/b.",
            "a.io/b c",
            "a.io/b~c",
            "kubernetes.io/batch",
            "x.kubernetes.io/y",
            "mykubernetes.io/y",
            "requests.a.io/b",
            &long,
            &domain,
        ] {
            assert!(!is_extended(invalid), "{invalid}");
            let found = of(&network(&macvtap, invalid)).unwrap_err();
            assert!(invalid.starts_with(&found) && found.len() <= REPORTED, "{found}");
        }
    }
}
