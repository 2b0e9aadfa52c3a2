//! One pool as it is sent to a node, with names for its content, because many nodes are compared often.

use kube::ResourceExt;
use kube::api::ObjectMeta;
use macvtap_crds::v1alpha1::nodestate::PoolPhase;
use macvtap_crds::v1alpha1::settings::PoolSettings;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, NodePool};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::ops::Deref;
use std::sync::Arc;

/// In which form a spec is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// With phase and name of the resource, without which agents of release 0.1.0 cannot read an entry.
    #[default]
    Full,
    /// Without what equals its default.
    Brief,
    /// As the name of a configuration that many nodes have in common, which has the entries in brief.
    Shared,
}

/// One pool of a node's spec.
#[derive(Clone, Debug)]
pub struct Entry {
    pool: NodePool,
    whole: [u8; 32],
    /// Without the generation, which grows also with edits that no node needs to know.
    content: [u8; 32],
}

impl Entry {
    /// An entry with this content. The name of the resource is left out where it is the pool's: both forms are written.
    pub fn new(mut pool: NodePool) -> Self {
        pool.resource_name.take_if(|resource| *resource == pool.name);
        let whole = digest(&pool);
        let content = digest(&NodePool { generation: 0, ..pool.clone() });
        Self { pool, whole, content }
    }

    /// Whether it sends a node the same content.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.content == other.content
    }

    /// The entry as it is written to a node state.
    pub fn json(&self, form: Form) -> serde_json::Result<Value> {
        let mut json = serde_json::to_value(&self.pool)?;
        if form == Form::Full {
            json["phase"] = serde_json::to_value(self.phase)?;
            if let Some(resource) = self.resource() {
                json["resourceName"] = resource.into();
            }
        }
        Ok(json)
    }

    /// The form in which this entry was written as this JSON.
    pub fn form_of(&self, json: &Value) -> Form {
        let is_named = self.resource().is_none() || json.get("resourceName").is_some();
        if json.get("phase").is_some() && is_named { Form::Full } else { Form::Brief }
    }

    /// The same pool, offering no more free devices.
    pub fn draining(self: &Arc<Self>) -> Arc<Self> {
        self.in_phase(PoolPhase::Draining)
    }

    /// The same pool as the node was sent it last, whatever that was.
    pub fn unchanged(self: &Arc<Self>) -> Arc<Self> {
        self.in_phase(PoolPhase::Unchanged)
    }

    fn in_phase(self: &Arc<Self>, phase: PoolPhase) -> Arc<Self> {
        if self.phase == phase {
            Arc::clone(self)
        } else {
            Arc::new(Self::new(NodePool { phase, ..self.pool.clone() }))
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

/// What nodes are sent of a pool.
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

/// What a node is sent of a pool of which nothing but its metadata can be read.
pub fn nameplate(meta: &ObjectMeta) -> Entry {
    Entry::new(NodePool {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        generation: meta.generation.unwrap_or_default(),
        phase: PoolPhase::Unchanged,
        resource_name: None,
        settings: PoolSettings::default(),
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
    // The types hold nothing that JSON cannot say; if ever one did, its text still distinguishes two settings.
    let text = serde_json::to_vec(pool).unwrap_or_else(|_| format!("{pool:?}").into_bytes());
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use serde::Deserialize;
    use serde_json::json;

    /// What an agent of release 0.1.0 insists on in an entry, as its types had it.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct FirstPool {
        name: String,
        #[serde(rename = "uid")]
        _uid: String,
        #[serde(rename = "generation")]
        _generation: i64,
        phase: String,
        resource_name: Option<String>,
    }

    #[test]
    fn agents_of_the_first_release_can_read_the_full_form_and_both_forms_are_one_entry() {
        let spec = json!({"macvtap": {"mtu": 9000}});
        let named = json!({"resourceName": "res", "macvtap": {"mtu": 9000}});
        let per_link = json!({"resourcePer": "Link"});
        for (spec, resource) in [(spec, Some("dp")), (named, Some("res")), (per_link, None)] {
            let entry = entry_of(&pool("dp", spec));
            let first = FirstPool::deserialize(entry.json(Form::Full).unwrap()).unwrap();
            assert_eq!((first.name.as_str(), first.phase.as_str()), ("dp", "Active"));
            assert_eq!(first.resource_name.as_deref(), resource);
            assert!(FirstPool::deserialize(entry.json(Form::Brief).unwrap()).is_err());
            for form in [Form::Brief, Form::Full] {
                let json = entry.json(form).unwrap();
                assert_eq!(entry.form_of(&json), form);
                assert!(Entry::new(NodePool::deserialize(json).unwrap()) == entry);
            }
        }
        let draining = Arc::new(entry_of(&pool("dp", json!({})))).draining();
        let brief = draining.json(Form::Brief).unwrap();
        assert_eq!((&brief["phase"], draining.form_of(&brief)), (&json!("Draining"), Form::Brief));
    }

    #[test]
    fn an_upgrade_from_the_first_release_edits_no_pool() {
        let first = json!({
            "name": "dp", "uid": "uid-dp", "generation": 1, "phase": "Active", "resourceName": "dp",
            "resourcePrefix": "macvtap.network.kubevirt.io", "priority": 0, "links": [{"names": ["dp0"]}],
            "excludeDefaultRoute": false, "overlap": "Exclusive", "resourcePer": "Pool",
            "advertisement": "Enabled", "allocation": "Spread", "tapOnly": "Forbidden", "topology": "Hint",
        });
        let first = Entry::new(NodePool::deserialize(first).unwrap());
        assert_eq!(first, entry_of(&pool("dp", json!({}))));
    }
}
