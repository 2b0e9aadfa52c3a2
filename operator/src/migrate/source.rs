//! Pure: a text to the entries of `DP_MACVTAP_CONF`, read as tolerantly as macvtap-cni reads them.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A longer text is not a configuration; etcd takes no object of this size either.
pub const SIZE_MAX: u64 = 4 << 20;

/// The key of a `ConfigMap` that becomes the variable.
const VARIABLE: &str = "DP_MACVTAP_CONF";

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Neither JSON nor YAML.
    #[error("{place} is neither a ConfigMap nor the JSON array of {VARIABLE}: {problem}")]
    Syntax {
        /// Where.
        place: String,
        /// What the parser said.
        problem: String,
    },
    /// Something else than a `ConfigMap`.
    #[error("{place} holds a {kind}; give a ConfigMap, or the JSON array of {VARIABLE}")]
    Kind {
        /// Where.
        place: String,
        /// What.
        kind: String,
    },
    /// A `ConfigMap` of something else.
    #[error("ConfigMap {name} has no key {VARIABLE}; its keys are {keys}")]
    NoVariable {
        /// Which.
        name: String,
        /// What it has.
        keys: String,
    },
    /// The variable is not an array of objects.
    #[error("{VARIABLE} of {place} is not a JSON array of objects: {problem}")]
    Variable {
        /// Where.
        place: String,
        /// What the parser said.
        problem: String,
    },
    /// Nothing there.
    #[error("{place} holds nothing")]
    Empty {
        /// Where.
        place: String,
    },
}

/// One configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Name of the `ConfigMap`, or of the file.
    pub name: String,
    /// Its entries.
    pub entries: Vec<Map<String, Value>>,
}

/// Reads a file: a `ConfigMap`, several, a list of them, or the array alone.
pub fn read(place: &str, text: &str) -> Result<Vec<Found>, SourceError> {
    if text.trim_start().starts_with('[') {
        return Ok(vec![Found { name: place.to_owned(), entries: entries(place, text)? }]);
    }
    let documents: Vec<Value> = serde_yaml::from_multiple(text)
        .map_err(|error| SourceError::Syntax { place: place.to_owned(), problem: error.to_string() })?;
    let mut found = Vec::new();
    for document in documents.iter().filter(|document| !document.is_null()) {
        let kind = document.get("kind").and_then(Value::as_str);
        match kind {
            Some("ConfigMap") => found.push(object(document)?),
            Some("List" | "ConfigMapList") => {
                for item in document.get("items").and_then(Value::as_array).into_iter().flatten() {
                    found.push(object(item)?);
                }
            }
            other => {
                let kind = other.unwrap_or("document without kind").to_owned();
                return Err(SourceError::Kind { place: place.to_owned(), kind });
            }
        }
    }
    if found.is_empty() { Err(SourceError::Empty { place: place.to_owned() }) } else { Ok(found) }
}

/// Reads the data of a `ConfigMap`.
pub fn of_map(name: &str, data: Option<&BTreeMap<String, String>>) -> Result<Found, SourceError> {
    let Some(text) = data.and_then(|data| data.get(VARIABLE)) else {
        let keys: Vec<&str> = data.into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
        return Err(SourceError::NoVariable { name: name.to_owned(), keys });
    };
    Ok(Found { name: name.to_owned(), entries: entries(&format!("ConfigMap {name}"), text)? })
}

fn object(object: &Value) -> Result<Found, SourceError> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without name");
    let data = object.get("data").and_then(Value::as_object);
    let data: BTreeMap<String, String> = data
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    of_map(name, Some(&data))
}

fn entries(place: &str, text: &str) -> Result<Vec<Map<String, Value>>, SourceError> {
    // macvtap-cni takes null for an empty list.
    let entries: Result<Option<_>, _> = serde_json::from_str(text.trim());
    entries
        .map(Option::unwrap_or_default)
        .map_err(|error| SourceError::Variable { place: place.to_owned(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(String, usize)> {
        let found = read("file", text).unwrap_or_else(|error| panic!("{error}"));
        found.into_iter().map(|found| (found.name, found.entries.len())).collect()
    }

    const MAP: &str = "kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: one\ndata:\n  DP_MACVTAP_CONF: |\n    [ {\n      \"name\" : \"dataplane\",\n      \"lowerDevice\" : \"eth0\"\n    } ]\n";

    #[test]
    fn a_config_map_several_a_list_and_the_array_alone_are_read() {
        assert_eq!(names(MAP), [("one".into(), 1)]);
        let two = format!("{MAP}---\n{}", MAP.replace("one", "two"));
        assert_eq!(names(&two), [("one".into(), 1), ("two".into(), 1)]);
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", MAP.replace('\n', "\n  "));
        assert_eq!(names(&list), [("one".into(), 1)]);
        assert_eq!(names(" [] "), [("file".into(), 0)]);
        assert_eq!(
            names(
                "{\"kind\": \"ConfigMap\", \"metadata\": {\"name\": \"j\"}, \"data\": {\"DP_MACVTAP_CONF\": \"null\"}}"
            ),
            [("j".into(), 0)]
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_place() {
        for (text, words) in [
            ("kind: Pod", "file holds a Pod"),
            ("", "file holds nothing"),
            ("a: [", "neither a ConfigMap"),
            ("[1]", "not a JSON array of objects"),
            (
                "kind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}",
                "ConfigMap x has no key DP_MACVTAP_CONF; its keys are a",
            ),
            (
                "kind: ConfigMap\nmetadata: {name: x}\ndata: {DP_MACVTAP_CONF: '{}'}",
                "ConfigMap x is not a JSON array",
            ),
        ] {
            let error = read("file", text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
