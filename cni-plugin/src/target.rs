//! From `deviceID` to what it stands for on this node.

use crate::config::Network;
use crate::protocol::error::{CniError, Code};
use crate::{Call, protocol};
use macvtap::device_id::DeviceId;
use macvtap::link::IfName;
use macvtap::table::{Device, DeviceTable, DeviceType};
use macvtap::table_file;

/// What a `deviceID` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A device of the table.
    Device(DeviceId),
    /// Perhaps an existing macvtap of the node, by its name, which may be moved.
    HostLink(IfName),
}

/// The device table of this boot.
pub fn table(call: &Call) -> Result<DeviceTable, CniError> {
    // Whatever is wrong with it, the agent writes it anew.
    table_file::load_current(&call.paths).map_err(|error| CniError::from_chain(Code::TryAgain, &error))
}

/// What the configuration's `deviceID` stands for. A table is not needed where the node allows to move any macvtap.
pub fn resolve(
    call: &Call,
    network: &Network,
    table: &Result<DeviceTable, CniError>,
) -> Result<Target, CniError> {
    let Some(text) = &network.device_id else {
        return Err(no_device_id());
    };
    let parsed = text.parse::<DeviceId>();
    if let (Ok(id), Ok(table)) = (&parsed, table)
        && table.device(id).is_some()
    {
        return Ok(Target::Device(id.clone()));
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

/// The device of an ID that [`resolve`] found in this table.
pub fn device<'t>(table: &'t DeviceTable, id: &DeviceId) -> Result<Device<'t>, CniError> {
    let device = table.device(id).ok_or_else(|| unknown_device(id, table))?;
    match device.resource.device_type {
        DeviceType::Macvtap => Ok(device),
        DeviceType::HostDevice => {
            let message = format!(
                "device {id} is a whole NIC (type HostDevice), which this plugin version cannot attach"
            );
            Err(CniError::new(Code::Config, message))
        }
    }
}

/// The error for a device this node does not have.
pub fn unknown_device(id: &DeviceId, table: &DeviceTable) -> CniError {
    let problem = if table.resources.contains_key(id.resource()) {
        format!("resource {} has no slot {}", id.resource(), id.slot())
    } else {
        let names = table.resources.keys().map(ToString::to_string).collect::<Vec<_>>();
        let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        format!("it has no resource {} (it has: {has})", id.resource())
    };
    let remedy = "the annotation k8s.v1.cni.cncf.io/resourceName of the network must name a resource of this node that the pod requests";
    CniError::new(
        protocol::error::Code::Config,
        format!("deviceID {id} is no device of this node: {problem}; {remedy}"),
    )
}

fn no_device_id() -> CniError {
    let message = "network configuration: deviceID is missing: the pod has no device for this network; give the \
                   NetworkAttachmentDefinition the annotation k8s.v1.cni.cncf.io/resourceName and request that resource \
                   in the pod's limits";
    CniError::new(Code::Config, message)
}
