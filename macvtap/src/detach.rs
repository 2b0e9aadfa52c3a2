//! Undoing an attachment: by the plugin's DEL, by who takes a device over, and by the agent that collects orphans. A
//! macvtap is deleted, a whole NIC is brought back to the node.

use crate::device_id::DeviceId;
use crate::file::FileError;
use crate::give_back::{self, ReturnError, Returned};
use crate::kernel::{Home, Kernel, Place};
use crate::link::{By, Link};
use crate::lock::{self, Lock, LockError};
use crate::netlink::NetlinkError;
use crate::netns::NetnsId;
use crate::paths::Paths;
use crate::record::{Attachment, Holder};
use crate::records::{self, RecordError};
use crate::tap;
use std::path::Path;
use tracing::info;

/// What became of a request to detach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detached {
    /// Link, node and record are gone.
    Removed(Attachment),
    /// The device is somebody else's by now; nothing was touched.
    NotTheirs(Attachment),
    /// There is no attachment.
    Absent,
}

/// An attachment could not be undone. What could be removed was; the record stays, so it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The device's lock could not be taken.
    #[error("detach device {device}")]
    Lock {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: LockError,
    },
    /// The record could not be read or removed.
    #[error("detach device {device}")]
    Record {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The link could not be deleted.
    #[error("detach device {device}")]
    Link {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The NIC could not be brought back.
    #[error("detach device {device}")]
    Nic {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: Box<ReturnError>,
    },
    /// The device node could not be removed.
    #[error("detach device {device}")]
    Node {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: FileError,
    },
}

/// Undoes the attachment of a device if it is the one the caller means. Waits for the lock of the device.
pub fn detach<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    device: &DeviceId,
    is_meant: impl FnOnce(&Attachment) -> bool,
) -> Result<Detached, DetachError> {
    begin(paths, kernel, device, is_meant)?.complete()
}

/// An attachment that is being undone. Its device stays locked until this is dropped.
#[derive(Debug)]
pub struct Detaching<'k, K> {
    paths: &'k Paths,
    kernel: &'k mut K,
    record: Attachment,
    _lock: Lock,
}

/// Whether there is something to undo.
#[derive(Debug)]
pub enum DetachBegun<'k, K> {
    /// The attachment that the caller means.
    Theirs(Detaching<'k, K>),
    /// The device is somebody else's; nothing was touched.
    NotTheirs(Attachment),
    /// There is no attachment.
    Absent,
}

/// Locks the device and finds its attachment. Waits while another process holds the lock.
pub fn begin<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    device: &DeviceId,
    is_meant: impl FnOnce(&Attachment) -> bool,
) -> Result<DetachBegun<'k, K>, DetachError> {
    // No lock file for whatever a network configuration names: it would stay.
    if !lock::was_taken(paths, device) && matches!(records::read(paths, device), Ok(None)) {
        return Ok(DetachBegun::Absent);
    }
    let lock =
        lock::device(paths, device).map_err(|source| DetachError::Lock { device: device.clone(), source })?;
    begin_locked(paths, kernel, device, lock, is_meant)
}

impl<K: Kernel> DetachBegun<'_, K> {
    /// Undoes all of it.
    fn complete(self) -> Result<Detached, DetachError> {
        match self {
            Self::Theirs(mut detaching) => {
                detaching.remove_parts()?;
                detaching.finish().map(Detached::Removed)
            }
            Self::NotTheirs(record) => Ok(Detached::NotTheirs(record)),
            Self::Absent => Ok(Detached::Absent),
        }
    }
}

impl<K: Kernel> Detaching<'_, K> {
    /// Removes link and node, or brings the NIC back. Repeated, it does nothing.
    pub fn remove_parts(&mut self) -> Result<(), DetachError> {
        remove_parts(self.paths, self.kernel, &self.record)
    }

    /// Removes the record: nothing of the attachment is left.
    pub fn finish(self) -> Result<Attachment, DetachError> {
        let device = || self.record.device.clone();
        records::remove(self.paths, &self.record)
            .map_err(|source| DetachError::Record { device: device(), source })?;
        Ok(self.record)
    }
}

/// Undoes exactly this attachment, if nobody works on its device and it is still the one recorded. The agent's way to
/// remove what is left of a killed ADD or of a DEL that never came.
pub fn collect<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    orphan: &Attachment,
) -> Result<Detached, DetachError> {
    collect_if(paths, kernel, orphan, || true)
}

/// The same, if `is_still_orphaned` says so once nobody else can change that.
pub fn collect_if<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    orphan: &Attachment,
    is_still_orphaned: impl FnOnce() -> bool,
) -> Result<Detached, DetachError> {
    let device = &orphan.device;
    let lock = lock::try_device(paths, device);
    let lock = lock.map_err(|source| DetachError::Lock { device: device.clone(), source })?;
    let Some(lock) = lock else {
        return Ok(Detached::NotTheirs(orphan.clone()));
    };
    begin_locked(paths, kernel, device, lock, |record| record == orphan && is_still_orphaned())?.complete()
}

