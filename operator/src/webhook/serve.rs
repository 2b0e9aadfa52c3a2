//! HTTPS for the API server, with a certificate that changes while connections are open.

use super::certificate::Tls;
use super::review::{self, Question};
use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use kube::Client;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a client may take to agree on encryption.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How many agreed connections wait to be served, at most.
const WAITING: usize = 32;

/// How many pods are kept in memory at the same time; further ones wait for their turn. With the largest bodies that are
/// accepted, 2 MB each, they fit into the memory limit of the chart.
const AT_ONCE: usize = 8;

/// How long new connections are accepted after the shutdown began: until then the nodes may still route to this pod. Less than
/// the pod's termination grace period.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until the shutdown, and [`DRAIN`] longer. Without a certificate connections are closed, so that the probes fail.
pub async fn serve(
    listener: TcpListener,
    certificate: watch::Receiver<Option<Tls>>,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let alive = || async { (StatusCode::OK, "serving\n") };
    let router = Router::new()
        .route("/mutate", post(move |request: Request| mutate(client, turns, request)))
        .route("/livez", get(alive))
        .route("/readyz", get(alive));
    let encrypted = Encrypted::over(listener, certificate)?;
    let drained = async move {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    axum::serve(encrypted, router).with_graceful_shutdown(drained).await.context("serve the webhook")
}

async fn mutate(client: Client, turns: Arc<Semaphore>, request: Request) -> Response {
    // Nobody closes the semaphore.
    let _turn = turns.acquire().await;
    let body = match Bytes::from_request(request, &()).await {
        Ok(body) => body,
        Err(rejection) => return rejection.into_response(),
    };
    let question: Question = match serde_json::from_slice(&body) {
        Ok(question) => question,
        Err(error) => {
            let text = format!("the body is not an AdmissionReview of a pod: {error}\n");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    drop(body);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::certificate;
    use jiff::Timestamp;
    use std::convert::Infallible;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    /// What a new connection reads from `/livez`.
    async fn alive(address: SocketAddr, certificate: &str) -> io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut text = vec![0; 1024];
        let length = stream.read(&mut text).await?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// A client whose API server answers nothing.
    fn client() -> Client {
        let service = tower::service_fn(|_: axum::http::Request<kube::client::Body>| async {
            Ok::<_, Infallible>(axum::http::Response::new(kube::client::Body::empty()))
        });
        Client::new(service, "ns")
    }

    #[tokio::test]
    async fn a_request_is_not_read_before_its_turn() {
        let turns = Arc::new(Semaphore::new(1));
        let mutated = || mutate(client(), Arc::clone(&turns), Request::new("{}".into()));
        let turn = turns.acquire().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), mutated()).await.is_err());
        drop(turn);
        assert_eq!(mutated().await.status(), StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn new_connections_are_served_for_a_while_after_the_shutdown() {
        let made = certificate::make(&["localhost".to_owned()], Timestamp::now()).unwrap();
        let tls = certificate::tls(&made.certificate, &made.key).unwrap();
        let (_sender, receiver) = watch::channel(Some(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, receiver, client(), shutdown.clone()));
        assert!(alive(address, &made.certificate).await.unwrap().starts_with("HTTP/1.1 200"));
        shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(alive(address, &made.certificate).await.unwrap().starts_with("HTTP/1.1 200"));
        tokio::time::timeout(DRAIN * 2, served).await.unwrap().unwrap().unwrap();
        assert!(alive(address, &made.certificate).await.is_err());
    }
}
