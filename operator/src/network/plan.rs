//! Pure: which network attachment definitions a pool wants, and what separates them from those that are there.

use super::config;
use super::kind::{NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec, NetworkKey};
use super::report::Problem;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{PartialObjectMeta, Selector, SelectorExt};
use kube::{Resource, ResourceExt};
use macvtap_crds::v1alpha1::network::{LINK_PLACEHOLDER, NamespaceSelector, NetworkTemplate};
use macvtap_crds::v1alpha1::reason::PoolReason;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, pool::NAME_MAX};
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_LABEL, POOL_UID_LABEL, RESOURCE_NAME_ANNOTATION};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// How kube-ovn knows the providers of its own networks, whatever stands before it. A provider ends with its namespace.
const KUBE_OVN_OWN: &str = "ovn";

/// Everything a pool wants.
#[derive(Debug, Default)]
pub struct Desired {
    /// The objects, as they are applied.
    pub networks: BTreeMap<NetworkKey, NetworkAttachmentDefinition>,
    /// What cannot be had.
    pub problems: Vec<Problem>,
}

/// What must be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Not there, or not ours: to be made if nobody else has the name.
    pub create: Vec<NetworkKey>,
    /// Ours, but changed by hand or by a new spec, or written by somebody else, such as a backup tool.
    pub repair: Vec<NetworkKey>,
    /// Ours, and no longer wanted; with the UID, so that nobody's of the same name goes in its place.
    pub delete: Vec<(NetworkKey, Option<String>)>,
    /// Ours, and as they should be.
    pub keep: Vec<NetworkKey>,
}

/// What the pool wants, with the cluster's namespaces and the resources its nodes report (with `resourcePer: Link`).
pub fn desired<'n>(
    pool: &MacvtapResourcePool,
    namespaces: impl Iterator<Item = &'n PartialObjectMeta<Namespace>>,
    link_resources: &BTreeSet<String>,
) -> Desired {
    let mut desired = Desired::default();
    let namespaces: BTreeMap<&str, &PartialObjectMeta<Namespace>> =
        namespaces.filter_map(|namespace| Some((namespace.metadata.name.as_deref()?, namespace))).collect();
    for template in pool.spec.networks.iter().flatten() {
        let (places, missing) = places(&template.namespaces, &namespaces);
        desired.problems.extend(missing.into_iter().map(|namespace| Problem {
            reason: PoolReason::NamespaceNotFound,
            message: format!("network {}: namespace {namespace} does not exist", template.name),
        }));
        match pool.resource_name() {
            Some(resource) => add(&mut desired, pool, template, &template.name, resource, &places),
            None => {
                for resource in link_resources {
                    match network_name(&template.name, resource) {
                        Some(name) => add(&mut desired, pool, template, &name, resource, &places),
                        None => desired.problems.push(Problem {
                            reason: PoolReason::NetworkNameNotUsable,
                            message: format!(
                                "network {}: link {resource} yields no DNS label",
                                template.name
                            ),
                        }),
                    }
                }
            }
        }
    }
    desired
}

/// What separates the pool's networks that are there from those it wants.
pub fn plan<'n>(
    desired: &Desired,
    ours: impl IntoIterator<Item = &'n NetworkAttachmentDefinition>,
) -> NetworkPlan {
    let mut plan = NetworkPlan::default();
    let mut missing: BTreeSet<&NetworkKey> = desired.networks.keys().collect();
    for network in ours {
        let key = key(network);
        match desired.networks.get(&key) {
            None => plan.delete.push((key, network.uid())),
            Some(wanted) => {
                missing.remove(&key);
                if same(network, wanted) && is_written_by_us(network) {
                    plan.keep.push(key);
                } else {
                    plan.repair.push(key);
                }
            }
        }
    }
    plan.create = missing.into_iter().cloned().collect();
    plan
}

/// Whether the pool with this name and UID made the network.
pub fn is_ours(network: &impl Resource, pool: &str, uid: &str) -> bool {
    let label =
        |key: &str| network.meta().labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    label(POOL_LABEL) == Some(pool) && label(POOL_UID_LABEL) == Some(uid)
}

