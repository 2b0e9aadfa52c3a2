//! HTTPS for the API server, with a certificate that changes while connections are open.

use super::certificate::Tls;
use super::review::{self, Question};
use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use kube::Client;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a client may take to agree on encryption.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How many agreed connections wait to be served, at most.
const WAITING: usize = 32;

/// Serves until the shutdown. Without a certificate connections are closed, so that the probes fail.
pub async fn serve(
    listener: TcpListener,
    certificate: watch::Receiver<Option<Tls>>,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let alive = || async { (StatusCode::OK, "serving\n") };
    let router = Router::new()
        .route("/mutate", post(move |body: Bytes| mutate(client, body)))
        .route("/livez", get(alive))
        .route("/readyz", get(alive));
    let encrypted = Encrypted::over(listener, certificate)?;
    axum::serve(encrypted, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .context("serve the webhook")
}

async fn mutate(client: Client, body: Bytes) -> Response {
    let question: Question = match serde_json::from_slice(&body) {
        Ok(question) => question,
        Err(error) => {
            let text = format!("the body is not an AdmissionReview of a pod: {error}\n");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    match serde_json::to_string(&review::answer(&client, question).await) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Connections that are agreed on: a client that is slow to agree holds up no other.
struct Encrypted {
    address: SocketAddr,
    agreed: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl Encrypted {
    fn over(listener: TcpListener, certificate: watch::Receiver<Option<Tls>>) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("read the own address")?;
        let (sender, agreed) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let mut listener = listener;
            loop {
                let (stream, peer) = tokio::select! {
                    accepted = Listener::accept(&mut listener) => accepted,
                    () = sender.closed() => return,
                };
                let Some(tls) = certificate.borrow().clone() else { continue };
                let sender = sender.clone();
                tokio::spawn(async move {
                    let agreed = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream));
                    if let Ok(Ok(stream)) = agreed.await {
                        // An error means that the server ends.
                        let _ = sender.send((stream, peer)).await;
                    }
                });
            }
        });
        Ok(Self { address, agreed })
    }
}

impl Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.agreed.recv().await {
            Some(agreed) => agreed,
            // The accepting task lives as long as this value.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
