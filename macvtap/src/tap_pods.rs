//! Which pods may hold the link of a device that is attached without a network. Neither its record nor the kernel knows;
//! the kubelet lists it while its container runs, so the agent notes it then, in a small file for each device.

use crate::device_id::DeviceId;
use crate::file::{self, Durability, FileError};
use crate::paths::Paths;
use crate::record::Holder;
use crate::records;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// No list of a node's pods is longer, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// Pods one of which holds the link, as namespace and name.
pub type Pods = BTreeSet<(String, String)>;

/// Returns the pods noted for a device, if any were.
pub fn read(paths: &Paths, device: &DeviceId) -> Option<Pods> {
    let text = file::read(&path(paths, device), SIZE_MAX).ok()??;
    serde_json::from_slice(&text).ok()
}

/// Notes the pods one of which holds the link of a device.
pub fn write(paths: &Paths, device: &DeviceId, pods: &Pods) -> Result<(), FileError> {
    // Texts always have a form in JSON.
    let text = serde_json::to_vec(pods).unwrap_or_default();
    file::make_directory(&directory(paths))?;
    file::replace(&path(paths, device), &text, Durability::Memory)
}

/// Forgets the pods of a device; succeeds when there were none.
pub fn forget(paths: &Paths, device: &DeviceId) -> Result<(), FileError> {
    file::remove(&path(paths, device))
}

/// Whether this pod, and no other, may hold a device that is attached without a network: a spare one, which one of its
/// networks can get.
pub(crate) fn is_spare_of(paths: &Paths, device: &DeviceId, holder: &Holder) -> bool {
    let Holder::Pod { pod_namespace, pod_name, .. } = holder else { return false };
    let is_theirs = |(namespace, name): &(String, String)| namespace == pod_namespace && name == pod_name;
    read(paths, device).is_some_and(|pods| pods.len() == 1 && pods.iter().all(is_theirs))
}

/// Returns a device that a pod holds without a network, if there is one.
pub(crate) fn spare_of(paths: &Paths, holder: &Holder) -> Option<DeviceId> {
    let records = records::list(paths).ok()?.records;
    let spare = records
        .into_iter()
        .find(|record| record.holder == Holder::Host && is_spare_of(paths, &record.device, holder));
    spare.map(|record| record.device)
}

fn directory(paths: &Paths) -> PathBuf {
    paths.run().join("tap-pods")
}

fn path(paths: &Paths, device: &DeviceId) -> PathBuf {
    directory(paths).join(device.to_string())
}
