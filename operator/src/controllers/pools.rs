//! Reconciles pools: reports on each, leads its staged rollout, and, when it is deleted, waits for the drain.

mod publish;
mod refused;
mod unreadable;

use crate::catalog::{Catalog, released};
use crate::clock;
use crate::context::{Context, Guarded, pool_reference};
use crate::controller::{Again, Controller, ReconcileError};
use crate::entry::Entry;
use crate::network::{NetworkReport, apply};
use crate::node::NodeView;
use crate::pool::advance::advance;
use crate::pool::assess::{Subject, assess_all, recheck};
use crate::pool::{announce, report};
use crate::queue::Queue;
use crate::rollout::{Grants, RolloutStep};
use crate::states::KnownState;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::ObjectRef;
use macvtap_crds::condition::Finding;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus};
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_FINALIZER};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// How soon a pool that is being deleted is reconciled again while it waits for something that no event announces.
const RETRY: Duration = Duration::from_secs(30);

/// How long a status waits for the networks of a changed pool.
const NETWORKS: Duration = Duration::from_secs(2);

/// How soon a pool that was changed meanwhile is reconciled again.
const RETRY_CONFLICT: Duration = Duration::from_secs(1);

/// Reconciles pools: status, rollout and drain.
#[derive(Debug)]
pub struct Pools;

/// What is known of one name of a pool.
#[derive(Debug)]
pub struct PoolSnapshot {
    /// The name.
    pub name: String,
    /// The pool with the status that was written last, or what is wrong with it; none when it is gone.
    pub pool: Option<Result<MacvtapResourcePool, InvalidObject>>,
    /// All nodes of the cluster.
    pub nodes: Vec<NodeView>,
    /// All pools as nodes receive them.
    pub catalog: Arc<Catalog>,
    /// The turns that were given in staged rollouts.
    pub grants: Arc<Grants>,
    /// What became of its networks.
    pub networks: NetworkReport,
    /// What a pool that is being deleted waits for.
    pub drain: Drain,
    /// The time.
    pub now: Timestamp,
}

/// What a pool that is being deleted waits for.
#[derive(Debug, Default)]
pub struct Drain {
    /// The nodes that hold it.
    holders: Vec<Arc<KnownState>>,
    /// Those among them that hold it only as long as a deleted state or a missing answer is remembered.
    remembered: Vec<String>,
    /// Held while nothing that is on its way can give it to a node or make one of its networks.
    is_quiet: Option<OwnedMutexGuard<()>>,
}

/// What to do about a pool.
#[derive(Debug)]
pub enum PoolAction {
    /// Forget it: it is gone.
    Forget,
    /// Add the finalizer, without which a deletion would not wait for the drain.
    Claim,
    /// Write this status if it is worth a write.
    Publish(Box<MacvtapResourcePoolStatus>),
    /// Record how far the rollout of this content has come, and give the next nodes their turn.
    Advance(Arc<Entry>, RolloutStep),
    /// Report that it cannot be read, and what it waits for if it is being deleted.
    Explain(Option<Finding>),
    /// Reconcile these nodes.
    Nodes(Vec<String>),
    /// Remove its networks and let it go.
    Release,
    /// Reconcile it again after this time.
    Recheck(Duration),
}

impl Controller for Pools {
    const NAME: &'static str = "pools";
    type Snapshot = PoolSnapshot;
    type Action = PoolAction;

    fn queue(context: &Context) -> &Queue {
        &context.queues.pools
    }

