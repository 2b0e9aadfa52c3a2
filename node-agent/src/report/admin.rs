//! Metrics over HTTP, on the loopback address unless configured otherwise.

use crate::process::metrics::Metrics;
use crate::process::probe::Readiness;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::warn;

/// Between tries when the address is taken: by an agent that is about to end, most likely.
const RETRY: Duration = Duration::from_secs(5);

/// Serves for ever. Without its address the agent works all the same.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, readiness: watch::Receiver<Readiness>) {
    let openmetrics = move || async move {
        (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            metrics.text(),
        )
    };
    let ready = move || async move {
        match readiness.borrow().clone() {
            Readiness::Ready => (StatusCode::OK, "ready".to_owned()),
            Readiness::Standby => (StatusCode::OK, "standby".to_owned()),
            Readiness::NotReady(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        }
    };
    let router = Router::new()
        .route("/metrics", get(openmetrics))
        .route("/livez", get(|| async { "live" }))
        .route("/readyz", get(ready));
    let mut is_logged = false;
    loop {
        let served = match TcpListener::bind(address).await {
            Ok(listener) => axum::serve(listener, router.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served
            && !std::mem::replace(&mut is_logged, true)
        {
            warn!(%address, %error, "metrics not served, trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}
