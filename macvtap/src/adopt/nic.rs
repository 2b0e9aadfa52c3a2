//! A whole NIC that is in a pod while its record was lost. Without a record nobody would give it back, and the kernel puts it
//! on the node under the pod's name for it when the pod's namespace ends.

use super::AdoptError;
use crate::device_id::DeviceId;
use crate::kernel::{Home, Kernel, Place};
use crate::link::{self, NicLink};
use crate::lock;
use crate::netlink::NetlinkError;
use crate::netns::{Netns, NetnsId};
use crate::paths::Paths;
use crate::record::{self, Attachment, Holder, Nic, State, Tuning};
use crate::records::{self, RecordError};
use crate::table::{LinkIdentity, WholeNic};
use std::path::Path;

/// A NIC that a pod has and no record names.
#[derive(Clone, Copy, Debug)]
pub struct UnrecordedNic<'n> {
    /// The device.
    pub device: &'n DeviceId,
    /// The NIC, as it was on the node.
    pub nic: &'n WholeNic,
}

/// Records a NIC for the pod whose runtime says that it has it, if nothing has recorded it and it is in that pod's namespace:
/// under the name of the pod's interface, for another interface of the pod may be meant. Returns whether it was.
pub fn adopt_nic_of<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    lost: UnrecordedNic<'_>,
    holder: Holder,
) -> Result<bool, AdoptError> {
    let Holder::Pod { netns, netns_inode, ifname, .. } = &holder else { return Ok(false) };
    if matches!(records::read(paths, lost.device), Ok(Some(_))) {
        return Ok(false);
    }
    let Some(id) = kernel.number(Path::new(netns), *netns_inode)? else { return Ok(false) };
    let found = find(kernel, lost, Place::Numbered(id))?;
    if found.is_none_or(|found| found.link.name != *ifname) {
        return Ok(false);
    }
    let _lock = lock::device(paths, lost.device)?;
    Ok(write(paths, kernel, lost, id, |_| holder)?.is_some())
}

/// Records a NIC that is in one of the namespaces whose paths are in a directory; none when it is not, when it is on the node,
/// when somebody works on the device, or when it has a record after all.
pub fn adopt_nic<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    lost: UnrecordedNic<'_>,
    (pod_namespace, pod_name): (&str, &str),
    namespaces: &Path,
) -> Result<Option<Attachment>, AdoptError> {
    let Some(_lock) = lock::try_device(paths, lost.device)? else { return Ok(None) };
    if is_on_node(kernel, lost)? {
        return Ok(None);
    }
    for path in super::entries(namespaces)? {
        let Ok(netns) = Netns::open(&path) else { continue };
        let Some(id) = kernel.number(&path, netns.inode())? else { continue };
        let holder = |found: &NicLink| Holder::Pod {
            container_id: record::UNKNOWN.to_owned(),
            ifname: found.link.name.clone(),
            pod_uid: record::UNKNOWN.to_owned(),
            pod_namespace: pod_namespace.to_owned(),
            pod_name: pod_name.to_owned(),
            netns: path.to_string_lossy().into_owned(),
            netns_inode: netns.inode(),
        };
        if let Some(record) = write(paths, kernel, lost, id, holder)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Whether the NIC is on the node.
pub fn is_on_node<K: Kernel>(kernel: &mut K, lost: UnrecordedNic<'_>) -> Result<bool, NetlinkError> {
    let links = kernel.nics(Place::Home(Home::Node))?;
    let identity = &lost.nic.identity;
    Ok(link::known(&links, identity).is_some() || links.iter().any(|link| link.is_still(identity)))
}

fn find<K: Kernel>(
    kernel: &mut K,
    lost: UnrecordedNic<'_>,
    place: Place,
) -> Result<Option<NicLink>, NetlinkError> {
    let links = kernel.nics(place)?;
    Ok(link::recorded(&links, &as_it_was(lost.nic, 0)).cloned())
}

/// Writes the record, if the NIC is in the namespace with that number and has none. The caller holds the device's lock.
fn write<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    lost: UnrecordedNic<'_>,
    id: NetnsId,
    holder: impl FnOnce(&NicLink) -> Holder,
) -> Result<Option<Attachment>, AdoptError> {
    match records::read(paths, lost.device) {
        Ok(None) | Err(RecordError::Damaged { .. }) => {}
        Ok(Some(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let Some(found) = find(kernel, lost, Place::Numbered(id))? else { return Ok(None) };
    let record = Attachment {
        version: record::VERSION,
        device: lost.device.clone(),
        holder: holder(&found),
        state: State::Attached,
        ifindex: found.link.index,
        lower_ifindex: found.link.index,
        mac: found.link.device_mac(),
        tap: None,
        netns_id: Some(id.0),
        network: None,
        // Other names are perhaps the node's own.
        nic: Some(Nic { alt_names: found.alt_names, ..as_it_was(lost.nic, found.link.mtu) }),
        made: None,
        kubelet: None,
    };
    records::write(paths, &record)?;
    Ok(Some(record))
}

/// The NIC as it is known to have been on the node. Down and without settings of its own: nobody knows which it had, and none
/// of a pod's may stay.
fn as_it_was(nic: &WholeNic, mtu: u32) -> Nic {
    let mac = match &nic.identity {
        LinkIdentity::Hardware { mac, .. } => Some(*mac),
        LinkIdentity::Name { .. } => None,
    };
    Nic {
        pci: nic.address,
        identity: nic.identity.clone(),
        name: nic.name.clone(),
        mac,
        mtu,
        up: false,
        promiscuous: false,
        all_multicast: false,
        alias: None,
        alt_names: Vec::new(),
        tuning: Tuning::default(),
        programs: Some(Vec::new()),
    }
}
