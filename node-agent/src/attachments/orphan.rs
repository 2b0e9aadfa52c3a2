//! Attachments that may be removed. A link that is deleted under a running virtual machine cannot be given back, so the
//! only values of [`Orphan`] are those for which two independent witnesses were heard.

use super::sandbox::SandboxGone;
use super::witness::{CompleteList, Forgotten, ListedForOther, NotListed, Recreated};
use macvtap::record::{Attachment, Holder, State};
use macvtap::tap_pods::TapNote;

/// An attachment that nobody needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    record: Attachment,
    reason: &'static str,
    /// What was noted of the pod of a tap when it was judged.
    note: Option<TapNote>,
}

impl Orphan {
    /// An ADD that was killed: it is under way only while it holds the device's lock, which its remover must take.
    pub(super) fn unfinished(record: &Attachment) -> Option<Self> {
        let reason = "its ADD was killed";
        (record.state == State::Creating).then(|| Self::new(record, reason))
    }

    /// The kernel says that the sandbox is gone, and the kubelet does not list the pod.
    pub(super) fn of_dead_pod(record: &Attachment, _: SandboxGone, _: NotListed) -> Self {
        Self::new(record, "its sandbox is gone and the kubelet does not list its pod")
    }

    /// The kubelet lists the device for another pod, and had given it away before this one took it.
    pub(super) fn of_squatter(record: &Attachment, _: ListedForOther) -> Self {
        Self::new(record, "the kubelet gave the device to another pod")
    }

    /// A kubelet that lists all of its pods lists none with this tap.
    pub(super) fn of_tap_only(record: &Attachment, _: NotListed, _: CompleteList) -> Option<Self> {
        let reason = "the kubelet lists no pod that could have this tap";
        (record.holder == Holder::Host).then(|| Self::new(record, reason))
    }

    /// The kubelet listed the pod with this tap, and lists a pod of that name with another device instead.
    pub(super) fn of_recreated_pod(record: &Attachment, _: Recreated) -> Option<Self> {
        let reason = "the pod that had this tap was created again and has another device";
        (record.holder == Holder::Host).then(|| Self::new(record, reason))
    }

    /// The kubelet knew that the pod held this tap, and does not any more, by a checkpoint that it wrote since.
    pub(super) fn of_forgotten_pod(record: &Attachment, _: Forgotten) -> Option<Self> {
        let reason = "the kubelet has taken this tap back from its pod";
        (record.holder == Holder::Host).then(|| Self::new(record, reason))
    }

    fn new(record: &Attachment, reason: &'static str) -> Self {
        Self { record: record.clone(), reason, note: None }
    }

    /// The same, as judged by this note: another one may be of another pod.
    pub(super) fn noted(self, note: Option<TapNote>) -> Self {
        Self { note, ..self }
    }

    /// What was noted of the pod of a tap when it was judged.
    pub fn note(&self) -> Option<&TapNote> {
        self.note.as_ref()
    }

    /// What must be removed.
    pub fn record(&self) -> &Attachment {
        &self.record
    }

    /// Why it may be removed.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}
