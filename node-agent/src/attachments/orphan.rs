//! Attachments that may be removed. A link that is deleted under a running virtual machine cannot be given back, so the
//! only values of [`Orphan`] are those for which two independent witnesses were heard.

use super::collector::{CompleteList, ListedForOther, NotListed, Recreated};
use super::sandbox::SandboxGone;
use macvtap::record::{Attachment, Holder, State};

/// An attachment that nobody needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    record: Attachment,
    reason: &'static str,
}

impl Orphan {
    /// An ADD that was killed: it is under way only while it holds the device's lock, which whoever removes it must take.
    pub(super) fn unfinished(record: &Attachment) -> Option<Self> {
        let reason = "its ADD was killed";
        (record.state == State::Creating).then(|| Self { record: record.clone(), reason })
    }

    /// The kernel says that the sandbox is gone, and the kubelet does not list the pod.
    pub(super) fn of_dead_pod(record: &Attachment, _: SandboxGone, _: NotListed) -> Self {
        Self { record: record.clone(), reason: "its sandbox is gone and the kubelet does not list its pod" }
    }

    /// The kubelet lists the device for another pod, and had given it away before this one took it.
    pub(super) fn of_squatter(record: &Attachment, _: ListedForOther) -> Self {
        Self { record: record.clone(), reason: "the kubelet gave the device to another pod" }
    }

    /// A kubelet that lists all of its pods lists none with this tap.
    pub(super) fn of_tap_only(record: &Attachment, _: NotListed, _: CompleteList) -> Option<Self> {
        let reason = "the kubelet lists no pod that could have this tap";
        (record.holder == Holder::Host).then(|| Self { record: record.clone(), reason })
    }

    /// The kubelet listed the pod with this tap, and lists a pod of that name with another device instead.
    pub(super) fn of_recreated_pod(record: &Attachment, _: Recreated) -> Option<Self> {
        let reason = "the pod that had this tap was created again and has another device";
        (record.holder == Holder::Host).then(|| Self { record: record.clone(), reason })
    }

    /// What is to be removed.
    pub fn record(&self) -> &Attachment {
        &self.record
    }

    /// Why it may be removed.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}
