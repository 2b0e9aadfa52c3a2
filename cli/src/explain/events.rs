//! What the events of a pod mean.

use crate::advice::anchor;
use crate::report::Diagnostic;
use k8s_openapi::api::core::v1::Event;
use std::collections::BTreeSet;

/// Words of an event, their meaning and remedy. The words are those of this project's plugin, of Multus, runtimes, the
/// scheduler and the kubelet.
const KNOWN: [(&[&str], &str, &str); 14] = [
    (
        &["deviceID is missing"],
        "NoDevice",
        "annotate the network with its resource, and ask for that resource in the pod's limits",
    ),
    (
        &["failed to find plugin \"macvtap\""],
        "WrongCniDirectory",
        "set agent.cniBinDir to the directory from which the runtime runs plugins",
    ),
    (
        &["cannot find a network-attachment-definition"],
        "NetworkNotFound",
        "correct the pod's annotation, or make the network in its namespace",
    ),
    (&["is a macvlan"], "LinkIsMacvlan", "let the pool select the link below it"),
    (&["is already interface"], "OneDeviceTwoNetworks", "ask for one device for each network of the pod"),
    (
        &["is in use by pod"],
        "DeviceInUse",
        "remove deviceID from the network's configuration: Multus fills it in",
    ),
    (
        &["is not a device of this node"],
        "UnknownDevice",
        "compare the network's annotation with the pool's resource",
    ),
    (
        &["lstat /run/macvtap/dev/", "no such file"],
        "TapOnlyForbidden",
        "name a network in the pod's annotation, or set tapOnly: Allowed in the pool",
    ),
    (&["mtu", "is above the"], "MtuTooLarge", "lower the network's MTU, or raise the link's"),
    (&["IPAM plugin"], "NoAddress", "read the message: the IPAM plugin gave no address"),
    (&["user namespace of its own"], "UserNamespace", "remove hostUsers: false from the pod"),
    (&["link lost"], "LinkLost", "delete the pod: only a new one has a working tap"),
    (
        &["UnexpectedAdmissionError"],
        "UnexpectedAdmissionError",
        "delete the pod; its controller makes a new one",
    ),
    (&["exceeded quota"], "QuotaReached", "raise the quota, or delete pods of the namespace"),
];

/// Events that are part of every pod's life although they are warnings.
const PASSING: [&str; 2] = ["Unhealthy", "BackOff"];

/// The meaning of a text, if it is known: reason and remedy.
pub(super) fn meaning(text: &str) -> Option<(&'static str, &'static str)> {
    let fits = |words: &&[&str]| words.iter().all(|word| text.contains(word));
    KNOWN.iter().find(|(words, ..)| fits(words)).map(|(_, reason, remedy)| (*reason, *remedy))
}

/// The warnings among events, the newest first, each text once.
pub(super) fn warnings(events: &[Event]) -> Vec<Diagnostic> {
    let mut warnings: Vec<&Event> = events
        .iter()
        .filter(|event| event.type_.as_deref() == Some("Warning"))
        .filter(|event| !PASSING.contains(&event.reason.as_deref().unwrap_or_default()))
        .collect();
    let time = |event: &Event| {
        event
            .last_timestamp
            .as_ref()
            .map(|time| time.0)
            .or_else(|| event.event_time.as_ref().map(|time| time.0))
    };
    warnings.sort_by_key(|event| std::cmp::Reverse(time(event)));
    let mut seen = BTreeSet::new();
    let texts = warnings.into_iter().filter_map(|event| {
        let reason = event.reason.as_deref().unwrap_or_default();
        let message = event.message.as_deref().unwrap_or_default();
        // Sandboxes and attempts have names of their own: what is left is what happened.
        let gist = meaning(message).map_or(message, |(reason, _)| reason);
        seen.insert((reason.to_owned(), gist.to_owned())).then_some((reason, message))
    });
    texts.take(5).map(|(reason, message)| of_text(reason, message)).collect()
}

fn of_text(reason: &str, message: &str) -> Diagnostic {
    let text = format!("{reason}: {message}");
    match meaning(&text) {
        Some((word, remedy)) => {
            Diagnostic::failed(format!("event {text}")).because(word).remedy(remedy).see(anchor::PODS)
        }
        None => Diagnostic::warning(format!("event {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    fn event(reason: &str, message: &str, second: u32) -> Event {
        object(json!({
            "metadata": {}, "involvedObject": {}, "type": "Warning", "reason": reason, "message": message,
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        }))
    }

    #[test]
    fn a_known_text_has_its_remedy_and_is_named_once() {
        let failed = |sandbox: u32| {
            format!("sandbox {sandbox}: plugin type=\"macvtap\" failed (add): deviceID is missing")
        };
        let events = [
            event("FailedCreatePodSandBox", &failed(1), 1),
            event("FailedCreatePodSandBox", &failed(2), 2),
            event("Odd", "what", 3),
        ];
        let found = warnings(&events);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].fact, "event Odd: what");
        assert_eq!(found[1].reason.as_deref(), Some("NoDevice"));
        assert!(found[1].fact.contains("sandbox 2"));
    }
}
