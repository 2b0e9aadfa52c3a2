//! The device plugin interface of one resource.

use super::answer::answer;
use super::podresources::{self, PodResourcesError};
use super::shared::Shared;
use super::{checkpoint, instance};
use crate::attachments::taps::{self, Start, TapOnlyError};
use crate::devices::offer::{Denial, Granted, Offer};
use crate::pods::Listing;
use futures::Stream;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::record::Holder;
use macvtap::table::TapOnly;
use macvtap_proto::deviceplugin::device_plugin_server::DevicePlugin;
use macvtap_proto::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

/// One resource on one socket.
pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) resource: ResourceName,
    pub(super) offer: watch::Receiver<Arc<Offer>>,
    /// Ends the streams of this socket; calls are still answered.
    pub(super) ended: CancellationToken,
    /// Notified when a stream begins and ends.
    pub(super) streams: mpsc::UnboundedSender<StreamEvent>,
}

/// What a kubelet does with the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEvent {
    Opened,
    Lost,
}

/// The list; its end is notified.
pub(super) struct DeviceStream {
    updates: Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    streams: mpsc::UnboundedSender<StreamEvent>,
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

    fn refused(&self, refusal: &Denial) -> Status {
        warn!(resource = %self.resource, reason = %refusal, "allocation refused");
        self.shared.metrics.allocation(&self.resource, false);
        Status::invalid_argument(refusal.to_string())
    }

    /// Notes which pod held the device: a network's DEL may be under way. A link without a network is removed, since nothing reports
    /// when its pod ends; unless that pod is listed, which may be the very pod that this is for.
    async fn end_former(&self, device: &DeviceId) -> Result<(), Status> {
        let former = taps::holder(&self.shared.paths, device);
        let network = former.as_ref().is_ok_and(|holder| *holder != Some(Holder::Host));
        self.shared.ledger.note_former(device, former.ok().flatten().filter(|_| network));
        if network {
            return Ok(());
        }
        let listing = match self.pods().await {
            Ok(listing) => listing,
            // The kubelet does not repeat an Allocate that fails, but a PreStartContainer, which asks again.
            Err(error) => {
                let reason = crate::error_chain(&error);
                warn!(%device, %reason, "a former pod's link is judged when the container starts");
                return Ok(());
            }
        };
        let _permit = self.shared.slow.acquire().await;
        // A record that cannot be read is looked at again, with the lock held: that says why.
        let (shared, device) = (Arc::clone(&self.shared), device.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let kubelet = instance::observe(&shared.paths, &shared.plugins).map(|kubelet| kubelet.id);
            taps::end_tap_only(&shared.paths, &device, listing.as_ref(), kubelet.as_deref())
        });
        match removed.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Status::internal(crate::error_chain(&error))),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    /// The kubelet's pods at this moment.
    async fn pods(&self) -> Result<Option<Listing>, PodResourcesError> {
        let names = Arc::clone(&self.shared.nics.borrow());
        let listing =
            podresources::list(&self.shared.pod_resources, |resource, id| names.device(resource, id));
        listing.await
    }

    /// The available devices without those that are still attached, unless there are too few. The kubelet takes a device for
    /// free when it has lost its checkpoint, or before the DEL of a pod that was deleted by force; the next pod could not
    /// attach it.
    fn free<'i>(&self, offer: &Offer, available: &'i [String], size: usize) -> Vec<&'i String> {
        let attached = taps::attached(&self.shared.paths);
        let names = self.shared.nics.borrow();
        // A list of 40,000 is not parsed for this: only NICs have another name than their record.
        let nic = |id: &String| names.device(&offer.full_name, id).map(|device| device.to_string());
        let name = |id: &String| if id.contains(':') { nic(id) } else { None };
        let is_free = |id: &&String| !attached.contains(name(id).as_ref().unwrap_or(id));
        let free: Vec<&String> = available.iter().filter(is_free).collect();
        if free.len() < size { available.iter().collect() } else { free }
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
                let available = self.free(&offer, &request.available_device_i_ds, size);
                let device_i_ds = offer.prefer(&available, &request.must_include_device_i_ds, size);
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
            self.end_former(granted.device()).await?;
            // Of all that were granted or of none.
        }
        for granted in grants.iter().flatten() {
            self.shared.ledger.note(granted.device().clone(), Instant::now());
            if offer.tap_only == TapOnly::Allowed {
                self.shared.ledger.note_unstarted(granted.device());
            }
        }
        let container_responses =
            grants.iter().map(|container| answer(&self.shared.paths, &self.resource, container)).collect();
        for granted in grants.iter().flatten() {
            match granted {
                Granted::Macvtap { device, ifindex, .. } => info!(%device, ifindex, "allocated"),
                Granted::Nic { device, address } => info!(%device, %address, "allocated"),
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
        let granted = offer.grant(&ids).map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        // A NIC has no tap: its pod's network brings it, or nothing does.
        let taps = granted.into_iter().filter_map(|granted| match granted {
            Granted::Macvtap { device, .. } => Some(device),
            Granted::Nic { .. } => None,
        });
        let devices: Vec<DeviceId> = taps.collect();
        let asked = self.pods().await;
        let listing = match asked {
            Ok(listing) => listing,
            // Whose link it is cannot be said. The kubelet asks again.
            Err(error) if devices.iter().any(|device| taps::is_tap_only(&self.shared.paths, device)) => {
                let reason = crate::error_chain(&error);
                warn!(resource = %self.resource, %reason, "container not started");
                return Err(Status::unavailable(reason));
            }
            Err(_) => None,
        };
        let _permit = self.shared.slow.acquire().await;
        let shared = Arc::clone(&self.shared);
        let made = tokio::task::spawn_blocking(move || -> Result<(), TapOnlyError> {
            let kubelet = instance::observe(&shared.paths, &shared.plugins);
            // Written after Allocate, before the kubelet calls this. A pod with a network has its link already.
            let has_network = |device: &DeviceId| {
                matches!(taps::holder(&shared.paths, device), Ok(Some(Holder::Pod { .. })))
            };
            let memory = if devices.iter().all(has_network) {
                None
            } else {
                checkpoint::memory(&shared.plugins, kubelet.as_ref())
            };
            devices.iter().try_for_each(|device| {
                let former = shared.ledger.former(device);
                let start = Start {
                    former: former.as_ref(),
                    listing: listing.as_ref(),
                    ages: &shared.ages,
                    allocated: shared.ledger.unstarted(device),
                    kubelet: kubelet.as_ref().map(|kubelet| kubelet.id.as_str()),
                    pod_uid: memory.as_ref().and_then(|memory| memory.holder(device)),
                    now: Instant::now(),
                };
                taps::ensure(&shared.paths, device, start)?;
                shared.ledger.note_started(device);
                Ok(())
            })
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
