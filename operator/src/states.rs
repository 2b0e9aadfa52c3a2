//! What is kept of all node states: little of each, and what thousands of nodes have in common only once.
//!
//! A node state may have been written by an older or a newer release, or by hand. What cannot be read of it is left
//! out and said, and never stops the watch.

mod known;
mod metadata;
mod own;

pub use known::{KnownPool, KnownState, KnownStatus, Verdict, version};
pub use own::Spec;

use crate::clock;
use crate::entry::Entry;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::runtime::watcher::Event;
use macvtap_crds::v1alpha1::{MacvtapNodeState, NodePool};
use own::{Gone, Own};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// A node state as it comes over the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Resource)]
#[resource(inherit = "MacvtapNodeState")]
pub struct RawState {
    /// Metadata, without managers.
    #[serde(default, deserialize_with = "metadata::without_managers")]
    pub metadata: ObjectMeta,
    /// What the operator wrote, most likely.
    #[serde(default)]
    pub spec: Value,
    /// What the agent wrote, most likely.
    #[serde(default)]
    pub status: Value,
}

/// How often a writer that waits for its turn looks whether an answer that is due was given up.
const ROOM_CHECK: Duration = Duration::from_secs(1);

/// All node states by name, as the watch shows them and as the operator has written them since.
#[derive(Debug, Default)]
pub struct States {
    inner: RwLock<Inner>,
    filled: watch::Sender<bool>,
    /// Notified with every event.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<String, Arc<KnownState>>,
    own: Own,
    shared: Interner,
    /// The list that is being read, and when it began.
    filling: HashMap<String, Arc<KnownState>>,
    begun: Option<Timestamp>,
}

/// What an event comes to.
#[derive(Debug)]
pub struct Taken {
    /// The event, with the state as it is kept.
    pub event: Event<Arc<KnownState>>,
    /// How late the watch showed a write of the operator's, if that is what it showed.
    pub lag: Option<Duration>,
}

impl States {
    /// Takes in an event.
    pub fn take(&self, event: Event<RawState>, now: Timestamp) -> Taken {
        let taken = self.write().take(event, now);
        if matches!(taken.event, Event::InitDone) {
            self.filled.send_replace(true);
        }
        self.changed.notify_waiters();
        taken
    }

    /// The state of this name, with the spec that the operator wrote last.
    pub fn get(&self, name: &str) -> Option<Arc<KnownState>> {
        self.read().known.get(name).cloned()
    }

    /// All states, likewise.
    pub fn all(&self) -> Vec<Arc<KnownState>> {
        self.read().known.values().cloned().collect()
    }

    /// Notes that a spec is being sent to the API server. [`Self::stored`], [`Self::withdraw`] or
    /// [`Self::lost`] follows.
    pub fn send(&self, name: &str, spec: Spec) {
        self.write().own.send(name, spec);
    }

    /// Notes that the API server refused a spec, that it was not sent, or that it is not wanted any more after its answer
    /// was lost: nobody waits for it any longer.
    pub fn withdraw(&self, name: &str) {
        self.write().own.withdraw(name);
        self.changed.notify_waiters();
    }

    /// Notes that nobody knows whether the API server stored a spec.
    pub fn lost(&self, name: &str) {
        self.write().own.lost(name);
        self.changed.notify_waiters();
    }

    /// Notes that the API server has stored a spec as this version; gives the state as it is known from now on.
    pub fn stored(&self, name: &str, spec: &Spec, version: u64, now: Timestamp) -> Arc<KnownState> {
        let mut inner = self.write();
        let before = inner.known.get(name).cloned();
        let is_there = inner.own.stored(name, version, now);
        let mut state = before.as_deref().cloned().unwrap_or_default();
        name.clone_into(&mut state.name);
        // The watch may have been faster than the answer, or the version is none that could be compared.
        if version <= state.version {
            inner.own.seen(&mut state, now);
        } else {
            state.write(spec);
        }
        state.wait_since(before.as_deref(), None);
        let state = Arc::new(state);
        if is_there {
            inner.known.insert(name.to_owned(), Arc::clone(&state));
        }
        state
    }

    /// The nodes to which a spec that has the pool with this UID may be on its way.
    pub fn may_hold(&self, uid: &str) -> Vec<String> {
        self.read().own.may_hold(uid).map(str::to_owned).collect()
    }

    /// How far the watch is behind the API server, as far as own writes tell.
    pub fn lag(&self, now: Timestamp) -> Duration {
        self.read().own.lag(now)
    }

