//! What the endpoints of all resources share with the worker.

use crate::attachments::Lost;
use crate::devices::nics::NicNames;
use crate::pods::{PodAges, PodName, is_theirs};
use crate::process::metrics::Metrics;
use macvtap::device_id::DeviceId;
use macvtap::paths::Paths;
use macvtap::record::Holder;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, watch};

/// Devices that were handed out and that the kubelet has not listed since.
#[derive(Debug, Default)]
pub struct Ledger {
    allocated: Mutex<BTreeMap<DeviceId, Allocation>>,
    former: Mutex<BTreeMap<DeviceId, (Holder, Instant)>>,
    unstarted: Mutex<BTreeMap<DeviceId, Instant>>,
}

/// A device that was handed out.
#[derive(Debug)]
struct Allocation {
    /// When; for one of an earlier agent, when this one started.
    at: Instant,
    /// Whether an earlier agent handed it out.
    is_earlier: bool,
    /// When the kubelet was last asked to write its checkpoint for it.
    asked: Option<Instant>,
}

/// The pauses between two requests for a checkpoint because of one device: as long as it has waited, within these limits.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(10));

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
    pub fn note(&self, device: DeviceId, now: Instant) {
        self.lock().insert(device, Allocation { at: now, is_earlier: false, asked: None });
    }

    /// Notes devices that were handed out by an earlier agent, as the kubelet's checkpoint shows at the start.
    pub fn note_earlier(&self, devices: impl Iterator<Item = DeviceId>, now: Instant) {
        let noted = |device| (device, Allocation { at: now, is_earlier: true, asked: None });
        self.lock().extend(devices.map(noted));
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
            if allocated.get(device).is_some_and(|allocation| allocation.at < asked) {
                allocated.remove(device);
            }
        }
    }

    /// Returns the devices allocated less than `age` ago and not listed since.
    pub fn recent(&self, age: Duration, now: Instant) -> Vec<DeviceId> {
        let allocated = self.lock();
        let recent = allocated.iter().filter(|(_, allocation)| allocation.is_recent(age, now));
        recent.map(|(device, _)| device.clone()).collect()
    }

    /// Whether a device was allocated longer ago than `age` and not listed since.
    pub fn has_older(&self, age: Duration, now: Instant) -> bool {
        self.lock().values().any(|allocation| !allocation.is_recent(age, now))
    }

    /// Returns the devices allocated longer ago than `age`, not listed since, and `held` by pods as the kubelet's checkpoint
    /// shows: their pods may still be starting. Drops the notes of others of that age, unless no checkpoint could be read.
    pub fn keep(&self, age: Duration, held: Option<&BTreeSet<DeviceId>>, now: Instant) -> BTreeSet<DeviceId> {
        let mut allocated = self.lock();
        let is_held = |device: &DeviceId| held.is_none_or(|held| held.contains(device));
        allocated.retain(|device, allocation| allocation.is_recent(age, now) || is_held(device));
        let older = allocated.iter().filter(|(_, allocation)| !allocation.is_recent(age, now));
        older.map(|(device, _)| device.clone()).collect()
    }

    /// Whether the kubelet must write its checkpoint because of these devices, of which nothing else shows that pods hold them;
    /// notes that it was asked to.
    pub fn is_checkpoint_due(&self, devices: &BTreeSet<DeviceId>, now: Instant) -> bool {
        let mut is_due = false;
        for (device, allocation) in &mut *self.lock() {
            if !devices.contains(device) {
                allocation.asked = None;
            } else if allocation.is_due(now) {
                allocation.asked = Some(now);
                is_due = true;
            }
        }
        is_due
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Allocation>> {
        lock(&self.allocated)
    }
}

impl Allocation {
    fn is_recent(&self, age: Duration, now: Instant) -> bool {
        !self.is_earlier && now.saturating_duration_since(self.at) < age
    }

    fn is_due(&self, now: Instant) -> bool {
        let (shortest, longest) = ASK_AGAIN;
        self.asked.is_none_or(|asked| {
            let pause = asked.saturating_duration_since(self.at).clamp(shortest, longest);
            now.saturating_duration_since(asked) >= pause
        })
    }
}

/// A map of plain values stays consistent when a thread panics while holding it.
fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
