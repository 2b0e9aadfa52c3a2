//! Between every request and the API server: who does not lead does not write, nothing waits for ever, and all is
//! counted.

use crate::leader::term::Term;
use crate::metrics::Metrics;
use axum::http::{Method, Request, Response};
use futures::future::BoxFuture;
use kube::client::Body;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use tower::{BoxError, Layer, Service};

/// How long a request other than a watch may take. The API server aborts one after a minute.
const TIMEOUT: Duration = Duration::from_secs(65);

/// A request that this process must not send, or that nobody answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Another operator writes.
    #[error("this operator does not lead (any more) and writes nothing")]
    NotLeading,
    /// No answer.
    #[error("the API server did not answer in time")]
    TimedOut,
}

/// Makes a client heed the term.
#[derive(Clone, Debug)]
pub struct Gate {
    term: Arc<Term>,
    metrics: Arc<Metrics>,
    timeout: Duration,
}

impl Gate {
    /// A gate that is open for writes while the term holds.
    pub fn new(term: Arc<Term>, metrics: Arc<Metrics>) -> Self {
        Self { term, metrics, timeout: TIMEOUT }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated { inner, gate: self.clone() }
    }
}

/// A client's service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S, B> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (metrics, limit) = (Arc::clone(&self.gate.metrics), self.gate.timeout);
        if needs_term(request.method(), request.uri().path()) && !self.gate.term.holds() {
            metrics.refused_writes.inc();
            return Box::pin(async { Err(GateError::NotLeading.into()) });
        }
        let method = metrics.method(request.method());
        let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = if watch {
                answer.await.map_err(Into::into)
            } else {
                match tokio::time::timeout(limit, answer).await {
                    Ok(answer) => answer.map_err(Into::into),
                    Err(_) => Err(GateError::TimedOut.into()),
                }
            };
            metrics.api_request(method, answer.as_ref().ok().map(|answer| answer.status().as_u16()));
            answer
        })
    }
}

/// Everything that changes something, except what decides who leads.
fn needs_term(method: &Method, path: &str) -> bool {
    let reads = method == Method::GET || method == Method::HEAD || method == Method::OPTIONS;
    !reads && !path.starts_with("/apis/coordination.k8s.io/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;
    use tower::service_fn;

    async fn ask(gate: &Gate, method: Method, path: &str) -> Result<u16, String> {
        let answers =
            service_fn(|_| async { Ok::<_, BoxError>(Response::builder().status(201).body(()).unwrap()) });
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let answer = gate.layer(answers).call(request).await;
        answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_who_leads_writes_and_everybody_reads_and_stands_for_election() {
        let (term, metrics) = (Arc::new(Term::default()), Arc::new(Metrics::default()));
        let gate = Gate::new(Arc::clone(&term), Arc::clone(&metrics));
        let pools = "/apis/macvtap.network.kubevirt.io/v1alpha1/macvtapresourcepools/dp";
        let lease = "/apis/coordination.k8s.io/v1/namespaces/x/leases/y";
        for method in [Method::PATCH, Method::POST, Method::PUT, Method::DELETE] {
            assert_eq!(ask(&gate, method.clone(), pools).await, Err(GateError::NotLeading.to_string()));
            assert_eq!(ask(&gate, method, lease).await, Ok(201));
        }
        assert_eq!(ask(&gate, Method::GET, pools).await, Ok(201));
        term.hold(Instant::now() + Duration::from_secs(7));
        assert_eq!(ask(&gate, Method::PATCH, pools).await, Ok(201));
        term.end();
        assert_eq!(ask(&gate, Method::PATCH, pools).await, Err(GateError::NotLeading.to_string()));
        assert_eq!(metrics.refused_writes.get(), 5);
    }

    #[tokio::test]
    async fn a_request_that_nobody_answers_fails_and_a_watch_waits() {
        let gate = Gate { timeout: Duration::ZERO, ..Gate::new(Arc::default(), Arc::default()) };
        let silent = || service_fn(|_| std::future::pending::<Result<Response<()>, BoxError>>());
        let get = |uri: &str| Request::builder().uri(uri).body(Body::empty()).unwrap();
        let error = gate.layer(silent()).call(get("/api/v1/nodes")).await.unwrap_err();
        assert_eq!(error.to_string(), GateError::TimedOut.to_string());
        let mut watch = gate.layer(silent()).call(get("/api/v1/nodes?watch=true"));
        for _ in 0..10 {
            assert!(futures::poll!(&mut watch).is_pending());
        }
    }
}
