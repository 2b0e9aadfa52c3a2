//! The readers, each with what must be true of what it reads.

use crate::seeds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use macvtap_crds::v1alpha1::{MacvtapNodeStateSpec, MacvtapResourcePool};
use macvtap_operator::acceptance;
use macvtap_operator::catalog::Catalog;
use macvtap_operator::controller::Controller;
use macvtap_operator::controllers::{
    Drain, NodeAction, NodeSnapshot, NodeStates, PoolAction, PoolSnapshot, Pools,
};
use macvtap_operator::migrate::plan::{self as migration, Group};
use macvtap_operator::migrate::{self, source};
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use macvtap_operator::network::{NetworkReport, plan};
use macvtap_operator::node::NodeView;
use macvtap_operator::pool::difference::{StatusChange, change};
use macvtap_operator::states::{Interner, KnownState, RawState};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const NODE: &str = "n1";

/// After all times in the seeds.
fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn node() -> Node {
    let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), NODE.to_owned())]);
    let metadata = ObjectMeta {
        name: Some(NODE.into()),
        uid: Some("node".into()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    Node { metadata, ..Node::default() }
}

fn namespaces() -> Vec<PartialObjectMeta<Namespace>> {
    let labels = BTreeMap::from([("macvtap".to_owned(), "yes".to_owned())]);
    let namespace = |name: &str| PartialObjectMeta {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(labels.clone()),
            ..ObjectMeta::default()
        },
        ..PartialObjectMeta::default()
    };
    vec![namespace("tenant-a"), namespace("tenant-b")]
}

/// Everything that the operator decides about these pools, of which one may be anything, with a node of that state.
fn decisions(pools: &[MacvtapResourcePool], state: Option<&RawState>) {
    for (name, verdict) in acceptance::judge(pools) {
        assert!(
            verdict.is_ok_or(|rejection| !rejection.to_string().is_empty()),
            "{name}: rejected without a reason"
        );
    }
    let catalog = Arc::new(Catalog::new(pools.iter()));
    let known = state.map(|state| Arc::new(KnownState::read(state, &mut Interner::default())));
    let (node, current) = (Arc::new(node()), known.as_ref());
    let snapshot = NodeSnapshot {
        node: Arc::clone(&node),
        current: known.clone(),
        deleted: None,
        silent: false,
        catalog: Arc::clone(&catalog),
        grants: Arc::default(),
        seen_until: macvtap_operator::clock::now(),
    };
    for action in NodeStates::decide(&snapshot) {
        let NodeAction::Write(spec) = action else { continue };
        let entries: Vec<Value> =
            spec.pools.iter().map(|entry| serde_json::to_value(&***entry).unwrap()).collect();
        let told = current.iter().flat_map(|state| &state.pools).map(|entry| &entry.settings);
        let links = pools
            .iter()
            .map(|pool| &pool.spec.settings)
            .chain(told)
            .all(|settings| !settings.links.is_empty());
        let read = serde_json::from_value::<MacvtapNodeStateSpec>(
            json!({"configHash": spec.config_hash, "pools": entries}),
        );
        // The schema refuses a pool without links; the entry of one says no links at all.
        assert!(read.is_ok() || !links, "an agent cannot read what it is sent: {read:?}");
    }
    let view = NodeView {
        node,
        state: known,
        not_ready_since: None,
        agent_down: None,
        now: now(),
        runs_agent: true,
        unstarted_since: None,
        seen_until: now(),
    };
    let report = |pool: &MacvtapResourcePool| {
        let snapshot = PoolSnapshot {
            name: pool.name_any(),
            pool: Some(Ok(pool.clone())),
            nodes: vec![view.clone()],
            catalog: Arc::clone(&catalog),
            grants: Arc::default(),
            networks: NetworkReport::default(),
            drain: Drain::default(),
            now: now(),
        };
        Pools::decide(&snapshot).into_iter().find_map(|action| match action {
            PoolAction::Publish(status) => Some(*status),
            _ => None,
        })
    };
    for pool in pools {
        networks(pool);
        // A pool without the finalizer gets that first, and of one that is released nothing is said.
        let Some(first) = report(pool) else { continue };
        assert!(first.conditions.iter().all(|condition| !condition.reason.is_empty()));
        let again = MacvtapResourcePool { status: Some(first), ..pool.clone() };
        let second = report(&again).expect("a pool that was reported on before");
        assert_eq!(
            change(again.status.as_ref(), &second),
            StatusChange::Nothing,
            "a report is repeated for ever"
        );
    }
}

