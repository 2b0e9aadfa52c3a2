//! NICs that pods get as a whole (type `HostDevice`): what the kubelet calls them, and which are in pods now.
//!
//! A NIC that left the node's namespace looks like one that was unplugged. The attachment record shows the difference: it
//! is written before the NIC is moved, and removed after it is back.

use crate::links::link::{Hardware, Kind, Link};
use crate::links::sysfs;
use crate::pods::PodName;
use macvtap::device_id::DeviceId;
use macvtap::paths::Paths;
use macvtap::pci::PciAddress;
use macvtap::record::{Attachment, Holder, Nic};
use macvtap::records;
use macvtap::table::{DeviceTable, LinkIdentity, WholeNic};
use macvtap_proto::deviceplugin::ContainerAllocateResponse;
use std::collections::BTreeMap;
use std::path::Path;

/// A NIC that is in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPod {
    /// The pod, as far as its runtime passed it.
    pub pod: PodName,
    /// The NIC as it was on the node.
    pub nic: Nic,
    /// What the machine still reports of it.
    pub hardware: Hardware,
}

/// What the kubelet calls NICs, and what they are called among ourselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicNames(BTreeMap<(String, PciAddress), DeviceId>);

/// The environment variable that passes a container its NICs.
pub const VARIABLE: &str = "VIRT-PCI-ADDR";

/// Its value: a comma after each address, also the last one, as virt-network-device-plugin writes it.
pub fn to_text(addresses: impl Iterator<Item = PciAddress>) -> String {
    addresses.flat_map(|address| [address.to_string(), ",".to_owned()]).collect()
}

/// The NICs in an answer to Allocate.
pub fn from_answer(answer: &ContainerAllocateResponse) -> Vec<PciAddress> {
    let value = answer.envs.get(VARIABLE).map(String::as_str).unwrap_or_default();
    value.split(',').filter_map(|address| address.parse().ok()).collect()
}

/// The NICs of the table that are in pods, by their records. Reads one small file for each NIC that `is_away`.
pub fn in_pods(
    paths: &Paths,
    table: &DeviceTable,
    is_away: impl Fn(&WholeNic) -> bool,
) -> BTreeMap<DeviceId, InPod> {
    let away = table.nics().filter(|(_, found)| is_away(found.nic));
    let found = away.filter_map(|(device, _)| {
        let record = records::read(paths, &device).ok()??;
        Some((device, InPod::of(record, Path::new(sysfs::FUNCTIONS))?))
    });
    found.collect()
}

impl InPod {
    fn of(record: Attachment, functions: &Path) -> Option<Self> {
        let nic = record.nic?;
        let pod = match record.holder {
            Holder::Pod { pod_namespace, pod_name, .. } => {
                PodName { namespace: pod_namespace, name: pod_name }
            }
            Holder::Host => return None,
        };
        Some(Self { hardware: sysfs::function(functions, nic.pci), pod, nic })
    }

    /// The NIC as the link of the node that it was.
    pub fn link(&self, ifindex: u32) -> Link {
        let Nic { identity, name, alt_names, mac, mtu, up, .. } = &self.nic;
        let (permanent_mac, parent) = match identity {
            LinkIdentity::Hardware { mac, parent } => (Some(*mac), Some(parent.clone())),
            LinkIdentity::Name { .. } => (None, self.hardware.parent.clone()),
        };
        Link {
            name: name.clone(),
            altnames: alt_names.clone(),
            kind: Kind::Physical,
            mac: *mac,
            permanent_mac,
            mtu: *mtu,
            admin_up: *up,
            carrier: *up,
            hardware: Hardware { parent, ..self.hardware.clone() },
            ..Link::blank(ifindex)
        }
    }
}

impl NicNames {
    /// Those of a table.
    pub fn of(table: &DeviceTable) -> Self {
        let names = table.nics().map(|(device, found)| {
            let resource = format!("{}/{}", found.resource.prefix, device.resource());
            ((resource, found.nic.address), device)
        });
        Self(names.collect())
    }

    /// The device of ours that the kubelet means. PCI addresses are other plugins' names too, so there the whole name of
    /// the resource decides.
    pub fn device(&self, resource: &str, id: &str) -> Option<DeviceId> {
        if let Ok(address) = id.parse::<PciAddress>() {
            return self.0.get(&(resource.to_owned(), address)).cloned();
        }
        let device: DeviceId = id.parse().ok()?;
        let name = resource.rsplit_once('/').map_or(resource, |(_, name)| name);
        (device.resource().as_str() == name).then_some(device)
    }
}

#[cfg(test)]
pub(crate) mod tests;