    /// Waits until one more spec may be written although earlier ones are not answered.
    pub async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            if self.read().has_room(clock::now()) {
                return;
            }
            // An answer that is due no longer counts, which nothing announces.
            let _ = tokio::time::timeout(ROOM_CHECK, changed).await;
        }
    }

    /// Forgets own writes: another operator writes now.
    pub fn forget_own(&self) {
        self.write().own.clear();
    }

    /// Waits for the first complete list.
    pub async fn filled(&self) {
        // The sender is ours, so this ends with the answer only.
        let _ = self.filled.subscribe().wait_for(|filled| *filled).await;
    }

    // Every change is whole before the lock is let go, also when a holder panics.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn has_room(&self, now: Timestamp) -> bool {
        let will_answer = |name: &str| self.known.get(name).is_some_and(|state| own::will_answer(state, now));
        self.own.has_room(now, will_answer)
    }

    fn take(&mut self, event: Event<RawState>, now: Timestamp) -> Taken {
        let (event, lag) = match event {
            Event::Init => {
                self.filling.clear();
                self.begun = Some(now);
                (Event::Init, None)
            }
            Event::InitApply(raw) => {
                let (state, lag) = self.observe(&raw, now);
                self.filling.insert(state.name.clone(), Arc::clone(&state));
                (Event::InitApply(state), lag)
            }
            Event::InitDone => {
                let before = std::mem::replace(&mut self.known, std::mem::take(&mut self.filling));
                let begun = self.begun.take().unwrap_or(now);
                // A write may have been stored after its state was read for the list.
                for (name, state) in &mut self.known {
                    if let Some(spec) = self.own.newer(name, state.version) {
                        Arc::make_mut(state).write(spec);
                    }
                }
                for (name, state) in before {
                    if !self.known.contains_key(&name)
                        && self.own.survives(&name, Gone::NotListedSince(begun))
                    {
                        self.known.insert(name, state);
                    }
                }
                self.shared.sweep();
                (Event::InitDone, None)
            }
            Event::Apply(raw) => {
                let (state, lag) = self.observe(&raw, now);
                self.known.insert(state.name.clone(), Arc::clone(&state));
                (Event::Apply(state), lag)
            }
            Event::Delete(raw) => {
                let state = Arc::new(KnownState::read(&raw, &mut self.shared));
                if !self.own.survives(&state.name, Gone::Deleted(state.version)) {
                    self.known.remove(&state.name);
                }
                (Event::Delete(state), None)
            }
        };
        Taken { event, lag }
    }

    /// Reads a state as the watch shows it, with what the operator has written since.
    fn observe(&mut self, raw: &RawState, now: Timestamp) -> (Arc<KnownState>, Option<Duration>) {
        let mut state = KnownState::read(raw, &mut self.shared);
        let lag = self.own.seen(&mut state, now);
        let shown = !self.own.is_ahead(&state.name);
        state.wait_since(self.known.get(&state.name).map(Arc::as_ref), shown.then_some(now));
        (Arc::new(state), lag)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::entry_of;
    use crate::testing::{pool, raw, spec};
    use kube::ResourceExt;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

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
            states.take(event, NOW);
        }
        states.take(Event::Apply(named("c")), NOW);
        states.take(Event::Delete(named("a")), NOW);
        assert_eq!(names(&states), ["b", "c"]);
        states.take(Event::Init, NOW);
        states.take(Event::InitApply(named("d")), NOW);
        assert_eq!(names(&states), ["b", "c"]);
        states.take(Event::InitDone, NOW);
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

    fn versioned(version: u64, observed: Option<&str>) -> RawState {
        let mut raw = named("n1");
        raw.metadata.resource_version = Some(version.to_string());
        raw.spec["configHash"] = "old".into();
        raw.status = observed.map_or(Value::Null, |hash| serde_json::json!({"observedHash": hash}));
        raw
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn silence_begins_when_the_watch_shows_the_spec_and_a_further_write_does_not_put_it_off() {
        let states = States::default();
        let spec = |hash: &str| Spec { owner: None, config_hash: hash.to_owned(), pools: Vec::new() };
        let write = |hash: &str, version, second| {
            states.send("n1", spec(hash));
            states.stored("n1", &spec(hash), version, at(second));
        };
        let show = |hash: &str, version, observed: Option<&str>, second| {
            let mut raw = versioned(version, observed);
            raw.spec["configHash"] = hash.into();
            states.take(Event::Apply(raw), at(second));
        };
        let since = || states.get("n1").unwrap().unanswered_since;
        show("old", 5, Some("old"), 0);
        write("new", 6, 10);
        assert_eq!(states.get("n1").unwrap().config_hash, "new");
        assert_eq!(since(), None, "the agent may not have been told yet");
        show("old", 5, Some("old"), 40);
        assert_eq!((since(), states.get("n1").unwrap().config_hash.as_str()), (None, "new"));
        show("new", 6, Some("old"), 60);
        assert_eq!(since(), Some(at(60)));
        write("newer", 7, 70);
        show("newer", 7, Some("old"), 80);
        assert_eq!(since(), Some(at(60)), "it has not said anything since");
        show("newer", 8, Some("new"), 90);
        assert_eq!(since(), Some(at(90)), "it is busy with an earlier spec");
        show("newer", 9, Some("newer"), 95);
        assert_eq!(since(), None);
    }

    #[test]
    fn a_list_does_not_undo_what_was_written_after_the_state_was_read_for_it() {
        let states = States::default();
        states.take(Event::Apply(versioned(5, None)), NOW);
        states.take(Event::Init, NOW);
        states.take(Event::InitApply(versioned(5, None)), NOW);
        let spec = Spec { owner: None, config_hash: "new".to_owned(), pools: Vec::new() };
        states.send("n1", spec.clone());
        states.stored("n1", &spec, 6, NOW);
        states.take(Event::InitDone, NOW);
        assert_eq!(states.get("n1").unwrap().config_hash, "new");
    }

    #[test]
    fn a_spec_on_its_way_may_bring_a_pool_that_no_state_has() {
        let states = States::default();
        let entry = Arc::new(entry_of(&pool("dp", serde_json::json!({}))));
        let spec = Spec { owner: None, config_hash: "h".to_owned(), pools: vec![entry] };
        states.send("n1", spec.clone());
        assert_eq!(states.may_hold("uid-dp"), ["n1"]);
        states.withdraw("n1");
        assert!(states.may_hold("uid-dp").is_empty(), "its answer was lost, and it is wanted no more");
        states.send("n1", spec.clone());
        states.stored("n1", &spec, 3, NOW);
        assert!(states.may_hold("uid-dp").is_empty() && states.get("n1").unwrap().entry("uid-dp").is_some());
    }
}
