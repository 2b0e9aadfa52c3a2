//! Links of devices without a network. They have no sandbox that could be asked for: the kubelet's list, which lacks init
//! containers and UIDs, and its checkpoint, which lags behind, are the two witnesses.

use super::{Liveness, NewNote, Pass};
use crate::attachments::orphan::Orphan;
use crate::attachments::witness::{Forgotten, RECREATED, Recreated};
use crate::pods::{Listing, PodName};
use macvtap::record::Attachment;
use macvtap::tap_pods::{TapNote, TapPods};
use std::time::Duration;

/// How long to wait before the kubelet is asked again to write its checkpoint for a device whose pod is not listed.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// What the kubelet's checkpoint says of the pod that was noted for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recollection {
    /// It holds the device, or the checkpoint is behind.
    Holds,
    /// It does not hold the device any more: a kubelet says so that knew that it did.
    Forgot,
    /// The checkpoint cannot be read, or is of a kubelet that may not have known the pod, or no UID was noted.
    Unknown,
}

impl<L: Liveness> Pass<'_, L> {
    pub(super) fn judge_tap(&mut self, record: &Attachment, listing: &Listing) {
        let listed = listing.devices.get(&record.device);
        let before = self.alive.tap_note(&record.device);
        let note = self.note(record, before.as_ref(), listing);
        if let Some(pod) = listed.filter(|pod| note.pods.contains(pod)) {
            self.judge_link(record, pod);
            return;
        }
        let is_pod_listed = listing.pods.iter().any(|pod| note.pods.contains(pod));
        let waited = self.waited(record, listed, is_pod_listed);
        let orphan = match self.recollection(record, &note) {
            Recollection::Holds => {
                self.ask_for_checkpoint(record);
                None
            }
            // A kubelet that admits its pods one after the other may forget one of them for good, which still runs.
            Recollection::Forgot if is_pod_listed && !self.is_moved(record, &note, listing) => None,
            Recollection::Forgot => self
                .forgotten(record, is_pod_listed, waited)
                .and_then(|proof| Orphan::of_forgotten_pod(record, proof)),
            // Listed for a pod that is not noted: PreStart and Allocate decide.
            Recollection::Unknown if listed.is_some() => None,
            Recollection::Unknown => match &note.pods {
                TapPods::Owner(owner) if is_pod_listed => self
                    .recreated(record, listing, owner, waited)
                    .and_then(|proof| Orphan::of_recreated_pod(record, proof)),
                TapPods::Candidates(_) if is_pod_listed => None,
                TapPods::Owner(_) | TapPods::Candidates(_) => self.tap_only(record, listing),
            },
        };
        self.conclude(record, orphan.map(|orphan| orphan.noted(before)));
    }

    /// Returns what is known of the pod of this link by now, and plans to write it down: the pod that was listed with the
    /// device, if one was, or else any that was there when the link was first seen.
    fn note(&mut self, record: &Attachment, before: Option<&TapNote>, listing: &Listing) -> TapNote {
        let device = &record.device;
        let listed = listing.devices.get(device);
        let remembered = self.seen.memory.and_then(|memory| memory.holder(device)).map(str::to_owned);
        // Another UID than the noted one is of a pod whose container has not started: its PreStart decides.
        let noted = || before.and_then(|before| before.pod_uid.clone());
        let owner = |pod: &PodName| TapNote {
            pods: TapPods::Owner(pod.clone()),
            pod_uid: noted().or_else(|| remembered.clone()),
        };
        let note = match (before, listed) {
            // The list names a pod, not which of that name: while its container has not started, that is PreStart's to judge.
            (Some(before), Some(pod)) if before.pods.contains(pod) && !self.is_disputed(before, record) => {
                owner(pod)
            }
            // The checkpoint says that it is the noted pod, and the list how that is called.
            (Some(before), Some(pod)) if before.pod_uid.is_some() && before.pod_uid == remembered => {
                owner(pod)
            }
            (Some(before), _) => before.clone(),
            (None, Some(pod)) => owner(pod),
            // The device of an init container is never listed.
            (None, None) => {
                let others = listing.pods.iter().filter(|pod| Some(*pod) != self.seen.own_pod);
                TapPods::Candidates(others.cloned().collect()).into()
            }
        };
        // A list that lacks pods must not be remembered: one of those may hold the link.
        let is_known = before.is_some() || listed.is_some() || self.complete(listing).is_some();
        if is_known && before != Some(&note) {
            let (record, before, after) = (record.clone(), before.cloned(), note.clone());
            self.plan.tap_notes.push(NewNote { record, before, after });
        }
        note
    }

    /// Whether the device may have been given to another pod than the noted one.
    fn is_disputed(&self, before: &TapNote, record: &Attachment) -> bool {
        let remembered = self.seen.memory.and_then(|memory| memory.holder(&record.device));
        let is_another = before.pod_uid.as_deref().zip(remembered).is_some_and(|(before, now)| before != now);
        is_another || self.seen.allocated.contains(&record.device)
    }

    /// Whether it is certain that a listed pod is not the one that had the device: this kubelet saw that it had it, or says
    /// who has it now, or that the pod has another one.
    fn is_moved(&self, record: &Attachment, note: &TapNote, listing: &Listing) -> bool {
        let is_given = self.seen.memory.is_some_and(|memory| memory.holders.contains_key(&record.device));
        let mut devices = listing.devices.iter();
        let has_other = devices
            .any(|(device, pod)| note.pods.contains(pod) && device.resource() == record.device.resource());
        self.kubelet_knew(record) || is_given || has_other
    }

    fn recollection(&self, record: &Attachment, note: &TapNote) -> Recollection {
        let (Some(memory), Some(uid)) = (self.seen.memory, &note.pod_uid) else {
            return Recollection::Unknown;
        };
        let device = &record.device;
        if memory.holders.get(device).is_some_and(|holders| holders.contains(uid)) {
            return Recollection::Holds;
        }
        let knew = self.remembered.holders.contains(&(device.clone(), uid.clone()));
        if knew || self.kubelet_knew(record) { Recollection::Forgot } else { Recollection::Unknown }
    }

    /// Whether the kubelet has written its checkpoint again without the pod. What is there now may be from somebody else.
    fn forgotten(&mut self, record: &Attachment, is_pod_listed: bool, waited: Duration) -> Option<Forgotten> {
        let version = self.seen.memory.map(|memory| &memory.version);
        let missing = self.missing.get(&record.device);
        let is_written_since = missing.is_some_and(|missing| missing.checkpoint.as_ref() != version);
        if !is_written_since {
            self.ask_for_checkpoint(record);
        }
        Forgotten::since(waited, is_pod_listed, is_written_since)
    }

    /// Plans to have the kubelet write its checkpoint, unless it was asked to for this device a moment ago.
    fn ask_for_checkpoint(&mut self, record: &Attachment) {
        let now = self.seen.now;
        let Some(missing) = self.missing.get_mut(&record.device) else { return };
        // An init container's device is not listed for as long as its pod lives.
        let pause = if missing.absence.is_pod_listed { RECREATED } else { ASK_AGAIN };
        if missing.asked.is_none_or(|asked| now.saturating_duration_since(asked) >= pause) {
            missing.asked = Some(now);
            self.plan.ask_for_checkpoint = true;
        }
    }

    /// Whether the owner of a device is listed with another one of the resource, by the kubelet that listed it with this.
    fn recreated(
        &self,
        record: &Attachment,
        listing: &Listing,
        owner: &PodName,
        waited: Duration,
    ) -> Option<Recreated> {
        let resource = record.device.resource();
        let mut devices = listing.devices.iter();
        let has_other = devices.any(|(device, pod)| pod == owner && device.resource() == resource);
        Recreated::since(waited, has_other, self.kubelet_knew(record))
    }

    /// Only a complete list can show that.
    fn tap_only(&mut self, record: &Attachment, listing: &Listing) -> Option<Orphan> {
        let not_listed = self.not_listed(record, listing)?;
        Orphan::of_tap_only(record, not_listed, self.complete(listing)?)
    }
}
