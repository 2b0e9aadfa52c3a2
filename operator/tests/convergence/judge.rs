//! Whose turn it may be in a staged rollout, judged by what is really going on.

use crate::operator::View;
use crate::world::Cluster;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::catalog::ActivePool;
use macvtap_operator::entry::Entry;
use macvtap_operator::states::{KnownPool, KnownState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the rules of staged rollouts are judged by.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Turns that were given and not taken, by the UID of their pool, with what was to be told.
    turns: BTreeMap<String, (Arc<Entry>, BTreeSet<String>)>,
    /// Nodes, after the UID of their pool, that were well when they got their turn.
    well_before: BTreeSet<(String, String)>,
    /// UIDs of pools whose rollout brings back what some nodes never lost.
    ways_back: BTreeSet<String>,
    /// UIDs of pools whose rollout has reached every node that can receive it.
    through: BTreeSet<String>,
    /// What the operator did that it must never do.
    pub(crate) faults: Vec<String>,
}

impl Judge {
    /// Another operator knows nothing of turns that were given.
    pub(crate) fn forget(&mut self) {
        *self = Self { faults: std::mem::take(&mut self.faults), ..Self::default() };
    }
}

impl Cluster {
    /// A node hears of a staged pool only when it is its turn, and each turn is for once.
    pub(crate) fn take_turn(
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
        let given =
            self.judge.turns.get_mut(&pool.entry.uid).filter(|(entry, _)| entry.says_the_same(&pool.entry));
        let taken = given.is_some_and(|(_, nodes)| nodes.remove(node));
        if !taken {
            self.judge
                .faults
                .push(format!("{node} was told of {} although it was not its turn", pool.entry.name));
        }
    }

    /// Judges whether a pool has gone: no pod may have a device of it then.
    pub(crate) fn judge_release(&mut self, pool: &MacvtapResourcePool) {
        let uid = pool.metadata.uid.as_deref().unwrap_or_default();
        let server = self.server();
        if server.pools.values().any(|there| there.metadata.uid.as_deref() == Some(uid)) {
            return;
        }
        let in_use: Vec<String> = server
            .in_use
            .iter()
            .filter(|(_, pools)| pools.contains(uid))
            .map(|(node, _)| node.clone())
            .collect();
        drop(server);
        if !in_use.is_empty() {
            let fault = format!("{} was released with devices in use on {in_use:?}", pool.name_any());
            self.judge.faults.push(fault);
        }
    }

