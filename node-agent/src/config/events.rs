//! What is worth an Event: on the Node, conditions of pools that changed for better or worse; on a pod, the loss of its
//! link.

use crate::attachments::{Lost, LostLink};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as PodEvent;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use macvtap::device_id::DeviceId;
use macvtap_crds::AGENT_FIELD_MANAGER;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::{MacvtapNodeStateStatus, MacvtapResourcePool, NodePoolStatus};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use tokio::sync::watch;
use tracing::debug;

/// The longest note the API server takes, in bytes.
const NOTE_MAX: usize = 1024;

/// One change that people should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    warning: bool,
    reason: String,
    note: String,
    pool: String,
}

impl From<Notice> for Event {
    fn from(notice: Notice) -> Self {
        Self {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason,
            note: Some(notice.note),
            action: "ServePool".to_owned(),
            // Events of a Node with one reason are one Event with the note of the first, unless they are about different
            // objects.
            secondary: Some(ObjectReference {
                api_version: Some(MacvtapResourcePool::api_version(&()).into_owned()),
                kind: Some(MacvtapResourcePool::kind(&()).into_owned()),
                name: Some(notice.pool),
                ..ObjectReference::default()
            }),
        }
    }
}

/// Writes Events on one Node.
pub(super) struct Announcer {
    recorder: Recorder,
    node: ObjectReference,
}

impl Announcer {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // What the kubelet writes in its own Events on the Node; `kubectl describe node` looks for it.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        Self { recorder: Recorder::new(client, reporter(node)), node: reference }
    }

    /// Writes what changed. An Event that is lost is not written again: the status says it all.
    pub(super) async fn announce(
        &self,
        before: Option<&MacvtapNodeStateStatus>,
        after: &MacvtapNodeStateStatus,
    ) {
        for notice in notices(before, after) {
            if let Err(problem) = self.recorder.publish(&notice.into(), &self.node).await {
                let reason = crate::error_chain(&problem);
                debug!(%reason, "event not written");
            }
        }
    }
}

/// Writes an Event on each pod that loses a link: once, also when another agent announced it. An Event that is lost is
/// not written again: the node state counts on.
pub(super) async fn announce_lost(client: Client, node: String, mut lost: watch::Receiver<Lost>) {
    let mut announced = Lost::new();
    loop {
        let now = lost.borrow_and_update().clone();
        for (device, link) in now.iter().filter(|(device, link)| announced.get(*device) != Some(*link)) {
            let events: Api<PodEvent> = Api::namespaced(client.clone(), &link.pod.namespace);
            let event = lost_event(&node, device, link, Timestamp::now());
            match events.create(&PostParams::default(), &event).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(problem) => {
                    let reason = crate::error_chain(&problem);
                    debug!(%reason, "event not written");
                }
                Ok(_) => {}
            }
        }
        announced = now;
        if lost.changed().await.is_err() {
            return;
        }
    }
}

