//! Pure: entries of macvtap-cni's configuration to pools that keep every resource name.

use macvtap_crds::GROUP;
use macvtap_crds::v1alpha1::pool::NAME_MAX;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The most devices one link can offer.
const CAPACITY_MAX: u64 = 4096;

/// The longest name of a link, alternative names included, in bytes.
const LINK_NAME_MAX: usize = 127;

/// The most names one entry of `links` takes.
const NAMES_MAX: usize = 64;

/// Name of the pool that an empty configuration means.
const EVERY_LINK: &str = "every-link";

/// One configuration, and the nodes it is for.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name of its `ConfigMap`, or of the file.
    pub name: String,
    /// A label of the nodes that read it; absent: all.
    pub nodes: Option<(String, String)>,
    /// Its entries.
    pub entries: Vec<Map<String, Value>>,
}

/// What must be printed.
#[derive(Clone, Debug, Default)]
pub struct Migration {
    /// About all pools.
    pub notes: Vec<String>,
    /// Entries that have no pool, and why.
    pub problems: Vec<String>,
    /// The pools, in the order of the entries.
    pub pools: Vec<Printed>,
}

/// One pool.
#[derive(Clone, Debug)]
pub struct Printed {
    /// What is to know about it.
    pub notes: Vec<String>,
    /// The object.
    pub object: Value,
}

/// One entry, checked.
#[derive(Clone, Debug)]
struct CheckedEntry {
    name: String,
    lower: String,
    mode: &'static str,
    capacity: Option<u64>,
    notes: Vec<String>,
}

/// A resource: its entries of all groups.
#[derive(Debug)]
struct Resource {
    first: CheckedEntry,
    lowers: BTreeSet<String>,
    /// Labels of its nodes; none when it is for all.
    nodes: Option<BTreeSet<(String, String)>>,
    notes: Vec<String>,
}

/// The pools for these configurations.
pub fn plan(groups: &[Group]) -> Migration {
    let mut plan = Migration { notes: general(groups), ..Migration::default() };
    let mut resources: Vec<Resource> = Vec::new();
    let mut automatic = None;
    let mut uses: BTreeMap<String, usize> = BTreeMap::new();
    for group in groups {
        if group.entries.is_empty() {
            merge_nodes(automatic.get_or_insert_with(|| Some(BTreeSet::new())), group);
        }
        let mut seen = BTreeSet::new();
        for (index, object) in group.entries.iter().enumerate() {
            let place = format!("entry {} of {}", index + 1, group.name);
            let entry = match check(object) {
                Ok(entry) => entry,
                Err(problem) => {
                    plan.problems.push(format!("{place}: {problem}"));
                    continue;
                }
            };
            if !seen.insert(entry.name.clone()) {
                plan.problems
                    .push(format!("{place}: {} occurs twice; macvtap-cni serves one of them", entry.name));
                continue;
            }
            *uses.entry(entry.lower.clone()).or_default() += 1;
            if let Err(problem) = add(&mut resources, entry, group) {
                plan.problems.push(format!("{place}: {problem}"));
            }
        }
    }
    let shared = |lowers: &BTreeSet<String>, of: &Resource| {
        automatic.is_some()
            || resources_over(lowers, &resources).any(|other| other.first.name != of.first.name)
    };
    let mut names = BTreeSet::new();
    let printed: Vec<Printed> = resources
        .iter()
        .map(|resource| print(resource, shared(&resource.lowers, resource), &mut names))
        .collect();
    plan.pools = printed;
    if let Some(nodes) = automatic {
        plan.pools.push(every_link(nodes.as_ref(), !resources.is_empty(), &mut names));
    }
    plan
}

fn resources_over<'r>(
    lowers: &'r BTreeSet<String>,
    resources: &'r [Resource],
) -> impl Iterator<Item = &'r Resource> {
    resources.iter().filter(|resource| !resource.lowers.is_disjoint(lowers))
}

fn general(groups: &[Group]) -> Vec<String> {
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    let mut notes = vec![
        format!("Pools in the place of {}.", names.join(", ")),
        "The same as before: resource names, device IDs, the limits of pods, NetworkAttachmentDefinitions, the lower".to_owned(),
        "links, modes and numbers of devices, and pods that take a tap without a network (tapOnly: Allowed).".to_owned(),
        "Different: devices of a link that is down or has no carrier are unhealthy (health: {carrier: Ignored} changes".to_owned(),
        "that); devices receive all multicast (macvtap: {allMulticast: false}); a changed pool needs no restart.".to_owned(),
        "A resource has one owner on a node: move nodes one after the other by label macvtap=pools, which macvtap-cni's".to_owned(),
        "DaemonSet leaves out and agent.nodeSelector asks for, and remove that DaemonSet last (docs/migration.md).".to_owned(),
    ];
    if groups.len() > 1 && groups.iter().any(|group| group.nodes.is_none()) {
        notes.push(
            "Several configurations, and not all say for which nodes: give each a label with --nodes NAME=KEY=VALUE."
                .to_owned(),
        );
    }
    notes
}

