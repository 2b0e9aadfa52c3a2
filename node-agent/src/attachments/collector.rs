//! Which attachments are orphaned, which devices lost their link, and which lost their record. Pure.
//!
//! A pod that exists keeps what it has, whatever the kubelet's device list says: a kubelet that lost its checkpoint lists
//! running pods without their devices, devices of init containers are never listed, and for a while after its start a
//! kubelet lists no pods at all. See [`super::orphan`] for what is asked before something is removed.

use super::orphan::Orphan;
use super::sandbox::{Fate, SandboxGone};
use crate::pods::{Listing, PodName, is_theirs};
use macvtap::device_id::DeviceId;
use macvtap::record::{Attachment, Holder, State};
use macvtap::tap_pods::TapPods;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

/// How long the kubelet must have left out a pod, or have listed another one.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a pod that was created again under its name must have another device. The kubelet does not list a pod that is
/// still terminating once its successor is there, or that was deleted by force: longer than containers are given to end.
pub const RECREATED: Duration = Duration::from_mins(10);

/// How long a kubelet must be up for its list to be believed.
pub const WARM_UP: Duration = Duration::from_mins(1);

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
    /// Devices that were allocated and that the kubelet may not list yet.
    pub allocated: &'o BTreeSet<DeviceId>,
    /// The agent's own pod, if known. A kubelet that does not list it does not list everything.
    pub own_pod: Option<&'o PodName>,
    /// When this kubelet was first seen.
    pub kubelet_since: Instant,
    /// When this kubelet made its socket.
    pub kubelet_started: Option<SystemTime>,
    /// This moment.
    pub now: Instant,
}

/// The questions that the collector asks of the node. A record that cannot be checked counts as alive.
pub trait Liveness {
    /// Returns whether the link of the record exists.
    fn link_exists(&self, record: &Attachment) -> bool;
    /// Returns what became of the sandbox of the record's pod.
    fn sandbox(&self, record: &Attachment) -> Fate;
    /// Returns when the record was written.
    fn written(&self, record: &Attachment) -> Option<SystemTime>;
    /// Returns the pods that may hold the link of a device without a network, if they were noted.
    fn tap_pods(&self, device: &DeviceId) -> Option<TapPods>;
}

/// Proof that the kubelet has not listed a pod for [`PATIENCE`].
#[derive(Debug)]
pub struct NotListed(());

/// Proof that a kubelet lists all of its pods.
#[derive(Debug)]
pub struct CompleteList(());

/// Proof that the kubelet has listed a device for another pod for [`PATIENCE`], and has not lost its memory since the
/// device was attached.
#[derive(Debug)]
pub struct ListedForOther(());

/// Proof that the pod that held a device when it was attached has had another one of the resource for [`RECREATED`]: it was
/// created again under its name.
#[derive(Debug)]
pub struct Recreated(());

/// Remembers since when each record has been without its pod, and each pod's device without a record.
#[derive(Debug, Default)]
pub struct Collector {
    missing: BTreeMap<DeviceId, Missing>,
    unrecorded: BTreeMap<DeviceId, Instant>,
    /// Holders whose sandbox was gone once: the kernel gives its number to others.
    ended: BTreeMap<DeviceId, (Holder, SandboxGone)>,
}

/// A device that its holder does not have by the kubelet's list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    /// The holder by the record; none if that cannot be read.
    holder: Option<Holder>,
    /// The pod that the kubelet lists for the device.
    listed: Option<PodName>,
    since: Instant,
}

/// What is to be done, and what is to be reported.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Attachments to remove, if nobody holds the device's lock.
    pub orphans: Vec<Orphan>,
    /// Devices that pods have and whose link is gone.
    pub dead: Vec<(Attachment, PodName)>,
    /// Devices of pods that exist although the kubelet does not list the device for them.
    pub unlisted: BTreeMap<DeviceId, Holder>,
    /// Pods to note for records of devices that are attached without a network.
    pub tap_pods: Vec<(Attachment, TapPods)>,
    /// Devices that pods have and no record names: not attached yet, or the record was lost.
    pub unrecorded: Vec<(DeviceId, PodName)>,
    /// Devices that no pod has and whose record cannot be read.
    pub unreadable: Vec<DeviceId>,
}