    async fn observe(name: &str, context: &Context) -> Result<PoolSnapshot, Again> {
        let found = context.pools.get(&ObjectRef::<Guarded<MacvtapResourcePool>>::new(name));
        let catalog = context.catalog();
        let mut snapshot = PoolSnapshot {
            name: name.to_owned(),
            pool: None,
            nodes: Vec::new(),
            catalog,
            grants: context.grants(),
            networks: NetworkReport::default(),
            drain: Drain::default(),
            now: Timestamp::now(),
        };
        let Some(found) = found else { return Ok(snapshot) };
        let pool = match &found.0 {
            Ok(pool) => Ok(context.published.newest(pool).into_owned()),
            Err(invalid) => Err(invalid.clone()),
        };
        let pool = snapshot.pool.insert(pool);
        if is_unclaimed(pool) {
            return Ok(snapshot);
        }
        let meta = meta(pool);
        if let Some(wait) = wait(pool, &snapshot.catalog, context) {
            return Err(Some(wait));
        }
        if meta.deletion_timestamp.is_some() {
            snapshot.drain = observe_drain(meta, context);
        } else if let Ok(pool) = pool {
            snapshot.networks = networks(pool, context);
        }
        let seen_until = context.seen_until();
        snapshot.nodes =
            context.nodes.state().into_iter().map(|node| context.view(node, seen_until)).collect();
        Ok(snapshot)
    }

    fn decide(snapshot: &PoolSnapshot) -> Vec<PoolAction> {
        let Some(pool) = &snapshot.pool else { return vec![PoolAction::Forget] };
        let meta = meta(pool);
        if is_unclaimed(pool) {
            return vec![PoolAction::Claim];
        }
        match pool {
            _ if meta.deletion_timestamp.is_some() => terminate(snapshot, pool),
            Ok(pool) => serve(snapshot, pool),
            Err(_) => vec![PoolAction::Explain(None)],
        }
    }

    async fn perform(
        action: PoolAction,
        snapshot: &PoolSnapshot,
        context: &Context,
    ) -> Result<Again, ReconcileError> {
        let name = &snapshot.name;
        match (action, &snapshot.pool) {
            (PoolAction::Forget, _) => context.forget_pool(name),
            (PoolAction::Recheck(wait), _) => return Ok(Some(wait)),
            (PoolAction::Nodes(nodes), _) => nodes.iter().for_each(|node| context.queues.nodes.add(node)),
            (PoolAction::Advance(entry, step), _) => {
                if !step.next.is_empty() {
                    let (nodes, waiting) = (step.next.len(), step.waiting);
                    tracing::info!(pool = name, nodes, waiting, "next batch of the rollout");
                }
                context.change_grants(|grants| grants.set(&entry, step.progress));
                step.next.iter().for_each(|node| context.queues.nodes.add(node));
            }
            (PoolAction::Publish(status), Some(Ok(pool))) => {
                context.pace.unsay(name);
                let written = publish::publish(pool, *status, context).await;
                return written.map_err(|error| ReconcileError::new("write the status of pool", name, error));
            }
            (PoolAction::Explain(terminating), Some(Err(invalid))) => {
                unreadable::say(&invalid.metadata, &invalid.error, terminating, context).await?;
            }
            (PoolAction::Claim, Some(pool)) => {
                let meta = meta(pool);
                let finalizers = meta.finalizers.iter().flatten().map(String::as_str);
                return set_finalizers(meta, finalizers.chain([POOL_FINALIZER]), context).await;
            }
            (PoolAction::Release, Some(pool)) => {
                let released = release(meta(pool), context).await;
                if let Err(error) = &released {
                    refused::explain(snapshot, pool, error, context).await?;
                }
                return released;
            }
            // Nothing else is decided about a pool that is gone, and these not about such a pool.
            (
                PoolAction::Publish(_) | PoolAction::Explain(_) | PoolAction::Claim | PoolAction::Release,
                _,
            ) => {}
        }
        Ok(None)
    }
}

fn meta(pool: &Result<MacvtapResourcePool, InvalidObject>) -> &ObjectMeta {
    match pool {
        Ok(pool) => &pool.metadata,
        Err(invalid) => &invalid.metadata,
    }
}

/// Whether the pool must get the finalizer first.
fn is_unclaimed(pool: &Result<MacvtapResourcePool, InvalidObject>) -> bool {
    pool.as_ref()
        .is_ok_and(|pool| pool.metadata.deletion_timestamp.is_none() && !has_finalizer(&pool.metadata))
}

