//! Brings objects up to date: a controller observes what a decision depends on, has a pure function decide what must be done,
//! and performs that.

use crate::context::Context;
use crate::queue::{Key, Lane, Queue};
use crate::refusal;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How soon to reconcile again although no event asks for it, if at all.
pub type Again = Option<Duration>;

/// Why an object could not be brought up to date.
#[derive(Debug, thiserror::Error)]
#[error("{what} {name}")]
pub struct ReconcileError {
    what: &'static str,
    name: String,
    source: Box<kube::Error>,
}

impl ReconcileError {
    /// The API server refused to do `what` for the object of this name, or did not answer.
    pub(crate) fn new(what: &'static str, name: &str, source: kube::Error) -> Self {
        Self { what, name: name.to_owned(), source: Box::new(source) }
    }
}

/// One kind of reconciliation.
pub trait Controller: Sized + 'static {
    /// Its name in metrics.
    const NAME: &'static str;
    /// Everything that a decision depends on.
    type Snapshot: Send + Sync;
    /// One thing to do.
    type Action: Send;

    /// Returns the queue of its keys.
    fn queue(context: &Context) -> &Queue;

    /// Waits for the next key of this lane or a more urgent one.
    fn next(last: Lane, context: &Context) -> impl Future<Output = (Key, Lane)> + Send {
        Self::queue(context).next(last)
    }

    /// Reads the caches; or returns, where it is not the time to act, when it will be.
    fn observe(key: &str, context: &Context) -> impl Future<Output = Result<Self::Snapshot, Again>> + Send;

    /// Decides what must be done, in this order.
    fn decide(snapshot: &Self::Snapshot) -> Vec<Self::Action>;

    /// Does one thing. After a failure the rest is not done.
    fn perform(
        action: Self::Action,
        snapshot: &Self::Snapshot,
        context: &Context,
    ) -> impl Future<Output = Result<Again, ReconcileError>> + Send;
}

/// Brings what one key stands for up to date.
pub async fn reconcile<C: Controller>(key: &str, context: &Context) -> Result<Again, ReconcileError> {
    let snapshot = match C::observe(key, context).await {
        Ok(snapshot) => snapshot,
        Err(again) => return Ok(again),
    };
    let mut soonest = None;
    for action in C::decide(&snapshot) {
        let again = C::perform(action, &snapshot, context).await?;
        soonest = again.into_iter().chain(soonest).min();
    }
    Ok(soonest)
}

/// Reconciles one key after the other, of this lane and more urgent ones, until the shutdown.
pub async fn work<C: Controller>(last: Lane, context: Arc<Context>, shutdown: CancellationToken) {
    let queue = C::queue(&context);
    while let Some((key, lane)) = shutdown.run_until_cancelled(C::next(last, &context)).await {
        let start = Instant::now();
        let result = reconcile::<C>(&key, &context).await;
        context.metrics.reconciled(C::NAME, start.elapsed(), result.is_err());
        match result {
            Ok(again) => queue.done(&key, lane, again),
            Err(error) => {
                let pause = queue.failed(&key, lane);
                let error = refusal::chain(&error);
                tracing::warn!(error, ?pause, "reconcile failed, trying again");
            }
        }
    }
}
