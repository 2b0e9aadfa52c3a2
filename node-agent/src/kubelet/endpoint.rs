//! One resource's socket: made, registered, and recreated whenever the kubelet has lost it.
//!
//! The kubelet empties its directory when it starts, and admits pods about a second later; a pod admitted before the
//! resource is registered fails for good. So everything here happens at once, and waits only after a failure.

use super::directory::Happened;
use super::service::{Decoy, Service, StreamEvent, options};
use super::shared::Shared;
use super::{KUBELET_SOCKET, VERSION, socket};
use crate::devices::offer::Offer;
use macvtap::device_id::ResourceName;
use macvtap::table::TapOnly;
use macvtap_proto::deviceplugin::RegisterRequest;
use macvtap_proto::deviceplugin::device_plugin_server::DevicePluginServer;
use macvtap_proto::deviceplugin::registration_client::RegistrationClient;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tracing::{debug, info, warn};

/// How long the kubelet may take to answer. It calls back before it does.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after its answer the kubelet may take to ask for the list.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits after failures in a row: this long first, twice as long each time, up to the maximum.
const BACKOFF_FIRST: Duration = Duration::from_millis(2);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The same for a kubelet that answers, and does not take the resource.
const BACKOFF_REFUSED: Duration = Duration::from_secs(30);

/// A registration that held this long was not a failure.
const SETTLED: Duration = Duration::from_secs(5);

/// One resource that the kubelet should know.
pub struct ResourceServer {
    /// Its bare name.
    pub name: ResourceName,
    /// The kubelet's device plugin directory.
    pub directory: PathBuf,
    /// What it offers.
    pub offer: watch::Receiver<Arc<Offer>>,
    /// What happens in the directory.
    pub happened: watch::Receiver<Happened>,
    /// What all resources share.
    pub shared: Arc<Shared>,
    /// Ends it.
    pub stop: CancellationToken,
    /// Makes room for a successor that waits, before it ends.
    pub hand_over: CancellationToken,
    /// Whether the kubelet has it, for readiness.
    pub registered: watch::Sender<Registration>,
}

/// What is known of a resource's registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Registration {
    /// Under way.
    #[default]
    Pending,
    /// The kubelet reads the list.
    Done,
    /// The kubelet does not answer; why.
    Unreachable(String),
    /// The kubelet does not take it; why.
    Failed(String),
    /// A successor may register it now; allocations are still answered.
    HandedOver,
}

/// A registration failed.
#[derive(Debug, thiserror::Error)]
enum EndpointError {
    #[error(transparent)]
    Bind(#[from] socket::BindError),
    #[error("reach the kubelet at {}; is it running?", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("kubelet refused the resource: {0}")]
    Refused(String),
    #[error("kubelet did not answer within {} s", REGISTER_TIMEOUT.as_secs())]
    Silent,
}

impl EndpointError {
    fn registration(&self, reason: String) -> Registration {
        match self {
            Self::Connect { .. } | Self::Silent => Registration::Unreachable(reason),
            Self::Bind(_) | Self::Refused(_) => Registration::Failed(reason),
        }
    }
}

/// Why a socket is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionEnd {
    Stopped,
    HandOver,
    KubeletStarted,
    SocketRemoved,
    StreamLost,
    NeverAsked,
    TermsChanged,
}

/// What the kubelet learns of a resource by its registration, and by nothing later.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    full_name: String,
    tap_only: TapOnly,
}

impl Terms {
    fn of(offer: &Offer) -> Self {
        Self { full_name: offer.full_name.clone(), tap_only: offer.tap_only }
    }
}

/// A socket that is being served.
struct ServedSocket {
    path: PathBuf,
    /// Ends the streams.
    ended: CancellationToken,
    /// Ends everything.
    closed: CancellationToken,
    streams: mpsc::UnboundedReceiver<StreamEvent>,
    task: JoinHandle<()>,
}