/// Returns how long to wait before the pool is reconciled, if it must not be reconciled at once.
fn wait(
    pool: &Result<MacvtapResourcePool, InvalidObject>,
    catalog: &Catalog,
    context: &Context,
) -> Option<Duration> {
    let (meta, name) = (meta(pool), meta(pool).name.as_deref().unwrap_or_default());
    // Networks that are done within the moment are reported with the change that they are for.
    if let Ok(pool) = pool
        && meta.deletion_timestamp.is_none()
        && pool.spec.networks.iter().flatten().next().is_some()
        && catalog.verdict(name).is_ok()
        && reported(pool, context).is_none()
        && context.pace.wait_for_networks(name, meta.generation.unwrap_or_default())
    {
        return Some(NETWORKS);
    }
    context.pace.run(name, context.nodes.len())
}

/// Returns what became of the networks of the pool as it is now, as far as anybody knows.
fn networks(pool: &MacvtapResourcePool, context: &Context) -> NetworkReport {
    let former = || NetworkReport::former(pool.status.as_ref()?, pool.metadata.generation);
    reported(pool, context).or_else(former).unwrap_or_else(|| {
        // Nobody has compared them yet.
        NetworkReport { desired: pool.spec.networks.as_ref().map_or(0, Vec::len), ..NetworkReport::default() }
    })
}

/// Returns what became of the networks of the pool as it is now, if they were compared since.
fn reported(pool: &MacvtapResourcePool, context: &Context) -> Option<NetworkReport> {
    let generation = pool.metadata.generation.unwrap_or_default();
    context.reports.of(&pool.name_any(), &pool.uid().unwrap_or_default(), generation)
}

/// Reports on a pool, and goes on with its rollout.
fn serve(snapshot: &PoolSnapshot, pool: &MacvtapResourcePool) -> Vec<PoolAction> {
    let (mut actions, step) = publish(snapshot, pool);
    if let Some(active) = snapshot.catalog.active(&pool.uid().unwrap_or_default()) {
        actions.push(PoolAction::Advance(Arc::clone(&active.entry), step));
    }
    actions
}

/// Decides the status of a pool, and how its rollout goes on.
fn publish(snapshot: &PoolSnapshot, pool: &MacvtapResourcePool) -> (Vec<PoolAction>, RolloutStep) {
    let (status, step, recheck) = status(snapshot, pool);
    let mut actions: Vec<_> = recheck.map(PoolAction::Recheck).into_iter().collect();
    actions.push(PoolAction::Publish(Box::new(status)));
    (actions, step)
}

/// Returns the status of a pool, how its rollout goes on, and how soon either may change without an event.
fn status(
    snapshot: &PoolSnapshot,
    pool: &MacvtapResourcePool,
) -> (MacvtapResourcePoolStatus, RolloutStep, Option<Duration>) {
    let PoolSnapshot { nodes, catalog, grants, networks, now, .. } = snapshot;
    let subject = Subject::new(pool, catalog, grants);
    let assessments = assess_all(&subject, nodes);
    let step = advance(pool, &subject, &assessments, grants);
    let verdict =
        if pool.metadata.deletion_timestamp.is_some() { Ok(()) } else { catalog.verdict(&pool.name_any()) };
    let status = report::status(&report::Observed {
        pool,
        verdict: &verdict,
        nodes,
        assessments: &assessments,
        rollout: &step,
        networks,
        remembered: &snapshot.drain.remembered,
        now: *now,
    });
    (status, step, recheck(nodes, &assessments))
}

