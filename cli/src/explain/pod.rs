//! The story of a pod: what it asks for, who refuses it, where it is, what it got.

use super::asked::{self, Wanted};
use super::{concluded, events};
use crate::advice::{self, anchor};
use crate::check::{agent_trouble, network_trouble, quotas};
use crate::cluster::{Read, Unread};
use crate::facts::resource::{self, Made};
use crate::facts::{Facts, items, pod as pods};
use crate::report::{Diagnostic, Level, Report, Section};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt as _;
use macvtap_crds::v1alpha1::settings::TapOnly;
use std::collections::BTreeMap;

/// The pod that is asked about.
pub(super) struct Subject {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// The pod, if there is one.
    pub(super) pod: Read<Pod>,
    /// Its events; without a pod those of who should have made it.
    pub(super) events: Vec<Event>,
}

/// Explains a pod.
pub(super) fn story(facts: &Facts, subject: &Subject) -> Report {
    let title = format!("pod {}/{}", subject.namespace, subject.name);
    let pod = match &subject.pod {
        Ok(pod) => pod,
        Err(Unread::Absent) => return concluded(&title, vec![missing(facts, subject)], "it does not exist"),
        Err(unread) => {
            let found = Diagnostic::failed(format!("it cannot be read: {}", unread.text()));
            return concluded(&title, vec![Section::new(&title, vec![found])], "");
        }
    };
    let made = Made::by(items(&facts.pools), items(&facts.states));
    let (asks, needed) = asks(facts, pod, &subject.namespace, &made);
    if needed.is_empty() && asks.iter().all(|found| found.level <= Level::Skipped) {
        return concluded(
            &title,
            vec![Section::new("what it asks for", asks)],
            "it asks for no device of this project",
        );
    }
    let mut device = got(pod, &subject.namespace);
    device.extend(events::warnings(&still_true(pod, &subject.events)));
    let sections = vec![
        Section::new("what it asks for", asks),
        Section::new("where it runs", place(facts, pod, &needed, &made)),
        Section::new("what it got", device),
    ];
    let well = if pods::is_ready(pod) {
        "it has its devices and is ready"
    } else {
        "nothing is wrong so far; it is not ready yet"
    };
    concluded(&title, sections, well)
}

/// The events without those of a scheduler that had no node for the pod before it had one.
fn still_true(pod: &Pod, events: &[Event]) -> Vec<Event> {
    let is_scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let is_past = |event: &&Event| is_scheduled && event.reason.as_deref() == Some("FailedScheduling");
    events.iter().filter(|event| !is_past(event)).cloned().collect()
}

/// Why the pod does not exist: a quota rejects it before it is stored.
fn missing(facts: &Facts, subject: &Subject) -> Section {
    let mut found = Vec::new();
    // The name of a pod begins with that of its controller.
    let about = subject.events.iter().filter(|event| {
        let controller = event.involved_object.name.as_deref().unwrap_or_default();
        !controller.is_empty() && subject.name.starts_with(controller)
    });
    let about: Vec<Event> = about.cloned().collect();
    let prefixes = resource::prefixes(items(&facts.pools));
    let reached = items(&facts.quotas).iter().flat_map(|quota| quotas(quota, &prefixes, Level::Failed));
    found.extend(reached.filter(|found| found.level == Level::Failed));
    found.extend(events::warnings(&about));
    // After what may be the cause, which is the conclusion then.
    let fact = format!("the pod does not exist in namespace {}", subject.namespace);
    found.push(Diagnostic::failed(fact).remedy("correct the name, or the namespace with -n"));
    Section::new("why it does not exist", found)
}

/// What the pod asks for, and how many devices of which resource its networks need.
fn asks(facts: &Facts, pod: &Pod, namespace: &str, made: &Made) -> (Vec<Diagnostic>, BTreeMap<String, i64>) {
    let mut needed = BTreeMap::new();
    let wanted = match asked::networks(pod) {
        Ok(wanted) => wanted,
        Err(problem) => return (vec![Diagnostic::failed(problem).see(anchor::PODS)], needed),
    };
    let mut found = Vec::new();
    if wanted.is_empty() {
        found.push(Diagnostic::skipped("it names no network in annotation k8s.v1.cni.cncf.io/networks"));
    }
    for network in &wanted {
        let (diagnostic, resource) = judge(facts, network, namespace, made);
        found.push(diagnostic);
        if let Some(resource) = resource {
            *needed.entry(resource).or_default() += 1;
        }
    }
    let limits = asked::limits(pod);
    found.extend(
        needed.iter().map(|(resource, count)| requested(resource, *count, limits.get(resource).copied())),
    );
    let prefixes = resource::prefixes(items(&facts.pools));
    let tap_only =
        limits.keys().filter(|name| resource::has_prefix(name, &prefixes) && !needed.contains_key(*name));
    for resource in tap_only {
        found.push(without_network(facts, resource, made));
    }
    for (resource, count) in &limits {
        if resource::has_prefix(resource, &prefixes) {
            needed.entry(resource.clone()).or_insert(*count);
        }
    }
    (found, needed)
}

