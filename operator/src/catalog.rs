//! All pools as nodes need them, worked out once for each change of a pool and not once for each node.

use crate::acceptance::{Rejection, judge, precedence};
use crate::entry::{Entry, entry_of, nameplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::{Selector, SelectorExt};
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::pool::RolloutType;
use macvtap_crds::{POOL_FINALIZER, RELEASE_ANNOTATION};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All pools.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those nodes may have, in the order in which they choose links: accepted, not being deleted, and with our
    /// finalizer, without which a deletion would not wait for the drain.
    pub active: Vec<ActivePool>,
    verdicts: BTreeMap<String, Result<(), Rejection>>,
    released: Vec<Released>,
    /// Those of which nodes keep what they were sent.
    frozen: Vec<Frozen>,
    /// Those that are being deleted.
    ending: Vec<Arc<Entry>>,
}

/// A pool that nodes may have.
#[derive(Debug)]
pub struct ActivePool {
    /// Which nodes.
    pub nodes: Nodes,
    /// What they are sent.
    pub entry: Arc<Entry>,
    /// Whether a few nodes change at a time.
    pub staged: bool,
    /// Its place among all pools by age and name, which decides between pools of one priority.
    pub age: usize,
}

/// The nodes a pool selects. Reading a selector costs more than asking it.
#[derive(Clone, Debug)]
pub struct Nodes(Option<Selector>);

/// A pool of which nodes keep what they were sent.
#[derive(Debug)]
struct Frozen {
    /// The nodes that it selects, if that is known.
    nodes: Option<Nodes>,
    /// Whether an operator may have sent it: one adds the finalizer before that, and reports whether it is accepted.
    was_sent: bool,
    entry: Arc<Entry>,
}

/// A pool being deleted that does not wait for some nodes.
#[derive(Debug)]
struct Released {
    uid: String,
    nodes: BTreeSet<String>,
}

impl Released {
    fn new(meta: &ObjectMeta) -> Option<Self> {
        meta.deletion_timestamp.as_ref()?;
        let nodes = released(meta);
        (!nodes.is_empty()).then_some(Self { uid: meta.uid.clone()?, nodes })
    }
}

impl Nodes {
    /// Those a label selector means; absent it means all, and one that cannot be read none.
    pub fn new(selector: Option<&LabelSelector>) -> Option<Self> {
        match selector {
            None => Some(Self(None)),
            Some(selector) => Selector::try_from(selector.clone()).ok().map(|selector| Self(Some(selector))),
        }
    }

    /// Whether a node with these labels is meant.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.as_ref().is_none_or(|selector| selector.matches(labels))
    }
}

