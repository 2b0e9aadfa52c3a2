//! The device plugin interface of one resource.

use crate::attachments::Lost;
use crate::attachments::taps::{self, TapOnlyError};
use crate::devices::nics::{self, Names};
use crate::devices::offer::{Granted, Offer, Refusal};
use crate::pods::{PodName, is_theirs};
use crate::process::metrics::Metrics;
use futures::Stream;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::paths::Paths;
use macvtap::record::Holder;
use macvtap::table::TapOnly;
use macvtap_proto::deviceplugin::device_plugin_server::DevicePlugin;
use macvtap_proto::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

/// Devices handed out so recently that the kubelet may not list them yet.
#[derive(Debug, Default)]
pub struct Ledger {
    allocated: Mutex<BTreeMap<DeviceId, Instant>>,
    former: Mutex<BTreeMap<DeviceId, (Holder, Instant)>>,
}

/// What every endpoint needs.
#[derive(Debug)]
pub struct Shared {
    /// Where things are.
    pub paths: Paths,
    /// Allocations.
    pub ledger: Ledger,
    /// Told of every allocation.
    pub metrics: Arc<Metrics>,
    /// Woken after every allocation: what is in use has changed.
    pub allocated: tokio::sync::Notify,
    /// Devices whose link vanished under a pod.
    pub lost: watch::Sender<Lost>,
    /// What the kubelet calls the NICs of the stored table.
    pub nics: watch::Sender<Arc<Names>>,
}

/// One resource on one socket.
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) resource: ResourceName,
    pub(super) offer: watch::Receiver<Arc<Offer>>,
    /// Ends the streams of this socket; calls are still answered.
    pub(super) ended: CancellationToken,
    /// Told when a stream begins and ends.
    pub(super) streams: mpsc::UnboundedSender<StreamEvent>,
}

/// What a kubelet does with the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEvent {
    Opened,
    Lost,
}

/// The list, told when it ends.
pub(super) struct DeviceStream {
    updates: Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    streams: mpsc::UnboundedSender<StreamEvent>,
}

impl Ledger {
    /// Notes an allocation.
    pub fn note(&self, device: DeviceId) {
        self.lock().insert(device, Instant::now());
    }

    /// Drops the notes of devices that the kubelet listed when it was asked after the allocation: from then on its
    /// list says when they are free again. It never lists a device for a former pod once it has handed it out anew.
    pub fn confirm<'a>(&self, listed: impl Iterator<Item = &'a DeviceId>, asked: Instant) {
        let mut allocated = self.lock();
        for device in listed {
            if allocated.get(device).is_some_and(|at| *at < asked) {
                allocated.remove(device);
            }
        }
    }

    /// Devices allocated less than `age` ago and not listed since; older notes are dropped.
    pub fn recent(&self, age: Duration) -> Vec<DeviceId> {
        let mut allocated = self.lock();
        allocated.retain(|_, at| at.elapsed() < age);
        allocated.keys().cloned().collect()
    }

    /// Notes whom the device's record named when it was handed out: not the pod that got it.
    fn note_former(&self, device: &DeviceId, holder: Option<Holder>) {
        let mut former = lock(&self.former);
        match holder {
            Some(holder) => drop(former.insert(device.clone(), (holder, Instant::now()))),
            None => drop(former.remove(device)),
        }
    }

    fn former(&self, device: &DeviceId) -> Option<Holder> {
        lock(&self.former).get(device).map(|(holder, _)| holder.clone())
    }

    /// Drops the notes of former holders that the kubelet listed with the device when it was asked after the allocation: a
    /// kubelet that lost its checkpoint hands out anew what its pods have.
    pub fn absolve<'a>(&self, listed: impl Iterator<Item = (&'a DeviceId, &'a PodName)>, asked: Instant) {
        let mut former = lock(&self.former);
        for (device, pod) in listed {
            if former.get(device).is_some_and(|(holder, at)| *at < asked && is_theirs(holder, pod)) {
                former.remove(device);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Instant>> {
        lock(&self.allocated)
    }
}

/// A map of plain values is sound whoever died while holding it.
fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The options that go with an offer, for `Register` and for `GetDevicePluginOptions`.
pub(super) fn options(tap_only: TapOnly) -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: tap_only == TapOnly::Allowed,
        get_preferred_allocation_available: true,
    }
}

impl Service {
    fn offer(&self) -> Arc<Offer> {
        Arc::clone(&self.offer.borrow())
    }

    fn refused(&self, refusal: &Refusal) -> Status {
        warn!(resource = %self.resource, reason = %refusal, "allocation refused");
        self.shared.metrics.allocation(&self.resource, false);
        Status::invalid_argument(refusal.to_string())
    }

    /// What one container is told of its devices.
    fn answer(&self, granted: &[Granted]) -> ContainerAllocateResponse {
        let nics = nics::tell(granted.iter().filter_map(|granted| granted.pci));
        let taps = granted.iter().filter(|granted| granted.pci.is_none()).map(|granted| DeviceSpec {
            container_path: format!("/dev/tap{}", granted.ifindex),
            host_path: self.shared.paths.device_node(granted.ifindex).display().to_string(),
            permissions: "rw".to_owned(),
        });
        let mut answer = ContainerAllocateResponse { devices: taps.collect(), ..Default::default() };
        if !nics.is_empty() {
            answer.envs.insert(nics::VARIABLE.to_owned(), nics);
        }
        answer
    }

