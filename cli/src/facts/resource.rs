//! Which resources pools make, and what Nodes have of them.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use macvtap_crds::GROUP;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use std::collections::{BTreeMap, BTreeSet};

/// Full names of resources, each with the pool that makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Made(BTreeMap<String, String>);

impl Made {
    /// By these pools; those that name resources after links are looked up in the node states.
    pub(crate) fn by(pools: &[MacvtapResourcePool], states: &[MacvtapNodeState]) -> Self {
        let mut made = BTreeMap::new();
        for pool in pools {
            let prefix = &pool.spec.settings.resource_prefix;
            let mut add = |name: &str| made.insert(format!("{prefix}/{name}"), pool.name_any());
            if let Some(name) = pool.resource_name() {
                add(name);
                continue;
            }
            let reported =
                states.iter().filter_map(|state| state.status.as_ref()).flat_map(|status| &status.pools);
            for of_node in reported.filter(|of_node| of_node.name == pool.name_any()) {
                for name in &of_node.resources {
                    add(name);
                }
            }
        }
        Self(made)
    }

    /// The pool that makes a resource.
    pub(crate) fn pool_of(&self, resource: &str) -> Option<&str> {
        self.0.get(resource).map(String::as_str)
    }

    /// All of them, each with its pool.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(resource, pool)| (resource.as_str(), pool.as_str()))
    }
}

/// The prefixes of resources of this project: the default one and those of pools.
pub(crate) fn prefixes(pools: &[MacvtapResourcePool]) -> BTreeSet<String> {
    let of_pools = pools.iter().map(|pool| pool.spec.settings.resource_prefix.clone());
    of_pools.chain([GROUP.to_owned()]).collect()
}

/// Whether a resource has one of these prefixes.
pub(crate) fn has_prefix(resource: &str, prefixes: &BTreeSet<String>) -> bool {
    resource.split_once('/').is_some_and(|(prefix, _)| prefixes.contains(prefix))
}

/// How much of a resource a Node has: capacity and allocatable; none if it does not list it.
pub(crate) fn of_node(node: &Node, resource: &str) -> Option<(i64, i64)> {
    let status = node.status.as_ref()?;
    let of = |list: Option<&BTreeMap<String, Quantity>>| list.and_then(|list| list.get(resource)).map(count);
    let (capacity, allocatable) = (of(status.capacity.as_ref()), of(status.allocatable.as_ref()));
    capacity.or(allocatable).map(|_| (capacity.unwrap_or(0), allocatable.unwrap_or(0)))
}

/// Resources that a Node lists with the value 0, of these prefixes.
pub(crate) fn zeros(node: &Node, prefixes: &BTreeSet<String>) -> Vec<String> {
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    let names = capacity.into_iter().flat_map(BTreeMap::keys).filter(|name| has_prefix(name, prefixes));
    names.filter(|name| of_node(node, name) == Some((0, 0))).cloned().collect()
}

/// A quantity of devices. They are whole numbers, which Kubernetes may write as 4k.
pub(crate) fn count(quantity: &Quantity) -> i64 {
    let text = quantity.0.trim();
    let (digits, factor) = match text.strip_suffix('k') {
        Some(digits) => (digits, 1000),
        None => (text, 1),
    };
    digits.parse::<i64>().map_or(0, |number| number.saturating_mul(factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pool, state};
    use serde_json::json;

    #[test]
    fn resources_are_those_of_pools_and_of_links_that_nodes_report() {
        let pools =
            [pool("dp", json!({})), pool("per", json!({"resourcePer": "Link", "resourcePrefix": "x.io"}))];
        let states =
            [state("n1", json!({"pools": [{"name": "per", "generation": 1, "resources": ["eth1"]}]}))];
        let made = Made::by(&pools, &states);
        let all: Vec<_> = made.iter().collect();
        assert_eq!(all, [("macvtap.network.kubevirt.io/dp", "dp"), ("x.io/eth1", "per")]);
        assert!(has_prefix("x.io/old", &prefixes(&pools)) && !has_prefix("cpu", &prefixes(&pools)));
    }

    #[test]
    fn zeros_are_resources_of_ours_of_which_a_node_has_none() {
        let listed =
            json!({"cpu": "0", "macvtap.network.kubevirt.io/a": "0", "macvtap.network.kubevirt.io/b": "4k"});
        let node = node("n1", json!({"capacity": listed, "allocatable": listed}));
        assert_eq!(zeros(&node, &prefixes(&[])), ["macvtap.network.kubevirt.io/a"]);
        assert_eq!(of_node(&node, "macvtap.network.kubevirt.io/b"), Some((4000, 4000)));
    }
}
