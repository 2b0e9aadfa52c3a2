//! What of a watch is worth a reconcile or a message.

use crate::metrics::Metrics;
use kube::Resource;
use kube::runtime::watcher::Event;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The problems of objects that cannot be read, so that each one is logged once.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    reported: HashMap<String, String>,
}

impl Unreadable {
    pub(super) fn report(
        &mut self,
        kind: &'static str,
        name: &str,
        trouble: Option<&str>,
        metrics: &Metrics,
    ) {
        match trouble {
            None => {
                self.reported.remove(name);
            }
            Some(trouble) if self.reported.get(name).is_some_and(|reported| reported == trouble) => {}
            Some(trouble) => {
                metrics.unreadable(kind);
                tracing::warn!(name, error = trouble, "{kind} cannot be read as a whole");
                self.reported.insert(name.to_owned(), trouble.to_owned());
            }
        }
    }
}

/// What was seen of each object, so that changes of what we do not use are not changes.
#[derive(Debug, Default)]
pub(super) struct Seen {
    fingerprints: HashMap<(Option<String>, String), u64>,
}

impl Seen {
    /// Whether the event is worth telling. A list that was read again always is.
    pub(super) fn changed<K: Resource>(&mut self, event: &Event<K>, fingerprint: impl Fn(&K) -> u64) -> bool {
        let key =
            |object: &K| (object.meta().namespace.clone(), object.meta().name.clone().unwrap_or_default());
        match event {
            Event::Apply(object) => {
                let new = fingerprint(object);
                self.fingerprints.insert(key(object), new) != Some(new)
            }
            Event::Delete(object) => {
                self.fingerprints.remove(&key(object));
                true
            }
            Event::Init => {
                self.fingerprints.clear();
                false
            }
            Event::InitApply(object) => {
                self.fingerprints.insert(key(object), fingerprint(object));
                false
            }
            Event::InitDone => true,
        }
    }
}

pub(super) fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use macvtap_crds::v1alpha1::MacvtapResourcePool;
    use serde_json::json;

    #[test]
    fn only_changes_of_what_is_used_are_told() {
        let mut seen = Seen::default();
        let generation = |pool: &MacvtapResourcePool| fingerprint(&pool.metadata.generation);
        let first = pool("a", json!({}));
        let mut edited = first.clone();
        edited.metadata.generation = Some(2);
        assert!(!seen.changed(&Event::Init, generation));
        assert!(!seen.changed(&Event::InitApply(first.clone()), generation));
        assert!(seen.changed(&Event::InitDone, generation));
        assert!(!seen.changed(&Event::Apply(first.clone()), generation));
        assert!(seen.changed(&Event::Apply(edited), generation));
        assert!(seen.changed(&Event::Delete(first.clone()), generation));
        assert!(seen.changed(&Event::Apply(first), generation));
    }

    #[test]
    fn each_trouble_is_counted_once() {
        let (mut unreadable, metrics) = (Unreadable::default(), Metrics::default());
        for trouble in [Some("a"), Some("a"), Some("b"), None, Some("b")] {
            unreadable.report("pool", "dp", trouble, &metrics);
        }
        let line = "macvtap_operator_unreadable_objects_total{kind=\"pool\"} 3";
        assert!(metrics.text().contains(line), "{}", metrics.text());
    }
}
