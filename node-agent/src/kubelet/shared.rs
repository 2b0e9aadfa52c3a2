//! What the endpoints of all resources share with the worker.

use crate::attachments::Lost;
use crate::devices::nics::NicNames;
use crate::pods::{PodAges, PodName, is_theirs};
use crate::process::metrics::Metrics;
use macvtap::device_id::DeviceId;
use macvtap::paths::Paths;
use macvtap::record::Holder;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};

/// Devices handed out so recently that the kubelet may not list them yet.
#[derive(Debug, Default)]
pub struct Ledger {
    allocated: Mutex<BTreeMap<DeviceId, Instant>>,
    former: Mutex<BTreeMap<DeviceId, (Holder, Instant)>>,
    unstarted: Mutex<BTreeMap<DeviceId, Instant>>,
}

/// What the endpoints of all resources and the worker share.
#[derive(Debug)]
pub struct Shared {
    /// Where things are.
    pub paths: Paths,
    /// The kubelet's socket of pod resources.
    pub pod_resources: PathBuf,
    /// The kubelet's device plugin directory.
    pub plugins: PathBuf,
    /// Since when the kubelet lists its pods.
    pub ages: PodAges,
    /// Allocations.
    pub ledger: Ledger,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Woken after every allocation: what is in use has changed.
    pub allocated: Notify,
    /// Devices whose link vanished under a pod.
    pub lost: watch::Sender<Lost>,
    /// What the kubelet calls the NICs of the stored table.
    pub nics: watch::Sender<Arc<NicNames>>,
    /// Calls that wait for the kernel or a device's lock. Few at a time: the device table needs threads too.
    pub slow: Semaphore,
}

/// How many slow calls run at a time.
const SLOW: usize = 2;

impl Shared {
    /// Nothing has happened yet.
    pub fn new(
        paths: Paths,
        pod_resources: PathBuf,
        plugins: PathBuf,
        ages: PodAges,
        nics: NicNames,
    ) -> Self {
        Self {
            paths,
            pod_resources,
            plugins,
            ages,
            ledger: Ledger::default(),
            metrics: Arc::default(),
            allocated: Notify::new(),
            lost: watch::Sender::default(),
            nics: watch::Sender::new(Arc::new(nics)),
            slow: Semaphore::new(SLOW),
        }
    }
}

impl Ledger {
    /// Notes an allocation.
    pub fn note(&self, device: DeviceId) {
        self.lock().insert(device, Instant::now());
    }

    /// Notes that a container will have to start with the device.
    pub(super) fn note_unstarted(&self, device: &DeviceId) {
        lock(&self.unstarted).insert(device.clone(), Instant::now());
    }

    /// Returns when the device was allocated, unless a container has started with it since.
    pub(super) fn unstarted(&self, device: &DeviceId) -> Option<Instant> {
        lock(&self.unstarted).get(device).copied()
    }

    /// Notes that a container starts with the device.
    pub(super) fn note_started(&self, device: &DeviceId) {
        lock(&self.unstarted).remove(device);
    }

    /// Drops the notes of devices that the kubelet listed when it was asked after the allocation: from then on its
    /// list says when they are free again. It never lists a device for a former pod once it has handed it out again.
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

    /// Notes the holder that the device's record named when it was handed out: not the pod that got it.
    pub(super) fn note_former(&self, device: &DeviceId, holder: Option<Holder>) {
        let mut former = lock(&self.former);
        match holder {
            Some(holder) => drop(former.insert(device.clone(), (holder, Instant::now()))),
            None => drop(former.remove(device)),
        }
    }

    pub(super) fn former(&self, device: &DeviceId) -> Option<Holder> {
        lock(&self.former).get(device).map(|(holder, _)| holder.clone())
    }

    /// Drops the notes of former holders that the kubelet listed with the device when it was asked after the allocation: a
    /// kubelet that lost its checkpoint hands out again what its pods have.
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

/// A map of plain values stays consistent when a thread panics while holding it.
fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
