//! Pure: which changes of conditions are worth an event.

use crate::network::kind::NetworkKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::reason::{EventReason, PoolReason};

/// The longest note the API server takes, in bytes.
const NOTE_MAX: usize = 1024;

/// How many networks an event names.
const NAMED: usize = 3;

/// The conditions that people wait for.
const CONDITIONS: [ConditionType; 6] = [
    ConditionType::Accepted,
    ConditionType::Ready,
    ConditionType::Available,
    ConditionType::Progressing,
    ConditionType::NetworksReady,
    ConditionType::Terminating,
];

/// Whether nodes are still applying a change: a pool is not ready then, which is neither wrong nor news.
fn applying(conditions: &[Condition]) -> bool {
    let is = |kind, reason: PoolReason| {
        condition::find(conditions, kind).is_some_and(|condition| condition.reason == reason.as_str())
    };
    is(ConditionType::Ready, PoolReason::NodesNotReady)
        && is(ConditionType::Progressing, PoolReason::NodesUpdating)
}

/// One event for each condition that people wait for and that changed.
pub fn events(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    CONDITIONS
        .into_iter()
        .filter_map(|kind| {
            let new = condition::find(after, kind)?;
            // What a schema's default says, nobody has said.
            let old = condition::find(before, kind).filter(|old| old.reason != PoolReason::Pending.as_str());
            if kind == ConditionType::Ready && applying(after) {
                return None;
            }
            let old = old.filter(|_| kind != ConditionType::Ready || !applying(before));
            // Of progress only its stop is news, and its going on after one.
            let halt = |condition: &Condition| condition.reason == PoolReason::RolloutHalted.as_str();
            if kind == ConditionType::Progressing && !halt(new) && !old.is_some_and(halt) {
                return None;
            }
            let changed = old.is_none_or(|old| (&old.status, &old.reason) != (&new.status, &new.reason));
            let good = new.status == "True";
            // A pool that begins by having what it should is no news, except for being ready.
            let news = matches!(kind, ConditionType::Ready | ConditionType::Terminating);
            // The end of a pool is announced by condition Terminating, once it has to wait for somebody.
            let ends = [PoolReason::Terminating, PoolReason::NodesDraining];
            let ending = ends.iter().any(|end| new.reason == end.as_str())
                || kind == ConditionType::Available && condition::holds(after, ConditionType::Terminating);
            // A new pool is announced by its readiness.
            let ending = ending || kind == ConditionType::Available && old.is_none();
            let expected = ending || old.is_none() && good && !news;
            let neutral =
                kind == ConditionType::Terminating || kind == ConditionType::Progressing && !halt(new);
            (changed && !expected).then(|| event(new, good || neutral, kind))
        })
        .collect()
}

/// The event about networks of a released pool that are deleted and that finalizers of others keep.
pub fn kept_networks(kept: &[NetworkKey]) -> Option<Event> {
    let named: Vec<_> =
        kept.iter().take(NAMED).map(|(namespace, name)| format!("{namespace}/{name}")).collect();
    let more = if kept.len() > named.len() { ", ..." } else { "" };
    let note = format!(
        "the pool was removed; finalizers of others keep {} of its NetworkAttachmentDefinitions, which are deleted: {}{more}",
        kept.len(),
        named.join(", ")
    );
    (!kept.is_empty()).then(|| Event {
        type_: EventType::Warning,
        reason: EventReason::NetworksKept.to_string(),
        note: Some(short(note)),
        action: ConditionType::Terminating.to_string(),
        secondary: None,
    })
}

fn short(mut note: String) -> String {
    while note.len() > NOTE_MAX {
        note.pop();
    }
    note
}

fn event(condition: &Condition, good: bool, kind: ConditionType) -> Event {
    Event {
        type_: if good { EventType::Normal } else { EventType::Warning },
        reason: condition.reason.clone(),
        note: Some(short(condition.message.clone())),
        action: kind.to_string(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use macvtap_crds::condition::{ConditionStatus, Finding, conditions};

    fn state(findings: &[(ConditionType, bool, &'static str)]) -> Vec<Condition> {
        let findings: Vec<Finding> = findings
            .iter()
            .map(|&(condition, holds, reason)| Finding {
                condition,
                status: ConditionStatus::from(holds),
                reason,
                message: "é".repeat(1000),
            })
            .collect();
        conditions(&[], &findings, None, &at(0))
    }

    fn reasons(before: &[Condition], after: &[Condition]) -> Vec<(String, EventType)> {
        events(before, after).into_iter().map(|event| (event.reason, event.type_)).collect()
    }

    #[test]
    fn what_changes_is_announced_once_and_what_begins_well_is_not() {
        use ConditionType::{Accepted, Degraded, Ready, Terminating};
        let first = state(&[
            (Accepted, true, "Valid"),
            (Ready, false, "NodesNotReady"),
            (Degraded, true, "NodesDegraded"),
        ]);
        let later = state(&[(Accepted, true, "Valid"), (Ready, true, "AllNodesReady")]);
        let ending = state(&[
            (Accepted, true, "Valid"),
            (Ready, true, "AllNodesReady"),
            (Terminating, true, "DevicesInUse"),
        ]);
        assert_eq!(reasons(&[], &first), [("NodesNotReady".into(), EventType::Warning)]);
        assert_eq!(reasons(&first, &later), [("AllNodesReady".into(), EventType::Normal)]);
        assert_eq!(reasons(&later, &later), []);
        assert_eq!(reasons(&later, &ending), [("DevicesInUse".into(), EventType::Normal)]);
    }

    #[test]
    fn of_progress_only_a_halt_and_its_end_are_news() {
        use ConditionType::Progressing;
        let going = state(&[(Progressing, true, "NodesUpdating")]);
        let halted = state(&[(Progressing, false, "RolloutHalted")]);
        let done = state(&[(Progressing, false, "UpToDate")]);
        assert_eq!(reasons(&[], &going), []);
        assert_eq!(reasons(&going, &halted), [("RolloutHalted".into(), EventType::Warning)]);
        assert_eq!(reasons(&halted, &going), [("NodesUpdating".into(), EventType::Normal)]);
        assert_eq!(reasons(&going, &done), []);
    }

    #[test]
    fn networks_that_finalizers_keep_are_named_up_to_three() {
        let keys: Vec<NetworkKey> = (0..5).map(|i| ("tenant".to_owned(), format!("net-{i}"))).collect();
        assert!(kept_networks(&[]).is_none());
        let note = |kept: &[NetworkKey]| kept_networks(kept).unwrap().note.unwrap();
        assert!(
            note(&keys[..1])
                .ends_with("keep 1 of its NetworkAttachmentDefinitions, which are deleted: tenant/net-0")
        );
        assert!(note(&keys).ends_with("tenant/net-0, tenant/net-1, tenant/net-2, ..."));
    }

    #[test]
    fn a_note_keeps_to_the_limit_of_the_server() {
        let after = state(&[(ConditionType::Ready, true, "AllNodesReady")]);
        assert!(events(&[], &after)[0].note.as_ref().unwrap().len() <= NOTE_MAX);
    }
}
