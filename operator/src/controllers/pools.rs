//! Reconciles pools: reports on each, leads its staged rollout, and, when it is deleted, waits for the drain.

mod publish;
mod unreadable;

use crate::acceptance::Rejection;
use crate::catalog::released;
use crate::clock;
use crate::context::{Context, Guarded, pool_reference};
use crate::network::{NetworkReport, apply};
use crate::node::NodeView;
use crate::pool::{announce, report};
use crate::rollout::Plan;
use crate::states::KnownState;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::ObjectRef;
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_FINALIZER};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// How soon a pool that is being deleted is reconciled again while it waits for something that no event tells.
const RETRY: Duration = Duration::from_secs(30);

/// How long a status waits for the networks of a changed pool.
const NETWORKS: Duration = Duration::from_secs(2);

/// How soon a pool that was changed meanwhile is looked at again.
const RETRY_CONFLICT: Duration = Duration::from_secs(1);

/// Why a pool could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Its finalizers could not be changed.
    #[error("change the finalizers of pool {pool}")]
    Finalizer {
        /// The pool.
        pool: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Its status could not be written.
    #[error("write the status of pool {pool}")]
    Status {
        /// The pool.
        pool: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Its networks could not be removed.
    #[error("remove the networks of pool {pool}")]
    Networks {
        /// The pool.
        pool: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Brings one pool up to date; says when to look again although nothing happens.
pub async fn reconcile(name: &str, context: &Context) -> Result<Option<Duration>, PoolError> {
    let Some(pool) = context.pools.get(&ObjectRef::<Guarded<MacvtapResourcePool>>::new(name)) else {
        context.pace.forget(name);
        context.published.forget(name);
        context.reports.forget(name);
        context.metrics.forget(name);
        return Ok(None);
    };
    let newest = pool.0.as_ref().map(|pool| context.published.newest(pool));
    let (meta, readable) = match &newest {
        Ok(pool) => (&pool.metadata, Some(pool.as_ref())),
        Err(invalid) => (&invalid.metadata, None),
    };
    let ending = meta.deletion_timestamp.is_some();
    if !ending && readable.is_some() && !has_finalizer(meta) {
        let finalizers = meta.finalizers.iter().flatten().map(String::as_str).chain([POOL_FINALIZER]);
        return set_finalizers(meta, finalizers, context).await;
    }
    // Networks that are done within the moment are reported with the change that they are for.
    if let Ok(pool) = &newest
        && !ending
        && pool.spec.networks.iter().flatten().next().is_some()
        && context.catalog().verdict(name).is_ok()
        && reported(pool, context).is_none()
        && context.pace.wait_for_networks(name, meta.generation.unwrap_or_default())
    {
        return Ok(Some(NETWORKS));
    }
    if let Some(wait) = context.pace.run(name, context.nodes.len()) {
        return Ok(Some(wait));
    }
    if ending {
        return terminate(meta, newest.as_deref().map_err(|invalid| *invalid), context).await;
    }
    match &newest {
        Ok(pool) => serve(pool, context).await,
        Err(invalid) => unreadable::say(&invalid.metadata, &invalid.error, None, context).await,
    }
}

async fn serve(pool: &MacvtapResourcePool, context: &Context) -> Result<Option<Duration>, PoolError> {
    context.pace.unsay(&pool.name_any());
    let catalog = context.catalog();
    let verdict = catalog.verdict(&pool.name_any());
    let former = || NetworkReport::former(pool.status.as_ref()?, pool.metadata.generation);
    let networks = reported(pool, context).or_else(former).unwrap_or_else(|| {
        // Nobody has come to them yet.
        NetworkReport { desired: pool.spec.networks.as_ref().map_or(0, Vec::len), ..NetworkReport::default() }
    });
    let (recheck, rollout) = observe_and_publish(pool, &verdict, &networks, context).await?;
    if let Some(active) = catalog.active(&pool.uid().unwrap_or_default()) {
        if !rollout.next.is_empty() {
            tracing::info!(pool = %pool.name_any(), nodes = rollout.next.len(), waiting = rollout.waiting, "next batch of the rollout");
        }
        context.grants.set(&active.entry, rollout.progress);
        rollout.next.iter().for_each(|node| context.queues.nodes.add(node));
    }
    Ok(recheck)
}

/// What became of the networks of the pool as it is now, if they were looked at since.
fn reported(pool: &MacvtapResourcePool, context: &Context) -> Option<NetworkReport> {
    let generation = pool.metadata.generation.unwrap_or_default();
    context.reports.of(&pool.name_any(), &pool.uid().unwrap_or_default(), generation)
}

/// Waits for the drain, then removes the networks, then lets the pool go.
async fn terminate(
    meta: &ObjectMeta,
    pool: Result<&MacvtapResourcePool, &InvalidObject>,
    context: &Context,
) -> Result<Option<Duration>, PoolError> {
    let name = meta.name.clone().unwrap_or_default();
    let uid = meta.uid.clone().unwrap_or_default();
    if !has_finalizer(meta) {
        return Ok(None);
    }
    let mut retry = None;
    // What is on its way to nodes may hold the pool too, and more comes while the catalog has it.
    if context.catalog().active(&uid).is_some() {
        return Ok(Some(RETRY_CONFLICT));
    }
    let holders = holders(&uid, context);
    if holders.is_empty() {
        let turn = context.reports.turn(&name);
        match turn.try_lock() {
            Ok(_at_work) if !may_come_back(&name, &uid, context) => return release(meta, context).await,
            // A write on its way, or a pass over its networks, which ends soon; or one whose answer was lost.
            Ok(_) | Err(_) => retry = Some(RETRY_CONFLICT),
        }
    }
    retry = retry.or(recheck_remembered(&holders, context));
    // A node that need not be waited for is let go once it is unreachable, which no event tells.
    for node in released(meta) {
        context.queues.nodes.add(&node);
    }
    let pool = match pool {
        Ok(pool) => pool,
        Err(invalid) => {
            let finding = with_nodes(context, |nodes| report::terminating(meta, nodes));
            unreadable::say(meta, &invalid.error, Some(finding), context).await?;
            return Ok(retry.or(Some(RETRY)));
        }
    };
    let (recheck, _) = observe_and_publish(pool, &Ok(()), &NetworkReport::default(), context).await?;
    Ok(retry.into_iter().chain(recheck).min())
}

/// Reconciles again the nodes that hold the pool only as long as a deleted state or a missing answer is remembered: no event
/// tells when that ends. Returns how soon to check that again.
fn recheck_remembered(holders: &[Arc<KnownState>], context: &Context) -> Option<Duration> {
    let is_remembered =
        |state: &&Arc<KnownState>| !state.answered() || context.states.get(&state.name).is_none();
    let remembered: Vec<_> = holders.iter().filter(is_remembered).collect();
    for state in &remembered {
        context.queues.nodes.add(&state.name);
    }
    (!remembered.is_empty()).then_some(RETRY)
}

/// Whether a write that has not arrived yet, and may still, gives the pool to a node or makes one of its networks.
fn may_come_back(name: &str, uid: &str, context: &Context) -> bool {
    let now = clock::now();
    let is_there = |node: &String| context.nodes.get(&ObjectRef::new(node)).is_some();
    context.states.may_hold(uid, now).iter().any(is_there) || context.reports.may_come(name, now)
}

/// Removes the networks of a drained pool and lets it go. Networks go last: pods being started and machines being migrated
/// still look them up. Those that a finalizer of somebody else keeps are deleted as far as the operator can, and named.
async fn release(meta: &ObjectMeta, context: &Context) -> Result<Option<Duration>, PoolError> {
    let (name, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
    let kept = apply::remove_all(&context.client, name, uid)
        .await
        .map_err(|source| PoolError::Networks { pool: name.to_owned(), source: Box::new(source) })?;
    let others = meta.finalizers.iter().flatten().map(String::as_str).filter(|f| *f != POOL_FINALIZER);
    let again = set_finalizers(meta, others, context).await?;
    if again.is_none() {
        context.reports.forget(name);
        context.pace.forget(name);
        context.published.forget(name);
        context.grants.forget(uid);
        context.metrics.forget(name);
        tracing::info!(pool = name, "pool drained and released");
        if let Some(event) = announce::kept_networks(&kept) {
            context.announce_on(&event, &pool_reference(meta)).await;
        }
    }
    Ok(again)
}

/// The nodes whose state still has the pool, or had it when it was deleted. A node that is gone holds nothing, even while its state waits for the
/// garbage collector.
fn holders(uid: &str, context: &Context) -> Vec<Arc<KnownState>> {
    let mut states = context.states.all();
    states.extend(context.states.all_deleted(clock::now()));
    states.retain(|state| {
        state.entry(uid).is_some() && context.nodes.get(&ObjectRef::new(&state.name)).is_some()
    });
    states
}

/// Reports what is known and writes it if it is worth a write; says when to look again although nothing happens, and
/// how a staged rollout goes on.
async fn observe_and_publish(
    pool: &MacvtapResourcePool,
    verdict: &Result<(), Rejection>,
    networks: &NetworkReport,
    context: &Context,
) -> Result<(Option<Duration>, Plan), PoolError> {
    let catalog = context.catalog();
    let report = with_nodes(context, |nodes| {
        report::report(&report::Observed {
            pool,
            verdict,
            nodes,
            catalog: &catalog,
            grants: &context.grants,
            networks,
            now: Timestamp::now(),
        })
    });
    let delayed = publish::publish(pool, report.status, context)
        .await
        .map_err(|source| PoolError::Status { pool: pool.name_any(), source: Box::new(source) })?;
    Ok((report.recheck.into_iter().chain(delayed).min(), report.rollout))
}

/// Gives a pure function all nodes as they are known.
fn with_nodes<T>(context: &Context, decide: impl FnOnce(&[NodeView<'_>]) -> T) -> T {
    let nodes = context.nodes.state();
    let states: Vec<Option<Arc<KnownState>>> =
        nodes.iter().map(|node| context.states.get(&node.name_any())).collect();
    let seen_until = context.seen_until();
    let views: Vec<NodeView<'_>> = nodes
        .iter()
        .zip(&states)
        .map(|(node, state)| context.view(node, state.as_deref(), seen_until))
        .collect();
    decide(&views)
}

fn has_finalizer(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == POOL_FINALIZER)
}

async fn set_finalizers(
    meta: &ObjectMeta,
    finalizers: impl Iterator<Item = &str>,
    context: &Context,
) -> Result<Option<Duration>, PoolError> {
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
        Err(source) => Err(PoolError::Finalizer { pool: name, source: Box::new(source) }),
    }
}
