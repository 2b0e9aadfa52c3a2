//! Which pods may have the link of a device that is attached without a network. Neither its record nor the kernel knows;
//! the kubelet lists it while its container runs, so it is noted then, in a small file for each device.

use crate::pods::PodName;
use macvtap::device_id::DeviceId;
use macvtap::file::{self, Durability, FileError};
use macvtap::paths::Paths;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// No list of a node's pods is longer, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// Pods one of which has the link.
pub type Candidates = BTreeSet<PodName>;

/// Returns the pods noted for a device, if any were.
pub fn read(paths: &Paths, device: &DeviceId) -> Option<Candidates> {
    let text = file::read(&path(paths, device), SIZE_MAX).ok()??;
    let pods: BTreeSet<(String, String)> = serde_json::from_slice(&text).ok()?;
    Some(pods.into_iter().map(|(namespace, name)| PodName { namespace, name }).collect())
}

/// Notes the pods one of which has the link of a device.
pub fn write(paths: &Paths, device: &DeviceId, pods: &Candidates) -> Result<(), FileError> {
    let names: Vec<_> = pods.iter().map(|pod| (&pod.namespace, &pod.name)).collect();
    // Texts always have a form in JSON.
    let text = serde_json::to_vec(&names).unwrap_or_default();
    file::make_directory(&directory(paths))?;
    file::replace(&path(paths, device), &text, Durability::Memory)
}

/// Forgets the pods of a device; succeeds when there were none.
pub fn forget(paths: &Paths, device: &DeviceId) -> Result<(), FileError> {
    file::remove(&path(paths, device))
}

fn directory(paths: &Paths) -> PathBuf {
    paths.run().join("tap-pods")
}

fn path(paths: &Paths, device: &DeviceId) -> PathBuf {
    directory(paths).join(device.to_string())
}
