//! What the operator does when it looks at a node or a pool: its decisions, on what it has heard, written to a server
//! that may have moved on.

use crate::world::{Cluster, World, at, touch};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use macvtap_crds::POOL_FINALIZER;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::catalog::ActivePool;
use macvtap_operator::entry::Entry;
use macvtap_operator::network::{NetworkReport, plan};
use macvtap_operator::node::NodeView;
use macvtap_operator::node_state::{Snapshot, decide};
use macvtap_operator::pool::difference::{Change, change};
use macvtap_operator::pool::report::{Observed, report};
use macvtap_operator::states::KnownState;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Since when an agent that is away has been away: long enough.
const AWAY_SINCE: i64 = -1000;

/// Turns that were given and not taken, by the UID of their pool, with what was to be told.
pub(crate) type Turns = BTreeMap<String, (Arc<Entry>, BTreeSet<String>)>;

impl Cluster {
    pub(crate) fn look_at_node(&mut self, name: &str) {
        let Some(node) = self.cache.nodes.get(name).cloned() else { return };
        let current = self.known(name);
        let catalog = self.cache.catalog();
        let snapshot = Snapshot {
            node: &node,
            current: current.as_ref(),
            silent: self.cache.down.contains(name),
            catalog: &catalog,
            grants: &self.grants,
        };
        let Some(spec) = decide(&snapshot) else { return };
        for pool in catalog.active.iter().filter(|pool| pool.staged) {
            self.take_turn(pool, name, current.as_ref(), &spec.pools);
        }
        self.writes += 1;
        let pools: Vec<Value> = spec.pools.iter().map(|entry| entry.json(spec.form).unwrap()).collect();
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": spec.owner}]);
        let state = self.server.states.entry(name.to_owned()).or_default();
        state.metadata.name = Some(name.to_owned());
        state.metadata.owner_references = serde_json::from_value(owner).unwrap();
        state.spec = json!({"configHash": spec.config_hash, "pools": pools});
    }

    /// A node hears of a staged pool only when it is its turn, and each turn is for once.
    fn take_turn(
        &mut self,
        pool: &ActivePool,
        node: &str,
        before: Option<&KnownState>,
        after: &[Arc<Entry>],
    ) {
        let says = |entries: &[Arc<Entry>]| entries.iter().any(|entry| entry.says_the_same(&pool.entry));
        if !says(after) || before.is_some_and(|state| says(&state.pools)) {
            return;
        }
        let given = self.turns.get_mut(&pool.entry.uid).filter(|(entry, _)| entry.says_the_same(&pool.entry));
        let taken = given.is_some_and(|(_, nodes)| nodes.remove(node));
        // What the operator wrote and has not heard of yet it may write again.
        if !taken && !self.real(node).is_some_and(|state| says(&state.pools)) {
            self.faults.push(format!("{node} was told of {} although it was not its turn", pool.entry.name));
        }
    }

