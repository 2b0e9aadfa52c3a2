//! Pure: networks that name an earlier pool of the same name.

use super::kind::{NetworkAttachmentDefinition, NetworkKey};
use super::plan::{Desired, is_written_by_us, key};
use kube::{Resource, ResourceExt};
use macvtap_crds::{POOL_LABEL, POOL_UID_LABEL};
use std::collections::BTreeSet;

/// Whether the network names an earlier pool of this name, or none by UID. `pools` has the UIDs of all pools.
pub fn is_of_former(network: &impl Resource, pool: &str, pools: &BTreeSet<String>) -> bool {
    let label = |key: &str| network.meta().labels.as_ref().and_then(|labels| labels.get(key));
    label(POOL_LABEL).is_some_and(|name| name == pool)
        && label(POOL_UID_LABEL).is_none_or(|uid| !pools.contains(uid))
}

/// Divides those that the pool does not want: the operator deletes what it wrote, with the UID; the others, which were
/// restored from a backup, are left alone and named.
pub fn unwanted<'n>(
    desired: &Desired,
    networks: impl IntoIterator<Item = &'n NetworkAttachmentDefinition>,
) -> (Vec<(NetworkKey, Option<String>)>, Vec<NetworkKey>) {
    let unwanted = networks.into_iter().filter(|network| !desired.networks.contains_key(&key(network)));
    let (written, mut restored): (Vec<_>, Vec<_>) = unwanted.partition(|network| is_written_by_us(*network));
    // A label with the name alone does not come from an earlier pool.
    restored.retain(|network| network.labels().contains_key(POOL_UID_LABEL));
    let mut named: Vec<_> = restored.into_iter().map(key).collect();
    named.sort();
    (written.into_iter().map(|network| (key(network), network.uid())).collect(), named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::kind::NetworkAttachmentDefinitionSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
    use macvtap_crds::OPERATOR_FIELD_MANAGER;

    /// A network of pool `dp` with this UID, and whether the operator wrote it.
    fn network(name: &str, uid: Option<&str>, is_written: bool) -> NetworkAttachmentDefinition {
        let mut network = NetworkAttachmentDefinition::new(name, NetworkAttachmentDefinitionSpec::default());
        network.metadata.namespace = Some("a".to_owned());
        let uid = uid.map(|uid| (POOL_UID_LABEL, uid));
        let labels: Vec<_> = [(POOL_LABEL, "dp")].into_iter().chain(uid).collect();
        network.metadata.labels = Some(crate::testing::labels(&labels));
        let writer = if is_written { OPERATOR_FIELD_MANAGER } else { "velero" };
        let entry = ManagedFieldsEntry { manager: Some(writer.to_owned()), ..Default::default() };
        network.metadata.managed_fields = Some(vec![entry]);
        network
    }

    #[test]
    fn a_network_with_the_uid_of_no_pool_is_that_of_an_earlier_one() {
        let pools = BTreeSet::from(["uid-dp".to_owned(), "uid-other".to_owned()]);
        let is_of = |uid, pool| is_of_former(&network("net", uid, true), pool, &pools);
        assert!(is_of(Some("uid-former"), "dp") && is_of(None, "dp"));
        assert!(!is_of(Some("uid-former"), "other") && !is_of(None, "other"));
        assert!(!is_of(Some("uid-dp"), "dp") && !is_of(Some("uid-other"), "dp"));
    }

    #[test]
    fn those_that_the_operator_wrote_are_deleted_and_restored_ones_are_named() {
        let key = |name: &str| ("a".to_owned(), name.to_owned());
        let mut desired = Desired::default();
        desired.networks.insert(key("net"), network("net", Some("uid-dp"), true));
        let networks = [
            network("restored", Some("uid-former"), false),
            network("net", Some("uid-former"), false),
            network("old", Some("uid-former"), true),
            network("unlabelled", None, true),
            network("labelled-by-a-tenant", None, false),
        ];
        let (deleted, named) = unwanted(&desired, &networks);
        assert_eq!(deleted, [(key("old"), None), (key("unlabelled"), None)]);
        assert_eq!(named, [key("restored")]);
    }
}
