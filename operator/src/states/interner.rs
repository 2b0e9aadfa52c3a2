//! Values that many node states have in common.

use crate::entry::Entry;
use macvtap_crds::v1alpha1::NodePool;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

/// Values that many nodes have in common, each kept once.
#[derive(Debug, Default)]
pub struct Interner {
    /// Entries by UID of their pool, with the JSON they were read from.
    entries: HashMap<String, Vec<(Value, Weak<Entry>)>>,
    texts: HashSet<Arc<str>>,
}

impl Interner {
    /// The most different texts that are kept; what agents say may contain anything.
    const TEXTS_MAX: usize = 10_000;

    /// The entry that this JSON says, read once for all nodes that have it.
    pub(super) fn entry(&mut self, json: &Value) -> Result<Arc<Entry>, serde_json::Error> {
        let uid = json.get("uid").and_then(Value::as_str).unwrap_or_default();
        let same = self.entries.get(uid).into_iter().flatten().find(|(known, _)| known == json);
        if let Some(entry) = same.and_then(|(_, entry)| entry.upgrade()) {
            return Ok(entry);
        }
        let entry = Arc::new(Entry::new(NodePool::deserialize(json)?));
        let of_pool = self.entries.entry(uid.to_owned()).or_default();
        of_pool.retain(|(_, entry)| entry.strong_count() > 0);
        of_pool.push((json.clone(), Arc::downgrade(&entry)));
        Ok(entry)
    }

    /// The text, shared with everybody who has it.
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() >= Self::TEXTS_MAX {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
        }
        let text: Arc<str> = text.into();
        if self.texts.len() < Self::TEXTS_MAX {
            self.texts.insert(Arc::clone(&text));
        }
        text
    }

    /// Forgets what nobody has any more.
    pub(super) fn sweep(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.entries.retain(|_, entries| {
            entries.retain(|(_, entry)| entry.strong_count() > 0);
            !entries.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::entry_of;
    use crate::states::KnownState;
    use crate::testing::{pool, raw, spec};
    use macvtap_crds::v1alpha1::MacvtapNodeState;

    #[test]
    fn what_two_nodes_have_in_common_is_kept_once_and_no_longer_than_needed() {
        let mut shared = Interner::default();
        let raws = ["a", "b"].map(|name| {
            let entry = entry_of(&pool("dp", serde_json::json!({})));
            raw(&MacvtapNodeState::new(name, spec(&[Arc::new(entry)])))
        });
        let [a, b] = raws.each_ref().map(|raw| KnownState::read(raw, &mut shared));
        assert!(Arc::ptr_eq(&a.pools[0], &b.pools[0]));
        drop((a, b));
        shared.sweep();
        assert!(shared.entries.is_empty());
    }

    #[test]
    fn texts_that_never_repeat_do_not_pile_up() {
        let mut shared = Interner::default();
        let kept: Vec<_> = (0..Interner::TEXTS_MAX + 10).map(|i| shared.text(&i.to_string())).collect();
        assert_eq!(shared.texts.len(), Interner::TEXTS_MAX);
        drop(kept);
        shared.text("new");
        assert_eq!(shared.texts.len(), 1);
    }
}
