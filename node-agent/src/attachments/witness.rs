//! What may be believed before something is removed: proofs that only exist if their conditions hold.

use crate::pods::WARM_UP;
use std::time::Duration;

/// How long the kubelet must have left out a pod, or have listed another one.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a pod that was created again under its name must have been without the device. The kubelet does not list a pod
/// that is still terminating once its successor is there, or that was deleted by force: longer than containers are given to
/// end.
pub const RECREATED: Duration = Duration::from_mins(10);

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

/// Proof that a kubelet which knew that a pod held a device has written its checkpoint without that, and has not listed the
/// pod for [`PATIENCE`], or for [`RECREATED`] if a pod of that name is there again.
#[derive(Debug)]
pub struct Forgotten(());

impl NotListed {
    pub(super) fn since(waited: Duration) -> Option<Self> {
        (waited >= PATIENCE).then_some(Self(()))
    }
}

impl CompleteList {
    /// `up` is for how long the kubelet has served. Before it has heard from the API server, it lists its static pods, one of
    /// which the agent may be.
    pub(super) fn of(up: Duration, lists_own_pod: bool, lists_pod_of_api_server: bool) -> Option<Self> {
        (up >= WARM_UP && lists_own_pod && lists_pod_of_api_server).then_some(Self(()))
    }
}

impl ListedForOther {
    pub(super) fn since(waited: Duration, kubelet_knew: bool) -> Option<Self> {
        (waited >= PATIENCE && kubelet_knew).then_some(Self(()))
    }
}

impl Recreated {
    pub(super) fn since(waited: Duration, has_other: bool, kubelet_knew: bool) -> Option<Self> {
        (waited >= RECREATED && has_other && kubelet_knew).then_some(Self(()))
    }
}

impl Forgotten {
    pub(super) fn since(waited: Duration, is_pod_listed: bool, is_written_since: bool) -> Option<Self> {
        let patience = if is_pod_listed { RECREATED } else { PATIENCE };
        (waited >= patience && is_written_since).then_some(Self(()))
    }
}