    /// Judges the next nodes of a rollout: with those that are changing already they are no more than a batch, and nobody
    /// follows while too many of those before are not well.
    pub(crate) fn give_turns(
        &mut self,
        pool: &MacvtapResourcePool,
        wanted: &ActivePool,
        views: &[View],
        next: &[String],
    ) {
        let uid = &wanted.entry.uid;
        let members: Vec<&View> = views
            .iter()
            .filter(|view| wanted.nodes.selects(&view.labels) && !view.is_terminating)
            .filter(|view| view.state.as_ref().is_some_and(|state| state.answered()))
            .collect();
        self.begin(wanted, &members);
        let turns = self
            .judge
            .turns
            .entry(uid.clone())
            .or_insert_with(|| (Arc::clone(&wanted.entry), BTreeSet::new()));
        let down = &self.operator.heard.down;
        let can_hear = |member: &&&View| !down.contains(&member.name) && !member.is_blocked(&wanted.entry);
        let able: BTreeSet<&str> = members.iter().filter(can_hear).map(|member| &*member.name).collect();
        turns.1.retain(|node| able.contains(node.as_str()));
        let has_applied = |member: &&&View| {
            let state = member.state.as_deref();
            state.is_some_and(|state| {
                said(state, &wanted.entry).is_some_and(|entry| state.applied_entry(&entry))
            })
        };
        if !able.is_empty() && members.iter().filter(can_hear).all(|member| has_applied(&member)) {
            self.judge.through.insert(uid.clone());
        }
        if next.is_empty() {
            return;
        }
        let mut changing: BTreeSet<String> = turns.1.iter().chain(next).cloned().collect();
        turns.1.extend(next.iter().cloned());
        let mut unwell = 0;
        for member in members.iter().filter(|member| !next.contains(&member.name)) {
            let is_away = self.operator.heard.down.contains(&member.name);
            let state = member.state.as_deref();
            let heard =
                state.and_then(|state| said(state, &wanted.entry).map(|entry| state.applied_entry(&entry)));
            if heard.is_some_and(|applied| is_away || applied && !member.is_healthy(&wanted.entry.name)) {
                unwell += usize::from(self.judge.well_before.contains(&(uid.clone(), member.name.clone())));
            } else if let Some(real) = self.real(&member.name).filter(|_| !is_away)
                && said(&real, &wanted.entry).is_some_and(|entry| !real.applied_entry(&entry))
            {
                changing.insert(member.name.clone());
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
            self.judge.faults.push(format!("{name} changes {changing:?} at once, more than {batch}"));
        }
        for member in members.iter().filter(|member| next.contains(&member.name)) {
            let of = (uid.clone(), member.name.clone());
            if member.is_well(&wanted.entry.name) && !self.operator.heard.down.contains(&member.name) {
                self.judge.well_before.insert(of);
            } else {
                self.judge.well_before.remove(&of);
            }
        }
        if unwell > usize::try_from(settings.max_degraded).unwrap()
            && !self.judge.ways_back.contains(uid)
            && !self.judge.through.contains(uid)
        {
            let fault = format!("{name} goes on with {next:?} although {unwell} nodes are not well");
            self.judge.faults.push(fault);
        }
    }

    /// Notes what a rollout of other content than before begins with.
    fn begin(&mut self, wanted: &ActivePool, members: &[&View]) {
        let (uid, judge) = (&wanted.entry.uid, &mut self.judge);
        let Some(turns) = judge.turns.get_mut(uid).filter(|turns| !turns.0.says_the_same(&wanted.entry))
        else {
            return;
        };
        *turns = (Arc::clone(&wanted.entry), BTreeSet::new());
        judge.well_before.retain(|(of, _)| of != uid);
        judge.through.remove(uid);
        let has_it =
            |member: &&View| member.state.as_ref().is_some_and(|state| said(state, &wanted.entry).is_some());
        if members.iter().any(has_it) {
            judge.ways_back.insert(uid.clone());
        } else {
            judge.ways_back.remove(uid);
        }
    }
}

impl View {
    fn pool(&self, name: &str) -> Option<&KnownPool> {
        self.state.as_ref()?.pool(name)
    }

    /// Whether it offers devices and nothing is wrong.
    fn is_healthy(&self, pool: &str) -> bool {
        let ready = |pool: &KnownPool| pool.ready.as_ref().is_some_and(|ready| ready.holds);
        self.pool(pool).is_some_and(|pool| ready(pool) && pool.degraded.is_none())
    }

    /// Whether nothing is known to be wrong.
    fn is_well(&self, pool: &str) -> bool {
        self.pool(pool)
            .is_none_or(|pool| pool.ready.as_ref().is_none_or(|ready| ready.holds) && pool.degraded.is_none())
    }

    /// Whether it still has another pool of this name or resource, so that it can take no turn.
    fn is_blocked(&self, wanted: &Entry) -> bool {
        let is_same = |old: &Entry| old.name == wanted.name || old.resource_name == wanted.resource_name;
        self.state.as_ref().is_some_and(|state| {
            state.entry(&wanted.uid).is_none() && state.pools.iter().any(|old| is_same(old))
        })
    }
}

/// The entry of a pool in a state, if it says what is wanted.
fn said(state: &KnownState, wanted: &Entry) -> Option<Arc<Entry>> {
    state.entry(&wanted.uid).filter(|entry| entry.says_the_same(wanted)).cloned()
}
