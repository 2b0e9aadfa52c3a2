//! Which pools have an effect: the rules between pools, and those no schema can state.

use glob::Pattern;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::core::Selector;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::links::LinkSelector;
use macvtap_crds::v1alpha1::reason::PoolReason;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, HashMap};

/// Why a pool has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// An older pool has the resource name.
    #[error("resource name {resource} belongs to pool {older}, which is older; choose another name")]
    ResourceNameConflict {
        /// The bare name.
        resource: String,
        /// The pool that has it.
        older: String,
    },
    /// A selector of nodes, namespaces or links that nothing can be compared with.
    #[error("{field} is not a valid selector: {problem}")]
    InvalidSelector {
        /// Which.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Rejection {
    /// The reason of condition Accepted.
    pub fn reason(&self) -> PoolReason {
        match self {
            Self::ResourceNameConflict { .. } => PoolReason::ResourceNameConflict,
            Self::InvalidSelector { .. } => PoolReason::InvalidSelector,
        }
    }
}

/// The verdict on each pool, by name. A pool that is being deleted still has its resource name.
pub fn judge<'p>(
    pools: impl IntoIterator<Item = &'p MacvtapResourcePool>,
) -> BTreeMap<&'p str, Result<(), Rejection>> {
    let mut pools: Vec<_> = pools.into_iter().collect();
    pools.sort_by_key(|pool| (pool.creation_timestamp(), pool.metadata.name.as_deref()));
    let mut owners: HashMap<&str, &str> = HashMap::new();
    let mut verdicts = BTreeMap::new();
    for pool in pools {
        let Some(name) = pool.metadata.name.as_deref() else {
            continue;
        };
        // One with an invalid selector keeps its resource name: nodes keep it, too.
        let claimed = claim(pool, name, &mut owners);
        let verdict = check_selectors(pool).and(claimed);
        verdicts.insert(name, verdict);
    }
    verdicts
}

/// The order in which pools choose links: higher priority, then older, then by name.
pub fn precedence(a: &MacvtapResourcePool, b: &MacvtapResourcePool) -> Ordering {
    let key = |pool: &MacvtapResourcePool| {
        (Reverse(pool.spec.settings.priority), pool.creation_timestamp(), pool.metadata.name.clone())
    };
    key(a).cmp(&key(b))
}

/// Gives the pool its resource name, unless an older pool has it.
fn claim<'p>(
    pool: &'p MacvtapResourcePool,
    name: &'p str,
    owners: &mut HashMap<&'p str, &'p str>,
) -> Result<(), Rejection> {
    let Some(resource) = pool.resource_name() else {
        return Ok(());
    };
    match *owners.entry(resource).or_insert(name) {
        owner if owner == name => Ok(()),
        older => {
            Err(Rejection::ResourceNameConflict { resource: resource.to_owned(), older: older.to_owned() })
        }
    }
}

fn check_selectors(pool: &MacvtapResourcePool) -> Result<(), Rejection> {
    let nodes = pool.spec.node_selector.as_ref().map(|selector| ("nodeSelector".to_owned(), selector));
    let networks = pool.spec.networks.iter().flatten().filter_map(|network| {
        let selector = network.namespaces.selector.as_ref()?;
        Some((format!("networks[{}].namespaces.selector", network.name), selector))
    });
    for (field, selector) in nodes.into_iter().chain(networks) {
        let read = Selector::try_from(selector.clone()).map_err(|problem| problem.to_string());
        read.and_then(|_| check_labels(selector))
            .map_err(|problem| Rejection::InvalidSelector { field, problem })?;
    }
    let settings = &pool.spec.settings;
    let links = settings.links.iter().zip(0..).map(|(links, index)| (format!("links[{index}]"), links));
    let exclude = settings.exclude.iter().flatten().zip(0..);
    let exclude = exclude.map(|(links, index)| (format!("exclude[{index}]"), links));
    for (place, links) in links.chain(exclude) {
        check_links(links).map_err(|(field, problem)| Rejection::InvalidSelector {
            field: format!("{place}.{field}"),
            problem,
        })?;
    }
    Ok(())
}

/// Checks what agents refuse: they would withdraw every free device of the pool.
fn check_links(links: &LinkSelector) -> Result<(), (&'static str, String)> {
    for name in links.names.iter().flatten() {
        Pattern::new(name).map_err(|problem| ("names", format!("\"{name}\": {problem}")))?;
    }
    let is_unicast = |address: &&String| {
        let first = address.get(..2).and_then(|byte| u8::from_str_radix(byte, 16).ok());
        let is_zero = address.chars().all(|digit| matches!(digit, '0' | ':'));
        first.is_some_and(|first| first & 1 == 0) && !is_zero
    };
    match links.mac_addresses.iter().flatten().find(|address| !is_unicast(address)) {
        Some(address) => Err(("macAddresses", format!("\"{address}\" is not a unicast MAC address"))),
        None => Ok(()),
    }
}

/// Checks keys and values as the API server does where a label selector is part of an object of its own.
fn check_labels(selector: &LabelSelector) -> Result<(), String> {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    let keys =
        labels.clone().map(|(key, _)| key).chain(expressions.clone().map(|expression| &expression.key));
    let values = labels.map(|(_, value)| value);
    let mut values = values.chain(expressions.flat_map(|expression| expression.values.iter().flatten()));
    if let Some(key) = keys.into_iter().find(|key| !is_label_key(key)) {
        return Err(format!("\"{key}\" is not a label key"));
    }
    match values.find(|value| !(value.is_empty() || is_label_name(value))) {
        Some(value) => Err(format!("\"{value}\" is not a label value")),
        None => Ok(()),
    }
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        None => is_label_name(key),
        Some((prefix, name)) => {
            let is_part = |part: &str| {
                let is_lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                part.bytes().all(is_lower) && has_ends(part)
            };
            prefix.len() <= 253 && prefix.split('.').all(is_part) && is_label_name(name)
        }
    }
}