/// What a pool wants is what it finds once it is there.
fn networks(pool: &MacvtapResourcePool) {
    let namespaces = namespaces();
    let resources = BTreeSet::from(["dp0".to_owned(), "ens10".to_owned()]);
    let desired = plan::desired(pool, namespaces.iter(), &resources);
    assert!(desired.problems.iter().all(|problem| !problem.message.is_empty()));
    let mut made: Vec<NetworkAttachmentDefinition> = desired.networks.values().cloned().collect();
    for network in &mut made {
        let manager = Some(OPERATOR_FIELD_MANAGER.to_owned());
        network.metadata.managed_fields =
            Some(vec![ManagedFieldsEntry { manager, ..ManagedFieldsEntry::default() }]);
    }
    let plan = plan::plan(&desired, &made);
    assert!(plan.create.is_empty() && plan.repair.is_empty() && plan.delete.is_empty(), "{plan:?}");
    for network in &made {
        let config = &network.spec.config;
        assert!(serde_json::from_str::<Value>(config).is_ok(), "{config}");
    }
}

pub(super) fn pool(bytes: &[u8]) {
    let Ok(pool) = serde_json::from_slice::<MacvtapResourcePool>(bytes) else { return };
    let other = serde_json::from_value(seeds::pool("dataplane")).unwrap();
    let state = serde_json::from_value(seeds::node_state()).unwrap();
    decisions(&[pool.clone(), other], Some(&state));
    decisions(&[pool], None);
}

pub(super) fn node_state(bytes: &[u8]) {
    let Ok(state) = serde_json::from_slice::<RawState>(bytes) else { return };
    let pools = ["dataplane", "storage"].map(|name| serde_json::from_value(seeds::pool(name)).unwrap());
    decisions(&pools, Some(&state));
}

pub(super) fn network(bytes: &[u8]) {
    let Ok(network) = serde_json::from_slice::<NetworkAttachmentDefinition>(bytes) else { return };
    let pool: MacvtapResourcePool = serde_json::from_value(seeds::pool("dataplane")).unwrap();
    let namespaces = namespaces();
    let desired = plan::desired(&pool, namespaces.iter(), &BTreeSet::new());
    let ours = plan::is_ours(&network, "dataplane", "uid-dataplane");
    let plan = plan::plan(&desired, [&network]);
    let known = desired.networks.contains_key(&plan::key(&network));
    assert_eq!(plan.delete.len(), usize::from(!known));
    for wanted in desired.networks.values() {
        let _ = plan::same(&network, wanted);
        let is_free = plan::is_free(&network, wanted, &BTreeSet::from(["uid-dataplane".to_owned()]));
        assert!(is_free || !ours, "a network of the pool is another's");
    }
}

pub(super) fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let found = match source::read("it", text) {
        Ok(found) => found,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let groups: Vec<Group> = found
        .into_iter()
        .map(|found| Group { name: found.name, nodes: None, entries: found.entries })
        .collect();
    let plan = migration::plan(&groups);
    for pool in &plan.pools {
        let read = serde_json::from_value::<MacvtapResourcePool>(pool.object.clone());
        assert!(read.is_ok(), "a pool that nobody can read: {read:?}");
    }
    let printed = migrate::print(&plan).unwrap();
    assert!(printed.lines().all(|line| !line.contains('\u{0}')));
}

/// Whether there is no error, or one that this holds of.
trait IsOkOr<E> {
    fn is_ok_or(&self, holds: impl FnOnce(&E) -> bool) -> bool;
}

impl<T, E> IsOkOr<E> for Result<T, E> {
    fn is_ok_or(&self, holds: impl FnOnce(&E) -> bool) -> bool {
        self.as_ref().err().is_none_or(holds)
    }
}
