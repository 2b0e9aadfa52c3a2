//! What is kept of all node states: little of each, and what thousands of nodes have in common only once.
//!
//! A node state may have been written by an older or a newer release, or by hand. What cannot be read of it is left
//! out and said, and never stops the watch.

mod census;
mod content;
mod interner;
mod known;
mod own;
mod raw;
mod spec;
mod wire;

pub use content::Content;
pub use interner::Interner;
pub use known::{KnownPool, KnownState, KnownStatus, Verdict, version};
pub use own::LOST_MAX;
pub use raw::{RawState, Shared};
pub use spec::Spec;

use crate::clock;
use crate::entry::Entry;
use census::Census;
use jiff::Timestamp;
use known::is_remembered;
use kube::runtime::watcher::Event;
use own::{Gone, Own};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};

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
    census: Census,
    /// Those that are missing because they were deleted, and when.
    deleted: HashMap<String, (Arc<KnownState>, Timestamp)>,
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

    /// The state that the node of this name had, if it was deleted not long ago and none was made since.
    pub fn deleted(&self, name: &str, now: Timestamp) -> Option<Arc<KnownState>> {
        self.read().deleted(name, now).cloned()
    }

    /// All states that were deleted, likewise.
    pub fn all_deleted(&self, now: Timestamp) -> Vec<Arc<KnownState>> {
        let inner = self.read();
        inner.deleted.keys().filter_map(|name| inner.deleted(name, now).cloned()).collect()
    }

    /// Takes it that the agent of a node has answered a state, which may be missing by now, if nobody knows better: the
    /// operator has not seen what happened before it started. `pools` is what that state may have contained.
    pub fn assume(&self, name: &str, pools: impl FnOnce() -> Vec<Arc<Entry>>, now: Timestamp) {
        let mut inner = self.write();
        if let Some(state) = inner.known.get_mut(name) {
            if state.spec_unknown {
                Arc::make_mut(state).assume(&pools());
            }
            assume_answered(state, now);
        } else if inner.deleted(name, now).is_none() {
            let (name, pools) = (name.to_owned(), pools());
            // What nothing was sent to holds nothing.
            if !pools.is_empty() {
                let answer_missing_since = Some(now);
                let state = KnownState { name, pools, answer_missing_since, ..KnownState::default() };
                inner.deleted.insert(state.name.clone(), (Arc::new(state), now));
            }
        }
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

    /// Notes that the API server refused a spec, or that it was not sent: nobody waits for it any longer.
    pub fn withdraw(&self, name: &str) {
        self.write().own.withdraw(name);
        self.changed.notify_waiters();
    }

    /// Notes that nobody knows whether the API server stored a spec.
    pub fn lost(&self, name: &str, now: Timestamp) {
        self.write().own.lost(name, now);
        self.changed.notify_waiters();
    }

    /// Notes that the API server has stored a spec as this version; gives the state as it is known from now on.
    pub fn stored(&self, name: &str, spec: &Spec, version: u64, now: Timestamp) -> Arc<KnownState> {
        let mut inner = self.write();
        let before = inner.known.get(name).cloned();
        let is_there = inner.own.stored(name, version, now);
        let mut state = before.as_deref().cloned().unwrap_or_default();
        name.clone_into(&mut state.name);
        state.answer_missing_since = inner.answer_missing_since(&state, now);
        // The watch may have been faster than the answer, or the version is none that could be compared.
        if version <= state.version {
            inner.own.seen(&mut state, now);
        } else {
            state.write(spec);
        }
        state.wait_since(before.as_deref(), None);
        state.drain_since(before.as_deref(), None);
        let state = Arc::new(state);
        if is_there {
            inner.insert(&state);
        }
        state
    }

    /// The nodes to which a spec that has the pool with this UID may be on its way.
    pub fn may_hold(&self, uid: &str, now: Timestamp) -> Vec<String> {
        self.read().own.may_hold(uid, now).map(str::to_owned).collect()
    }

    /// How many nodes have the pools of the spec with this hash.
    pub fn nodes_with(&self, config_hash: &str) -> usize {
        self.read().census.nodes_with(config_hash)
    }

    /// The configurations that a state names, or may name once what is on its way has arrived.
    pub fn configs(&self, now: Timestamp) -> HashSet<String> {
        let inner = self.read();
        let known = inner.known.values().filter_map(|state| state.config.as_deref());
        known.chain(inner.own.configs(now)).map(str::to_owned).collect()
    }

    /// The pools of the configuration of this name, if they are known of a state that names it.
    pub fn of_config(&self, name: &str) -> Option<Vec<Arc<Entry>>> {
        let inner = self.read();
        let has = |state: &&Arc<KnownState>| state.config.as_deref() == Some(name) && !state.spec_unknown;
        inner.known.values().find(has).map(|state| state.pools.clone())
    }

    /// How far the watch is behind the API server, as far as own writes show.
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
    pub fn forget_own(&self, now: Timestamp) {
        self.write().own.clear(now);
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
                for (name, mut state) in before {
                    if self.known.contains_key(&name) {
                        continue;
                    }
                    if self.own.survives(&name, Gone::NotListedSince(begun)) {
                        self.known.insert(name, state);
                    } else {
                        // Whatever happened to it while no watch was open.
                        assume_answered(&mut state, now);
                        self.remember(state, now);
                    }
                }
                self.deleted.retain(|name, _| !self.known.contains_key(name));
                self.census = self.known.values().map(Arc::as_ref).collect();
                self.shared.sweep();
                (Event::InitDone, None)
            }
            Event::Apply(raw) => {
                let (state, lag) = self.observe(&raw, now);
                self.insert(&state);
                (Event::Apply(state), lag)
            }
            Event::Delete(raw) => {
                let state = Arc::new(KnownState::read(&raw, &mut self.shared));
                if !self.own.survives(&state.name, Gone::Deleted(state.version)) {
                    let known = self.known.remove(&state.name);
                    self.census.change(known.as_deref(), None);
                    let mut known = known.unwrap_or_else(|| Arc::clone(&state));
                    if !known.answered() && state.answered() {
                        // No event showed the answer before.
                        Arc::make_mut(&mut known).status.clone_from(&state.status);
                    }
                    self.deleted.retain(|_, (_, at)| is_remembered(*at, now));
                    self.remember(known, now);
                }
                (Event::Delete(state), None)
            }
        };
        Taken { event, lag }
    }

    fn insert(&mut self, state: &Arc<KnownState>) {
        self.deleted.remove(&state.name);
        let before = self.known.insert(state.name.clone(), Arc::clone(state));
        self.census.change(before.as_deref(), Some(state));
    }

    fn remember(&mut self, mut state: Arc<KnownState>, now: Timestamp) {
        // Nobody receives its drains any more.
        Arc::make_mut(&mut state).drains_shown_since = None;
        self.deleted.insert(state.name.clone(), (state, now));
    }

    fn deleted(&self, name: &str, now: Timestamp) -> Option<&Arc<KnownState>> {
        let (state, at) = self.deleted.get(name)?;
        is_remembered(*at, now).then_some(state)
    }

    /// Since when the answer of an agent that had answered is missing from the state.
    fn answer_missing_since(&self, state: &KnownState, now: Timestamp) -> Option<Timestamp> {
        if state.answered() {
            return None;
        }
        let deleted = || self.deleted.get(&state.name).map(|(state, at)| (state, *at));
        let (before, lost) = self.known.get(&state.name).map(|before| (before, now)).or_else(deleted)?;
        if before.answered() { Some(lost) } else { before.answer_missing_since }
    }

    /// Reads a state as the watch shows it, with what the operator has written since.
    fn observe(&mut self, raw: &RawState, now: Timestamp) -> (Arc<KnownState>, Option<Duration>) {
        let mut state = KnownState::read(raw, &mut self.shared);
        let lag = self.own.seen(&mut state, now);
        let shown = !self.own.is_ahead(&state.name);
        if let Some(before) = self.known.get(&state.name) {
            state.recall(before);
        }
        state.answer_missing_since = self.answer_missing_since(&state, now);
        let (before, now) = (self.known.get(&state.name).map(Arc::as_ref), shown.then_some(now));
        state.wait_since(before, now);
        state.drain_since(before, now);
        (Arc::new(state), lag)
    }
}

/// Takes it that an agent has answered a state since the operator last saw it. What nothing was sent to holds nothing.
fn assume_answered(state: &mut Arc<KnownState>, now: Timestamp) {
    if !state.was_answered(now) && !state.pools.is_empty() {
        Arc::make_mut(state).answer_missing_since = Some(now);
    }
}

#[cfg(test)]
mod tests;
