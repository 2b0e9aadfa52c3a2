//! `MacvtapNodeConfig`: the pools that many nodes have in common.
//!
//! It is written once, has its content's hash as its name, and never changes.

use super::nodestate::NodePool;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// How many bytes of the hash a name has: it distinguishes the contents of a whole fleet, over years.
const NAME_BYTES: usize = 16;

/// Pools that many nodes have in common.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "macvtap.network.kubevirt.io",
    version = "v1alpha1",
    kind = "MacvtapNodeConfig",
    plural = "macvtapnodeconfigs",
    shortname = "mnc",
    category = "macvtap",
    derive = "PartialEq",
    doc = "Pools that many nodes have in common, written once by the operator: the MacvtapNodeStates of these nodes have its name in spec.config. It has the hash of its content as its name and never changes; the operator deletes it when no node state has had its name for ten minutes.",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a MacvtapNodeConfig never changes: its name is the hash of its content"))]
pub struct MacvtapNodeConfigSpec {
    /// The pools of these nodes, in the order in which they choose links.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub pools: Vec<NodePool>,
}

/// Returns the name of the configuration with these pools as they are written. It depends on nothing but the JSON that
/// the API server has, so that every release names it alike.
pub fn name_of(pools: &Value) -> String {
    let mut hash = Sha256::new();
    feed(&mut hash, pools);
    let mut name = String::new();
    for byte in hash.finalize().iter().take(NAME_BYTES) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Whether this may be the name of a configuration that an operator wrote.
pub fn is_name(name: &str) -> bool {
    name.len() == 2 * NAME_BYTES
        && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Feeds a value in one notation, whatever the order of its fields.
fn feed(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            hash.update(b"{");
            for (key, value) in fields {
                hash.update(Value::from(key.as_str()).to_string());
                hash.update(b":");
                feed(hash, value);
                hash.update(b",");
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            for item in items {
                feed(hash, item);
                hash.update(b",");
            }
            hash.update(b"]");
        }
        scalar => hash.update(scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_depends_on_the_content_alone() {
        let name = name_of(&json!([{"name": "a", "generation": 1}, {"name": "b"}]));
        assert_eq!(name, "57496109f2bdf69a1841946eac3d7148", "names are stable across releases");
        assert!(is_name(&name));
        let text = r#"[{"generation": 1, "name": "a"}, {"name": "b"}]"#;
        assert_eq!(name_of(&serde_json::from_str(text).unwrap()), name);
        for other in [json!([{"name": "b"}, {"name": "a", "generation": 1}]), json!([]), json!(["a"])] {
            assert_ne!(name_of(&other), name);
        }
    }

    #[test]
    fn what_nobody_names_so_is_not_a_name() {
        for name in ["", "default", "57496109F2bdf69a1841946eac3d7148", "57496109f2bdf69a1841946eac3d714"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