/// The Event of one loss. Its name follows from the loss, so that the API server has it once, as long as it keeps
/// Events: for an hour, if nothing else is set.
fn lost_event(node: &str, device: &DeviceId, link: &LostLink, now: Timestamp) -> PodEvent {
    let what = link.interface.as_ref().map_or_else(
        || format!("the tap of device {device}"),
        |interface| format!("interface {interface} (device {device})"),
    );
    // May differ between releases of the standard library: an upgrade then announces the loss again.
    let mut loss = DefaultHasher::new();
    (device, &link.pod.name, &link.pod_uid, &link.sandbox).hash(&mut loss);
    PodEvent {
        metadata: ObjectMeta {
            name: Some(format!("macvtap-link-lost.{:016x}", loss.finish())),
            namespace: Some(link.pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("LinkLost".to_owned()),
        note: Some(format!(
            "{what} vanished under this pod; delete the pod, only a new one gets a working link"
        )),
        action: Some("CheckLink".to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(link.pod.namespace.clone()),
            name: Some(link.pod.name.clone()),
            uid: Some(link.pod_uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(AGENT_FIELD_MANAGER.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..PodEvent::default()
    }
}

fn reporter(node: &str) -> Reporter {
    Reporter { controller: AGENT_FIELD_MANAGER.to_owned(), instance: Some(node.to_owned()) }
}

/// What changed between two statuses. An agent that has just started announces trouble only.
fn notices(before: Option<&MacvtapNodeStateStatus>, after: &MacvtapNodeStateStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    for pool in &after.pools {
        let earlier = before.and_then(|before| before.pools.iter().find(|earlier| earlier.name == pool.name));
        for (kind, good) in [(ConditionType::Ready, "True"), (ConditionType::Degraded, "False")] {
            let Some(now) = condition::find(&pool.conditions, kind) else { continue };
            let was = earlier.and_then(|earlier: &NodePoolStatus| condition::find(&earlier.conditions, kind));
            let is_good = now.status == good;
            let changed = match was {
                Some(was) => was.status != now.status || (!is_good && was.reason != now.reason),
                // A node state leaves out what is normal.
                None => !is_good || (before.is_some() && earlier.is_none()),
            };
            if changed && !(is_good && kind == ConditionType::Degraded && was.is_none()) {
                let mut note = format!("pool {}: {}", pool.name, now.message);
                let end = (0..=note.len().min(NOTE_MAX)).rev().find(|at| note.is_char_boundary(*at));
                note.truncate(end.unwrap_or_default());
                notices.push(Notice {
                    warning: !is_good,
                    reason: now.reason.clone(),
                    note,
                    pool: pool.name.clone(),
                });
            }
        }
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: "m".into(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        }
    }

    fn status(ready: (&str, &str), degraded: (&str, &str)) -> MacvtapNodeStateStatus {
        let conditions =
            vec![condition("Ready", ready.0, ready.1), condition("Degraded", degraded.0, degraded.1)];
        let pool = NodePoolStatus { name: "p".into(), conditions, ..NodePoolStatus::default() };
        MacvtapNodeStateStatus { pools: vec![pool], ..MacvtapNodeStateStatus::default() }
    }

    fn reasons(
        before: Option<&MacvtapNodeStateStatus>,
        after: &MacvtapNodeStateStatus,
    ) -> Vec<(bool, String)> {
        notices(before, after).into_iter().map(|notice| (notice.warning, notice.reason)).collect()
    }

    #[test]
    fn only_what_changed_is_announced_and_a_new_agent_announces_trouble_alone() {
        let well = status(("True", "Serving"), ("False", "AsExpected"));
        let down = status(("False", "NoHealthyLink"), ("True", "LinksUnhealthy"));
        let dead = status(("False", "NoHealthyLink"), ("True", "DevicesDead"));
        assert_eq!(reasons(None, &well), []);
        assert_eq!(reasons(Some(&well), &well), []);
        let both = [(true, "NoHealthyLink".to_owned()), (true, "LinksUnhealthy".to_owned())];
        assert_eq!(reasons(None, &down), both);
        assert_eq!(reasons(Some(&well), &down), both);
        assert_eq!(reasons(Some(&down), &dead), [(true, "DevicesDead".to_owned())]);
        assert_eq!(
            reasons(Some(&dead), &well),
            [(false, "Serving".to_owned()), (false, "AsExpected".to_owned())]
        );
        let empty = MacvtapNodeStateStatus::default();
        assert_eq!(reasons(Some(&empty), &well), [(false, "Serving".to_owned())]);
    }

    /// The recorder distinguishes Events by everything but their notes.
    #[test]
    fn two_pools_with_the_same_problem_get_an_event_each() {
        let mut down = status(("False", "NoHealthyLink"), ("True", "LinksUnhealthy"));
        down.pools.push(NodePoolStatus { name: "q".into(), ..down.pools[0].clone() });
        let events = notices(None, &down).into_iter().map(Event::from);
        let about: Vec<_> =
            events.map(|event| (event.reason, event.secondary.unwrap().name.unwrap())).collect();
        let expected = [
            ("NoHealthyLink", "p"),
            ("LinksUnhealthy", "p"),
            ("NoHealthyLink", "q"),
            ("LinksUnhealthy", "q"),
        ];
        assert_eq!(about, expected.map(|(reason, pool)| (reason.to_owned(), pool.to_owned())));
    }
}