/// Whether the pool of `wanted` may take this network of its name: no other pool owns it, and it names a former pool of this
/// name, as one that was restored from a backup does, or the operator wrote it, whatever became of its labels. `pools` has the
/// UIDs of all pools.
pub fn is_free(
    there: &impl Resource,
    wanted: &NetworkAttachmentDefinition,
    pools: &BTreeSet<String>,
) -> bool {
    let label = |key: &str| there.meta().labels.as_ref().and_then(|labels| labels.get(key));
    let uid = label(POOL_UID_LABEL);
    let is_its_own = uid == wanted.labels().get(POOL_UID_LABEL);
    let names_former = uid.is_some() && label(POOL_LABEL) == wanted.labels().get(POOL_LABEL);
    (is_its_own || uid.is_none_or(|uid| !pools.contains(uid))) && (names_former || is_written_by_us(there))
}

/// Whether the operator wrote the network. Labels alone prove nothing: anybody who may write networks can copy them.
pub fn is_written_by_us(network: &impl Resource) -> bool {
    let managers = network.meta().managed_fields.iter().flatten();
    managers.into_iter().any(|entry| entry.manager.as_deref() == Some(OPERATOR_FIELD_MANAGER))
}

/// Namespace and name of a network.
pub fn key(network: &NetworkAttachmentDefinition) -> NetworkKey {
    (network.namespace().unwrap_or_default(), network.name_any())
}

/// Whether the network is as it should be; labels and annotations of others do not matter.
pub fn same(network: &NetworkAttachmentDefinition, wanted: &NetworkAttachmentDefinition) -> bool {
    let resource = |n: &NetworkAttachmentDefinition| n.annotations().get(RESOURCE_NAME_ANNOTATION).cloned();
    network.spec == wanted.spec && resource(network) == resource(wanted)
}

/// The namespaces that are there and not being deleted, and those that are named but not there.
fn places(
    selector: &NamespaceSelector,
    namespaces: &BTreeMap<&str, &PartialObjectMeta<Namespace>>,
) -> (BTreeSet<String>, Vec<String>) {
    let alive = |name: &str| {
        namespaces.get(name).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
    };
    let (mut places, missing): (BTreeSet<String>, BTreeSet<String>) =
        selector.names.iter().flatten().cloned().partition(|name| alive(name));
    // Read once, asked for each namespace; one that cannot be read was not accepted.
    let labels = selector.selector.clone().and_then(|selector| Selector::try_from(selector).ok());
    if let Some(labels) = labels {
        let selected =
            namespaces.iter().filter(|(name, namespace)| alive(name) && labels.matches(namespace.labels()));
        places.extend(selected.map(|(name, _)| (*name).to_owned()));
    }
    (places, missing.into_iter().collect())
}

fn add(
    desired: &mut Desired,
    pool: &MacvtapResourcePool,
    template: &NetworkTemplate,
    name: &str,
    resource: &str,
    places: &BTreeSet<String>,
) {
    for namespace in places {
        if asks_kube_ovn(template) && namespace.ends_with(KUBE_OVN_OWN) {
            desired.problems.push(Problem {
                reason: PoolReason::NetworkNameNotUsable,
                message: format!(
                    "network {namespace}/{name}: kube-ovn takes a provider that ends in \"{KUBE_OVN_OWN}\" for its own network; \
                     use a namespace whose name does not"
                ),
            });
            continue;
        }
        let mut network = NetworkAttachmentDefinition::new(
            name,
            NetworkAttachmentDefinitionSpec { config: config::config(template, name, namespace) },
        );
        network.metadata.namespace = Some(namespace.clone());
        network.metadata.labels = Some(BTreeMap::from([
            (POOL_LABEL.to_owned(), pool.name_any()),
            (POOL_UID_LABEL.to_owned(), pool.uid().unwrap_or_default()),
        ]));
        network.metadata.annotations = Some(BTreeMap::from([(
            RESOURCE_NAME_ANNOTATION.to_owned(),
            format!("{}/{resource}", pool.spec.settings.resource_prefix),
        )]));
        match desired.networks.entry((namespace.clone(), name.to_owned())) {
            Entry::Vacant(free) => {
                free.insert(network);
            }
            Entry::Occupied(_) => desired.problems.push(Problem {
                reason: PoolReason::NetworkNameNotUsable,
                message: format!("two links yield the network {namespace}/{name}; {resource} gets none"),
            }),
        }
    }
}

fn asks_kube_ovn(template: &NetworkTemplate) -> bool {
    template.ipam.as_ref().is_some_and(|ipam| ipam.kube_ovn.is_some())
}