/// Reads an entry as macvtap-cni does, which compares keys without case and leaves out what it does not know.
fn check(object: &Map<String, Value>) -> Result<CheckedEntry, String> {
    let mut notes = Vec::new();
    let mut fields: BTreeMap<&str, &Value> = BTreeMap::new();
    for (key, value) in object {
        let known = ["name", "lowerDevice", "master", "mode", "capacity"];
        match known.into_iter().find(|known| known.eq_ignore_ascii_case(key)) {
            Some(known) => drop(fields.insert(known, value)),
            None => notes.push(format!("key {key:?} means nothing to macvtap-cni and is left out")),
        }
    }
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(format!("{key} is {other} and not a text")),
    };
    let name = text("name")?.ok_or("it has no name")?;
    if !is_resource_name(name) {
        return Err(format!(
            "name {name:?} cannot be a resource's, so the kubelet never served it; use 1 to {NAME_MAX} letters, digits, -, _ and ."
        ));
    }
    let lower = match (text("lowerDevice")?, text("master")?) {
        (Some(lower), Some(master)) if lower != master => {
            return Err(format!("lowerDevice is {lower:?} and master is {master:?}; keep one"));
        }
        (Some(lower), _) => lower,
        (None, Some(master)) => {
            notes.push("master is the older word for lowerDevice".to_owned());
            master
        }
        (None, None) => return Err("it has no lowerDevice".to_owned()),
    };
    if lower.len() > LINK_NAME_MAX
        || lower.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
    {
        return Err(format!("lowerDevice {lower:?} is no name of a link"));
    }
    let mode = match text("mode")? {
        None => "Bridge",
        Some(mode) => match mode {
            "bridge" => "Bridge",
            "vepa" => "VEPA",
            "private" => "Private",
            "passthru" => "Passthru",
            other => return Err(format!("mode {other:?} is none of bridge, vepa, private and passthru")),
        },
    };
    let capacity = capacity(fields.get("capacity").copied(), mode, &mut notes)?;
    Ok(CheckedEntry { name: name.to_owned(), lower: lower.to_owned(), mode, capacity, notes })
}

fn capacity(value: Option<&Value>, mode: &str, notes: &mut Vec<String>) -> Result<Option<u64>, String> {
    let number = match value {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64() {
            Some(0) => None,
            Some(number) if number <= CAPACITY_MAX => Some(number),
            _ => return Err(format!("capacity is {value}; a link offers 1 to {CAPACITY_MAX} devices")),
        },
    };
    if mode == "Passthru" {
        if number != Some(1) {
            notes.push(
                "passthru gives a link to one device: one is offered, of which alone could be used before"
                    .to_owned(),
            );
        }
        return Ok(None);
    }
    Ok(number)
}

fn is_resource_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= NAME_MAX
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && edge(name.chars().next())
        && edge(name.chars().next_back())
}

/// Adds an entry to its resource: the same resource of several configurations is one pool.
fn add(resources: &mut Vec<Resource>, entry: CheckedEntry, group: &Group) -> Result<(), String> {
    if let Some(resource) = resources.iter_mut().find(|resource| resource.first.name == entry.name) {
        let first = &resource.first;
        if (first.mode, first.capacity) != (entry.mode, entry.capacity) {
            return Err(format!(
                "resource {} has another mode or capacity in another configuration, and a pool has one: give this one another name",
                entry.name
            ));
        }
        if !resource.lowers.contains(&entry.lower) {
            if resource.lowers.len() >= NAMES_MAX {
                return Err(format!("resource {} has more than {NAMES_MAX} lower devices", entry.name));
            }
            resource.notes.push(format!(
                "its nodes have different lower devices, also {}; a node that has several of them offers all",
                entry.lower
            ));
        }
        resource.lowers.insert(entry.lower);
        resource.notes.extend(entry.notes);
        merge_nodes(&mut resource.nodes, group);
        return Ok(());
    }
    let mut nodes = Some(BTreeSet::new());
    merge_nodes(&mut nodes, group);
    let lowers = BTreeSet::from([entry.lower.clone()]);
    resources.push(Resource { notes: entry.notes.clone(), first: entry, lowers, nodes });
    Ok(())
}