impl ResourceServer {
    /// Keeps the resource registered until it is stopped. Leaves no socket.
    pub async fn run(mut self) {
        let mut failures: u32 = 0;
        loop {
            let begun = Instant::now();
            // Everything before this moment concerns an earlier socket.
            let before = *self.happened.borrow_and_update();
            let end = match self.once(before).await {
                Ok(end) => end,
                Err(error) => {
                    let reason = crate::error_chain(&error);
                    if failures == 0 {
                        warn!(resource = %self.name, %reason, "resource not registered, trying again");
                    }
                    let refused = matches!(error, EndpointError::Refused(_));
                    self.publish(error.registration(reason));
                    let max = if refused { BACKOFF_REFUSED } else { BACKOFF_MAX };
                    if self.pause(&mut failures, before, max).await {
                        continue;
                    }
                    SessionEnd::Stopped
                }
            };
            if end == SessionEnd::Stopped {
                return;
            }
            info!(resource = %self.name, reason = ?end, "registering again");
            self.publish(Registration::Pending);
            if begun.elapsed() > SETTLED || end == SessionEnd::KubeletStarted {
                failures = 0;
            } else if end == SessionEnd::StreamLost || end == SessionEnd::NeverAsked {
                // The first time at once: every millisecond without a list costs pods.
                if failures > 0 && !self.pause(&mut failures, before, BACKOFF_MAX).await {
                    return;
                }
                failures = failures.max(1);
            }
        }
    }

    /// Makes a socket, registers it, and waits for the reason to make another one.
    async fn once(&mut self, before: Happened) -> Result<SessionEnd, EndpointError> {
        let terms = Terms::of(&self.offer.borrow());
        let mut served = self.serve()?;
        let stop = self.stop.clone();
        let hand_over = self.hand_over.clone();
        let mut end = tokio::select! {
            end = self.hold(&mut served, &terms, before) => end,
            () = stop.cancelled() => Ok(SessionEnd::Stopped),
            () = hand_over.cancelled() => Ok(SessionEnd::HandOver),
        };
        if end.as_ref().is_ok_and(|end| *end == SessionEnd::HandOver) {
            self.make_room(&served).await;
            stop.cancelled().await;
            end = Ok(SessionEnd::Stopped);
        }
        // A stream that ended by itself is gone already; others end here, before there is a successor whose connection
        // the kubelet would close in their place.
        served.ended.cancel();
        served.closed.cancel();
        let _ = std::fs::remove_file(&served.path);
        if end.as_ref().is_ok_and(|end| *end == SessionEnd::TermsChanged) {
            let _ = tokio::time::timeout(REGISTER_TIMEOUT, &mut served.task).await;
        }
        end
    }

    fn serve(&self) -> Result<ServedSocket, EndpointError> {
        let (path, listener) = socket::bind(&self.directory, &self.name)?;
        let ended = CancellationToken::new();
        let (sender, streams) = mpsc::unbounded_channel();
        let service = Service {
            shared: Arc::clone(&self.shared),
            resource: self.name.clone(),
            offer: self.offer.clone(),
            ended: ended.clone(),
            streams: sender,
        };
        let closed = CancellationToken::new();
        let shutdown = closed.clone().cancelled_owned();
        let name = self.name.clone();
        let task = tokio::spawn(async move {
            let server = Server::builder().add_service(DevicePluginServer::new(service));
            let connections = UnixListenerStream::new(listener);
            if let Err(error) = server.serve_with_incoming_shutdown(connections, shutdown).await {
                warn!(resource = %name, %error, "socket served no longer");
            }
        });
        Ok(ServedSocket { path, ended, closed, streams, task })
    }