/// One network that the pod names: what is so with it, and the resource that it needs.
fn judge(facts: &Facts, wanted: &Wanted, namespace: &str, made: &Made) -> (Diagnostic, Option<String>) {
    let place = wanted.namespace.as_deref().unwrap_or(namespace);
    let full = format!("{place}/{}", wanted.name);
    let networks = match &facts.networks {
        Ok(networks) => networks,
        Err(Unread::Absent) => {
            let fact =
                format!("it names network {full}, and the cluster has no NetworkAttachmentDefinitions");
            return (
                Diagnostic::failed(fact)
                    .because("NADKindMissing")
                    .remedy("install Multus")
                    .see(anchor::INSTALLATION),
                None,
            );
        }
        Err(unread) => {
            return (Diagnostic::skipped(format!("network {full} cannot be read: {}", unread.text())), None);
        }
    };
    let Some(network) = networks.iter().find(|network| network.full_name() == full) else {
        let there: Vec<&str> = networks
            .iter()
            .filter(|network| network.namespace == place)
            .map(|network| network.name.as_str())
            .collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let found = Diagnostic::failed(format!("network {full} does not exist")).because("NetworkNotFound");
        let remedy =
            format!("correct the pod's annotation, or make the network; namespace {place} has: {there}");
        return (found.remedy(remedy).see(anchor::PODS), None);
    };
    let ours = network.is_macvtap() || network.pool.is_some();
    if !ours && network.problem.is_none() {
        return (Diagnostic::skipped(format!("network {full} is not one of this project")), None);
    }
    if let Some(trouble) = network_trouble(network, made) {
        return (trouble, None);
    }
    let resource = network.resource.clone().unwrap_or_default();
    let pool = made.pool_of(&resource).unwrap_or_default();
    let fact = format!("network {full} needs resource {resource}, which pool {pool} makes");
    (Diagnostic::ok(fact), Some(resource))
}

fn requested(resource: &str, networks: i64, limit: Option<i64>) -> Diagnostic {
    let limit = limit.unwrap_or(0);
    if limit >= networks {
        return Diagnostic::ok(format!("its limits have {limit} of {resource} for {networks} networks"));
    }
    Diagnostic::failed(format!("its limits have {limit} of {resource}, and its networks need {networks}"))
        .because("ResourceNotRequested")
        .remedy(format!("add resources.limits \"{resource}\": {networks} to a container"))
        .see(anchor::PODS)
}

/// A resource without a network: the tap alone.
fn without_network(facts: &Facts, resource: &str, made: &Made) -> Diagnostic {
    let Some(pool) = made.pool_of(resource).and_then(|name| facts.pool(name)) else {
        let known: Vec<&str> = made.iter().map(|(resource, _)| resource).collect();
        return Diagnostic::failed(format!("its limits have {resource}, which no pool makes"))
            .because("UnknownResource")
            .remedy(format!("correct the name; pools make: {}", known.join(", ")))
            .see(anchor::NETWORKS);
    };
    if pool.spec.settings.tap_only == TapOnly::Allowed {
        return Diagnostic::ok(format!("it asks for {resource} without a network: the tap alone"));
    }
    Diagnostic::failed(format!(
        "it asks for {resource} and names no network of it, and pool {} forbids that",
        pool.name_any()
    ))
    .because("TapOnlyForbidden")
    .remedy("name a network in the pod's annotation, or set tapOnly: Allowed in the pool")
    .see(anchor::PODS)
}

/// Where the pod is, and whether that node serves its resources.
fn place(facts: &Facts, pod: &Pod, needed: &BTreeMap<String, i64>, made: &Made) -> Vec<Diagnostic> {
    let Some(node) = pods::node(pod) else {
        let waiting = pods::condition(pod, "PodScheduled").and_then(|scheduled| scheduled.message.clone());
        let fact = format!(
            "no node takes it: {}",
            waiting.unwrap_or_else(|| "the scheduler has not reported why".to_owned())
        );
        let mut found = vec![
            Diagnostic::failed(fact).because("Unschedulable").remedy("see the nodes below").see(anchor::PODS),
        ];
        for resource in needed.keys() {
            found.extend(supply(facts, resource, made));
        }
        return found;
    };
    let mut found = vec![Diagnostic::ok(format!("it is on node {node}"))];
    found.extend(agent_trouble(facts, node));
    for resource in needed.keys() {
        found.extend(made.pool_of(resource).and_then(|pool| on_node(facts, pool, node)));
    }
    found
}

