//! Links for pods that have only the tap: made when their container starts, removed when the device is handed out anew.

use macvtap::attach::{self, AttachError, Repeat, Request};
use macvtap::detach::{self, DetachError};
use macvtap::device_id::DeviceId;
use macvtap::kernel::{OpenError, Rtnl};
use macvtap::link::{IfName, Macvtap};
use macvtap::paths::Paths;
use macvtap::record::Holder;
use macvtap::records::{self, RecordError};
use macvtap::table_file::{self, TableFileError};

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
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Whether the device was last given to a pod that had only the tap. A record that cannot be read counts: looking at it
/// again, with the lock held, says why.
pub fn has_host_record(paths: &Paths, device: &DeviceId) -> bool {
    match records::read(paths, device) {
        Ok(record) => record.is_some_and(|record| record.holder == Holder::Host),
        Err(_) => true,
    }
}

/// Removes what a pod left that had only the tap of this device.
pub fn remove_host(paths: &Paths, device: &DeviceId) -> Result<(), TapOnlyError> {
    let mut kernel = Rtnl::node()?;
    detach::detach(paths, &mut kernel, device, |record| record.holder == Holder::Host)?;
    Ok(())
}

/// Makes sure that the device has a link: its network's, or else one in the namespace of the node.
pub fn ensure(paths: &Paths, device: &DeviceId) -> Result<(), TapOnlyError> {
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
        repeat: Repeat::Keep,
    };
    let mut kernel = Rtnl::node()?;
    attach::tap_only(paths, &mut kernel, request)?;
    Ok(())
}
