//! One pool as a node is told of it, with names for its content: nodes are many, and compared all the time.

use kube::ResourceExt;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, NodePool};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;

/// One pool of a node's spec.
#[derive(Clone, Debug)]
pub struct Entry {
    pool: NodePool,
    whole: [u8; 32],
    /// Without the generation, which grows also with edits that no node needs to know.
    content: [u8; 32],
}

impl Entry {
    /// An entry that says this.
    pub fn new(pool: NodePool) -> Self {
        let whole = digest(&pool);
        let content = digest(&NodePool { generation: 0, ..pool.clone() });
        Self { pool, whole, content }
    }

    /// Whether it tells a node the same.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.content == other.content
    }

    /// The same pool, offering no more free devices.
    pub fn draining(self: &Arc<Self>) -> Arc<Self> {
        match self.phase {
            PoolPhase::Draining => Arc::clone(self),
            PoolPhase::Active => {
                Arc::new(Self::new(NodePool { phase: PoolPhase::Draining, ..self.pool.clone() }))
            }
        }
    }
}

impl Deref for Entry {
    type Target = NodePool;

    fn deref(&self) -> &NodePool {
        &self.pool
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.whole == other.whole
    }
}

impl Eq for Entry {}

/// What nodes are told of a pool.
pub fn entry_of(pool: &MacvtapResourcePool) -> Entry {
    Entry::new(NodePool {
        name: pool.name_any(),
        uid: pool.uid().unwrap_or_default(),
        generation: pool.metadata.generation.unwrap_or_default(),
        phase: PoolPhase::Active,
        resource_name: pool.spec.resource_name.clone(),
        settings: pool.spec.settings.clone(),
    })
}

/// The name of a spec by its content, stable across releases. Every node state carries it twice, so it is no longer
/// than telling apart the specs of one node needs.
pub fn config_hash(entries: &[Arc<Entry>]) -> String {
    let mut hash = Sha256::new();
    for entry in entries {
        hash.update(entry.whole);
    }
    let mut name = String::new();
    for byte in hash.finalize().iter().take(8) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

fn digest(pool: &NodePool) -> [u8; 32] {
    // The types hold nothing that JSON cannot say; if ever one did, its text still tells two settings apart.
    let text = serde_json::to_vec(pool).unwrap_or_else(|_| format!("{pool:?}").into_bytes());
    Sha256::digest(text).into()
}