impl Catalog {
    /// Works out what these pools come to. What nodes were sent of one whose selectors are invalid, or that has lost its
    /// finalizer, stays as it was, as with one that cannot be read: a slip of the hand takes no devices away.
    pub fn new<'p>(pools: impl Iterator<Item = &'p MacvtapResourcePool> + Clone) -> Self {
        let verdicts = judge(pools.clone());
        let verdicts: BTreeMap<String, _> =
            verdicts.into_iter().map(|(name, verdict)| (name.to_owned(), verdict)).collect();
        let mut active: Vec<_> = pools
            .clone()
            .filter(|pool| pool.metadata.deletion_timestamp.is_none())
            .filter(|pool| has_finalizer(pool))
            .filter(|pool| matches!(verdicts.get(&pool.name_any()), Some(Ok(()))))
            .collect();
        active.sort_by_key(|pool| (pool.creation_timestamp(), pool.name_any()));
        let mut active: Vec<_> = active.into_iter().enumerate().collect();
        active.sort_by(|(_, a), (_, b)| precedence(a, b));
        let active = active
            .into_iter()
            .filter_map(|(age, pool)| {
                let nodes = Nodes::new(pool.spec.node_selector.as_ref())?;
                let staged = pool.spec.rollout.rollout_type == RolloutType::Staged;
                Some(ActivePool { nodes, entry: Arc::new(entry_of(pool)), staged, age })
            })
            .collect();
        let is_frozen = |pool: &&MacvtapResourcePool| {
            pool.metadata.deletion_timestamp.is_none()
                && match verdicts.get(&pool.name_any()) {
                    // Whoever replaces a pool as a whole removes the finalizer, which then comes back.
                    None | Some(Ok(())) => !has_finalizer(pool),
                    Some(Err(Rejection::InvalidSelector { .. })) => true,
                    Some(Err(Rejection::ResourceNameConflict { .. })) => false,
                }
        };
        let entry = |pool: &MacvtapResourcePool| Arc::new(entry_of(pool));
        let kept = |pool: &MacvtapResourcePool| Frozen {
            nodes: Nodes::new(pool.spec.node_selector.as_ref()),
            was_sent: has_finalizer(pool) || !matches!(accepted(pool), None | Some("Unknown")),
            entry: entry(pool).unchanged(),
        };
        let frozen = pools.clone().filter(is_frozen).map(kept).collect();
        let ending = pools.clone().filter(|pool| was_sent(pool)).map(|pool| entry(pool).draining()).collect();
        let released = pools.filter_map(|pool| Released::new(&pool.metadata));
        Self { active, verdicts, released: released.collect(), frozen, ending }
    }

    /// The same, with pools that cannot be read: unless they are being deleted, nodes keep what they were sent of them.
    #[must_use]
    pub fn with_unreadable<'p>(mut self, pools: impl Iterator<Item = &'p ObjectMeta> + Clone) -> Self {
        self.released.extend(pools.clone().filter_map(Released::new));
        let (ending, frozen): (Vec<_>, Vec<_>) = pools.partition(|meta| meta.deletion_timestamp.is_some());
        let entry = |meta| Arc::new(nameplate(meta));
        self.frozen.extend(frozen.into_iter().map(|meta| Frozen {
            nodes: None,
            was_sent: is_claimed(meta),
            entry: entry(meta),
        }));
        self.ending.extend(ending.into_iter().map(|meta| entry(meta).draining()));
        self
    }

    /// Whether nodes keep what they were sent of the pool with this UID.
    pub fn frozen(&self, uid: &str) -> bool {
        self.frozen.iter().any(|frozen| frozen.entry.uid == uid)
    }

    /// What a node with these labels may have been sent, where nobody knows: every pool that it could have by now. It keeps
    /// what it has of those that it must not be sent as they are, and receives the drain of those being deleted.
    pub fn assumed(&self, labels: &BTreeMap<String, String>) -> Vec<Arc<Entry>> {
        let selected = self.active.iter().filter(|pool| pool.nodes.selects(labels));
        let sent = |pool: &ActivePool| {
            if pool.staged { pool.entry.unchanged() } else { Arc::clone(&pool.entry) }
        };
        let may_select = |frozen: &Frozen| frozen.nodes.as_ref().is_none_or(|nodes| nodes.selects(labels));
        let kept = self.frozen.iter().filter(|frozen| frozen.was_sent && may_select(frozen));
        let kept = kept.map(|frozen| &frozen.entry);
        selected.map(sent).chain(kept.chain(&self.ending).cloned()).collect()
    }

    /// Whether a pool has an effect.
    pub fn verdict(&self, pool: &str) -> Result<(), Rejection> {
        self.verdicts.get(pool).cloned().unwrap_or(Ok(()))
    }

    /// What nodes are sent of the pool with this UID, if they may have it.
    pub fn active(&self, uid: &str) -> Option<&ActivePool> {
        self.active.iter().find(|pool| pool.entry.uid == uid)
    }

    /// Whether somebody with the right to say so declared that the node's devices of that pool are not waited for.
    pub fn released(&self, uid: &str, node: &str) -> bool {
        self.released.iter().any(|released| released.uid == uid && released.nodes.contains(node))
    }
}

fn has_finalizer(pool: &MacvtapResourcePool) -> bool {
    is_claimed(&pool.metadata)
}

fn is_claimed(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == POOL_FINALIZER)
}

/// Whether a pool is being deleted that nodes may have been sent.
fn was_sent(pool: &MacvtapResourcePool) -> bool {
    let was_sent = match accepted(pool) {
        Some("True") => true,
        Some("False") => false,
        _ => has_finalizer(pool),
    };
    pool.metadata.deletion_timestamp.is_some() && was_sent
}

/// The status of the condition Accepted: Unknown in the status that the API server itself gives a new pool.
fn accepted(pool: &MacvtapResourcePool) -> Option<&str> {
    let conditions = &pool.status.as_ref()?.conditions;
    Some(condition::find(conditions, ConditionType::Accepted)?.status.as_str())
}

