//! Links for pods that have only the tap: made when their container starts, removed when the device is handed out anew.

use super::sandbox::{Fate, Sandboxes};
use super::tap_pods;
use crate::pods::{Listing, PodName};
use macvtap::attach::{self, AttachError, Repeat, Request};
use macvtap::detach::{self, DetachError};
use macvtap::device_id::DeviceId;
use macvtap::file::FileError;
use macvtap::kernel::{OpenError, Rtnl};
use macvtap::link::{IfName, Macvtap};
use macvtap::paths::Paths;
use macvtap::record::Holder;
use macvtap::records::{self, RecordError};
use macvtap::table_file::{self, TableFileError};
use std::collections::HashSet;

/// A tap could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TapOnlyError {
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] TableFileError),
    /// The device is not in the table.
    #[error("device {0} is not in the device table")]
    Unknown(DeviceId),
    /// The kernel cannot be reached.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The link could not be made.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// What a former pod left could not be removed.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// A pod that had the device before still has it.
    #[error(
        "device {device} is still attached to pod {namespace}/{pod}; it is free when the sandbox of that pod is gone"
    )]
    Former {
        /// The device.
        device: DeviceId,
        /// Namespace of the pod; empty when nobody told it.
        namespace: String,
        /// Its name; empty when nobody told it.
        pod: String,
    },
    /// The note of pods cannot be removed.
    #[error(transparent)]
    Note(#[from] FileError),
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Whom the device's record names.
pub fn holder(paths: &Paths, device: &DeviceId) -> Result<Option<Holder>, RecordError> {
    Ok(records::read(paths, device)?.map(|record| record.holder))
}

/// Returns the IDs of devices that have a record, readable or not. Reads one directory in memory.
pub fn attached(paths: &Paths) -> HashSet<String> {
    let entries = std::fs::read_dir(paths.attachments()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether the device is attached without a network.
pub fn is_tap_only(paths: &Paths, device: &DeviceId) -> bool {
    holder(paths, device).is_ok_and(|holder| holder == Some(Holder::Host))
}

/// Removes the link of a device that was attached without a network, unless a pod that may have it is listed. Without a
/// list, the kubelet's word that the device is free decides.
pub fn end_tap_only(paths: &Paths, device: &DeviceId, listing: Option<&Listing>) -> Result<(), TapOnlyError> {
    if listing.is_some_and(|listing| holding(paths, device, listing).is_some()) {
        return Ok(());
    }
    let mut kernel = Rtnl::node()?;
    detach::detach(paths, &mut kernel, device, |record| record.holder == Holder::Host)?;
    tap_pods::forget(paths, device)?;
    Ok(())
}

/// The listed pod that may have the link of a device without a network.
fn holding<'l>(paths: &Paths, device: &DeviceId, listing: &'l Listing) -> Option<&'l PodName> {
    let candidates = tap_pods::read(paths, device).unwrap_or_default();
    let owner =
        listing.devices.get(device).filter(|owner| candidates.is_empty() || candidates.contains(owner));
    owner.or_else(|| listing.pods.iter().find(|pod| candidates.contains(pod)))
}

/// Makes sure that the device has a link: its network's, or else one in the namespace of the node. A link of `former`,
/// who had the device when it was handed out, or of another pod that is listed, is not the pod's.
pub fn ensure(
    paths: &Paths,
    device: &DeviceId,
    former: Option<&Holder>,
    listing: Option<&Listing>,
) -> Result<(), TapOnlyError> {
    if let Some(listing) = listing.filter(|_| is_tap_only(paths, device)) {
        end_former_tap(paths, device, listing)?;
    }
    let table = table_file::load_current(paths)?;
    let known = table.device(device).ok_or_else(|| TapOnlyError::Unknown(device.clone()))?;
    let request = Request {
        device: device.clone(),
        holder: Holder::Host,
        network: None,
        netns_id: None,
        lower_name: known.link.name.clone(),
        link: Macvtap {
            lower: known.link.ifindex,
            index: known.ifindex,
            name: IfName::tap_only(known.ifindex),
            mode: known.link.mode,
            mac: None,
            mtu: known.resource.mtu,
            promiscuous: known.resource.promiscuous,
            all_multicast: known.resource.all_multicast,
        },
        owner: known.resource.owner,
        also_mac: None,
        repeat: Repeat::Keep,
    };
    let mut kernel = Rtnl::node()?;
    if let Some(former) = former {
        end_former(paths, &mut kernel, device, former)?;
    }
    attach::tap_only(paths, &mut kernel, request)?;
    Ok(())
}

/// Removes what a pod left whose DEL did not come. What is not surely gone is waited for.
fn end_former(
    paths: &Paths,
    kernel: &mut Rtnl,
    device: &DeviceId,
    former: &Holder,
) -> Result<(), TapOnlyError> {
    let Holder::Pod { pod_namespace, pod_name, .. } = former else {
        return Ok(());
    };
    let Some(record) = records::read(paths, device)?.filter(|record| record.holder == *former) else {
        return Ok(());
    };
    if let Fate::Gone(_) = Sandboxes::new(Rtnl::node().ok()).fate(&record) {
        detach::detach(paths, kernel, device, |current| *current == record)?;
        return Ok(());
    }
    let (namespace, pod) = (pod_namespace.clone(), pod_name.clone());
    Err(TapOnlyError::Former { device: device.clone(), namespace, pod })
}

/// Removes the link of a pod that had the tap alone, if the kubelet lists another one for the device.
fn end_former_tap(paths: &Paths, device: &DeviceId, listing: &Listing) -> Result<(), TapOnlyError> {
    let Some(owner) = listing.devices.get(device) else { return Ok(()) };
    match holding(paths, device, listing) {
        Some(pod) if pod == owner => Ok(()),
        Some(pod) => Err(TapOnlyError::Former {
            device: device.clone(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
        }),
        None => end_tap_only(paths, device, Some(listing)),
    }
}
