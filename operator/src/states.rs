//! What is kept of all node states: little of each, and what thousands of nodes have in common only once.
//!
//! A node state may have been written by an older or a newer release, or by hand. What cannot be read of it is left
//! out and said, and never stops the watch.

mod known;
mod metadata;

pub use known::{KnownPool, KnownState, KnownStatus, Verdict};

use crate::node_state::entry::Entry;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event;
use macvtap_crds::v1alpha1::{MacvtapNodeState, NodePool};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use tokio::sync::watch;

/// A node state as it comes over the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Resource)]
#[resource(inherit = "MacvtapNodeState")]
pub struct RawState {
    /// Metadata, without the fields that each manager has.
    #[serde(default, deserialize_with = "metadata::without_fields")]
    pub metadata: ObjectMeta,
    /// What the operator wrote, most likely.
    #[serde(default)]
    pub spec: Value,
    /// What the agent wrote, most likely.
    #[serde(default)]
    pub status: Value,
}

/// All node states by name.
#[derive(Debug)]
pub struct States {
    known: RwLock<HashMap<String, Arc<KnownState>>>,
    shared: RwLock<Interner>,
    /// The list that is being read.
    filling: RwLock<HashMap<String, Arc<KnownState>>>,
    filled: watch::Sender<bool>,
}

impl Default for States {
    fn default() -> Self {
        let filled = watch::Sender::new(false);
        Self { known: RwLock::default(), shared: RwLock::default(), filling: RwLock::default(), filled }
    }
}

impl States {
    /// Takes in an event; gives the state it is about, as it is kept.
    pub fn take(&self, event: Event<RawState>) -> Event<Arc<KnownState>> {
        match event {
            Event::Init => {
                write(&self.filling).clear();
                Event::Init
            }
            Event::InitApply(raw) => {
                let state = self.read(&raw);
                write(&self.filling).insert(state.name.clone(), Arc::clone(&state));
                Event::InitApply(state)
            }
            Event::InitDone => {
                *write(&self.known) = std::mem::take(&mut *write(&self.filling));
                write(&self.shared).sweep();
                self.filled.send_replace(true);
                Event::InitDone
            }
            Event::Apply(raw) => {
                let state = self.read(&raw);
                write(&self.known).insert(state.name.clone(), Arc::clone(&state));
                Event::Apply(state)
            }
            Event::Delete(raw) => {
                let state = self.read(&raw);
                write(&self.known).remove(&state.name);
                Event::Delete(state)
            }
        }
    }

    /// The state of this name.
    pub fn get(&self, name: &str) -> Option<Arc<KnownState>> {
        read(&self.known).get(name).cloned()
    }

    /// All states.
    pub fn all(&self) -> Vec<Arc<KnownState>> {
        read(&self.known).values().cloned().collect()
    }

    /// Waits for the first complete list.
    pub async fn filled(&self) {
        // The sender is ours, so this ends with the answer only.
        let _ = self.filled.subscribe().wait_for(|filled| *filled).await;
    }

    fn read(&self, raw: &RawState) -> Arc<KnownState> {
        Arc::new(KnownState::read(raw, &mut write(&self.shared)))
    }
}

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
    fn entry(&mut self, json: &Value) -> Result<Arc<Entry>, serde_json::Error> {
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
    fn text(&mut self, text: &str) -> Arc<str> {
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
    fn sweep(&mut self) {
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.entries.retain(|_, entries| {
            entries.retain(|(_, entry)| entry.strong_count() > 0);
            !entries.is_empty()
        });
    }
}

// Every change is whole before its lock is let go, also when a holder panics.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_state::render::entry_of;
    use crate::testing::{pool, raw, spec};
    use kube::ResourceExt;

    fn named(name: &str) -> RawState {
        let entry = entry_of(&pool("dp", serde_json::json!({})));
        raw(&MacvtapNodeState::new(name, spec(&[Arc::new(entry)])))
    }

    #[test]
    fn a_list_that_is_read_anew_replaces_what_was_known_when_it_is_complete() {
        let states = States::default();
        let names = |states: &States| {
            let mut names: Vec<_> = states.all().iter().map(|state| state.name.clone()).collect();
            names.sort();
            names
        };
        for event in
            [Event::Init, Event::InitApply(named("a")), Event::InitApply(named("b")), Event::InitDone]
        {
            states.take(event);
        }
        states.take(Event::Apply(named("c")));
        states.take(Event::Delete(named("a")));
        assert_eq!(names(&states), ["b", "c"]);
        states.take(Event::Init);
        states.take(Event::InitApply(named("d")));
        assert_eq!(names(&states), ["b", "c"]);
        states.take(Event::InitDone);
        assert_eq!(names(&states), ["d"]);
    }

    #[test]
    fn what_two_nodes_have_in_common_is_kept_once_and_no_longer_than_needed() {
        let mut shared = Interner::default();
        let raws = ["a", "b"].map(named);
        let [a, b] = raws.each_ref().map(|raw| KnownState::read(raw, &mut shared));
        assert_eq!((a.name.as_str(), raws[1].name_any().as_str()), ("a", "b"));
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
