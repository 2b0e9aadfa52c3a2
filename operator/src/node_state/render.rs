//! Pure: pools and a node's labels to the spec of its node state.

use crate::acceptance::{judge, precedence, selects};
use kube::ResourceExt;
use macvtap_crds::POOL_FINALIZER;
use macvtap_crds::v1alpha1::nodestate::{POOLS_MAX, PoolPhase};
use macvtap_crds::v1alpha1::settings::{Capacity, DeviceType};
use macvtap_crds::v1alpha1::{
    MacvtapNodeState, MacvtapNodeStateSpec, MacvtapResourcePool, NodePool, PoolSettings,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The pools nodes may have, in the order in which they choose links: accepted, not being deleted, and with our
/// finalizer, without which a deletion would not wait for the drain.
pub fn active<'p>(
    pools: impl Iterator<Item = &'p MacvtapResourcePool> + Clone,
) -> Vec<&'p MacvtapResourcePool> {
    let verdicts = judge(pools.clone());
    let mut active: Vec<_> = pools
        .filter(|pool| pool.metadata.deletion_timestamp.is_none())
        .filter(|pool| pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER))
        .filter(|pool| {
            pool.metadata.name.as_deref().is_some_and(|name| matches!(verdicts.get(name), Some(Ok(()))))
        })
        .collect();
    active.sort_by(|a, b| precedence(a, b));
    active
}

/// What a node with these labels shall offer, given what it was told before.
///
/// An entry that is no longer wanted stays as Draining until the node says that no device of it is in use, whether its
/// pool was deleted, changed, or lost its acceptance.
pub fn render(
    labels: &BTreeMap<String, String>,
    active: &[&MacvtapResourcePool],
    current: Option<&MacvtapNodeState>,
) -> MacvtapNodeStateSpec {
    let before = current.map_or(&[][..], |state| &state.spec.pools);
    let wanted: Vec<NodePool> = active
        .iter()
        .filter(|pool| selects(pool.spec.node_selector.as_ref(), labels))
        .map(|pool| entry(pool, before))
        .collect();
    let draining: Vec<NodePool> = before
        .iter()
        .filter(|old| !wanted.iter().any(|new| new.uid == old.uid))
        .filter(|old| !current.is_some_and(|state| drained(state, old)))
        .map(|old| NodePool { phase: PoolPhase::Draining, ..old.clone() })
        .collect();
    // A pool made anew under an old name, or with an old resource name, waits for the old one's last device.
    let taken = |new: &NodePool| {
        draining.iter().any(|old| {
            old.name == new.name || (old.resource_name.is_some() && old.resource_name == new.resource_name)
        })
    };
    let mut pools: Vec<NodePool> = wanted.into_iter().filter(|new| !taken(new)).collect();
    pools.truncate(POOLS_MAX.saturating_sub(draining.len()));
    pools.extend(draining);
    spec(pools)
}

/// A spec of these pools, named by its content.
pub fn spec(pools: Vec<NodePool>) -> MacvtapNodeStateSpec {
    let mut hash = Sha256::new();
    for pool in &pools {
        // The types hold nothing that JSON cannot say; if ever one did, its text still tells two settings apart.
        hash.update(serde_json::to_vec(pool).unwrap_or_else(|_| format!("{pool:?}").into_bytes()));
        hash.update(b"\n");
    }
    let mut config_hash = "sha256:".to_owned();
    for byte in hash.finalize() {
        // Writing to a String cannot fail.
        let _ = write!(config_hash, "{byte:02x}");
    }
    MacvtapNodeStateSpec { config_hash, pools }
}

/// Whether the node holds no device of this entry any more: it never got it, or has applied the drain and reports none.
pub fn drained(state: &MacvtapNodeState, entry: &NodePool) -> bool {
    let Some(status) = &state.status else { return true };
    match &status.observed_hash {
        None => true,
        Some(hash) => {
            *hash == state.spec.config_hash
                && entry.phase == PoolPhase::Draining
                && status
                    .pools
                    .iter()
                    .find(|pool| pool.name == entry.name)
                    .is_none_or(|pool| pool.allocated == 0)
        }
    }
}

