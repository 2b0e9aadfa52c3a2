//! Adopting: a record rewritten for a device whose record was lost while a pod has its link.
//!
//! Looked for in the namespace of the node and in those whose paths are in one directory, never in the whole machine:
//! every namespace counts its indexes by itself, and a neighbour on the same kernel may use the same ones.

mod nic;

pub use nic::{UnrecordedNic, adopt_nic, adopt_nic_of, is_on_node};

use crate::device_id::DeviceId;
use crate::file::{self, FileError};
use crate::kernel::{Home, Kernel, Place};
use crate::kubelet_id;
use crate::link::{By, IfName, Link};
use crate::lock::{self, LockError};
use crate::netlink::NetlinkError;
use crate::netns::Netns;
use crate::paths::Paths;
use crate::record::{self, Attachment, DeviceNumber, Holder, State};
use crate::records::{self, RecordError};
use crate::table::Owner;
use crate::tap::{self, Node};
use crate::tap_pods;
use std::io;
use std::path::{Path, PathBuf};

/// A device that a pod has and no record names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrecorded {
    /// The device.
    pub device: DeviceId,
    /// The index of its link.
    pub ifindex: u32,
    /// The index of the link below, in the namespace of the node.
    pub lower_ifindex: u32,
    /// Owner of a device node that must be recreated.
    pub owner: Owner,
    /// Namespace of the pod that has it.
    pub pod_namespace: String,
    /// That pod's name.
    pub pod_name: String,
}

/// A device could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The device's lock could not be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The device node could not be made.
    #[error("device node")]
    Node(#[from] FileError),
    /// A directory could not be listed.
    #[error("list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where a link is, and what a record says of that place.
struct Found {
    link: Link,
    holder: Holder,
    netns_id: Option<i32>,
}

/// Records the device's link, if there is one in the namespace of the node or in one of those in `namespaces`. None
/// when there is none, when somebody works on the device, or when it has a record after all.
pub fn adopt<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    lost: &Unrecorded,
    namespaces: &Path,
) -> Result<Option<Attachment>, AdoptError> {
    let Some(_lock) = lock::try_device(paths, &lost.device)? else {
        return Ok(None);
    };
    match records::read(paths, &lost.device) {
        Ok(None) | Err(RecordError::Damaged { .. }) => {}
        Ok(Some(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let Some(found) = find(kernel, lost, namespaces)? else {
        return Ok(None);
    };
    // Under which tap numbers are judged and noted.
    let _node = lock::node(paths)?;
    let candidates = candidates(paths, kernel, lost)?;
    // Every tap with this index belongs to another device: somebody gave that device's link another index.
    if candidates.is_empty() {
        return Ok(None);
    }
    let tap = number(paths, lost.ifindex, &candidates);
    let record = Attachment {
        version: record::VERSION,
        device: lost.device.clone(),
        holder: found.holder,
        state: State::Attached,
        ifindex: lost.ifindex,
        lower_ifindex: lost.lower_ifindex,
        mac: found.link.device_mac(),
        tap,
        netns_id: found.netns_id,
        network: None,
        nic: None,
        made: None,
        // A device that no pod has: nobody knows what the kubelet knew of it.
        kubelet: (!lost.pod_name.is_empty())
            .then(|| kubelet_id::read(paths))
            .flatten()
            .map(|kubelet| kubelet.id),
    };
    if let Some(number) = tap {
        records::reserve_tap(paths, number, &lost.device)?;
    }
    records::write(paths, &record)?;
    if let Some(number) = tap {
        let path = paths.device_node(lost.ifindex);
        // The program that made the node may have given it to another owner.
        if tap::node_at(&path).is_none_or(|node| node.number != number) {
            kernel.make_node(&path, Node { number, owner: lost.owner })?;
        }
    }
    Ok(Some(record))
}

/// Removes a record that cannot be read, and the device's node, where nothing was found that could be adopted and no pod
/// has the device: with such a record it could never be handed out again. Returns whether there was one.
pub fn discard<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    device: &DeviceId,
    ifindex: u32,
) -> Result<bool, AdoptError> {
    let Some(_lock) = lock::try_device(paths, device)? else {
        return Ok(false);
    };
    let Err(RecordError::Damaged { path, .. }) = records::read(paths, device) else {
        return Ok(false);
    };
    kernel.remove_node(&paths.device_node(ifindex))?;
    tap_pods::forget(paths, device)?;
    file::remove(&path)?;
    Ok(true)
}

fn find<K: Kernel>(
    kernel: &mut K,
    lost: &Unrecorded,
    namespaces: &Path,
) -> Result<Option<Found>, AdoptError> {
    let by = By::Index(lost.ifindex);
    let ours = |link: &Link| link.is_macvtap() && link.lower == Some(lost.lower_ifindex);
    let tap_only = IfName::tap_only(lost.ifindex);
    let here = kernel.find(Place::Home(Home::Node), &by)?;
    if let Some(link) = here.filter(|link| ours(link) && link.name == tap_only.as_str()) {
        return Ok(Some(Found { link, holder: Holder::Host, netns_id: None }));
    }
    for path in entries(namespaces)? {
        // Also files that are not namespaces (any more), and the node's own namespace under a name.
        let Ok(netns) = Netns::open(&path) else { continue };
        let Some(id) = kernel.number(&path, netns.inode())? else { continue };
        if let Some(link) = kernel.find(Place::Numbered(id), &by)?.filter(&ours) {
            let holder = Holder::Pod {
                container_id: record::UNKNOWN.to_owned(),
                ifname: link.name.clone(),
                pod_uid: record::UNKNOWN.to_owned(),
                pod_namespace: lost.pod_namespace.clone(),
                pod_name: lost.pod_name.clone(),
                netns: path.to_string_lossy().into_owned(),
                netns_inode: netns.inode(),
            };
            return Ok(Some(Found { link, holder, netns_id: Some(id.0) }));
        }
    }
    Ok(None)
}

/// The paths in a directory of namespaces; none when there is no such directory.
fn entries(namespaces: &Path) -> Result<Vec<PathBuf>, AdoptError> {
    let failed = |source| AdoptError::List { path: namespaces.to_owned(), source };
    match std::fs::read_dir(namespaces) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Taps of the machine with the device's index that no other device's record names.
fn candidates<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    lost: &Unrecorded,
) -> Result<Vec<DeviceNumber>, AdoptError> {
    let taps =
        kernel.taps().map_err(|source| AdoptError::List { path: tap::CHARACTER_DEVICES.into(), source })?;
    let with_index = taps.into_iter().filter(|(_, index)| *index == lost.ifindex);
    let others = |number: DeviceNumber| {
        // A record that cannot be read might be this device's.
        matches!(records::with_tap(paths, number), Ok(Some(record)) if record.device != lost.device)
    };
    Ok(with_index.map(|(number, _)| number).filter(|number| !others(*number)).collect())
}

/// The device's own among them: the one its node has, or the only one. With several nodes on one kernel there may be
/// more, and to keep a neighbour's number busy would be worse than to know none.
fn number(paths: &Paths, ifindex: u32, candidates: &[DeviceNumber]) -> Option<DeviceNumber> {
    let node = tap::node_at(&paths.device_node(ifindex)).map(|node| node.number);
    match candidates {
        [only] => Some(*only),
        _ => node.filter(|number| candidates.contains(number)),
    }
}
