//! Which pods may hold the link of a device that is attached without a network. Neither its record nor the kernel knows;
//! the kubelet lists it while its container runs, so the agent notes it then, in a small file for each device.

use crate::device_id::DeviceId;
use crate::file::{self, Durability, FileError};
use crate::paths::Paths;
use crate::record::Holder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// No list of a node's pods is longer, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// A pod by name: the kubelet does not report UIDs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The pods that may hold the link of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TapPods {
    /// The pod that the kubelet listed with the device.
    Owner(PodName),
    /// Pods one of which holds the link: the kubelet does not list devices of init containers.
    Candidates(BTreeSet<PodName>),
}

impl TapPods {
    /// Whether this pod may hold the link.
    pub fn contains(&self, pod: &PodName) -> bool {
        match self {
            Self::Owner(owner) => owner == pod,
            Self::Candidates(pods) => pods.contains(pod),
        }
    }

    /// Whether this pod, and no other, may hold the link.
    pub(crate) fn is_only(&self, holder: &Holder) -> bool {
        let Holder::Pod { pod_namespace, pod_name, .. } = holder else { return false };
        let is_theirs = |pod: &PodName| pod.namespace == *pod_namespace && pod.name == *pod_name;
        match self {
            Self::Owner(pod) => is_theirs(pod),
            Self::Candidates(pods) => pods.len() == 1 && pods.iter().all(is_theirs),
        }
    }
}

/// Returns the pods noted for a device, if any were.
pub fn read(paths: &Paths, device: &DeviceId) -> Option<TapPods> {
    let text = file::read(&path(paths, device), SIZE_MAX).ok()??;
    serde_json::from_slice(&text).ok()
}

/// Notes the pods that may hold the link of a device. The caller holds the device's lock.
pub fn write(paths: &Paths, device: &DeviceId, pods: &TapPods) -> Result<(), FileError> {
    // Texts always have a form in JSON.
    let text = serde_json::to_vec(pods).unwrap_or_default();
    file::make_directory(&directory(paths))?;
    file::replace(&path(paths, device), &text, Durability::Memory)
}

/// Forgets the pods of a device; succeeds when there were none. The caller holds the device's lock.
pub(crate) fn forget(paths: &Paths, device: &DeviceId) -> Result<(), FileError> {
    file::remove(&path(paths, device))
}

fn directory(paths: &Paths) -> PathBuf {
    paths.run().join("tap-pods")
}

fn path(paths: &Paths, device: &DeviceId) -> PathBuf {
    directory(paths).join(device.to_string())
}
