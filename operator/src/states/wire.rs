//! Pure: reads a node state as it comes over the wire.

use super::interner::Interner;
use super::known::{KnownPool, KnownState, KnownStatus, Verdict, version};
use super::raw::{RawState, Shared};
use crate::entry::{Entry, Form};
use k8s_openapi::api::core::v1::Node;
use kube::{Resource, ResourceExt};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WirePool {
    name: String,
    #[serde(default)]
    generation: i64,
    #[serde(default)]
    capacity: u32,
    #[serde(default)]
    allocatable: u32,
    #[serde(default)]
    allocated: u32,
    #[serde(default)]
    dead: u32,
    #[serde(default)]
    links: Vec<IgnoredAny>,
    #[serde(default)]
    unhealthy_links: Vec<IgnoredAny>,
    #[serde(default)]
    contested_links: Vec<IgnoredAny>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    conditions: Vec<WireCondition>,
}

#[derive(Deserialize)]
struct WireCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl KnownState {
    /// Reads what can be read.
    pub fn read(raw: &RawState, shared: &mut Interner) -> Self {
        let mut spec_trouble = Vec::new();
        let mut status_trouble = Vec::new();
        let (form, pools) = match &raw.shared {
            Shared::Known(content) => (Form::Shared, content.entries.clone()),
            Shared::Unknown { why, assumed } => {
                spec_trouble.push(why.clone());
                (Form::Shared, assumed.clone())
            }
            Shared::Not => own_pools(raw, shared, &mut spec_trouble),
        };
        let status = raw.status.is_object().then(|| {
            let pools = array(&raw.status, "pools").iter().filter_map(|json| {
                let read = WirePool::deserialize(json).map(|wire| KnownPool::new(&wire, shared));
                read.inspect_err(|error| status_trouble.push(place(json, "status", error))).ok()
            });
            KnownStatus {
                pools: pools.collect(),
                observed_hash: text(&raw.status, "observedHash"),
                reads: reads(&raw.status),
            }
        });
        let (spec_unreadable, status_unreadable) = (!spec_trouble.is_empty(), !status_trouble.is_empty());
        spec_trouble.append(&mut status_trouble);
        Self {
            answer_missing_since: None,
            name: raw.name_any(),
            owner: owner(raw),
            version: version(&raw.metadata),
            unanswered_since: None,
            drains_shown_since: None,
            config_hash: text(&raw.spec, "configHash").unwrap_or_default(),
            pools,
            form,
            config: raw.config().map(str::to_owned),
            spec_unknown: matches!(raw.shared, Shared::Unknown { .. }),
            status,
            unreadable: (!spec_trouble.is_empty()).then(|| spec_trouble.join("; ")),
            spec_unreadable,
            status_unreadable,
        }
    }
}

impl KnownPool {
    fn new(wire: &WirePool, shared: &mut Interner) -> Self {
        let mut verdict = |kind: &str| {
            let condition = wire.conditions.iter().find(|condition| condition.kind == kind)?;
            Some(Verdict {
                holds: condition.status == "True",
                reason: shared.text(&condition.reason),
                message: shared.text(&condition.message),
            })
        };
        let (ready, degraded) = (verdict("Ready"), verdict("Degraded"));
        let count = |list: &[IgnoredAny]| u32::try_from(list.len()).unwrap_or(u32::MAX);
        Self {
            name: shared.text(&wire.name),
            generation: wire.generation,
            capacity: wire.capacity,
            allocatable: wire.allocatable,
            allocated: wire.allocated,
            dead: wire.dead,
            links: count(&wire.links),
            unhealthy: count(&wire.unhealthy_links),
            contested: count(&wire.contested_links),
            resources: wire.resources.iter().map(|resource| shared.text(resource)).collect(),
            ready,
            degraded,
        }
    }
}

/// The pools that a state has itself, those that can be read, and in which form.
fn own_pools(raw: &RawState, shared: &mut Interner, trouble: &mut Vec<String>) -> (Form, Vec<Arc<Entry>>) {
    let entries = array(&raw.spec, "pools").iter().filter_map(|json| {
        let entry = shared.entry(json).inspect_err(|error| trouble.push(place(json, "spec", error)));
        entry.ok().map(|entry| (entry.form_of(json), entry))
    });
    let (forms, pools): (Vec<Form>, Vec<Arc<Entry>>) = entries.unzip();
    (forms.into_iter().max().unwrap_or_default(), pools)
}

fn array<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// The briefest form that an agent with this status reads. Agents of release 0.1.0 say so by their version, and report no
/// `observedGeneration`; later ones do not report it either while they serve what they have on disk.
fn reads(status: &Value) -> Form {
    let release = text(status, "agentVersion").and_then(|version| {
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    let is_later = release.is_some_and(|release| release > (0, 1));
    let is_known = is_later || status.get("observedGeneration").is_some_and(Value::is_i64);
    if is_known { Form::Shared } else { Form::Full }
}

fn place(json: &Value, part: &str, error: &serde_json::Error) -> String {
    let name = json.get("name").and_then(Value::as_str).unwrap_or("without name");
    format!("{part}.pools[{name}]: {error}")
}

fn owner(raw: &RawState) -> Option<String> {
    let owned = raw.owner_references().iter().find(|owner| {
        owner.kind == Node::kind(&())
            && owner.api_version == Node::api_version(&())
            && owner.name == raw.name_any()
            && owner.block_owner_deletion.is_none()
    });
    owned.map(|owner| owner.uid.clone())
}
