//! Which attachments are orphaned, which devices lost their link, and which lost their record. Pure.
//!
//! A pod that exists keeps what it has, whatever the kubelet's device list says: a kubelet that lost its checkpoint lists
//! running pods without their devices, devices of init containers are never listed, and for a while after its start a
//! kubelet lists no pods at all. See [`super::orphan`] for what is asked before something is removed.

mod taps;

use super::orphan::Orphan;
use super::sandbox::{Fate, SandboxGone};
use super::witness::{CompleteList, ListedForOther, NotListed, PATIENCE};
use crate::pods::{KubeletMemory, Listing, PodName, is_static, is_theirs};
use macvtap::device_id::DeviceId;
use macvtap::record::{Attachment, Holder, State};
use macvtap::tap_pods::TapNote;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The state of the node at one moment.
#[derive(Debug)]
pub struct Observation<'o> {
    /// All records.
    pub records: &'o [Attachment],
    /// Devices whose record cannot be read.
    pub damaged: &'o [DeviceId],
    /// The kubelet's answer, if there is one. It was asked after the records were read: a device that is recorded and
    /// not listed was attached before, not since.
    pub listing: Option<&'o Listing>,
    /// The kubelet's checkpoint, if it can be read. It was read after the answer.
    pub memory: Option<&'o KubeletMemory>,
    /// Devices that were allocated and that the kubelet may not list yet.
    pub allocated: &'o BTreeSet<DeviceId>,
    /// The agent's own pod, if known. A kubelet that does not list it does not list everything.
    pub own_pod: Option<&'o PodName>,
    /// The name of the node, which names of static pods end with. Without it no list is known to be complete.
    pub node: Option<&'o str>,
    /// ID of the kubelet that answered, if it is certain which one did.
    pub kubelet: Option<&'o str>,
    /// When this kubelet was first seen.
    pub kubelet_since: Instant,
    /// This moment.
    pub now: Instant,
}

/// The questions that the collector asks of the node. A record that cannot be checked counts as alive.
pub trait Liveness {
    /// Returns whether the link of the record exists.
    fn link_exists(&self, record: &Attachment) -> bool;
    /// Returns what became of the sandbox of the record's pod.
    fn sandbox(&self, record: &Attachment) -> Fate;
    /// Returns what is noted of the pod of a device without a network.
    fn tap_note(&self, device: &DeviceId) -> Option<TapNote>;
}

/// Remembers since when each record has been without its pod, and each pod's device without a record.
#[derive(Debug, Default)]
pub struct Collector {
    missing: BTreeMap<DeviceId, Missing>,
    unrecorded: BTreeMap<DeviceId, Instant>,
    /// Holders whose sandbox was gone once: the kernel gives its number to others.
    ended: BTreeMap<DeviceId, (Holder, SandboxGone)>,
    remembered: Remembered,
}

/// Which devices this kubelet, by its checkpoint, has known to be held by which pod since it started.
#[derive(Debug, Default)]
struct Remembered {
    kubelet: Option<String>,
    holders: BTreeSet<(DeviceId, String)>,
}

/// How a device is without its holder by the kubelet's list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Absence {
    /// The holder by the record; none if that cannot be read.
    holder: Option<Holder>,
    /// The pod that the kubelet lists for the device.
    listed: Option<PodName>,
    /// Whether a pod is listed that may hold it.
    is_pod_listed: bool,
}

/// A device that its holder does not have by the kubelet's list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    absence: Absence,
    since: Instant,
    /// The kubelet's checkpoint at that time.
    checkpoint: Option<String>,
    /// When the kubelet was last to write its checkpoint for this.
    asked: Option<Instant>,
}

/// What must be done, and what must be reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Attachments to remove, if nobody holds the device's lock.
    pub orphans: Vec<Orphan>,
    /// Devices that pods have and whose link is gone.
    pub dead: Vec<(Attachment, PodName)>,
    /// Devices of pods that exist although the kubelet does not list the device for them.
    pub unlisted: BTreeMap<DeviceId, Holder>,
    /// What to note for records of devices that are attached without a network.
    pub tap_notes: Vec<NewNote>,
    /// Devices that pods have and no record names: not attached yet, or the record was lost.
    pub unrecorded: Vec<(DeviceId, PodName)>,
    /// Devices that no pod has and whose record cannot be read.
    pub unreadable: Vec<DeviceId>,
    /// Whether the kubelet is to write its checkpoint, which is behind or was not written by it.
    pub ask_for_checkpoint: bool,
}

