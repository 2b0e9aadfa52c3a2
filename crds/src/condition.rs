//! Conditions: the types both kinds use, and the rule for `lastTransitionTime`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use std::fmt;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The object makes sense together with all others; only then it has an effect.
    Accepted,
    /// Every matched node that reports has applied the object and serves a healthy device.
    Ready,
    /// At least one node serves a healthy device, whatever else is wrong or on its way.
    Available,
    /// A change is on its way.
    Progressing,
    /// Something is worse than it should be.
    Degraded,
    /// The network attachment definitions are there.
    NetworksReady,
    /// The object is being deleted, and what it waits for.
    Terminating,
    /// Nothing goes on until somebody acts. Absent while that is not so, as kstatus expects it.
    Stalled,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It is not known yet.
    Unknown,
}

/// A condition without its times: what a pure function decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub condition: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One stable `CamelCase` word; see the enums in [`crate::v1alpha1::reason`].
    pub reason: &'static str,
    /// One sentence for people.
    pub message: String,
}

/// The longest message the API server takes.
const MESSAGE_MAX: usize = 32_768;

impl ConditionType {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Ready => "Ready",
            Self::Available => "Available",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::NetworksReady => "NetworksReady",
            Self::Terminating => "Terminating",
            Self::Stalled => "Stalled",
        }
    }
}

impl ConditionStatus {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ConditionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The condition of this type, if it is there.
pub fn find(conditions: &[Condition], condition: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == condition.as_str())
}

/// Whether the condition of this type is there and `True`.
pub fn holds(conditions: &[Condition], condition: ConditionType) -> bool {
    find(conditions, condition).is_some_and(|c| c.status == ConditionStatus::True.as_str())
}

/// Whether a condition of a node state says that nothing is wrong: Ready is True, Degraded is False.
pub fn is_normal(condition: &Condition) -> bool {
    let normal =
        [(ConditionType::Ready, ConditionStatus::True), (ConditionType::Degraded, ConditionStatus::False)];
    normal
        .iter()
        .any(|(kind, status)| condition.type_ == kind.as_str() && condition.status == status.as_str())
}

/// The conditions that state these findings: `lastTransitionTime` is kept where the status did not change. Types that
/// have no finding are dropped, so an old condition never outlives its subject.
pub fn conditions(
    old: &[Condition],
    findings: &[Finding],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    findings
        .iter()
        .map(|finding| {
            let before = find(old, finding.condition).filter(|c| c.status == finding.status.as_str());
            Condition {
                type_: finding.condition.to_string(),
                status: finding.status.to_string(),
                reason: finding.reason.to_owned(),
                message: truncated(&finding.message),
                observed_generation: generation,
                last_transition_time: before.map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

fn truncated(message: &str) -> String {
    let end = (0..=message.len().min(MESSAGE_MAX)).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
    message.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).unwrap())
    }

    fn ready(status: ConditionStatus, reason: &'static str) -> [Finding; 1] {
        [Finding { condition: ConditionType::Ready, status, reason, message: reason.to_lowercase() }]
    }

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let first = conditions(&[], &ready(ConditionStatus::False, "NodesNotReady"), Some(1), &at(10));
        let same = conditions(&first, &ready(ConditionStatus::False, "NoMatchingNodes"), Some(2), &at(20));
        assert_eq!(same[0].last_transition_time, at(10));
        assert_eq!((same[0].reason.as_str(), same[0].observed_generation), ("NoMatchingNodes", Some(2)));
        let flipped = conditions(&same, &ready(ConditionStatus::True, "AllNodesReady"), Some(2), &at(30));
        assert_eq!(flipped[0].last_transition_time, at(30));
        assert!(holds(&flipped, ConditionType::Ready));
        assert!(!holds(&flipped, ConditionType::Degraded));
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_between_characters() {
        assert_eq!(truncated(&"é".repeat(MESSAGE_MAX)).len(), MESSAGE_MAX);
        assert_eq!(truncated(&format!("a{}", "é".repeat(MESSAGE_MAX))).len(), MESSAGE_MAX - 1);
    }
}