/// What one pass knows.
struct Pass<'p, L> {
    seen: &'p Observation<'p>,
    alive: &'p L,
    before: &'p BTreeMap<DeviceId, Missing>,
    ended: &'p mut BTreeMap<DeviceId, (Holder, SandboxGone)>,
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
        let ended = &mut self.ended;
        let mut pass = Pass { seen, alive, before: &self.missing, ended, missing, plan };
        for record in seen.records {
            if let Some(orphan) = Orphan::unfinished(record) {
                pass.plan.orphans.push(orphan);
            } else if let Some(listing) = seen.listing {
                pass.judge(record, listing);
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

impl<L: Liveness> Pass<'_, L> {
    fn judge(&mut self, record: &Attachment, listing: &Listing) {
        let listed = listing.devices.get(&record.device);
        let (holder, owner) = match &record.holder {
            Holder::Host => self.tap_pod(record, listing),
            Holder::Pod { .. } => (listed.filter(|pod| is_theirs(&record.holder, pod)), None),
        };
        if let Some(pod) = holder.filter(|pod| listed == Some(pod)) {
            // Before it is complete, an attachment may have no link yet.
            if record.state == State::Attached && !self.alive.link_exists(record) {
                self.plan.dead.push((record.clone(), pod.clone()));
            }
            return;
        }
        let orphan = match (&record.holder, listed) {
            // Listed for a pod that is not noted: PreStart and Allocate decide.
            (Holder::Host, Some(_)) => None,
            (Holder::Host, None) => match (owner, holder) {
                (Some(owner), Some(_)) => self
                    .recreated(record, listing, &owner)
                    .and_then(|proof| Orphan::of_recreated_pod(record, proof)),
                (None, Some(_)) => None,
                (_, None) => self.tap_only(record, listing),
            },
            (Holder::Pod { .. }, Some(pod)) => match self.listed_for_other(record, pod) {
                Some(proof) => Some(Orphan::of_squatter(record, proof)),
                None => self.dead_pod(record, listing),
            },
            (Holder::Pod { .. }, None) => self.dead_pod(record, listing),
        };
        match orphan {
            Some(orphan) => self.plan.orphans.push(orphan),
            None => drop(self.plan.unlisted.insert(record.device.clone(), record.holder.clone())),
        }
    }

    /// The listed pod that may hold this link without a network, and the pod that was listed with the device, if one was:
    /// else it may be any that was there when the link was first seen.
    fn tap_pod<'l>(
        &mut self,
        record: &Attachment,
        listing: &'l Listing,
    ) -> (Option<&'l PodName>, Option<PodName>) {
        let listed = listing.devices.get(&record.device);
        let noted = self.alive.tap_pods(&record.device);
        let pods = match (&noted, listed) {
            (Some(noted), Some(pod)) if noted.contains(pod) => TapPods::Owner(pod.clone()),
            (Some(noted), _) => noted.clone(),
            (None, Some(pod)) => TapPods::Owner(pod.clone()),
            // The device of an init container is never listed.
            (None, None) => {
                let others = listing.pods.iter().filter(|pod| Some(*pod) != self.seen.own_pod);
                TapPods::Candidates(others.cloned().collect())
            }
        };
        // A list that lacks pods must not be remembered: one of those may hold the link.
        let is_known = noted.is_some() || listed.is_some() || self.complete(listing).is_some();
        if is_known && noted.as_ref() != Some(&pods) {
            self.plan.tap_pods.push((record.clone(), pods.clone()));
        }
        let owner = listed.filter(|pod| pods.contains(pod));
        let holder = owner.or_else(|| listing.pods.iter().find(|pod| pods.contains(pod)));
        (holder, if let TapPods::Owner(owner) = pods { Some(owner) } else { None })
    }

    /// Whether the owner of a device is listed with another one of the resource, by the kubelet that listed it with this.
    fn recreated(&mut self, record: &Attachment, listing: &Listing, owner: &PodName) -> Option<Recreated> {
        let resource = record.device.resource();
        let mut devices = listing.devices.iter();
        let has_other = devices.any(|(device, pod)| pod == owner && device.resource() == resource);
        let listed = listing.devices.get(&record.device);
        let waited = self.waited_for(&record.device, Some(&record.holder), listed);
        (has_other && self.kubelet_knew(record) && waited >= RECREATED).then_some(Recreated(()))
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

    /// A link without a network has no sandbox that could be asked for: only a list that is complete can tell.
    fn tap_only(&mut self, record: &Attachment, listing: &Listing) -> Option<Orphan> {
        let not_listed = self.not_listed(record, listing)?;
        Orphan::of_tap_only(record, not_listed, self.complete(listing)?)
    }

    /// Whether another pod of the same name lives: what the kubelet lists under that name is not the record's pod. It
    /// tells no UIDs.
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
        self.waited(&record.device, Some(&record.holder), listed).then_some(NotListed(()))
    }

    fn listed_for_other(&mut self, record: &Attachment, pod: &PodName) -> Option<ListedForOther> {
        let waited = self.waited(&record.device, Some(&record.holder), Some(pod));
        (self.kubelet_knew(record) && waited).then_some(ListedForOther(()))
    }

    /// Whether this kubelet has seen the pod of the record. One that started later may have lost its checkpoint, and gives
    /// away what its pods have; or it has not heard from the API server.
    fn kubelet_knew(&self, record: &Attachment) -> bool {
        let written = self.alive.written(record);
        self.seen.kubelet_started.zip(written).is_some_and(|(started, written)| written > started)
    }

    fn judge_damaged(&mut self, listing: &Listing) {
        for device in self.seen.damaged {
            if listing.devices.contains_key(device) {
                continue;
            }
            if self.waited(device, None, None) && self.complete(listing).is_some() {
                self.plan.unreadable.push(device.clone());
            }
        }
    }

    /// Whether the device has been without its holder for long enough; notes since when.
    fn waited(&mut self, device: &DeviceId, holder: Option<&Holder>, listed: Option<&PodName>) -> bool {
        self.waited_for(device, holder, listed) >= PATIENCE
    }

    /// For how long everything has been so.
    fn waited_for(
        &mut self,
        device: &DeviceId,
        holder: Option<&Holder>,
        listed: Option<&PodName>,
    ) -> Duration {
        // It is a new pod's, whatever is recorded.
        if self.seen.allocated.contains(device) {
            return Duration::ZERO;
        }
        let now = Missing { holder: holder.cloned(), listed: listed.cloned(), since: self.seen.now };
        let before =
            self.before.get(device).filter(|before| Missing { since: now.since, ..(*before).clone() } == now);
        let since = before.map_or(now.since, |before| before.since);
        self.missing.insert(device.clone(), Missing { since, ..now });
        self.seen.now.saturating_duration_since(since)
    }

    fn complete(&self, listing: &Listing) -> Option<CompleteList> {
        let warm = self.seen.now.saturating_duration_since(self.seen.kubelet_since) >= WARM_UP;
        let own = self.seen.own_pod.is_some_and(|own| listing.pods.contains(own));
        // Before it has heard from the API server, a kubelet lists its static pods, one of which the agent may be.
        let missing = |record: &Attachment| {
            let Holder::Pod { pod_name, pod_namespace, .. } = &record.holder else { return false };
            let name = PodName { namespace: pod_namespace.clone(), name: pod_name.clone() };
            has_name(&record.holder)
                && !listing.pods.contains(&name)
                && !self.kubelet_knew(record)
                && matches!(self.alive.sandbox(record), Fate::Alive)
        };
        (warm && own && !self.seen.records.iter().any(missing)).then_some(CompleteList(()))
    }
}

/// Whether the record tells the pod. Some runtimes do not.
fn has_name(holder: &Holder) -> bool {
    matches!(holder, Holder::Pod { pod_name, .. } if !pod_name.is_empty())
}

#[cfg(test)]
pub(crate) mod tests;
