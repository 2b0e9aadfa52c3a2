//! One pool: observe, judge, bring its networks up to date, report; and, when it is deleted, wait for the drain.

pub mod announce;
pub mod assess;
pub mod publish;
pub mod report;

use crate::acceptance::{Rejection, judge};
use crate::context::{Context, Guarded, readable};
use crate::network::{self, NetworkReport};
use assess::NodeView;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use macvtap_crds::{OPERATOR_FIELD_MANAGER, POOL_FINALIZER};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// How soon what no event announces is tried again: foreign networks that are in the way, a kind that is missing.
const RETRY: Duration = Duration::from_secs(30);

/// How soon a pool that was changed meanwhile is looked at again.
const RETRY_CONFLICT: Duration = Duration::from_secs(1);

/// How soon networks that somebody else's finalizer keeps are looked at again.
const RETRY_REMOVAL: Duration = Duration::from_secs(5);

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

/// Brings one pool up to date.
pub async fn reconcile(
    pool: Arc<Guarded<MacvtapResourcePool>>,
    context: Arc<Context>,
) -> Result<Action, PoolError> {
    let pool = match &pool.0 {
        Ok(pool) => pool,
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref();
            tracing::warn!(pool = name, error = %invalid.error, "pool cannot be read and is left out");
            return Ok(Action::await_change());
        }
    };
    let ending = pool.metadata.deletion_timestamp.is_some();
    if !ending && !pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER) {
        let finalizers = pool.finalizers().iter().map(String::as_str).chain([POOL_FINALIZER]);
        return set_finalizers(pool, finalizers, &context).await;
    }
    if let Some(wait) = context.pace.run(&pool.name_any()) {
        return Ok(Action::requeue(wait));
    }
    if ending {
        return terminate(pool, &context).await;
    }
    let verdict = verdict(pool, &context);
    // A pool that is not accepted keeps what it has: its networks work as long as its devices do.
    let networks =
        if verdict.is_ok() { network::reconcile(pool, &context).await } else { NetworkReport::default() };
    let retry = networks.retry().then_some(RETRY);
    let recheck = observe_and_publish(pool, &verdict, &networks, &context).await?;
    Ok(match retry.into_iter().chain(recheck).min() {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    })
}

async fn terminate(pool: &MacvtapResourcePool, context: &Context) -> Result<Action, PoolError> {
    let name = pool.name_any();
    if !pool.finalizers().iter().any(|finalizer| finalizer == POOL_FINALIZER) {
        return Ok(Action::await_change());
    }
    let mut left = None;
    if !readable(&context.states.state()).any(|state| report::holds_entry(state, pool)) {
        // Networks go last: pods being started and machines being migrated still look them up.
        let networks = network::remove(pool, context)
            .await
            .map_err(|source| PoolError::Networks { pool: name.clone(), source: Box::new(source) })?;
        if networks == 0 {
            let others = pool.finalizers().iter().map(String::as_str).filter(|f| *f != POOL_FINALIZER);
            let released = set_finalizers(pool, others, context).await?;
            if released == Action::await_change() {
                context.pace.forget(&name);
                tracing::info!(pool = %name, "pool drained and released");
            }
            return Ok(released);
        }
        left = Some(networks);
    }
    let networks = NetworkReport { desired: left.unwrap_or_default(), ready: 0, problems: Vec::new() };
    let recheck = observe_and_publish(pool, &Ok(()), &networks, context).await?;
    Ok(match left.map(|_| RETRY_REMOVAL).into_iter().chain(recheck).min() {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    })
}

/// Reports what is known and writes it if it is worth a write; says when to look again although nothing happens.
async fn observe_and_publish(
    pool: &MacvtapResourcePool,
    verdict: &Result<(), Rejection>,
    networks: &NetworkReport,
    context: &Context,
) -> Result<Option<Duration>, PoolError> {
    let nodes = context.nodes.state();
    let states: Vec<Option<Arc<Guarded<MacvtapNodeState>>>> =
        nodes.iter().map(|node| context.states.get(&ObjectRef::new(&node.name_any()))).collect();
    let views: Vec<NodeView<'_>> = nodes
        .iter()
        .zip(&states)
        .map(|(node, state)| view(node, state.as_ref().and_then(|state| state.0.as_ref().ok())))
        .collect();
    let observed = report::Observed { pool, verdict, nodes: &views, networks, now: jiff::Timestamp::now() };
    let report = report::report(&observed);
    let delayed = publish::publish(pool, report.status, context)
        .await
        .map_err(|source| PoolError::Status { pool: pool.name_any(), source: Box::new(source) })?;
    Ok(report.recheck.into_iter().chain(delayed).min())
}

fn verdict(pool: &MacvtapResourcePool, context: &Context) -> Result<(), Rejection> {
    let pools = context.pools.state();
    let verdicts = judge(readable(&pools));
    verdicts.get(pool.name_any().as_str()).cloned().unwrap_or(Ok(()))
}

fn view<'v>(node: &'v Node, state: Option<&'v MacvtapNodeState>) -> NodeView<'v> {
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_ == "Ready")
        .filter(|condition| condition.status != "True");
    NodeView {
        name: node.metadata.name.as_deref().unwrap_or_default(),
        labels: node.labels(),
        not_ready_since: ready
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0),
        state,
    }
}

async fn set_finalizers(
    pool: &MacvtapResourcePool,
    finalizers: impl Iterator<Item = &str>,
    context: &Context,
) -> Result<Action, PoolError> {
    let name = pool.name_any();
    let patch = json!({"metadata": {
        "finalizers": finalizers.collect::<Vec<_>>(),
        // The list is replaced as a whole, so it must be the one that was read.
        "resourceVersion": pool.resource_version(),
    }});
    let params = PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
    let pools: Api<MacvtapResourcePool> = Api::all(context.client.clone());
    match pools.patch_metadata(&name, &params, &Patch::Merge(patch)).await {
        Ok(_) => Ok(Action::await_change()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::await_change()),
        // The cache has not seen the last change of the pool yet, which may have been ours.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Action::requeue(RETRY_CONFLICT)),
        Err(source) => Err(PoolError::Finalizer { pool: name, source: Box::new(source) }),
    }
}
