//! HTTPS for the API server, with a certificate that changes while connections are open.

use super::certificate::Tls;
use super::review::{self, Question};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kube::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many connections are open at the same time; further ones wait to be accepted.
const CONNECTIONS: usize = 256;

/// How many pods are kept in memory at the same time; further ones wait for their turn. With the largest bodies that are
/// accepted, 2 MB each, they fit into the memory limit of the chart.
const AT_ONCE: usize = 8;

/// How long new connections are accepted after the shutdown began: until then the nodes may still route to this pod. As long
/// again, open requests are answered. Both together are less than the pod's termination grace period.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// To agree on encryption.
    handshake: Duration,
    /// To send the head of a request, also the first one. The API server closes an idle connection after 90 seconds: it must
    /// not send a pod while this side closes the connection.
    head: Duration,
    /// To send the body of a request: the API server waits two seconds for the answer.
    body: Duration,
}

const PATIENCE: Patience = Patience {
    handshake: Duration::from_secs(5),
    head: Duration::from_mins(2),
    body: Duration::from_secs(2),
};

/// Serves until the shutdown, and [`DRAIN`] longer. Without a certificate connections are closed, so that the probes fail.
pub async fn serve(
    listener: TcpListener,
    certificate: watch::Receiver<Option<Tls>>,
    client: Client,
    shutdown: CancellationToken,
) {
    accept(listener, certificate, router(client, PATIENCE), shutdown, PATIENCE).await;
}

fn router(client: Client, patience: Patience) -> Router {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let alive = || async { (StatusCode::OK, "serving\n") };
    Router::new()
        .route("/mutate", post(move |request: Request| mutate(client, turns, request, patience)))
        .route("/livez", get(alive))
        .route("/readyz", get(alive))
}

async fn accept(
    mut listener: TcpListener,
    certificate: watch::Receiver<Option<Tls>>,
    router: Router,
    shutdown: CancellationToken,
    patience: Patience,
) {
    let (connections, ending) = (TaskTracker::new(), CancellationToken::new());
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let drained = async move {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::pin!(drained);
    loop {
        let next = async {
            // Nobody closes the semaphore.
            let turn = Arc::clone(&open).acquire_owned().await.ok();
            (Listener::accept(&mut listener).await.0, turn)
        };
        let (stream, turn) = tokio::select! {
            accepted = next => accepted,
            () = &mut drained => break,
        };
        let Some(tls) = certificate.borrow().clone() else { continue };
        connections.spawn(attend(stream, tls, router.clone(), ending.clone(), turn, patience));
    }
    drop(listener);
    ending.cancel();
    connections.close();
    // A client that is slow to the end is cut off.
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

/// Serves one connection: a client that is slow to agree on encryption delays no other.
async fn attend(
    stream: TcpStream,
    tls: Tls,
    router: Router,
    ending: CancellationToken,
    _turn: Option<OwnedSemaphorePermit>,
    patience: Patience,
) {
    let agreed = tokio::time::timeout(patience.handshake, TlsAcceptor::from(tls).accept(stream));
    if let Ok(Ok(stream)) = agreed.await {
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(patience.head);
        let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = ending.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

async fn mutate(client: Client, turns: Arc<Semaphore>, request: Request, patience: Patience) -> Response {
    // Nobody closes the semaphore.
    let _turn = turns.acquire().await;
    let body = match tokio::time::timeout(patience.body, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return rejection.into_response(),
        Err(_) => return (StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n").into_response(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::certificate;
    use jiff::Timestamp;
    use std::convert::Infallible;
    use std::io;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    /// A webhook that serves.
    struct Served {
        address: SocketAddr,
        certificate: String,
        shutdown: CancellationToken,
        task: JoinHandle<()>,
        _sender: watch::Sender<Option<Tls>>,
    }

    impl Served {
        async fn with(patience: Patience) -> Self {
            let made = certificate::make(&["localhost".to_owned()], Timestamp::now()).unwrap();
            let tls = certificate::tls(&made.certificate, &made.key).unwrap();
            let (sender, receiver) = watch::channel(Some(tls));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let shutdown = CancellationToken::new();
            let router = router(client(), patience);
            let task = tokio::spawn(accept(listener, receiver, router, shutdown.clone(), patience));
            Self { address, certificate: made.certificate, shutdown, task, _sender: sender }
        }

        async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let config = config.with_safe_default_protocol_versions().unwrap();
            let config = config.with_root_certificates(roots).with_no_client_auth();
            let stream = TcpStream::connect(self.address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        }

        /// What a new connection reads after it sent this text.
        async fn answers(&self, text: &str) -> io::Result<String> {
            let mut stream = self.connect().await?;
            let mut answer = Vec::new();
            // A server may close before it was written to, and without a message of TLS.
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.read_to_end(&mut answer).await;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }

        async fn is_alive(&self) -> bool {
            let asked = self.answers("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            asked.await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        }
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
        let mutated = || mutate(client(), Arc::clone(&turns), Request::new("{}".into()), PATIENCE);
        let turn = turns.acquire().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), mutated()).await.is_err());
        drop(turn);
        assert_eq!(mutated().await.status(), StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn new_connections_are_served_for_a_while_after_the_shutdown() {
        let served = Served::with(PATIENCE).await;
        assert!(served.is_alive().await);
        served.shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(served.is_alive().await);
        let Served { address, task, .. } = served;
        tokio::time::timeout(DRAIN * 4, task).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_sends_its_request_slowly_is_cut_off_and_takes_no_turn() {
        let short = Duration::from_millis(300);
        let served = Served::with(Patience { head: short, ..PATIENCE }).await;
        assert_eq!(served.answers("POST /mutate HTTP/1.1\r\nHost:").await.unwrap(), "");
        let served = Served::with(Patience { body: short, ..PATIENCE }).await;
        let slow = "POST /mutate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
        // Each of them holds a turn until its time is over.
        for _ in 0..=AT_ONCE {
            let answer = served.answers(slow).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        }
        assert!(served.is_alive().await);
    }

    #[tokio::test]
    async fn a_larger_body_than_two_megabytes_is_not_read() {
        let request = Request::new(vec![b' '; 2 * 1024 * 1024 + 1].into());
        let answer = mutate(client(), Arc::new(Semaphore::new(1)), request, PATIENCE).await;
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
