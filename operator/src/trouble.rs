//! Since when nodes and agents are not ready, by the operator's own clock: the API has it by the clocks of other machines,
//! and one that is wrong by two minutes must not make every node unreachable at once.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// How an object is known: not at all, ready, or not ready since then.
pub type Known = Option<Option<Timestamp>>;

/// Returns since when an object is not ready; none when it is. `said` is that time by the API, if it is not ready;
/// `is_listed` whether it is read in a list, whose objects may have been so for long.
pub fn since(said: Option<Timestamp>, before: Known, is_listed: bool, now: Timestamp) -> Option<Timestamp> {
    let said = said?;
    match before {
        Some(Some(since)) => Some(since),
        None if is_listed => Some(said.min(now)),
        Some(None) | None => Some(now),
    }
}

/// Nodes that are not Ready.
#[derive(Debug, Default)]
pub struct UnreadyNodes {
    state: Mutex<NodeTimes>,
}

#[derive(Debug, Default)]
struct NodeTimes {
    known: HashMap<String, Option<Timestamp>>,
    /// The list that is being read.
    filling: HashMap<String, Option<Timestamp>>,
}

impl UnreadyNodes {
    /// Takes in an event.
    pub fn take(&self, event: &Event<Node>, now: Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = |state: &NodeTimes, name: &str| state.known.get(name).copied();
        match event {
            Event::Init => state.filling.clear(),
            Event::InitApply(node) => {
                let name = node.name_any();
                let since = since(not_ready(node), before(&state, &name), true, now);
                state.filling.insert(name, since);
            }
            Event::InitDone => state.known = std::mem::take(&mut state.filling),
            Event::Apply(node) => {
                let name = node.name_any();
                let since = since(not_ready(node), before(&state, &name), false, now);
                state.known.insert(name, since);
            }
            Event::Delete(node) => {
                state.known.remove(&node.name_any());
            }
        }
    }

    /// Since when a node is not Ready, if it is not. One that no event has named yet is taken as the API has it.
    pub fn not_ready_since(&self, node: &Node) -> Option<Timestamp> {
        let said = not_ready(node)?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Some(state.known.get(&node.name_any()).copied().flatten().unwrap_or(said))
    }
}

fn not_ready(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready")?;
    let time = ready.last_transition_time.as_ref().filter(|_| ready.status != "True")?;
    Some(time.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(status: &str, since: i64) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at(since)}]},
        }))
        .unwrap()
    }

    #[test]
    fn trouble_that_began_while_we_watched_is_as_old_as_our_clock_says() {
        let nodes = UnreadyNodes::default();
        for event in [Event::Init, Event::InitApply(node("True", 5)), Event::InitDone] {
            nodes.take(&event, at(1000));
        }
        // By a clock that is late by minutes, and by one that is ahead.
        for wrong in [700, 5000] {
            let unready = node("Unknown", wrong);
            nodes.take(&Event::Apply(unready.clone()), at(1010));
            nodes.take(&Event::Apply(unready.clone()), at(1020));
            assert_eq!(nodes.not_ready_since(&unready), Some(at(1010)));
            nodes.take(&Event::Apply(node("True", 1030)), at(1030));
            assert_eq!(nodes.not_ready_since(&node("True", 1030)), None);
        }
    }

    #[test]
    fn trouble_that_is_found_in_the_first_list_is_as_old_as_the_api_says_and_a_later_list_changes_nothing() {
        let nodes = UnreadyNodes::default();
        for (said, now) in [(5, 1000), (700, 1100)] {
            for event in [Event::Init, Event::InitApply(node("False", said)), Event::InitDone] {
                nodes.take(&event, at(now));
            }
            assert_eq!(nodes.not_ready_since(&node("False", said)), Some(at(5)));
        }
    }
}
