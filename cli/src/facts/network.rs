//! `NetworkAttachmentDefinition`s, as far as they matter here.

use kube::ResourceExt as _;
use macvtap_crds::{POOL_LABEL, RESOURCE_NAME_ANNOTATION};
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use serde_json::Value;

/// A network that pods can name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// The resource it needs, by its annotation.
    pub(crate) resource: Option<String>,
    /// The plugins of its configuration, in their order.
    pub(crate) plugins: Vec<String>,
    /// The pool that made it, by its label.
    pub(crate) pool: Option<String>,
    /// Why its configuration cannot be read, if so.
    pub(crate) problem: Option<String>,
}

impl Network {
    /// `namespace/name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether the plugin of this project is among its plugins.
    pub(crate) fn is_macvtap(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin == "macvtap" || plugin == "ehost-device")
    }
}

impl From<&NetworkAttachmentDefinition> for Network {
    fn from(object: &NetworkAttachmentDefinition) -> Self {
        let (plugins, problem) = match plugins(&object.spec.config) {
            Ok(plugins) => (plugins, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            resource: object.annotations().get(RESOURCE_NAME_ANNOTATION).cloned(),
            plugins,
            pool: object.labels().get(POOL_LABEL).cloned(),
            problem,
        }
    }
}

/// The types of the plugins of a configuration or list of configurations. An empty one stands for a file on the node.
fn plugins(config: &str) -> Result<Vec<String>, String> {
    if config.trim().is_empty() {
        return Ok(Vec::new());
    }
    let config: Value =
        serde_json::from_str(config).map_err(|error| format!("spec.config is not JSON: {error}"))?;
    let kind = |value: &Value| value.get("type").and_then(Value::as_str).map(str::to_owned);
    match config.get("plugins").and_then(Value::as_array) {
        Some(list) => Ok(list.iter().filter_map(kind).collect()),
        None => Ok(kind(&config).into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_read_of_both_forms() {
        assert_eq!(plugins(r#"{"type": "macvtap"}"#), Ok(vec!["macvtap".to_owned()]));
        let chained = r#"{"plugins": [{"type": "macvtap"}, {"type": "tuning"}]}"#;
        assert_eq!(plugins(chained), Ok(vec!["macvtap".to_owned(), "tuning".to_owned()]));
        assert_eq!(plugins(""), Ok(Vec::new()));
        assert!(plugins("{").unwrap_err().contains("not JSON"));
    }
}
