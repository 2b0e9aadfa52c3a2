//! From `deviceID` to what it stands for on this node.

use crate::Call;
use crate::config::Network;
use crate::protocol::error::{CniError, Code};
use macvtap::device_id::DeviceId;
use macvtap::link::IfName;
use macvtap::pci::PciAddress;
use macvtap::table::{Device, DeviceTable, TableMacvtap, TableNic};
use macvtap::table_file;

/// What a `deviceID` stands for.
#[derive(Clone, Debug)]
pub enum Target<'t> {
    /// A device of the table, from which a macvtap is made.
    Device(DeviceId, TableMacvtap<'t>),
    /// A NIC of the table, given away as a whole.
    Nic(DeviceId, TableNic<'t>),
    /// Perhaps an existing macvtap of the node, by its name, which may be moved.
    HostLink(IfName),
}

/// The device table of this boot.
pub fn table(call: &Call) -> Result<DeviceTable, CniError> {
    // Whatever is wrong with it, the agent rewrites it.
    table_file::load_current(&call.paths).map_err(|error| CniError::from_chain(Code::TryAgain, &error))
}

/// What the configuration's `deviceID` stands for. A table is not needed where the node allows to move any macvtap.
pub fn resolve<'t>(
    call: &Call,
    network: &Network,
    table: &'t Result<DeviceTable, CniError>,
) -> Result<Target<'t>, CniError> {
    let Some(text) = &network.device_id else {
        return Err(no_device_id());
    };
    if let Ok(pci) = text.parse::<PciAddress>() {
        let table = table.as_ref().map_err(Clone::clone)?;
        let (id, nic) = table.nic(pci).ok_or_else(|| unknown_nic(pci, table))?;
        return Ok(Target::Nic(id, nic));
    }
    let parsed = text.parse::<DeviceId>();
    if let (Ok(id), Ok(table)) = (&parsed, table)
        && let Some(device) = table.device(id)
    {
        return match device {
            Device::Macvtap(macvtap) => Ok(Target::Device(id.clone(), macvtap)),
            Device::Nic(found) => Err(whole_nic(id, found.nic.address)),
        };
    }
    let may_move = call.settings.move_host_links || table.as_ref().is_ok_and(|table| table.standalone);
    if may_move && let Ok(name) = text.parse() {
        return Ok(Target::HostLink(name));
    }
    let id = parsed.map_err(|error| {
        let remedy = "leave deviceID out of the configuration, Multus fills it in";
        CniError::new(Code::Config, format!("network configuration: deviceID: {error}; {remedy}"))
    })?;
    Err(unknown_device(&id, table.as_ref().map_err(Clone::clone)?))
}

/// The device that a `deviceID` means, if it names one; whether it exists is not asked.
pub fn known(call: &Call, text: &str) -> Option<DeviceId> {
    let Ok(pci) = text.parse::<PciAddress>() else {
        return text.parse().ok();
    };
    table(call).ok()?.nic(pci).map(|(id, _)| id)
}

/// The error for a NIC that is not named by its PCI address.
fn whole_nic(id: &DeviceId, address: PciAddress) -> CniError {
    let message = format!(
        "network configuration: deviceID {id} is a whole NIC, whose ID is its PCI address, {address}; leave deviceID out of the configuration, Multus fills it in"
    );
    CniError::new(Code::Config, message)
}

/// The error for a device this node does not have.
pub fn unknown_device(id: &DeviceId, table: &DeviceTable) -> CniError {
    if let Some(reason) = table.left_out.get(id.resource()) {
        let message = format!(
            "resource {} of deviceID {id} is described in the device table as this release does not know it: {reason}; run agent and plugin of one release",
            id.resource()
        );
        return CniError::new(Code::TryAgain, message);
    }
    let problem = if table.resources.contains_key(id.resource()) {
        format!("resource {} has no slot {}", id.resource(), id.slot())
    } else {
        let names = table.resources.keys().map(ToString::to_string).collect::<Vec<_>>();
        let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        format!("it has no resource {} (it has: {has})", id.resource())
    };
    let remedy = "the annotation k8s.v1.cni.cncf.io/resourceName of the network must name a resource of this node that the pod requests";
    CniError::new(Code::Config, format!("deviceID {id} is not a device of this node: {problem}; {remedy}"))
}

fn unknown_nic(pci: PciAddress, table: &DeviceTable) -> CniError {
    let offered: Vec<_> = table.nics().map(|(_, found)| found.nic.address.to_string()).collect();
    let has = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
    let message = format!(
        "deviceID {pci} is not a NIC that this node gives to pods (it gives: {has}); leave deviceID out of the configuration, Multus fills it in, and let the annotation k8s.v1.cni.cncf.io/resourceName of the network name a resource of type HostDevice that the pod requests"
    );
    CniError::new(Code::Config, message)
}

fn no_device_id() -> CniError {
    let message = "network configuration: deviceID is missing: the pod has no device for this network; give the \
                   NetworkAttachmentDefinition the annotation k8s.v1.cni.cncf.io/resourceName and request that resource \
                   in the pod's limits";
    CniError::new(Code::Config, message)
}
