//! Which pods may have the link of a device that is attached without a network, by the names of this program.

use crate::pods::PodName;
use macvtap::device_id::DeviceId;
use macvtap::file::FileError;
use macvtap::paths::Paths;
use macvtap::tap_pods;
use std::collections::BTreeSet;

pub use macvtap::tap_pods::forget;

/// Pods one of which has the link.
pub type Candidates = BTreeSet<PodName>;

/// Returns the pods noted for a device, if any were.
pub fn read(paths: &Paths, device: &DeviceId) -> Option<Candidates> {
    let pods = tap_pods::read(paths, device)?;
    Some(pods.into_iter().map(|(namespace, name)| PodName { namespace, name }).collect())
}

/// Notes the pods one of which has the link of a device.
pub fn write(paths: &Paths, device: &DeviceId, pods: &Candidates) -> Result<(), FileError> {
    let pods = pods.iter().map(|pod| (pod.namespace.clone(), pod.name.clone())).collect();
    tap_pods::write(paths, device, &pods)
}
