//! What pods left behind, and what they lost: which records are without a pod, which devices without a link or without
//! a record. Pure.
//!
//! A record is removed only when it is certain that nobody needs its device: a link that is deleted under a running
//! virtual machine cannot be given back. The kubelet knows no pods for a while after its start, hence the conditions.

use crate::pods::{Listing, PodName, is_theirs};
use macvtap::device_id::DeviceId;
use macvtap::record::{Attachment, Holder, State};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a device must be without a pod.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a kubelet must be up for its list to be believed.
pub const WARM_UP: Duration = Duration::from_mins(1);

/// What is seen at a moment.
#[derive(Debug)]
pub struct Observation<'o> {
    /// All records.
    pub records: &'o [Attachment],
    /// Devices whose record cannot be read.
    pub damaged: &'o [DeviceId],
    /// What the kubelet says; none when it says nothing. It was asked after the records were read: what is recorded
    /// and not in it had its device before, not since.
    pub listing: Option<&'o Listing>,
    /// Devices that were handed out and that the kubelet may not list yet.
    pub allocated: &'o BTreeSet<DeviceId>,
    /// The pod we run in, if we know it. A kubelet that does not list it does not list everything.
    pub own_pod: Option<&'o PodName>,
    /// Since when this kubelet is up, as far as we saw.
    pub kubelet_since: Instant,
    /// This moment.
    pub now: Instant,
}

/// What the collector asks of the kernel. A record that cannot be checked counts as alive.
pub trait Liveness {
    /// Whether the link of the record exists.
    fn link_exists(&self, record: &Attachment) -> bool;
    /// Whether the namespace of the record's pod exists.
    fn sandbox_exists(&self, record: &Attachment) -> bool;
}

/// Remembers since when each record has been without a pod, and each pod's device without a record.
#[derive(Debug, Default)]
pub struct Collector {
    missing: BTreeMap<DeviceId, Missing>,
    unrecorded: BTreeMap<DeviceId, Instant>,
}

/// A device that no pod has.
#[derive(Debug)]
struct Missing {
    /// Whom its record names; none if that cannot be read.
    holder: Option<Holder>,
    since: Instant,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Records to undo, if nobody holds the device's lock.
    pub leftovers: Vec<Attachment>,
    /// Devices that pods have and whose link is gone.
    pub dead: Vec<(Attachment, PodName)>,
    /// Devices that pods have and no record names: not attached yet, or the record was lost.
    pub unrecorded: Vec<(DeviceId, PodName)>,
    /// Devices that no pod has and whose record cannot be read.
    pub unreadable: Vec<DeviceId>,
}

impl Collector {
    /// Decides.
    pub fn plan(&mut self, seen: &Observation<'_>, alive: &impl Liveness) -> Plan {
        let mut plan = Plan::default();
        let mut missing = BTreeMap::new();
        for record in seen.records {
            if record.state == State::Creating {
                // Whoever makes it holds the lock; if it is free, the maker was killed.
                plan.leftovers.push(record.clone());
                continue;
            }
            let Some(listing) = seen.listing else { continue };
            match listing.devices.get(&record.device) {
                Some(pod) if is_theirs(&record.holder, pod) => {
                    if !alive.link_exists(record) {
                        plan.dead.push((record.clone(), pod.clone()));
                    }
                }
                // The device is another pod's by now: its ADD takes over, its Allocate removes a tap without network. Where
                // the next pod has the tap alone, there is no ADD.
                Some(_) => {
                    let waited = self.waited(&record.device, Some(&record.holder), seen, &mut missing);
                    if waited && is_shell(record, alive) {
                        plan.leftovers.push(record.clone());
                    }
                }
                None => {
                    let waited = self.waited(&record.device, Some(&record.holder), seen, &mut missing);
                    if waited && (trusted(seen, listing) || is_shell(record, alive)) {
                        plan.leftovers.push(record.clone());
                    }
                }
            }
        }
        for device in seen.damaged {
            let Some(listing) = seen.listing.filter(|listing| !listing.devices.contains_key(device)) else {
                continue;
            };
            if self.waited(device, None, seen, &mut missing) && trusted(seen, listing) {
                plan.unreadable.push(device.clone());
            }
        }
        self.missing = missing;
        plan.unrecorded = self.unrecorded(seen);
        plan
    }

    /// Whether the device has been without a pod, and the same pod's, for long enough; notes since when.
    fn waited(
        &self,
        device: &DeviceId,
        holder: Option<&Holder>,
        seen: &Observation<'_>,
        missing: &mut BTreeMap<DeviceId, Missing>,
    ) -> bool {
        // It is a new pod's, whatever is recorded.
        if seen.allocated.contains(device) {
            return false;
        }
        let before = self.missing.get(device).filter(|before| before.holder.as_ref() == holder);
        let since = before.map_or(seen.now, |before| before.since);
        missing.insert(device.clone(), Missing { holder: holder.cloned(), since });
        seen.now.saturating_duration_since(since) >= PATIENCE
    }

    fn unrecorded(&mut self, seen: &Observation<'_>) -> Vec<(DeviceId, PodName)> {
        let recorded: BTreeSet<&DeviceId> = seen.records.iter().map(|record| &record.device).collect();
        let listed = seen.listing.iter().flat_map(|listing| &listing.devices);
        let without = listed.filter(|(device, _)| !recorded.contains(device));
        let mut since = BTreeMap::new();
        let mut unrecorded = Vec::new();
        for (device, pod) in without {
            let first = self.unrecorded.get(device).copied().unwrap_or(seen.now);
            since.insert(device.clone(), first);
            // An ADD that is under way writes its record before there is a link.
            if seen.now.saturating_duration_since(first) >= PATIENCE {
                unrecorded.push((device.clone(), pod.clone()));
            }
        }
        self.unrecorded = since;
        unrecorded
    }
}

/// Whether the kubelet's list is complete.
fn trusted(seen: &Observation<'_>, listing: &Listing) -> bool {
    let warm = seen.now.saturating_duration_since(seen.kubelet_since) >= WARM_UP;
    warm && seen.own_pod.is_some_and(|own| listing.pods.contains(own))
}

/// Whether nothing is left but node and record. A NIC outlives its pod's namespace, and where that lives on without its
/// path the NIC stays: then it is not given back, however often it is tried.
fn is_shell(record: &Attachment, alive: &impl Liveness) -> bool {
    let link_is_gone = record.nic.is_some() || !alive.link_exists(record);
    link_is_gone && !alive.sandbox_exists(record)
}

#[cfg(test)]
pub(crate) mod tests;
