//! The spec of a node state as the operator writes it.

use super::content::{Content, hash_of};
use crate::entry::{Entry, Form, config_hash};
use std::sync::Arc;

/// A spec as the operator writes it.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// UID of the Node that owns the state.
    pub owner: Option<String>,
    /// Hash of its pools.
    pub config_hash: String,
    /// Its pools.
    pub pools: Vec<Arc<Entry>>,
    /// How they are written.
    pub form: Form,
    /// The configuration that has them, if they are shared.
    pub config: Option<String>,
}

impl Spec {
    /// Has it name a configuration that has its pools, or have them itself.
    pub fn share(&mut self, config: Option<&Content>) {
        self.config = config.map(|content| content.name.clone());
        if let Some(content) = config {
            hash_of(&content.name).clone_into(&mut self.config_hash);
        } else {
            self.config_hash = config_hash(&self.pools);
            self.form = self.form.min(Form::Brief);
        }
    }

    /// Whether it has an entry of the pool with this UID.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.pools.iter().any(|entry| entry.uid == uid)
    }
}