/// Adds the nodes of a group; one that is for all nodes makes the rest pointless.
fn merge_nodes(nodes: &mut Option<BTreeSet<(String, String)>>, group: &Group) {
    match (&group.nodes, nodes.as_mut()) {
        (Some(label), Some(nodes)) => drop(nodes.insert(label.clone())),
        (None, Some(_)) => *nodes = None,
        (_, None) => {}
    }
}

fn print(resource: &Resource, shared: bool, names: &mut BTreeSet<String>) -> Printed {
    let CheckedEntry { name, mode, capacity, .. } = &resource.first;
    let mut notes = vec![format!("pods ask for {GROUP}/{name}, as before")];
    notes.extend(resource.notes.iter().cloned());
    let selector: Vec<String> = resource.lowers.iter().map(|lower| escape(lower)).collect();
    let mut spec = json!({"links": [{"names": selector}], "tapOnly": "Allowed", "macvtap": {"mode": mode}});
    let pool = pool_name(name, names);
    if pool != *name {
        spec["resourceName"] = name.as_str().into();
    }
    if let Some(capacity) = capacity {
        spec["capacity"] = json!({"perLink": capacity});
    }
    if shared && *mode == "Passthru" {
        notes.push("another resource has the same lower device, and passthru takes whole links: only one can have it".to_owned());
    } else if shared {
        notes.push("another resource has the same lower device, so the pools share it".to_owned());
        spec["overlap"] = "Shared".into();
    }
    select(&mut spec, resource.nodes.as_ref(), &mut notes);
    Printed { notes, object: object(&pool, &spec) }
}

/// The pool that an empty configuration means.
fn every_link(
    wanted: Option<&BTreeSet<(String, String)>>,
    shared: bool,
    names: &mut BTreeSet<String>,
) -> Printed {
    let mut notes = vec![
        format!("an empty configuration: each NIC and each bond is a resource {GROUP}/<its name>, as before"),
        "ports of bonds and bridges offer nothing: a macvtap on them never worked".to_owned(),
    ];
    let mut spec = json!({
        "links": [{"kinds": ["Physical", "Bond"]}],
        "resourcePer": "Link",
        "tapOnly": "Allowed",
        "macvtap": {"mode": "Bridge"},
    });
    if shared {
        spec["overlap"] = "Shared".into();
    }
    select(&mut spec, wanted, &mut notes);
    Printed { notes, object: object(&pool_name(EVERY_LINK, names), &spec) }
}

/// Says which nodes are meant, if labels of one key say it.
fn select(spec: &mut Value, wanted: Option<&BTreeSet<(String, String)>>, notes: &mut Vec<String>) {
    let Some(labels) = wanted else { return };
    let keys: BTreeSet<&str> = labels.iter().map(|(key, _)| key.as_str()).collect();
    let values: Vec<&str> = labels.iter().map(|(_, value)| value.as_str()).collect();
    match (keys.first(), values.as_slice()) {
        (Some(key), [value]) => spec["nodeSelector"] = json!({"matchLabels": {*key: value}}),
        (Some(key), values) if keys.len() == 1 => {
            let expression = json!({"key": key, "operator": "In", "values": values});
            spec["nodeSelector"] = json!({"matchExpressions": [expression]});
        }
        _ => notes.push(
            "its nodes have labels of different keys, which no selector can join: set nodeSelector"
                .to_owned(),
        ),
    }
}

fn object(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "MacvtapResourcePool",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// A name for the pool of a resource: objects have stricter names than resources.
fn pool_name(resource: &str, taken: &mut BTreeSet<String>) -> String {
    let plain: String = resource.to_ascii_lowercase().replace('_', "-");
    // What `.` may not stand next to.
    let plain = plain.split('.').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty());
    let plain = plain.collect::<Vec<_>>().join(".");
    let mut name = plain.clone();
    for number in 2.. {
        if taken.insert(name.clone()) {
            break;
        }
        let suffix = format!("-{number}");
        let end = plain.len().min(NAME_MAX - suffix.len());
        name = format!("{}{suffix}", plain.get(..end).unwrap_or_default().trim_end_matches(['-', '.']));
    }
    name
}

/// A shell pattern that matches this name only.
fn escape(name: &str) -> String {
    let mut pattern = String::new();
    for c in name.chars() {
        match c {
            '*' | '?' | '[' | ']' => pattern.extend(['[', c, ']']),
            other => pattern.push(other),
        }
    }
    pattern
}

#[cfg(test)]
mod tests;
