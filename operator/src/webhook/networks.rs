//! The networks that a pod names in its annotations.

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// The annotation by which a pod names further networks.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// The annotation by which a pod names the network of its interface eth0.
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";

/// How many networks an annotation may name: each is read from the API server while a pod waits.
pub const MOST: usize = 128;

/// A network that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Wanted {
    /// Its namespace, if it is named.
    #[serde(default, deserialize_with = "given")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The name that the interface should have.
    #[serde(default)]
    pub interface: Option<String>,
}

/// Returns the networks that an annotation names, in their order; the error says why it cannot be read.
pub fn read(annotations: &BTreeMap<String, String>, annotation: &str) -> Result<Vec<Wanted>, String> {
    let Some(text) = annotations.get(annotation).map(|text| text.trim()).filter(|text| !text.is_empty())
    else {
        return Ok(Vec::new());
    };
    let named: Vec<Wanted> = if text.starts_with('[') || text.starts_with('{') {
        serde_json::from_str(text).map_err(|error| format!("annotation {annotation} is not JSON: {error}"))?
    } else {
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(short).collect()
    };
    match named.len() {
        count if count > MOST => {
            Err(format!("annotation {annotation} names {count} networks, more than {MOST}"))
        }
        _ => Ok(named),
    }
}

/// Reads a namespace; an empty one is none.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|namespace| !namespace.is_empty()))
}

/// Reads `[namespace/]name[@interface]`.
fn short(word: &str) -> Wanted {
    let (place, interface) = match word.split_once('@') {
        Some((place, interface)) => (place, Some(interface.to_owned())),
        None => (word, None),
    };
    let (namespace, name) = match place.split_once('/') {
        Some((namespace, name)) => {
            (Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()), name.to_owned())
        }
        None => (None, place.to_owned()),
    };
    Wanted { namespace, name, interface }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_named_in_both_forms() {
        let networks = |text: &str| read(&BTreeMap::from([(NETWORKS.to_owned(), text.to_owned())]), NETWORKS);
        let short = networks("dataplane, other/net@eth5").unwrap();
        assert_eq!((short[0].name.as_str(), short[0].namespace.as_deref()), ("dataplane", None));
        assert_eq!(
            (short[1].namespace.as_deref(), short[1].interface.as_deref()),
            (Some("other"), Some("eth5"))
        );
        let long =
            networks(r#"[{"name": "net", "namespace": "other", "mac": "02:00:00:00:00:01"}]"#).unwrap();
        assert_eq!(long[0].namespace.as_deref(), Some("other"));
        let empty =
            networks(r#"[{"name": "a", "namespace": ""}, {"name": "b", "namespace": null}]"#).unwrap();
        assert!(empty.iter().all(|network| network.namespace.is_none()), "{empty:?}");
        assert_eq!(networks("/net").unwrap()[0].namespace, None);
        assert!(networks("[{]").unwrap_err().contains("not JSON"));
        assert!(networks(" ").unwrap().is_empty());
    }

    #[test]
    fn an_annotation_that_names_too_many_networks_is_not_read() {
        let networks = |text: String| read(&BTreeMap::from([(NETWORKS.to_owned(), text)]), NETWORKS);
        assert_eq!(networks("net,".repeat(MOST)).unwrap().len(), MOST);
        for text in
            ["net,".repeat(MOST + 1), format!("[{}{{\"name\": \"n\"}}]", "{\"name\": \"n\"},".repeat(MOST))]
        {
            let why = networks(text).unwrap_err();
            assert!(why.ends_with("names 129 networks, more than 128"), "{why}");
        }
    }
}
