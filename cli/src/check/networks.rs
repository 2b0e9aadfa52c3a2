//! Networks that hand out devices, and quotas that withhold them.

use crate::advice::anchor;
use crate::facts::network::Network;
use crate::facts::resource::{self, Made};
use crate::facts::{Facts, items};
use crate::report::{Diagnostic, Level};
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use macvtap_crds::RESOURCE_NAME_ANNOTATION;
use std::collections::{BTreeMap, BTreeSet};

/// Checks networks and quotas.
pub(super) fn check(facts: &Facts) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let made = Made::by(items(&facts.pools), items(&facts.states));
    let prefixes = resource::prefixes(items(&facts.pools));
    match &facts.networks {
        Err(unread) => {
            found.push(Diagnostic::skipped(format!("the networks cannot be read: {}", unread.text())));
        }
        Ok(networks) => {
            let of_macvtap = networks.iter().filter(|network| concerns(network, &prefixes));
            let count = of_macvtap.clone().count();
            let wrong: Vec<_> = of_macvtap.filter_map(|network| trouble(network, &made)).collect();
            if wrong.len() < count {
                found.push(Diagnostic::ok(format!(
                    "{} networks name a resource that a pool makes",
                    count - wrong.len()
                )));
            }
            found.extend(wrong);
        }
    }
    match &facts.quotas {
        Err(unread) => {
            found.push(Diagnostic::skipped(format!("the quotas cannot be read: {}", unread.text())));
        }
        Ok(all) => found.extend(all.iter().flat_map(|quota| quotas(quota, &prefixes, Level::Warning))),
    }
    found
}

/// Whether a network is one of this project.
fn concerns(network: &Network, prefixes: &BTreeSet<String>) -> bool {
    let named = network.resource.as_ref().is_some_and(|resource| resource::has_prefix(resource, prefixes));
    named || network.is_macvtap() || network.pool.is_some()
}

/// What is wrong with a network, if anything.
pub(crate) fn trouble(network: &Network, made: &Made) -> Option<Diagnostic> {
    let name = network.full_name();
    let (fact, reason, remedy) = match &network.resource {
        _ if network.problem.is_some() => {
            let problem = network.problem.as_deref().unwrap_or_default();
            (
                format!("network {name}: {problem}"),
                "ConfigNotReadable",
                "correct spec.config of the NetworkAttachmentDefinition".to_owned(),
            )
        }
        None => {
            let fact = format!(
                "network {name} has no annotation {RESOURCE_NAME_ANNOTATION}: its pods have no device"
            );
            let remedy = match made.iter().next() {
                Some((resource, _)) => format!(
                    "kubectl -n {} annotate net-attach-def {} {RESOURCE_NAME_ANNOTATION}={resource}, or another pool's resource",
                    network.namespace, network.name
                ),
                None => "annotate it with the resource of a pool".to_owned(),
            };
            (fact, "NoResourceName", remedy)
        }
        Some(resource) if made.pool_of(resource).is_none() => {
            let known: Vec<&str> = made.iter().map(|(resource, _)| resource).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let fact = format!("network {name} needs resource {resource}, which no pool makes");
            (
                fact,
                "UnknownResource",
                format!("correct its annotation {RESOURCE_NAME_ANNOTATION}; pools make: {known}"),
            )
        }
        Some(_) => return None,
    };
    Some(Diagnostic::failed(fact).because(reason).remedy(remedy).see(anchor::NETWORKS))
}

/// What a quota leaves of the resources of pools; one that is used up is of this level: it is what the quota is for, and only
/// for a pod that it refuses a failure.
pub(crate) fn quotas(quota: &ResourceQuota, prefixes: &BTreeSet<String>, used_up: Level) -> Vec<Diagnostic> {
    let name = format!("{}/{}", quota.namespace().unwrap_or_default(), quota.name_any());
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
    let of = |list: Option<&BTreeMap<String, Quantity>>, key: &str| {
        list.and_then(|list| list.get(key)).map_or(0, resource::count)
    };
    let keys = hard.into_iter().flat_map(BTreeMap::keys);
    let ours = keys.filter_map(|key| {
        let resource = key.strip_prefix("requests.")?;
        resource::has_prefix(resource, prefixes).then_some((key, resource))
    });
    ours.map(|(key, resource)| {
        let (hard, used) = (of(hard, key), of(used, key));
        let fact = format!("quota {name}: {used} of {hard} devices of {resource} are used");
        if used < hard {
            return Diagnostic::ok(fact);
        }
        Diagnostic::new(used_up, format!("{fact}: a further pod is rejected"))
            .because("QuotaReached")
            .remedy(format!("raise {key} of the quota, or delete pods of the namespace"))
            .see(anchor::NETWORKS)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{nothing, object, pool};
    use serde_json::json;

    fn network(name: &str, resource: Option<&str>) -> Network {
        Network {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            resource: resource.map(str::to_owned),
            plugins: vec!["macvtap".to_owned()],
            ..Network::default()
        }
    }

    #[test]
    fn networks_without_annotation_and_with_a_resource_nobody_makes_are_named() {
        let mut facts = nothing();
        facts.pools = Ok(vec![pool("dp", json!({}))]);
        let other = Network { plugins: vec!["bridge".to_owned()], ..network("bridge", None) };
        facts.networks = Ok(vec![
            network("good", Some("macvtap.network.kubevirt.io/dp")),
            network("bare", None),
            network("typo", Some("macvtap.network.kubevirt.io/pd")),
            other,
        ]);
        let found = check(&facts);
        let reasons: Vec<_> = found.iter().map(|found| found.reason.as_deref()).collect();
        assert_eq!(reasons, [None, Some("NoResourceName"), Some("UnknownResource")]);
        assert!(
            found[1].remedy.as_ref().unwrap().starts_with("kubectl -n default annotate net-attach-def bare ")
        );
    }

    #[test]
    fn a_quota_that_is_used_up_is_named() {
        let key = "requests.macvtap.network.kubevirt.io/dp";
        let quota = |used: &str| -> ResourceQuota {
            object(json!({
                "metadata": {"name": "q", "namespace": "team"},
                "spec": {"hard": {key: "2", "cpu": "1"}}, "status": {"used": {key: used}},
            }))
        };
        let prefixes = resource::prefixes(&[]);
        let found = quotas(&quota("2"), &prefixes, Level::Warning);
        assert_eq!((found.len(), found[0].reason.as_deref()), (1, Some("QuotaReached")));
        assert_eq!(found[0].level, Level::Warning);
        assert_eq!(quotas(&quota("1"), &prefixes, Level::Warning)[0].reason, None);
    }
}