/// Waits for the drain, then removes the networks, then lets the pool go.
fn terminate(snapshot: &PoolSnapshot, pool: &Result<MacvtapResourcePool, InvalidObject>) -> Vec<PoolAction> {
    let meta = meta(pool);
    if !has_finalizer(meta) {
        return Vec::new();
    }
    // What is on its way to nodes may hold the pool too, and more comes while the catalog has it.
    if snapshot.catalog.active(meta.uid.as_deref().unwrap_or_default()).is_some() {
        return vec![PoolAction::Recheck(RETRY_CONFLICT)];
    }
    let Drain { holders, remembered, is_quiet } = &snapshot.drain;
    let mut actions = Vec::new();
    if holders.is_empty() {
        if is_quiet.is_some() {
            return vec![PoolAction::Release];
        }
        // A write on its way, or a pass over its networks, which ends soon; or one whose answer was lost.
        actions.push(PoolAction::Recheck(RETRY_CONFLICT));
    } else if !remembered.is_empty() {
        actions.push(PoolAction::Recheck(RETRY));
    }
    // A node that need not be waited for is let go once it is unreachable, which no event announces.
    actions.push(PoolAction::Nodes(remembered.iter().cloned().chain(released(meta)).collect()));
    if let Ok(pool) = pool {
        actions.extend(publish(snapshot, pool).0);
    } else {
        actions.push(PoolAction::Explain(Some(report::terminating(meta, &snapshot.nodes, remembered))));
        actions.push(PoolAction::Recheck(RETRY));
    }
    actions
}

/// Observes what a pool that is being deleted waits for. What is on its way is read before what has arrived, so that nothing
/// arrives unseen in between.
fn observe_drain(meta: &ObjectMeta, context: &Context) -> Drain {
    let (name, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    let turn = context.reports.turn(name).try_lock_owned().ok();
    let is_quiet = turn.filter(|_| !may_come_back(name, uid, context));
    let mut holders = context.states.all();
    holders.extend(context.states.all_deleted(clock::now()));
    // A node that is gone holds nothing, even while its state waits for the garbage collector.
    holders.retain(|state| {
        state.entry(uid).is_some() && context.nodes.get(&ObjectRef::new(&state.name)).is_some()
    });
    let is_remembered =
        |state: &&Arc<KnownState>| !state.answered() || context.states.get(&state.name).is_none();
    let remembered = holders.iter().filter(is_remembered).map(|state| state.name.clone()).collect();
    Drain { holders, remembered, is_quiet }
}

/// Whether a write that has not arrived yet, and may still, gives the pool to a node or makes one of its networks.
fn may_come_back(name: &str, uid: &str, context: &Context) -> bool {
    let now = clock::now();
    let is_there = |node: &String| context.nodes.get(&ObjectRef::new(node)).is_some();
    context.states.may_hold(uid, now).iter().any(is_there) || context.reports.may_come(name, now)
}

/// Removes the networks of a drained pool and lets it go. Networks go last: pods being started and machines being migrated
/// still look them up. Those that a finalizer of somebody else keeps are deleted as far as the operator can, and named.
async fn release(meta: &ObjectMeta, context: &Context) -> Result<Again, ReconcileError> {
    let (name, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    let kept = apply::remove_all(&context.client, name, uid, &context.pool_uids())
        .await
        .map_err(|error| ReconcileError::new("remove the networks of pool", name, error))?;
    let others = meta.finalizers.iter().flatten().map(String::as_str).filter(|f| *f != POOL_FINALIZER);
    let again = set_finalizers(meta, others, context).await?;
    if again.is_none() {
        context.forget_pool(name);
        tracing::info!(pool = name, "pool drained and released");
        if let Some(event) = announce::kept_networks(&kept) {
            context.announce_on(&event, &pool_reference(meta)).await;
        }
    }
    Ok(again)
}

fn has_finalizer(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == POOL_FINALIZER)
}

async fn set_finalizers(
    meta: &ObjectMeta,
    finalizers: impl Iterator<Item = &str>,
    context: &Context,
) -> Result<Again, ReconcileError> {
    let name = meta.name.clone().unwrap_or_default();
    let patch = json!({"metadata": {
        "finalizers": finalizers.collect::<Vec<_>>(),
        // The list is replaced as a whole, so it must be the one that was read.
        "resourceVersion": meta.resource_version,
    }});
    let params = PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
    let pools: Api<MacvtapResourcePool> = Api::all(context.client.clone());
    match pools.patch_metadata(&name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        // The cache has not seen the last change of the pool yet, which may have been ours.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some(RETRY_CONFLICT)),
        Err(error) => Err(ReconcileError::new("change the finalizers of pool", &name, error)),
    }
}