fn entry(pool: &MacvtapResourcePool, before: &[NodePool]) -> NodePool {
    let new = NodePool {
        name: pool.name_any(),
        uid: pool.uid().unwrap_or_default(),
        generation: pool.metadata.generation.unwrap_or_default(),
        phase: PoolPhase::Active,
        resource_name: pool.resource_name().map(str::to_owned),
        settings: filled(&pool.spec.settings),
    };
    // The generation grows with every edit, also of what no node needs to know; nodes hear of the others only.
    match before.iter().find(|old| old.uid == new.uid) {
        Some(old) if (NodePool { generation: old.generation, ..new.clone() }) == *old => old.clone(),
        _ => new,
    }
}

/// The settings with every default that depends on others filled in.
fn filled(settings: &PoolSettings) -> PoolSettings {
    let mut filled = settings.clone();
    filled.capacity = Some(Capacity { per_link: Some(settings.per_link()), per_node: settings.per_node() });
    if filled.device_type == DeviceType::Macvtap {
        filled.macvtap.get_or_insert_default();
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{created, deleted, labels, pool, state};
    use macvtap_crds::v1alpha1::settings::Mode;
    use macvtap_crds::v1alpha1::{MacvtapNodeStateStatus, NodePoolStatus};
    use proptest::prelude::*;
    use serde_json::json;

    fn names(spec: &MacvtapNodeStateSpec) -> Vec<(&str, PoolPhase)> {
        spec.pools.iter().map(|pool| (pool.name.as_str(), pool.phase)).collect()
    }

    fn rendered(pools: &[MacvtapResourcePool], current: Option<&MacvtapNodeState>) -> MacvtapNodeStateSpec {
        render(&labels(&[]), &active(pools.iter()), current)
    }

    /// The state after the node's agent applied its spec and reports so many devices in use for every pool.
    fn applied(spec: MacvtapNodeStateSpec, allocated: u32) -> MacvtapNodeState {
        let mut state = state("n1", spec.pools, 0);
        let pools = state.spec.pools.iter();
        let pools =
            pools.map(|p| NodePoolStatus { name: p.name.clone(), allocated, ..Default::default() }).collect();
        let hash = Some(state.spec.config_hash.clone());
        state.status = Some(MacvtapNodeStateStatus { observed_hash: hash, pools, ..Default::default() });
        state
    }

    #[test]
    fn a_node_gets_the_pools_that_select_it_in_order_of_precedence() {
        let pools = [
            created(pool("low", json!({})), 1),
            created(pool("high", json!({"priority": 7, "nodeSelector": {"matchLabels": {"zone": "a"}}})), 2),
            created(pool("elsewhere", json!({"nodeSelector": {"matchLabels": {"zone": "b"}}})), 3),
        ];
        let spec = render(&labels(&[("zone", "a")]), &active(pools.iter()), None);
        assert_eq!(names(&spec), [("high", PoolPhase::Active), ("low", PoolPhase::Active)]);
        assert_eq!(spec.pools[0].resource_name.as_deref(), Some("high"));
    }

    #[test]
    fn a_pool_without_our_finalizer_or_without_acceptance_is_not_rendered() {
        let mut fresh = pool("fresh", json!({}));
        fresh.metadata.finalizers = None;
        let second = created(pool("second", json!({"resourceName": "first"})), 9);
        assert_eq!(
            names(&rendered(&[fresh, pool("first", json!({})), second], None)),
            [("first", PoolPhase::Active)]
        );
    }

    #[test]
    fn defaults_that_depend_on_other_fields_are_filled_in() {
        let passthru = pool("p", json!({"macvtap": {"mode": "Passthru"}}));
        let spec = rendered(&[pool("a", json!({"capacity": {"perNode": 7}})), passthru], None);
        let settings = |i: usize| &spec.pools[i].settings;
        assert_eq!(settings(0).capacity, Some(Capacity { per_link: Some(100), per_node: Some(7) }));
        assert_eq!(settings(0).macvtap.as_ref().map(|m| m.mode), Some(Mode::Bridge));
        assert_eq!(settings(1).capacity, Some(Capacity { per_link: Some(1), per_node: None }));
    }

    #[test]
    fn an_edit_that_no_node_needs_to_know_changes_nothing() {
        let before = state("n1", rendered(&[pool("a", json!({}))], None).pools, 0);
        let mut edited = pool("a", json!({"networks": [{"name": "a", "namespaces": {"names": ["x"]}}]}));
        edited.metadata.generation = Some(2);
        assert_eq!(rendered(&[edited], Some(&before)), before.spec);
        let mut relevant = pool("a", json!({"priority": 3}));
        relevant.metadata.generation = Some(3);
        let spec = rendered(&[relevant], Some(&before));
        assert_eq!(spec.pools[0].generation, 3);
        assert_ne!(spec.config_hash, before.spec.config_hash);
    }

    #[test]
    fn a_deleted_pool_drains_until_no_device_is_in_use() {
        let active = applied(rendered(&[pool("a", json!({}))], None), 2);
        let gone = [deleted(pool("a", json!({})))];
        let draining = rendered(&gone, Some(&active));
        assert_eq!(names(&draining), [("a", PoolPhase::Draining)]);
        assert_eq!(
            names(&rendered(&gone, Some(&applied(draining.clone(), 1)))),
            [("a", PoolPhase::Draining)]
        );
        let told_but_not_applied = state("n1", draining.pools.clone(), 0);
        let mut not_applied = applied(draining.clone(), 0);
        not_applied.status.as_mut().unwrap().observed_hash = Some("sha256:other".into());
        assert_eq!(names(&rendered(&gone, Some(&not_applied))), [("a", PoolPhase::Draining)]);
        assert_eq!(
            names(&rendered(&gone, Some(&told_but_not_applied))),
            [],
            "a node without agent holds nothing"
        );
        assert_eq!(names(&rendered(&gone, Some(&applied(draining, 0)))), []);
    }

    #[test]
    fn a_pool_that_no_longer_selects_the_node_drains_too_and_comes_back_when_it_does_again() {
        let active = applied(rendered(&[pool("a", json!({}))], None), 1);
        let elsewhere = pool("a", json!({"nodeSelector": {"matchLabels": {"zone": "b"}}}));
        let draining = rendered(&[elsewhere], Some(&active));
        assert_eq!(names(&draining), [("a", PoolPhase::Draining)]);
        let back = rendered(&[pool("a", json!({}))], Some(&applied(draining, 1)));
        assert_eq!(names(&back), [("a", PoolPhase::Active)]);
    }

    #[test]
    fn a_pool_with_the_name_or_the_resource_of_a_draining_one_waits_for_it() {
        let old = applied(rendered(&[pool("a", json!({}))], None), 1);
        let mut anew = pool("a", json!({}));
        anew.metadata.uid = Some("another".into());
        let heir = pool("heir", json!({"resourceName": "a"}));
        assert_eq!(names(&rendered(&[anew], Some(&old))), [("a", PoolPhase::Draining)]);
        assert_eq!(names(&rendered(&[heir], Some(&old))), [("a", PoolPhase::Draining)]);
    }

    #[test]
    fn a_node_has_at_most_as_many_pools_as_the_schema_allows() {
        let pools: Vec<_> = (0..70).map(|i| created(pool(&format!("p{i:02}"), json!({})), i)).collect();
        let spec = rendered(&pools, None);
        assert_eq!(spec.pools.len(), POOLS_MAX);
        assert_eq!(spec.pools[POOLS_MAX - 1].name, "p63");
    }

    proptest! {
        #[test]
        fn rendering_again_what_was_rendered_changes_nothing(
            priorities in proptest::collection::vec(0u32..4, 0..8),
            deleted_at in proptest::option::of(0usize..8),
            allocated in 0u32..3,
        ) {
            let mut pools: Vec<_> = priorities.iter().enumerate()
                .map(|(i, priority)| created(pool(&format!("p{i}"), json!({"priority": priority})), i.try_into().unwrap()))
                .collect();
            let first = applied(rendered(&pools, None), allocated);
            prop_assert_eq!(&rendered(&pools, Some(&first)), &first.spec);
            if let Some(gone) = deleted_at.filter(|i| *i < pools.len()) {
                pools[gone] = deleted(pools[gone].clone());
                let second = applied(rendered(&pools, Some(&first)), allocated);
                let third = rendered(&pools, Some(&second));
                prop_assert_eq!(third.pools.len(), pools.len() - usize::from(allocated == 0));
                pools.reverse();
                prop_assert_eq!(rendered(&pools, Some(&second)), third);
            }
        }
    }
}