fn is_label_name(name: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    name.len() <= 63 && name.bytes().all(is_inner) && has_ends(name)
}

/// Whether the text begins and ends with a letter or digit.
fn has_ends(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    is_end(text.as_bytes().first()) && is_end(text.as_bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{created, pool};
    use serde_json::json;

    fn verdicts(pools: &[MacvtapResourcePool]) -> Vec<(&str, Option<Rejection>)> {
        judge(pools).into_iter().map(|(name, verdict)| (name, verdict.err())).collect()
    }

    #[test]
    fn of_two_pools_with_one_resource_name_the_older_has_it_whatever_its_prefix() {
        let young = created(pool("a", json!({"resourceName": "dp", "resourcePrefix": "x.example"})), 20);
        let old = created(pool("b", json!({"resourceName": "dp"})), 10);
        let conflict = Rejection::ResourceNameConflict { resource: "dp".into(), older: "b".into() };
        assert_eq!(verdicts(&[young, old]), [("a", Some(conflict)), ("b", None)]);
    }

    #[test]
    fn the_name_of_a_pool_counts_where_no_resource_name_is_given() {
        let old = created(pool("dp", json!({})), 10);
        let young = created(pool("other", json!({"resourceName": "dp"})), 20);
        assert!(matches!(
            verdicts(&[old, young])[1],
            ("other", Some(Rejection::ResourceNameConflict { .. }))
        ));
    }

    #[test]
    fn pools_made_in_the_same_second_are_ordered_by_name() {
        let pools = ["b", "a"].map(|name| created(pool(name, json!({"resourceName": "dp"})), 10));
        assert!(matches!(verdicts(&pools)[..], [("a", None), ("b", Some(_))]));
    }

    #[test]
    fn pools_with_a_resource_for_each_link_do_not_conflict() {
        let pools = ["a", "b"].map(|name| created(pool(name, json!({"resourcePer": "Link"})), 10));
        assert_eq!(verdicts(&pools), [("a", None), ("b", None)]);
    }

    #[test]
    fn a_selector_with_an_operator_that_does_not_exist_is_refused_with_its_place() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]});
        let bad =
            created(pool("a", json!({"networks": [{"name": "n", "namespaces": {"selector": selector}}]})), 1);
        let text = verdicts(&[bad])[0].1.as_ref().unwrap().to_string();
        assert!(text.contains("networks[n].namespaces.selector"), "{text}");
    }

    #[test]
    fn a_slip_in_a_selector_hands_the_resource_name_to_no_other_pool() {
        let slip = json!({"resourceName": "shared", "nodeSelector": {"matchLabels": {"bad key!": "x"}}});
        let pools =
            [created(pool("old", slip), 1), created(pool("young", json!({"resourceName": "shared"})), 2)];
        assert!(matches!(
            verdicts(&pools)[..],
            [
                ("old", Some(Rejection::InvalidSelector { .. })),
                ("young", Some(Rejection::ResourceNameConflict { .. }))
            ]
        ));
    }

    #[test]
    fn what_agents_would_refuse_is_refused_before_they_receive_it() {
        let labels = |key: &str, value: &str| json!({"nodeSelector": {"matchLabels": {key: value}}});
        let links = |links| json!({"links": [{"names": ["dp0"]}, links]});
        for (spec, place) in [
            (links(json!({"names": ["eth*", "dp[0"]})), "links[1].names"),
            (links(json!({"names": ["***"]})), "links[1].names"),
            (links(json!({"macAddresses": ["01:00:5e:00:00:01"]})), "links[1].macAddresses"),
            (links(json!({"macAddresses": ["00:00:00:00:00:00"]})), "links[1].macAddresses"),
            (json!({"exclude": [{"names": ["dp[!]0"]}]}), "exclude[0].names"),
            (labels("bad key!", "x"), "nodeSelector"),
            (labels("Example.com/zone", "x"), "nodeSelector"),
            (labels("zone", &"a".repeat(64)), "nodeSelector"),
            (labels("zone", "a b"), "nodeSelector"),
            (labels("zone", "-a"), "nodeSelector"),
        ] {
            let text = verdicts(&[pool("a", spec)])[0].1.as_ref().unwrap().to_string();
            assert!(text.starts_with(&format!("{place} is not a valid selector: ")), "{text}");
        }
        for spec in [
            links(
                json!({"names": ["ens[0-9]f?", "bond*", "[!e]th0"], "macAddresses": ["02:00:5E:00:00:01"]}),
            ),
            labels("example.com/zone", "A.b_c-1"),
            labels("k8s-2.io/zone", &"a".repeat(63)),
            labels("zone", ""),
        ] {
            assert_eq!(verdicts(&[pool("a", spec)])[0].1, None);
        }
    }

    #[test]
    fn a_higher_number_wins_then_age_then_name() {
        let mut pools = [
            created(pool("old", json!({})), 1),
            created(pool("b", json!({})), 2),
            created(pool("a", json!({})), 2),
            created(pool("first", json!({"priority": 5})), 9),
        ];
        pools.sort_by(precedence);
        assert_eq!(pools.map(|p| p.name_any()), ["first", "old", "a", "b"]);
    }
}