/// The network's name for a link: what no DNS label may contain becomes `-`. None when that is not enough.
fn network_name(template: &str, link: &str) -> Option<String> {
    let link: String =
        link.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let name = template.replace(LINK_PLACEHOLDER, &link);
    (name.len() <= NAME_MAX && !name.starts_with('-') && !name.ends_with('-')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
    use kube::api::ObjectMeta;
    use serde_json::json;

    fn namespace(name: &str, labels: &[(&str, &str)]) -> PartialObjectMeta<Namespace> {
        let labels = Some(crate::testing::labels(labels));
        PartialObjectMeta {
            metadata: ObjectMeta { name: Some(name.into()), labels, ..Default::default() },
            ..Default::default()
        }
    }

    fn wanted(
        pool: &MacvtapResourcePool,
        namespaces: &[PartialObjectMeta<Namespace>],
        links: &[&str],
    ) -> Desired {
        desired(pool, namespaces.iter(), &links.iter().map(|link| (*link).to_owned()).collect())
    }

    fn managers(names: &[&str]) -> Vec<ManagedFieldsEntry> {
        let entry =
            |name: &&str| ManagedFieldsEntry { manager: Some((*name).to_owned()), ..Default::default() };
        names.iter().map(entry).collect()
    }

    /// The network as the operator wrote it.
    fn written(mut network: NetworkAttachmentDefinition) -> NetworkAttachmentDefinition {
        network.metadata.managed_fields = Some(managers(&[OPERATOR_FIELD_MANAGER]));
        network
    }

    fn keys(desired: &Desired) -> Vec<String> {
        desired.networks.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect()
    }

    #[test]
    fn named_and_selected_namespaces_get_the_network_once() {
        let selector = json!({"names": ["a", "gone"], "selector": {"matchLabels": {"macvtap": "yes"}}});
        let pool = pool("dp", json!({"networks": [{"name": "net", "namespaces": selector}]}));
        let namespaces = [
            namespace("a", &[("macvtap", "yes")]),
            namespace("b", &[("macvtap", "yes")]),
            namespace("c", &[]),
        ];
        let desired = wanted(&pool, &namespaces, &[]);
        assert_eq!(keys(&desired), ["a/net", "b/net"]);
        let network = &desired.networks[&("a".into(), "net".into())];
        assert_eq!(network.annotations()[RESOURCE_NAME_ANNOTATION], "macvtap.network.kubevirt.io/dp");
        assert!(is_ours(network, "dp", "uid-dp"));
        assert!(!is_ours(network, "dp", "uid-of-an-earlier-pool"));
        assert!(
            matches!(&desired.problems[..], [p] if p.reason == PoolReason::NamespaceNotFound && p.message.contains("gone"))
        );
    }

    #[test]
    fn a_network_that_no_other_pool_owns_is_taken_back() {
        let dp = pool("dp", json!({"networks": [{"name": "net", "namespaces": {"names": ["a"]}}]}));
        let desired = wanted(&dp, &[namespace("a", &[])], &[]);
        let net = &desired.networks[&("a".into(), "net".into())];
        let with = |labels: &[(&str, &str)], writers: &[&str]| {
            let mut network = net.clone();
            network.metadata.labels = Some(crate::testing::labels(labels));
            network.metadata.managed_fields = Some(managers(writers));
            is_free(&network, net, &BTreeSet::from(["uid-dp".to_owned(), "uid-other".to_owned()]))
        };
        let us = [OPERATOR_FIELD_MANAGER];
        let backup = ["velero"];
        // Restored from a backup, or left by a former pool.
        assert!(with(&[(POOL_LABEL, "dp"), (POOL_UID_LABEL, "uid-former")], &backup));
        assert!(!with(&[(POOL_LABEL, "former"), (POOL_UID_LABEL, "uid-former")], &backup));
        assert!(with(&[(POOL_LABEL, "former"), (POOL_UID_LABEL, "uid-former")], &us));
        // Without labels, as a manifest that was written by hand.
        assert!(with(&[], &us) && !with(&[], &backup));
        assert!(with(&[(POOL_LABEL, "dp")], &us) && !with(&[(POOL_LABEL, "dp")], &backup));
        assert!(with(&[(POOL_UID_LABEL, "uid-dp")], &us) && !with(&[(POOL_UID_LABEL, "uid-dp")], &backup));
        // Another pool's.
        assert!(!with(&[(POOL_LABEL, "dp"), (POOL_UID_LABEL, "uid-other")], &us));
    }

    #[test]
    fn a_network_that_somebody_else_restored_is_written_again() {
        let pool = pool("dp", json!({"networks": [{"name": "net", "namespaces": {"names": ["a"]}}]}));
        let desired = wanted(&pool, &[namespace("a", &[])], &[]);
        let restored = desired.networks.values().next().unwrap().clone();
        assert_eq!(plan(&desired, std::slice::from_ref(&restored)).repair, [key(&restored)]);
        assert_eq!(plan(&desired, [&written(restored.clone())]).keep, [key(&restored)]);
    }

    #[test]
    fn a_namespace_that_is_being_deleted_gets_none() {
        let pool = pool("dp", json!({"networks": [{"name": "net", "namespaces": {"selector": {}}}]}));
        let mut ending = namespace("b", &[]);
        ending.metadata.deletion_timestamp = Some(crate::testing::at(1));
        assert_eq!(keys(&wanted(&pool, &[namespace("a", &[]), ending], &[])), ["a/net"]);
    }

    #[test]
    fn a_network_that_kube_ovn_would_take_for_its_own_is_not_made() {
        let places = json!({"names": ["tenant", "team-ovn"]});
        let networks = json!([
            {"name": "addressed", "namespaces": places, "ipam": {"kubeOVN": {}}},
            {"name": "bare", "namespaces": places},
        ]);
        let pool = pool("dp", json!({"networks": networks}));
        let desired = wanted(&pool, &[namespace("tenant", &[]), namespace("team-ovn", &[])], &[]);
        assert_eq!(keys(&desired), ["team-ovn/bare", "tenant/addressed", "tenant/bare"]);
        assert!(
            matches!(&desired.problems[..], [p] if p.reason == PoolReason::NetworkNameNotUsable && p.message.contains("team-ovn/addressed"))
        );
    }

    #[test]
    fn each_link_has_its_network_under_a_name_that_multus_takes() {
        let pool = pool(
            "per-link",
            json!({"resourcePer": "Link", "networks": [{"name": "m-{link}", "namespaces": {"names": ["a"]}}]}),
        );
        let desired = wanted(&pool, &[namespace("a", &[])], &["eth0.100", "eth0-100", "Bond_1"]);
        assert_eq!(keys(&desired), ["a/m-bond-1", "a/m-eth0-100"]);
        let of = |name: &str| {
            desired.networks[&("a".into(), name.into())].annotations()[RESOURCE_NAME_ANNOTATION].clone()
        };
        assert_eq!(of("m-bond-1"), "macvtap.network.kubevirt.io/Bond_1");
        assert_eq!(of("m-eth0-100"), "macvtap.network.kubevirt.io/eth0-100");
        assert!(matches!(&desired.problems[..], [p] if p.reason == PoolReason::NetworkNameNotUsable));
    }

    #[test]
    fn what_was_edited_by_hand_is_repaired_and_what_is_not_wanted_is_deleted() {
        let networks = json!([{"name": "kept", "namespaces": {"selector": {}}}, {"name": "new", "namespaces": {"selector": {}}}]);
        let pool = pool("dp", json!({"networks": networks}));
        let desired = wanted(&pool, &[namespace("a", &[]), namespace("b", &[])], &[]);
        let there =
            |namespace: &str, name: &str| written(desired.networks[&(namespace.into(), name.into())].clone());
        let mut edited = there("a", "kept");
        edited.spec.config = "{}".into();
        let mut without_resource = there("b", "kept");
        without_resource.metadata.annotations = None;
        let mut unwanted = there("a", "kept");
        unwanted.metadata.name = Some("old".into());
        let ours = [edited, without_resource, unwanted, there("a", "new")];
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        assert_eq!(
            plan(&desired, &ours),
            NetworkPlan {
                create: vec![key("b", "new")],
                repair: vec![key("a", "kept"), key("b", "kept")],
                delete: vec![(key("a", "old"), None)],
                keep: vec![key("a", "new")],
            }
        );
    }

    #[test]
    fn labels_of_others_on_our_network_do_not_matter() {
        let pool = pool("dp", json!({"networks": [{"name": "net", "namespaces": {"selector": {}}}]}));
        let desired = wanted(&pool, &[namespace("a", &[])], &[]);
        let mut labelled = written(desired.networks.values().next().unwrap().clone());
        labelled.labels_mut().insert("team".into(), "x".into());
        assert_eq!(plan(&desired, &[labelled]).repair, []);
    }
}