    pub(crate) fn look_at_pool(&mut self, name: &str) {
        let Some(pool) = self.cache.pools.get(name).cloned() else { return };
        let ending = pool.metadata.deletion_timestamp.is_some();
        let ours = pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER);
        match (ending, ours) {
            (false, false) => self.set_finalizers(&pool, vec![POOL_FINALIZER.to_owned()]),
            (true, false) => {}
            (true, true) => self.end_pool(&pool),
            (false, true) => self.serve_pool(&pool),
        }
    }

    /// Another operator knows nothing of turns that were given.
    pub(crate) fn change_leader(&mut self) {
        self.grants.forget_all();
        self.turns.clear();
        self.well_before.clear();
        self.ways_back.clear();
    }

    /// As the API server does it: only if the pool is as it was read.
    fn set_finalizers(&mut self, read: &MacvtapResourcePool, finalizers: Vec<String>) {
        self.writes += 1;
        let name = read.name_any();
        let Some(pool) = self.server.pools.get_mut(&name) else { return };
        if pool.metadata.resource_version != read.metadata.resource_version {
            return;
        }
        if finalizers.is_empty() && pool.metadata.deletion_timestamp.is_some() {
            self.server.pools.remove(&name);
            return;
        }
        pool.metadata.finalizers = Some(finalizers);
        self.second += 1;
        touch(pool, self.second);
    }

    fn end_pool(&mut self, pool: &MacvtapResourcePool) {
        let uid = pool.uid().unwrap_or_default();
        let nodes: Vec<String> = self.cache.nodes.keys().cloned().collect();
        if nodes.iter().any(|node| self.known(node).is_some_and(|state| state.entry(&uid).is_some())) {
            self.publish(pool);
            return;
        }
        let name = pool.name_any();
        self.server.networks.retain(|_, network| !plan::is_ours(network, &name, &uid));
        self.grants.forget(&uid);
        self.turns.remove(&uid);
        self.set_finalizers(pool, Vec::new());
    }

    fn serve_pool(&mut self, pool: &MacvtapResourcePool) {
        if self.cache.catalog().verdict(&pool.name_any()).is_ok() {
            self.write_networks(pool);
        }
        self.publish(pool);
    }

    fn write_networks(&mut self, pool: &MacvtapResourcePool) {
        let (name, uid) = (pool.name_any(), pool.uid().unwrap_or_default());
        let desired = wanted_networks(&self.cache, pool);
        let ours: Vec<_> = self
            .cache
            .networks
            .values()
            .filter(|network| plan::is_ours(*network, &name, &uid))
            .cloned()
            .collect();
        let plan = plan::plan(&desired, &ours);
        for (key, _) in &plan.delete {
            self.writes += 1;
            if self.server.networks.get(key).is_some_and(|there| plan::is_ours(there, &name, &uid)) {
                self.server.networks.remove(key);
            }
        }
        for key in plan.create.iter().chain(&plan.repair) {
            let foreign =
                self.server.networks.get(key).is_some_and(|there| !plan::is_ours(there, &name, &uid));
            if !foreign && self.server.namespaces.contains_key(&key.0) {
                self.writes += 1;
                self.server.networks.insert(key.clone(), desired.networks[key].clone());
            }
        }
    }

    /// Writes the pool's status if it says something new, and gives the next nodes their turn.
    fn publish(&mut self, pool: &MacvtapResourcePool) {
        let catalog = self.cache.catalog();
        let wanted = catalog.active(&pool.uid().unwrap_or_default());
        let nodes: Vec<(Node, Option<KnownState>)> = self
            .cache
            .nodes
            .values()
            .cloned()
            .collect::<Vec<_>>()
            .into_iter()
            .map(|node| (node.clone(), self.known(&node.name_any())))
            .collect();
        let views: Vec<NodeView<'_>> = nodes
            .iter()
            .map(|(node, state)| {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                let away = self.cache.down.contains(name);
                NodeView {
                    name,
                    labels: node.labels(),
                    not_ready_since: None,
                    agent_down_since: away.then(|| at(AWAY_SINCE).0),
                    runs_agent: false,
                    seen_until: at(self.second).0,
                    is_terminating: node.metadata.deletion_timestamp.is_some(),
                    state: state.as_ref(),
                }
            })
            .collect();
        let report = report(&Observed {
            pool,
            verdict: &catalog.verdict(&pool.name_any()),
            nodes: &views,
            catalog: &catalog,
            grants: &self.grants,
            networks: &NetworkReport::default(),
            now: at(self.second).0,
        });
        if change(pool.status.as_ref(), &report.status) != Change::Nothing {
            self.writes += 1;
            self.second += 1;
            if let Some(there) =
                self.server.pools.get_mut(&pool.name_any()).filter(|there| there.uid() == pool.uid())
            {
                there.status = Some(report.status);
                touch(there, self.second);
            }
        }
        if let Some(wanted) = wanted {
            self.grants.set(&wanted.entry, report.rollout.progress);
            if wanted.staged {
                self.give_turns(pool, wanted, &views, &report.rollout.next);
            }
        }
    }

    /// Judges the next nodes of a rollout by what is really going on: with those that are changing already they are no
    /// more than a batch, and nobody follows while too many of those before are not well.
    fn give_turns(
        &mut self,
        pool: &MacvtapResourcePool,
        wanted: &ActivePool,
        views: &[NodeView<'_>],
        next: &[String],
    ) {
        let uid = &wanted.entry.uid;
        let says =
            |state: &KnownState| state.entry(uid).filter(|entry| entry.says_the_same(&wanted.entry)).cloned();
        let members: Vec<&NodeView<'_>> = views
            .iter()
            .filter(|view| wanted.nodes.selects(view.labels) && !view.is_terminating)
            .filter(|view| view.state.is_some_and(KnownState::answered))
            .collect();
        let turns =
            self.turns.entry(uid.clone()).or_insert_with(|| (Arc::clone(&wanted.entry), BTreeSet::new()));
        if !turns.0.says_the_same(&wanted.entry) {
            *turns = (Arc::clone(&wanted.entry), BTreeSet::new());
            self.well_before.retain(|(of, _)| of != uid);
            if members.iter().any(|member| member.state.and_then(&says).is_some()) {
                self.ways_back.insert(uid.clone());
            } else {
                self.ways_back.remove(uid);
            }
        }
        let silent = |name: &str| self.cache.down.contains(name);
        // Who still has another pool of this name or resource can take no turn.
        let is_blocked = |state: &KnownState| {
            let is_same = |old: &Entry| {
                old.name == wanted.entry.name || old.resource_name == wanted.entry.resource_name
            };
            state.entry(uid).is_none() && state.pools.iter().any(|old| is_same(old))
        };
        let can_hear =
            |member: &&&NodeView<'_>| !silent(member.name) && !member.state.is_some_and(is_blocked);
        let able: BTreeSet<&str> = members.iter().filter(can_hear).map(|member| member.name).collect();
        turns.1.retain(|node| able.contains(node.as_str()));
        if next.is_empty() {
            return;
        }
        let mut changing: BTreeSet<String> = turns.1.iter().chain(next).cloned().collect();
        turns.1.extend(next.iter().cloned());
        let is_well = |member: &NodeView<'_>| {
            let pool = member.state.and_then(|state| state.pool(&wanted.entry.name));
            pool.is_none_or(|pool| {
                pool.ready.as_ref().is_none_or(|ready| ready.holds) && pool.degraded.is_none()
            })
        };
        let mut unwell = 0;
        for member in members.iter().filter(|member| !next.iter().any(|node| node == member.name)) {
            let heard = member.state.and_then(&says);
            let healthy = member.state.and_then(|state| state.pool(&wanted.entry.name)).is_some_and(|pool| {
                pool.ready.as_ref().is_some_and(|ready| ready.holds) && pool.degraded.is_none()
            });
            let answered = member.state.zip(heard).is_some_and(|(state, entry)| state.applied_entry(&entry));
            if member.state.and_then(&says).is_some() && (silent(member.name) || answered && !healthy) {
                unwell += usize::from(self.well_before.contains(&(uid.clone(), member.name.to_owned())));
            } else if let Some(real) = self.server.states.get(member.name)
                && !silent(member.name)
            {
                let real = KnownState::read(real, &mut self.shared);
                if says(&real).is_some_and(|entry| !real.applied_entry(&entry)) {
                    changing.insert(member.name.to_owned());
                }
            }
        }
        let settings = pool.spec.rollout.staged.clone().unwrap_or_default();
        let batch = match settings.batch {
            IntOrString::Int(nodes) => usize::try_from(nodes).unwrap(),
            IntOrString::String(share) => {
                let share: usize = share.trim_end_matches('%').parse().unwrap();
                (members.len() * share).div_ceil(100).max(1)
            }
        };
        let name = pool.name_any();
        if changing.len() > batch {
            self.faults.push(format!("{name} changes {changing:?} at once, more than {batch}"));
        }
        for member in members.iter().filter(|member| next.iter().any(|node| node == member.name)) {
            let of = (uid.clone(), member.name.to_owned());
            if is_well(member) && !silent(member.name) {
                self.well_before.insert(of);
            } else {
                self.well_before.remove(&of);
            }
        }
        if unwell > usize::try_from(settings.max_degraded).unwrap() && !self.ways_back.contains(uid) {
            self.faults.push(format!("{name} goes on with {next:?} although {unwell} nodes are not well"));
        }
    }
}

/// The networks that a pool asks for.
pub(crate) fn wanted_networks(world: &World, pool: &MacvtapResourcePool) -> plan::Desired {
    let namespaces: Vec<PartialObjectMeta<Namespace>> = world
        .namespaces
        .iter()
        .map(|(name, labels)| PartialObjectMeta {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.clone()),
                ..ObjectMeta::default()
            },
            ..PartialObjectMeta::default()
        })
        .collect();
    plan::desired(pool, namespaces.iter(), &BTreeSet::new())
}
