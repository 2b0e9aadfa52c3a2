//! Probes and metrics over HTTP.

use crate::context::Context;
use crate::controller::Controller;
use crate::controllers::{Networks, NodeStates, Pools};
use crate::leader::term::Term;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// For how long the election may stand still. Each of its steps ends within seconds, whatever the API server does.
const STALLED: Duration = Duration::from_mins(1);

/// Why probes and metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be had.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server ended.
    #[error("serve probes and metrics")]
    Serve(#[source] io::Error),
}

/// What the probes report.
#[derive(Clone, Debug)]
pub struct Probes {
    /// Whether the caches are filled.
    pub filled: watch::Receiver<bool>,
    /// When the election went on last.
    pub beat: watch::Receiver<Instant>,
    /// Whether this operator leads.
    pub term: Arc<Term>,
}

impl Probes {
    fn live(&self) -> (StatusCode, &'static str) {
        // A start waits for the API server as long as it takes: to start again would not make it answer.
        if !*self.filled.borrow() || self.beat.borrow().elapsed() < STALLED {
            (StatusCode::OK, "alive\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "the election stands still\n")
        }
    }

    fn ready(&self) -> (StatusCode, &'static str) {
        match (*self.filled.borrow(), self.term.holds()) {
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "filling caches\n"),
            (true, true) => (StatusCode::OK, "leading\n"),
            (true, false) => (StatusCode::OK, "standing by\n"),
        }
    }
}

/// Takes the address. `[::]` means all addresses of both families, and those of IPv4 where the kernel has no IPv6: the
/// kubelet probes a pod's first address, of whichever family that is.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, AdminError> {
    let mut bound = TcpListener::bind(address).await;
    if let Some(other) = bound.as_ref().err().and_then(|error| without_ipv6(address, error)) {
        bound = TcpListener::bind(other).await;
    }
    let listener = bound.map_err(|source| AdminError::Listen { address, source })?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving probes and metrics");
    }
    Ok(listener)
}

/// What to take instead of all addresses when the kernel has no IPv6. It says that in more than one way, but not that the
/// port is taken or forbidden.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let other = matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied);
    let all = address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    (all && !other).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

/// Serves until the shutdown: alive while the election goes on, ready once the caches are filled, leading or not.
pub async fn serve(
    listener: TcpListener,
    health: Probes,
    context: Arc<Context>,
    shutdown: CancellationToken,
) -> Result<(), AdminError> {
    let (live, ready) = (health.clone(), health);
    let metrics = move || {
        let metrics = &context.metrics;
        metrics.queue_depth(Pools::NAME, context.queues.pools.depth());
        metrics.queue_depth(NodeStates::NAME, context.queues.nodes.depth());
        metrics.queue_depth(Networks::NAME, context.queues.networks.depth());
        let text = metrics.text();
        async {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        }
    };
    let router = Router::new()
        .route("/livez", get(move || std::future::ready(live.live())))
        .route("/readyz", get(move || std::future::ready(ready.ready())))
        .route("/metrics", get(metrics));
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(AdminError::Serve)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    }

    #[test]
    fn only_all_addresses_are_replaced_and_only_where_there_is_no_ipv6() {
        let error = io::Error::from;
        let all: SocketAddr = "[::]:8080".parse().unwrap();
        let instead = Some("0.0.0.0:8080".parse().unwrap());
        // EAFNOSUPPORT has no kind of its own.
        assert_eq!(without_ipv6(all, &io::Error::from_raw_os_error(97)), instead);
        assert_eq!(without_ipv6(all, &error(io::ErrorKind::AddrNotAvailable)), instead);
        assert_eq!(without_ipv6(all, &error(io::ErrorKind::AddrInUse)), None);
        let one = "[::1]:8080".parse().unwrap();
        assert_eq!(without_ipv6(one, &error(io::ErrorKind::AddrNotAvailable)), None);
    }

    #[test]
    fn the_probes_tell_the_truth() {
        let (filled_sender, filled) = watch::channel(false);
        let long_ago = Instant::now().checked_sub(STALLED).unwrap();
        let (beat_sender, beat) = watch::channel(long_ago);
        let term = Arc::new(Term::default());
        let health = Probes { filled, beat, term: Arc::clone(&term) };
        assert_eq!(health.live().0, StatusCode::OK);
        assert_eq!(health.ready(), (StatusCode::SERVICE_UNAVAILABLE, "filling caches\n"));
        beat_sender.send_replace(Instant::now());
        filled_sender.send_replace(true);
        assert_eq!(health.live().0, StatusCode::OK);
        assert_eq!(health.ready(), (StatusCode::OK, "standing by\n"));
        term.hold(Instant::now() + STALLED);
        assert_eq!(health.ready(), (StatusCode::OK, "leading\n"));
        beat_sender.send_replace(long_ago);
        assert_eq!(health.live().0, StatusCode::SERVICE_UNAVAILABLE);
        beat_sender.send_replace(Instant::now());
        assert_eq!(health.live().0, StatusCode::OK);
    }
}