    /// A device whose last holder had the tap alone still has its link: nobody told us that the pod ended. What a network
    /// left is noted: its DEL may be under way.
    async fn remove_former(&self, device: &DeviceId) -> Result<(), Status> {
        let former = taps::holder(&self.shared.paths, device);
        let network = former.as_ref().is_ok_and(|holder| *holder != Some(Holder::Host));
        self.shared.ledger.note_former(device, former.ok().flatten());
        if network {
            return Ok(());
        }
        // A record that cannot be read is looked at again, with the lock held: that says why.
        let (paths, device) = (self.shared.paths.clone(), device.clone());
        let removed = tokio::task::spawn_blocking(move || taps::remove_host(&paths, &device)).await;
        match removed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Status::internal(crate::error_chain(&error))),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

/// A plugin that refuses everything.
pub(super) struct Decoy;

const HANDING_OVER: &str = "this agent is handing over to its successor";

#[tonic::async_trait]
impl DevicePlugin for Decoy {
    type ListAndWatchStream = DeviceStream;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Err(Status::unavailable(HANDING_OVER))
    }

    async fn list_and_watch(&self, _request: Request<Empty>) -> Result<Response<DeviceStream>, Status> {
        Err(Status::unavailable(HANDING_OVER))
    }

    async fn get_preferred_allocation(
        &self,
        _request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unavailable(HANDING_OVER))
    }

    async fn allocate(
        &self,
        _request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        Err(Status::unavailable(HANDING_OVER))
    }

    async fn pre_start_container(
        &self,
        _request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Err(Status::unavailable(HANDING_OVER))
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = DeviceStream;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options(self.offer().tap_only)))
    }

    async fn list_and_watch(&self, _request: Request<Empty>) -> Result<Response<DeviceStream>, Status> {
        let resource = self.resource.clone();
        // The first item is the offer of this moment.
        let updates = WatchStream::new(self.offer.clone()).map(move |offer| {
            let devices = offer.devices();
            info!(resource = %resource, devices = devices.len(), "list sent");
            Ok(ListAndWatchResponse { devices })
        });
        let _ = self.streams.send(StreamEvent::Opened);
        Ok(Response::new(DeviceStream {
            updates: Box::pin(updates),
            ended: Box::pin(self.ended.clone().cancelled_owned()),
            streams: self.streams.clone(),
        }))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let offer = self.offer();
        let requests = request.into_inner().container_requests.into_iter();
        let container_responses = requests
            .map(|request| {
                let size = usize::try_from(request.allocation_size).unwrap_or_default();
                let device_i_ds =
                    offer.prefer(&request.available_device_i_ds, &request.must_include_device_i_ds, size);
                ContainerPreferredAllocationResponse { device_i_ds }
            })
            .collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let begun = Instant::now();
        let offer = self.offer();
        // All containers or none, before anything is done.
        let grants = request.into_inner().container_requests.into_iter();
        let grants = grants.map(|container| offer.grant(&container.devices_ids));
        let grants: Vec<_> = grants.collect::<Result<_, _>>().map_err(|refusal| self.refused(&refusal))?;
        for granted in grants.iter().flatten() {
            // Noted first: from here on the device counts as in use.
            self.shared.ledger.note(granted.device.clone());
            self.remove_former(&granted.device).await?;
        }
        let container_responses = grants.iter().map(|container| self.answer(container)).collect();
        for Granted { device, ifindex, pci } in grants.iter().flatten() {
            if let Some(address) = pci {
                info!(%device, %address, "allocated");
            } else {
                info!(%device, ifindex, "allocated");
            }
        }
        self.shared.metrics.allocation(&self.resource, true);
        self.shared.metrics.allocate_seconds(begun.elapsed());
        self.shared.allocated.notify_one();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let offer = self.offer();
        let ids = request.into_inner().devices_ids;
        let granted = offer.grant(&ids).map_err(|refusal| self.refused(&refusal))?;
        // A NIC has no tap: its pod's network brings it, or nothing does.
        let taps = granted.into_iter().filter(|granted| granted.pci.is_none());
        let taps = taps.map(|granted| (self.shared.ledger.former(&granted.device), granted.device));
        let devices: Vec<(Option<Holder>, DeviceId)> = taps.collect();
        let paths = self.shared.paths.clone();
        let made = tokio::task::spawn_blocking(move || -> Result<(), TapOnlyError> {
            devices.iter().try_for_each(|(former, device)| taps::ensure(&paths, device, former.as_ref()))
        });
        match made.await {
            Ok(Ok(())) => Ok(Response::new(PreStartContainerResponse {})),
            Ok(Err(error)) => {
                let reason = crate::error_chain(&error);
                warn!(resource = %self.resource, %reason, "container not started");
                Err(Status::failed_precondition(reason))
            }
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

impl Stream for DeviceStream {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use std::future::Future;
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        self.updates.as_mut().poll_next(context)
    }
}

impl Drop for DeviceStream {
    fn drop(&mut self) {
        let _ = self.streams.send(StreamEvent::Lost);
    }
}

#[cfg(test)]
mod tests;
