//! Since when nodes are not Ready, by the operator's own clock.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nodes that are not Ready, and since when.
#[derive(Debug, Default)]
pub struct Readiness {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    not_ready: HashMap<String, Timestamp>,
    /// The list that is being read.
    filling: HashMap<String, Timestamp>,
    is_filled: bool,
}

impl Readiness {
    /// Takes in an event. Another machine's clock counts for what happened before the first list only.
    pub fn take(&self, event: &Event<Node>, now: Timestamp) {
        let state = &mut *self.state();
        match event {
            Event::Init => state.filling.clear(),
            Event::InitApply(node) => {
                if let Some((name, told)) = not_ready(node, now) {
                    let first = if state.is_filled { now } else { told };
                    let since = state.not_ready.get(&name).copied().unwrap_or(first);
                    state.filling.insert(name, since);
                }
            }
            Event::InitDone => {
                state.not_ready = std::mem::take(&mut state.filling);
                state.is_filled = true;
            }
            Event::Apply(node) => match not_ready(node, now) {
                Some((name, _)) => drop(state.not_ready.entry(name).or_insert(now)),
                None => forget(&mut state.not_ready, node),
            },
            Event::Delete(node) => forget(&mut state.not_ready, node),
        }
    }

    /// Since when the node is not Ready, if it is not.
    pub fn lost_since(&self, node: &str) -> Option<Timestamp> {
        self.state().not_ready.get(node).copied()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Maps are whole at any time, also after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget(not_ready: &mut HashMap<String, Timestamp>, node: &Node) {
    if let Some(name) = &node.metadata.name {
        not_ready.remove(name);
    }
}

/// The node's name and since when it says that it is not Ready, if it says so.
fn not_ready(node: &Node, now: Timestamp) -> Option<(String, Timestamp)> {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|condition| condition.type_ == "Ready" && condition.status != "True")?;
    let told = ready.last_transition_time.as_ref().map_or(now, |time| time.0.min(now));
    Some((node.metadata.name.clone()?, told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(ready: &str, told: i64) -> Node {
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": at(told)});
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"conditions": [condition]}}))
            .unwrap()
    }

    #[test]
    fn a_node_is_lost_since_we_saw_it_whatever_another_clock_says() {
        let readiness = Readiness::default();
        let lost = || readiness.lost_since("n1");
        let relist = |node: Node, second| {
            for event in [Event::Init, Event::InitApply(node), Event::InitDone] {
                readiness.take(&event, at(second));
            }
        };
        relist(node("False", 10), 100);
        assert_eq!(lost(), Some(at(10)), "before the first list there is no other clock");
        readiness.take(&Event::Apply(node("True", 110)), at(110));
        assert_eq!(lost(), None);
        readiness.take(&Event::Apply(node("Unknown", 20)), at(120));
        readiness.take(&Event::Apply(node("Unknown", 20)), at(130));
        assert_eq!(lost(), Some(at(120)));
        relist(node("Unknown", 20), 140);
        assert_eq!(lost(), Some(at(120)));
        readiness.take(&Event::Delete(node("Unknown", 20)), at(150));
        assert_eq!(lost(), None);
    }
}