    async fn hold(
        &mut self,
        served: &mut ServedSocket,
        terms: &Terms,
        before: Happened,
    ) -> Result<SessionEnd, EndpointError> {
        let begun = Instant::now();
        let mut happened = self.happened.clone();
        tokio::select! {
            registered = self.register(&served.path, terms) => registered?,
            _ = happened.wait_for(|now| now.kubelet_starts != before.kubelet_starts) => {
                return Ok(SessionEnd::KubeletStarted);
            }
        }
        debug!(resource = %self.name, "kubelet accepted the resource");
        let mut open: usize = 0;
        let deadline = tokio::time::sleep(STREAM_TIMEOUT);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                event = served.streams.recv() => match event {
                    Some(StreamEvent::Opened) => {
                        open += 1;
                        if open == 1 {
                            let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
                            info!(resource = %self.name, milliseconds, "resource registered");
                            self.shared.metrics.registration(&self.name);
                            self.publish(Registration::Done);
                        }
                    }
                    Some(StreamEvent::Lost) => {
                        open = open.saturating_sub(1);
                        if open == 0 {
                            return Ok(SessionEnd::StreamLost);
                        }
                    }
                    None => return Ok(SessionEnd::StreamLost),
                },
                () = &mut deadline, if open == 0 => return Ok(SessionEnd::NeverAsked),
                _ = self.happened.changed() => {
                    if self.happened.borrow_and_update().kubelet_starts != before.kubelet_starts {
                        return Ok(SessionEnd::KubeletStarted);
                    }
                    if !served.path.exists() {
                        return Ok(SessionEnd::SocketRemoved);
                    }
                }
                _ = self.offer.changed() => {
                    if Terms::of(&self.offer.borrow_and_update()) != *terms {
                        return Ok(SessionEnd::TermsChanged);
                    }
                }
            }
        }
    }

    /// Lets the kubelet forget which endpoint registered the resource, so that the end of our stream does not take the
    /// successor's registration with it: the kubelet looks a lost stream's plugin up by the resource's name. A
    /// registration that fails removes that entry and nothing else; allocations still come here.
    async fn make_room(&self, served: &ServedSocket) {
        if let Ok((path, listener)) = socket::bind(&self.directory, &self.name) {
            let refusing = Server::builder().add_service(DevicePluginServer::new(Decoy));
            let decoy = tokio::spawn(refusing.serve_with_incoming(UnixListenerStream::new(listener)));
            let terms = Terms::of(&self.offer.borrow());
            match self.register(&path, &terms).await {
                Err(EndpointError::Refused(_)) => debug!(resource = %self.name, "kubelet made room"),
                Err(error) => {
                    let reason = crate::error_chain(&error);
                    warn!(resource = %self.name, %reason, "no room made");
                }
                Ok(()) => warn!(resource = %self.name, "kubelet took a registration that it should refuse"),
            }
            decoy.abort();
            let _ = std::fs::remove_file(&path);
        }
        served.ended.cancel();
        self.publish(Registration::HandedOver);
    }

    async fn register(&self, socket: &Path, terms: &Terms) -> Result<(), EndpointError> {
        let path = self.directory.join(KUBELET_SOCKET);
        let failed = |source| EndpointError::Connect { path: path.clone(), source };
        let endpoint = Endpoint::try_from(format!("unix:{}", path.display())).map_err(failed)?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: socket.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            resource_name: terms.full_name.clone(),
            options: Some(options(terms.tap_only)),
        };
        let answer = tokio::time::timeout(REGISTER_TIMEOUT, async {
            let channel = endpoint.connect().await.map_err(failed)?;
            let answer = RegistrationClient::new(channel).register(request).await;
            answer.map_err(|status| EndpointError::Refused(status.message().to_owned()))
        });
        answer.await.map_err(|_| EndpointError::Silent)??;
        Ok(())
    }

    /// Waits after a failure, or until the kubelet has started since; false when it is time to stop. Nothing else in the
    /// directory ends the wait: the end of our own socket is an event there, and so is each of the kubelet's checkpoints.
    async fn pause(&self, failures: &mut u32, before: Happened, max: Duration) -> bool {
        let wait = BACKOFF_FIRST.saturating_mul(1 << (*failures).min(16)).min(max);
        *failures = failures.saturating_add(1);
        let mut happened = self.happened.clone();
        tokio::select! {
            () = self.stop.cancelled() => false,
            // Nothing is registered that could be handed over.
            () = self.hand_over.cancelled() => {
                self.publish(Registration::HandedOver);
                false
            }
            () = tokio::time::sleep(wait) => true,
            Ok(_) = happened.wait_for(|now| now.kubelet_starts != before.kubelet_starts) => {
                // It makes its socket first and listens then: the next try may be too early by a moment.
                *failures = 0;
                true
            }
        }
    }

    /// Publishes the state of the registration if it has changed.
    fn publish(&self, registration: Registration) {
        self.registered.send_if_modified(|before| {
            let changed = *before != registration;
            *before = registration;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
