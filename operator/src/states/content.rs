//! Pure: pools that many node states have in common, as a configuration has them.

use crate::entry::{Entry, Form};
use macvtap_crds::v1alpha1::NodePool;
use macvtap_crds::v1alpha1::nodeconfig::name_of;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The pools of a configuration.
#[derive(Debug, PartialEq)]
pub struct Content {
    /// The hash of its pools as they are written.
    pub name: String,
    /// Its pools as they are written.
    pub pools: Value,
    /// Its pools.
    pub entries: Vec<Arc<Entry>>,
}

/// The hash of a spec that names this configuration. It is not that of the same pools in a state itself: an agent that does
/// not know configurations answers as if there were no pools, and that must not count once it can read them.
pub(super) fn hash_of(config: &str) -> &str {
    config.get(..16).unwrap_or(config)
}

impl Content {
    /// The content that has these pools.
    pub fn of(entries: &[Arc<Entry>]) -> serde_json::Result<Self> {
        let pools: serde_json::Result<Value> = entries.iter().map(|entry| entry.json(Form::Brief)).collect();
        let pools = pools?;
        Ok(Self { name: name_of(&pools), pools, entries: entries.to_vec() })
    }

    /// Reads what a configuration of this name has; or returns why it is not what its name stands for.
    pub fn read(name: &str, pools: &Value) -> Result<Self, String> {
        if name_of(pools) != name {
            return Err("it does not have the content that its name stands for".to_owned());
        }
        let read: Vec<NodePool> = Vec::deserialize(pools).map_err(|error| error.to_string())?;
        let entries = read.into_iter().map(|pool| Arc::new(Entry::new(pool))).collect();
        Ok(Self { name: name.to_owned(), pools: pools.clone(), entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::entry_of;
    use crate::testing::pool;
    use serde_json::json;

    #[test]
    fn what_is_written_is_what_is_read_and_nothing_else_has_its_name() {
        let entries = ["a", "b"].map(|name| Arc::new(entry_of(&pool(name, json!({"priority": 3})))));
        let content = Content::of(&entries).unwrap();
        assert_eq!(Content::read(&content.name, &content.pools).unwrap(), content);
        let other = Content::of(&entries[..1]).unwrap();
        Content::read(&content.name, &other.pools).unwrap_err();
        Content::read(&name_of(&json!([7])), &json!([7])).unwrap_err();
    }
}
