//! The spec of a node state as the operator writes it.

use crate::entry::{Entry, Form};
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
}

impl Spec {
    /// Whether it has an entry of the pool with this UID.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.pools.iter().any(|entry| entry.uid == uid)
    }
}