/// A note to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNote {
    /// The record it is for.
    pub record: Attachment,
    /// The note that was found.
    pub before: Option<TapNote>,
    /// The note to write in its place.
    pub after: TapNote,
}

/// What one pass knows.
struct Pass<'p, L> {
    seen: &'p Observation<'p>,
    alive: &'p L,
    before: &'p BTreeMap<DeviceId, Missing>,
    ended: &'p mut BTreeMap<DeviceId, (Holder, SandboxGone)>,
    remembered: &'p Remembered,
    missing: BTreeMap<DeviceId, Missing>,
    plan: Plan,
}

impl Collector {
    /// Decides.
    pub fn plan(&mut self, seen: &Observation<'_>, alive: &impl Liveness) -> Plan {
        let (missing, plan) = (BTreeMap::new(), Plan::default());
        let holds = |device: &DeviceId, holder: &Holder| {
            seen.records.iter().any(|record| record.device == *device && record.holder == *holder)
        };
        self.ended.retain(|device, (holder, _)| holds(device, holder));
        self.remembered.update(seen);
        let (ended, remembered) = (&mut self.ended, &self.remembered);
        let mut pass = Pass { seen, alive, before: &self.missing, ended, remembered, missing, plan };
        for record in seen.records {
            if let Some(orphan) = Orphan::unfinished(record) {
                pass.plan.orphans.push(orphan);
            } else if let Some(listing) = seen.listing {
                match &record.holder {
                    Holder::Host => pass.judge_tap(record, listing),
                    Holder::Pod { .. } => pass.judge_network(record, listing),
                }
            }
        }
        if let Some(listing) = seen.listing {
            pass.judge_damaged(listing);
        }
        let Pass { missing, mut plan, .. } = pass;
        self.missing = missing;
        plan.unrecorded = self.unrecorded(seen);
        plan
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

impl Remembered {
    fn update(&mut self, seen: &Observation<'_>) {
        if self.kubelet.as_deref() != seen.kubelet {
            *self = Self { kubelet: seen.kubelet.map(str::to_owned), holders: BTreeSet::new() };
        }
        let is_recorded = |device: &DeviceId| seen.records.iter().any(|record| record.device == *device);
        self.holders.retain(|(device, _)| is_recorded(device));
        let Some(memory) = seen.memory.filter(|memory| memory.is_current && seen.kubelet.is_some()) else {
            return;
        };
        let held = memory.holders.iter().filter(|(device, _)| is_recorded(device));
        let held = held.flat_map(|(device, uids)| uids.iter().map(|uid| (device.clone(), uid.clone())));
        self.holders.extend(held);
    }
}

impl<L: Liveness> Pass<'_, L> {
    fn judge_network(&mut self, record: &Attachment, listing: &Listing) {
        let listed = listing.devices.get(&record.device);
        if let Some(pod) = listed.filter(|pod| is_theirs(&record.holder, pod)) {
            self.judge_link(record, pod);
            return;
        }
        let squatter = listed.and_then(|pod| self.listed_for_other(record, pod));
        let orphan = match squatter {
            Some(proof) => Some(Orphan::of_squatter(record, proof)),
            None => self.dead_pod(record, listing),
        };
        self.conclude(record, orphan);
    }

    /// Judges the link of a device that its pod has.
    fn judge_link(&mut self, record: &Attachment, pod: &PodName) {
        // Before it is complete, an attachment may have no link yet.
        if record.state == State::Attached && !self.alive.link_exists(record) {
            self.plan.dead.push((record.clone(), pod.clone()));
        }
    }

    fn conclude(&mut self, record: &Attachment, orphan: Option<Orphan>) {
        match orphan {
            Some(orphan) => self.plan.orphans.push(orphan),
            None => drop(self.plan.unlisted.insert(record.device.clone(), record.holder.clone())),
        }
    }

    fn dead_pod(&mut self, record: &Attachment, listing: &Listing) -> Option<Orphan> {
        let listed =
            listing.pods.iter().any(|pod| is_theirs(&record.holder, pod) && has_name(&record.holder));
        if listed && !self.has_successor(record) {
            return None;
        }
        let gone = self.sandbox_gone(record);
        let not_listed = self.not_listed(record, listing)?;
        gone.map(|proof| Orphan::of_dead_pod(record, proof, not_listed))
    }

    fn sandbox_gone(&mut self, record: &Attachment) -> Option<SandboxGone> {
        if let Some((_, proof)) = self.ended.get(&record.device) {
            return Some(*proof);
        }
        match self.alive.sandbox(record) {
            Fate::Gone(proof) => {
                self.ended.insert(record.device.clone(), (record.holder.clone(), proof));
                Some(proof)
            }
            Fate::Alive | Fate::Unknown => None,
        }
    }

    /// Whether another pod of the same name lives: what the kubelet lists under that name is not the record's pod. It
    /// contains no UIDs.
    fn has_successor(&self, record: &Attachment) -> bool {
        let Holder::Pod { pod_uid: uid, pod_name: name, pod_namespace: namespace, .. } = &record.holder
        else {
            return false;
        };
        self.seen.records.iter().any(|other| match &other.holder {
            Holder::Pod { pod_uid, pod_name, pod_namespace, .. } => {
                (pod_name, pod_namespace) == (name, namespace)
                    && pod_uid != uid
                    && !pod_uid.is_empty()
                    && matches!(self.alive.sandbox(other), Fate::Alive)
            }
            Holder::Host => false,
        })
    }

    fn not_listed(&mut self, record: &Attachment, listing: &Listing) -> Option<NotListed> {
        let listed = listing.devices.get(&record.device);
        NotListed::since(self.waited(record, listed, false))
    }

    fn listed_for_other(&mut self, record: &Attachment, pod: &PodName) -> Option<ListedForOther> {
        let waited = self.waited(record, Some(pod), false);
        ListedForOther::since(waited, self.kubelet_knew(record))
    }

    /// Whether this kubelet has seen the pod of the record. One that started later may have lost its checkpoint, and gives
    /// away what its pods have; or it has not heard from the API server.
    fn kubelet_knew(&self, record: &Attachment) -> bool {
        record.kubelet.is_some() && record.kubelet.as_deref() == self.seen.kubelet
    }

    fn judge_damaged(&mut self, listing: &Listing) {
        for device in self.seen.damaged {
            if listing.devices.contains_key(device) {
                continue;
            }
            let absence = Absence { holder: None, listed: None, is_pod_listed: false };
            let waited = self.waited_for(device, absence) >= PATIENCE;
            if waited && self.complete(listing).is_some() {
                self.plan.unreadable.push(device.clone());
            }
        }
    }

    fn waited(&mut self, record: &Attachment, listed: Option<&PodName>, is_pod_listed: bool) -> Duration {
        let absence = Absence { holder: Some(record.holder.clone()), listed: listed.cloned(), is_pod_listed };
        self.waited_for(&record.device, absence)
    }

    /// Returns for how long the device has been without its holder in this way; notes since when.
    fn waited_for(&mut self, device: &DeviceId, absence: Absence) -> Duration {
        // It is a new pod's, whatever is recorded.
        if self.seen.allocated.contains(device) {
            return Duration::ZERO;
        }
        let now = self.seen.now;
        let checkpoint = self.seen.memory.map(|memory| memory.version.clone());
        let before = self.before.get(device).filter(|before| before.absence == absence);
        let missing = before.cloned().unwrap_or(Missing { absence, since: now, checkpoint, asked: None });
        let since = missing.since;
        self.missing.insert(device.clone(), missing);
        now.saturating_duration_since(since)
    }

    fn complete(&self, listing: &Listing) -> Option<CompleteList> {
        let up = self.seen.now.saturating_duration_since(self.seen.kubelet_since);
        let own = self.seen.own_pod.is_some_and(|own| listing.pods.contains(own));
        let is_heard = |pod: &PodName| self.seen.node.is_some_and(|node| !is_static(pod, node));
        CompleteList::of(up, own, listing.pods.iter().any(is_heard))
    }
}

/// Whether the record names the pod. Some runtimes do not pass it.
fn has_name(holder: &Holder) -> bool {
    matches!(holder, Holder::Pod { pod_name, .. } if !pod_name.is_empty())
}

#[cfg(test)]
pub(crate) mod tests;