/// Which nodes have a resource, and why the others do not.
fn supply(facts: &Facts, resource: &str, made: &Made) -> Vec<Diagnostic> {
    let Some(pool) = made.pool_of(resource) else { return Vec::new() };
    let mut found = Vec::new();
    for node in items(&facts.nodes) {
        let name = node.name_any();
        match resource::of_node(node, resource) {
            Some((_, allocatable)) if allocatable > 0 => {
                let of_pool = facts.pool_status(&name, pool);
                let used = of_pool.map_or(0, |of_pool| i64::from(of_pool.allocated));
                let fact =
                    format!("node {name} has {allocatable} devices of {resource}, {used} of them in use");
                found.push(if used < allocatable { Diagnostic::ok(fact) } else { Diagnostic::warning(fact) });
            }
            _ => {
                let why = agent_trouble(facts, &name).or_else(|| on_node(facts, pool, &name));
                found.push(why.unwrap_or_else(|| {
                    Diagnostic::skipped(format!(
                        "node {name} has no devices of {resource}: pool {pool} does not select it"
                    ))
                }));
            }
        }
    }
    found
}

/// Why a pool does not serve on a node, if so.
fn on_node(facts: &Facts, pool: &str, node: &str) -> Option<Diagnostic> {
    let of_pool = facts.pool_status(node, pool)?;
    let wrong = of_pool.conditions.iter().find(|condition| !macvtap_crds::condition::is_normal(condition))?;
    Some(advice::condition(
        &format!("pool {pool} on node {node}"),
        wrong,
        advice::of_node(&wrong.reason),
        anchor::NODES,
    ))
}

/// The interfaces that the pod got.
fn got(pod: &Pod, namespace: &str) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let status = pod.status.as_ref();
    if let Some(reason) = status.and_then(|status| status.reason.as_deref()) {
        let message = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
        let text = format!("{reason}: {message}");
        let failed = Diagnostic::failed(format!("the pod ended: {text}")).because(reason).see(anchor::PODS);
        found.push(match events::meaning(&text) {
            Some((_, remedy)) => failed.remedy(remedy),
            None => failed,
        });
    }
    let wanted = asked::networks(pod).unwrap_or_default();
    for given in asked::given(pod) {
        let named = |wanted: &&Wanted| {
            given.name == format!("{}/{}", wanted.namespace.as_deref().unwrap_or(namespace), wanted.name)
        };
        if wanted.iter().any(|wanted| named(&wanted)) {
            let addresses = if given.ips.is_empty() {
                String::new()
            } else {
                format!(", addresses {}", given.ips.join(", "))
            };
            found.push(Diagnostic::ok(format!(
                "network {}: interface {} with MAC {}{addresses}",
                given.name, given.interface, given.mac
            )));
        }
    }
    if !pods::is_ready(pod) && found.is_empty() {
        found.push(Diagnostic::skipped(format!("it is not ready: {}", pods::why_not_ready(pod))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{nothing, object};
    use serde_json::json;

    #[test]
    fn the_conclusion_about_a_missing_pod_is_the_quota_that_rejects_it() {
        let mut subject = Subject {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            pod: Err(Unread::Absent),
            events: Vec::new(),
        };
        let mut facts = nothing();
        let conclusion = story(&facts, &subject).conclusion;
        assert!(conclusion.starts_with("pod default/web: the pod does not exist"), "{conclusion}");
        let key = "requests.macvtap.network.kubevirt.io/dp";
        facts.quotas = Ok(vec![object(json!({
            "metadata": {"name": "devices", "namespace": "default"},
            "spec": {"hard": {key: "1"}}, "status": {"hard": {key: "1"}, "used": {key: "1"}},
        }))]);
        let conclusion = story(&facts, &subject).conclusion;
        assert!(conclusion.starts_with("pod default/web: quota default/devices"), "{conclusion}");
        facts.quotas = Ok(Vec::new());
        subject.events = vec![object(json!({
            "metadata": {}, "involvedObject": {"name": "web"}, "type": "Warning", "reason": "FailedCreate",
            "message": "exceeded quota: devices",
        }))];
        let conclusion = story(&facts, &subject).conclusion;
        assert!(conclusion.starts_with("pod default/web: event FailedCreate"), "{conclusion}");
    }

    #[test]
    fn events_of_the_scheduler_count_until_the_pod_has_a_node() {
        let events: Vec<Event> = ["FailedScheduling", "Odd"]
            .map(|reason| json!({"metadata": {}, "involvedObject": {}, "reason": reason}))
            .map(object)
            .into();
        for (node, left) in [(json!(null), 2), (json!("n1"), 1)] {
            let pod: Pod = object(json!({"metadata": {}, "spec": {"containers": [], "nodeName": node}}));
            assert_eq!(still_true(&pod, &events).len(), left);
        }
    }
}
