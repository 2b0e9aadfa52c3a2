//! What objects say of themselves, one line a statement, followed by watches so that nothing short-lived is missed.
//!
//! `pool NAME CONDITION STATUS REASON`, `sample POOL NODE REASON`, `node NAME CONDITION STATUS REASON`,
//! `part NODE/POOL CONDITION STATUS REASON`, `link NODE/LINK REASON`.

use crate::stage::PATIENCE;
use anyhow::{Context as _, Result};
use e2e::Kubectl;
use serde::Deserialize as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What was said, and what is said now.
#[derive(Default)]
struct Said {
    ever: BTreeSet<String>,
    now: BTreeMap<String, BTreeSet<String>>,
}

/// Follows what objects say.
pub(crate) struct Facts {
    watches: Vec<Child>,
    said: Arc<Mutex<Said>>,
}

impl Facts {
    pub(crate) fn follow(kubectl: &Kubectl) -> Result<Self> {
        let mut facts = Self { watches: Vec::new(), said: Arc::default() };
        for kind in ["macvtapresourcepools", "macvtapnodestates"] {
            let mut command = kubectl.command();
            command.args(["get", kind, "-o", "json", "--watch", "--output-watch-events"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let output = child.stdout.take().context("kubectl has no output")?;
            facts.watches.push(child);
            let said = Arc::clone(&facts.said);
            std::thread::spawn(move || {
                let mut events = serde_json::Deserializer::from_reader(output);
                while let Ok(event) = Value::deserialize(&mut events) {
                    take(&said, &event);
                }
            });
        }
        Ok(facts)
    }

    /// Waits until this was said at any time.
    pub(crate) fn ever(&self, fact: &str) -> Result<()> {
        self.wait(fact, PATIENCE, |said| said.ever.contains(fact))
    }

    /// Waits until this is said.
    pub(crate) fn now(&self, fact: &str) -> Result<()> {
        self.now_within(fact, PATIENCE)
    }

    pub(crate) fn now_within(&self, fact: &str, deadline: Duration) -> Result<()> {
        self.wait(fact, deadline, |said| said.now.values().any(|facts| facts.contains(fact)))
    }

    fn wait(&self, fact: &str, deadline: Duration, found: impl Fn(&Said) -> bool) -> Result<()> {
        let waited = e2e::wait::until(fact, deadline, || Ok(found(&lock(&self.said)).then_some(())));
        waited.with_context(|| {
            // What is said of the same thing helps more than all of it.
            let about: Vec<&str> = fact.split_whitespace().take(2).collect();
            let about = about.join(" ");
            let said = lock(&self.said);
            let now: Vec<&String> =
                said.now.values().flatten().filter(|now| now.starts_with(&about)).collect();
            format!("now: {now:?}")
        })
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        for watch in &mut self.watches {
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(said: &Mutex<Said>, event: &Value) {
    let object = &event["object"];
    let key = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let mut said = lock(said);
    if event["type"] == "DELETED" {
        said.now.remove(&key);
        return;
    }
    let facts = facts_of(object);
    said.ever.extend(facts.iter().cloned());
    said.now.insert(key, facts);
}

fn facts_of(object: &Value) -> BTreeSet<String> {
    let name = text(&object["metadata"]["name"]);
    let status = &object["status"];
    let mut facts = BTreeSet::new();
    if object["kind"] == "MacvtapResourcePool" {
        facts.extend(conditions(&format!("pool {name}"), status));
        for sample in list(&status["samples"]) {
            facts.insert(format!("sample {name} {} {}", text(&sample["node"]), text(&sample["reason"])));
        }
        return facts;
    }
    facts.extend(conditions(&format!("node {name}"), status));
    for pool in list(&status["pools"]) {
        let part = format!("part {name}/{}", text(&pool["name"]));
        let abnormal = conditions(&part, pool);
        // A node state leaves out what is normal.
        for (kind, normal) in [("Ready", "True Serving"), ("Degraded", "False AsExpected")] {
            let prefix = format!("{part} {kind} ");
            if !abnormal.iter().any(|fact| fact.starts_with(&prefix)) {
                facts.insert(prefix + normal);
            }
        }
        facts.extend(abnormal);
    }
    for link in list(&status["links"]) {
        let reason = link["reason"].as_str().unwrap_or("-");
        facts.insert(format!("link {name}/{} {reason}", text(&link["name"])));
    }
    facts
}

fn conditions(subject: &str, status: &Value) -> Vec<String> {
    let conditions = list(&status["conditions"]).iter();
    let line =
        |c: &Value| format!("{subject} {} {} {}", text(&c["type"]), text(&c["status"]), text(&c["reason"]));
    conditions.map(line).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