/// The nodes that a pool being deleted does not wait for: their names, separated by commas or white space.
pub fn released(pool: &ObjectMeta) -> BTreeSet<String> {
    let annotations = pool.annotations.as_ref();
    let names = annotations.and_then(|all| all.get(RELEASE_ANNOTATION)).map_or("", String::as_str);
    let is_separator = |c: char| c == ',' || c.is_whitespace();
    names.split(is_separator).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{created, deleted, pool};
    use serde_json::json;

    fn names(pools: &[MacvtapResourcePool]) -> Vec<String> {
        Catalog::new(pools.iter()).active.iter().map(|pool| pool.entry.name.clone()).collect()
    }

    #[test]
    fn only_pools_with_an_effect_reach_nodes_and_in_their_order() {
        let mut fresh = pool("fresh", json!({}));
        fresh.metadata.finalizers = None;
        let pools = [
            fresh,
            created(pool("young", json!({})), 5),
            created(pool("taken", json!({"resourceName": "young"})), 9),
            created(pool("old", json!({})), 1),
            created(pool("first", json!({"priority": 3})), 9),
            deleted(pool("gone", json!({}))),
        ];
        assert_eq!(names(&pools), ["first", "old", "young"]);
    }

    #[test]
    fn what_no_operator_has_sent_is_not_assumed_of_a_node() {
        let accepted = |mut pool: MacvtapResourcePool, status: &str| {
            let condition = json!({"type": "Accepted", "status": status, "reason": "Pending", "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z"});
            pool.metadata.finalizers = None;
            pool.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
            pool
        };
        let pools = [
            accepted(pool("new", json!({})), "Unknown"),
            accepted(deleted(pool("new-and-deleted", json!({}))), "Unknown"),
            accepted(deleted(pool("rejected", json!({}))), "False"),
            accepted(pool("replaced", json!({})), "True"),
            deleted(pool("ending", json!({}))),
        ];
        let assumed = Catalog::new(pools.iter()).assumed(&BTreeMap::new());
        let names: Vec<_> = assumed.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["replaced", "ending"]);
    }

    #[test]
    fn what_was_told_of_a_pool_that_means_no_node_any_more_stays_until_it_goes() {
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]});
        let strange = pool("strange", json!({"nodeSelector": selector}));
        let catalog = Catalog::new([&strange].into_iter());
        assert!(catalog.active.is_empty() && catalog.frozen("uid-strange"));
        let conflicting = created(pool("late", json!({"resourceName": "strange"})), 5);
        let catalog = Catalog::new([&pool("strange", json!({})), &conflicting].into_iter());
        assert!(!catalog.frozen("uid-late"));
        assert!(!Catalog::new([&deleted(strange)].into_iter()).frozen("uid-strange"));
    }

    #[test]
    fn a_pool_that_was_replaced_without_its_finalizer_stays_on_its_nodes_until_it_has_it_again() {
        let mut replaced = pool("dp", json!({}));
        replaced.metadata.finalizers = None;
        let catalog = Catalog::new([&replaced].into_iter());
        assert!(catalog.active.is_empty() && catalog.frozen("uid-dp"));
        assert!(!Catalog::new([&deleted(replaced.clone())].into_iter()).frozen("uid-dp"));
        let older = created(pool("older", json!({"resourceName": "dp"})), 1);
        let younger = created(replaced, 5);
        assert!(!Catalog::new([&older, &younger].into_iter()).frozen("uid-dp"));
    }

    #[test]
    fn released_nodes_are_separated_by_commas_or_white_space() {
        for names in ["n1,n2", " n1, n2,", "n1 n2", "n1\nn2\n", "\tn1,\r\n  n2"] {
            let mut pool = pool("dp", json!({}));
            pool.annotations_mut().insert(RELEASE_ANNOTATION.into(), names.into());
            assert_eq!(released(&pool.metadata).into_iter().collect::<Vec<_>>(), ["n1", "n2"], "{names:?}");
        }
    }

    #[test]
    fn only_a_pool_that_is_being_deleted_gives_up_nodes() {
        let mut alive = pool("dp", json!({}));
        alive.annotations_mut().insert(RELEASE_ANNOTATION.into(), " n1, n2,".into());
        assert!(!Catalog::new([&alive].into_iter()).released("uid-dp", "n1"));
        let ending = deleted(alive);
        let catalog = Catalog::new([&ending].into_iter());
        assert!(catalog.released("uid-dp", "n1") && catalog.released("uid-dp", "n2"));
        assert!(!catalog.released("uid-dp", "n3") && !catalog.released("uid-other", "n1"));
        let unreadable = Catalog::default().with_unreadable([&ending.metadata].into_iter());
        assert!(unreadable.released("uid-dp", "n1") && !unreadable.frozen("uid-dp"));
    }
}
