//! The resources that are served, each by a task of its own.

use super::Serving;
use crate::devices::engine::Step;
use crate::devices::offer::Offer;
use crate::kubelet::endpoint::{Registration, ResourceServer};
use macvtap::device_id::ResourceName;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// A resource the kubelet knows, or is to learn of.
pub(super) struct Running {
    pub(super) offer: watch::Sender<Arc<Offer>>,
    pub(super) stop: CancellationToken,
    pub(super) hand_over: CancellationToken,
    pub(super) registered: watch::Receiver<Registration>,
    pub(super) task: JoinHandle<()>,
    pub(super) relay: JoinHandle<()>,
}

impl Serving {
    pub(super) fn publish(&mut self, step: &Step) {
        for (resource, offer) in &step.offers {
            if let Some(running) = self.resources.get(resource) {
                running.publish(offer.clone());
            } else {
                let running = self.start(resource.clone(), offer.clone());
                self.resources.insert(resource.clone(), running);
            }
        }
        let metrics = &self.shared.metrics;
        self.resources.retain(|resource, running| {
            let stays = step.offers.contains_key(resource);
            if !stays {
                info!(%resource, "resource ended");
                running.stop.cancel();
                running.relay.abort();
                metrics.forget(resource);
            }
            stays
        });
    }

    /// Sends the shortest list again: the kubelet writes its checkpoint of all resources for it.
    pub(super) fn repeat_list(&self) {
        let registered =
            self.resources.values().filter(|running| *running.registered.borrow() == Registration::Done);
        if let Some(running) = registered.min_by_key(|running| running.offer.borrow().counts().capacity) {
            running.offer.send_modify(|_| {});
        }
    }

    pub(super) fn start(&self, name: ResourceName, offer: Offer) -> Running {
        let (offer, offered) = watch::channel(Arc::new(offer));
        let (registered, mut registration) = watch::channel(Registration::Pending);
        let (stop, hand_over) = (CancellationToken::new(), CancellationToken::new());
        let resource = ResourceServer {
            name,
            directory: self.directory.clone(),
            offer: offered,
            happened: self.happened.clone(),
            shared: Arc::clone(&self.shared),
            stop: stop.clone(),
            hand_over: hand_over.clone(),
            registered,
        };
        let task = tokio::spawn(resource.run());
        let (changed, registered) = (self.registrations.clone(), registration.clone());
        let relay = tokio::spawn(async move {
            while registration.changed().await.is_ok() {
                let _ = changed.send(());
            }
        });
        Running { offer, stop, hand_over, registered, task, relay }
    }
}

impl Running {
    pub(super) fn publish(&self, offer: Offer) {
        self.offer.send_if_modified(|before| {
            let changed = **before != offer;
            if changed {
                *before = Arc::new(offer);
            }
            changed
        });
    }
}
