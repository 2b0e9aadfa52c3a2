//! Configurations: pools that many nodes have in common, written once for all of them.
//!
//! A node state is stored twice for each edit of a pool, once with the spec and once with the agent's answer. Where many nodes
//! have the same pools, their states name a [`MacvtapNodeConfig`](macvtap_crds::v1alpha1::MacvtapNodeConfig), which is stored
//! once. Its name is the hash of its content, so it never changes and nobody watches it.

mod read;
mod sweep;
mod write;

use crate::states::Content;
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, Resource};
use macvtap_crds::v1alpha1::MacvtapNodeConfig;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many contents are kept. One that is forgotten is read again.
const CONTENTS_MAX: usize = 256;

/// The pause after the first try to read a configuration; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(50);

/// For how many such pauses one that could not be read is not read again, for other states that name it.
const UNREAD: u32 = 100;

/// What is known of configurations.
#[derive(Debug)]
pub struct Configs {
    /// How many nodes must have a content for it to be written once for all; 0: none is.
    from: usize,
    pause: Duration,
    /// Held while one is created, so that many writers of one content create it once.
    creating: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    contents: HashMap<String, Arc<Content>>,
    /// Those that could not be read not long ago, and why.
    unread: HashMap<String, (Timestamp, String)>,
    /// Those that exist, as far as this operator knows.
    exist: HashSet<String>,
    /// Those that are being deleted: no state may begin to name one.
    doomed: HashSet<String>,
    /// Since when no state names them.
    unused_since: HashMap<String, Timestamp>,
    /// Those that are not created before a time: the API server has refused them.
    refused: HashMap<String, Timestamp>,
    /// The last reason that was logged.
    logged: Option<String>,
}

impl Configs {
    /// Configurations for contents that so many nodes have.
    pub fn new(from: usize) -> Self {
        Self { from, pause: PAUSE, creating: tokio::sync::Mutex::default(), inner: Mutex::default() }
    }

    /// The same, trying again at once where reading fails.
    #[must_use]
    pub fn impatient(self) -> Self {
        Self { pause: Duration::ZERO, ..self }
    }

    /// Whether it is worth a configuration that so many nodes have the same content.
    pub fn is_worth(&self, nodes: usize) -> bool {
        self.from > 0 && nodes >= self.from
    }

    /// Forgets which exist: another operator creates and deletes them now.
    pub fn forget_existing(&self) {
        let mut inner = self.lock();
        *inner = Inner { contents: std::mem::take(&mut inner.contents), ..Inner::default() };
    }

    // Every change is whole before the lock is let go, also when a holder panics.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, content: &Arc<Content>) {
        if self.contents.len() >= CONTENTS_MAX {
            self.contents.clear();
        }
        self.unread.remove(&content.name);
        self.contents.insert(content.name.clone(), Arc::clone(content));
    }
}

/// The kind, with objects as the API server has them: a name is the hash of that.
fn api(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &ApiResource::erase::<MacvtapNodeConfig>(&()))
}

/// A configuration as it is written.
fn object(content: &Content) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": MacvtapNodeConfig::api_version(&()),
        "kind": MacvtapNodeConfig::kind(&()),
        "metadata": {"name": content.name, "labels": {macvtap_crds::CONFIG_LABEL: ""}},
        "spec": {"pools": content.pools},
    })
}

#[cfg(test)]
mod tests;