/// The link of an attachment and where it is; none when it is gone. Works for a namespace whose path is gone, and
/// without the right to enter namespaces.
pub fn link_of<K: Kernel>(
    kernel: &mut K,
    record: &Attachment,
) -> Result<Option<(Place, Link)>, NetlinkError> {
    match place_of(kernel, record)? {
        Some(place) => link_at(kernel, record, place),
        None => Ok(None),
    }
}

/// Whether the link of an attachment is surely gone. What cannot be looked at counts as there.
pub fn is_lost<K: Kernel>(kernel: &mut K, record: &Attachment) -> bool {
    // For most macvtaps, one read of sysfs decides. A number that is taken may be another link's by now; where several nodes share a
    // kernel, that link may even have the same index, in a namespace of its own.
    if record.tap.is_some_and(|number| tap::link_with(number) != Some(record.ifindex)) {
        return true;
    }
    match place_of(kernel, record) {
        Ok(Some(place)) => matches!(link_at(kernel, record, place), Ok(None)),
        Ok(None) | Err(_) => false,
    }
}

/// Returns where the link of an attachment is, if that is known.
fn place_of<K: Kernel>(kernel: &mut K, record: &Attachment) -> Result<Option<Place>, NetlinkError> {
    match &record.holder {
        Holder::Host => Ok(Some(Place::Home(Home::Node))),
        Holder::Pod { netns, netns_inode, .. } => {
            let number = kernel.number(Path::new(netns), *netns_inode)?;
            Ok(number.or(record.netns_id.map(NetnsId)).map(Place::Numbered))
        }
    }
}

fn link_at<K: Kernel>(
    kernel: &mut K,
    record: &Attachment,
    place: Place,
) -> Result<Option<(Place, Link)>, NetlinkError> {
    if let Some(nic) = &record.nic {
        return Ok(give_back::find(kernel, place, nic)?.map(|link| (place, link)));
    }
    let found = kernel.find(place, &By::Index(record.ifindex))?;
    // The number may be another namespace's by now, and a pod may make links with any index. A lower link that was moved into
    // another namespace and back has another index, and its macvtaps still: they are known by their taps.
    let has_tap = || record.tap.is_some_and(|number| tap::link_with(number) == Some(record.ifindex));
    let is_theirs = |link: &Link| link.lower == Some(record.lower_ifindex) || has_tap();
    let ours = found.filter(|link| link.is_macvtap() && is_theirs(link));
    Ok(ours.map(|link| (place, link)))
}

/// Removes link and node of a record, or brings its NIC back; not the record. The caller holds the device's lock.
pub(crate) fn remove_parts<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    record: &Attachment,
) -> Result<(), DetachError> {
    let device = || record.device.clone();
    if let Some(nic) = &record.nic {
        let returned = give_back::give_back(kernel, record, nic);
        let returned =
            returned.map_err(|source| DetachError::Nic { device: device(), source: Box::new(source) })?;
        if returned == Returned::Back {
            info!(device = %record.device, nic = nic.name, "NIC is back on the node");
        }
        return Ok(());
    }
    // Before the link is deleted: the next holder of its minor must not find it reserved by a dead pod.
    records::release_tap(paths, record).map_err(|source| DetachError::Record { device: device(), source })?;
    remove_link(paths, kernel, record)
}

/// Removes link and node of a macvtap's record, whose tap number stays reserved.
pub(crate) fn remove_link<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    record: &Attachment,
) -> Result<(), DetachError> {
    let device = || record.device.clone();
    let deleted = link_of(kernel, record).and_then(|found| match found {
        Some((place, link)) => kernel.delete(place, link.index),
        None => Ok(()),
    });
    // Also when the link could not be deleted: no container may be given its node any more.
    let removed = kernel.remove_node(&paths.device_node(record.ifindex));
    deleted.map_err(|source| DetachError::Link { device: device(), source })?;
    removed.map_err(|source| DetachError::Node { device: device(), source })
}

fn begin_locked<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    device: &DeviceId,
    lock: Lock,
    is_meant: impl FnOnce(&Attachment) -> bool,
) -> Result<DetachBegun<'k, K>, DetachError> {
    let failed = |source| DetachError::Record { device: device.clone(), source };
    let Some(record) = records::read(paths, device).map_err(failed)? else {
        records::remove_unfinished(paths, device).map_err(failed)?;
        return Ok(DetachBegun::Absent);
    };
    if !is_meant(&record) {
        return Ok(DetachBegun::NotTheirs(record));
    }
    Ok(DetachBegun::Theirs(Detaching { paths, kernel, record, _lock: lock }))
}
