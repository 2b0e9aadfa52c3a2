//! ADD of a whole NIC: it moves into the pod, and gets addresses there as a macvtap does.

use super::raise::{Raise, Source, raise};
use super::{holder, open_error, report, tell_overruled};
use crate::config::Network;
use crate::ipam::{Delegate, Lease};
use crate::protocol::environment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::CniResult;
use crate::target;
use crate::{Call, ipam};
use macvtap::attach::Repeat;
use macvtap::claim::ClaimError;
use macvtap::device_id::DeviceId;
use macvtap::host_device::{self, Begun, Request, TakeError, Taking};
use macvtap::kernel::Rtnl;
use macvtap::link::{Change, Link};
use macvtap::netns::Netns;
use macvtap::pci::PciAddress;
use macvtap::table::DeviceTable;

/// The NIC of the table that the configuration's `deviceID` names.
pub(super) fn add(
    call: &Call,
    attachment: &Attachment,
    network: &Network,
    table: &DeviceTable,
    netns: Netns,
    (id, pci): (DeviceId, PciAddress),
) -> Result<CniResult, CniError> {
    call.document.refuse_for_nic()?;
    let device = table.device(&id).ok_or_else(|| target::unknown_device(&id, table))?;
    let (resource, nic) = (device.resource, device.link);
    let holder = holder(attachment, &netns)?;
    let mut kernel = Rtnl::with_pod(netns).map_err(|error| open_error(&error))?;
    let netns_id = kernel.pod_id().map_err(|error| CniError::from_chain(Code::Attach, &error))?;
    let request = Request {
        device: id,
        holder,
        network: call.document.name.clone(),
        netns_id,
        pci,
        identity: nic.identity.clone(),
        nic_name: nic.name.clone(),
        ifname: attachment.ifname.clone(),
        mac: network.mac,
        mtu: network.mtu.or(resource.mtu),
        promiscuous: network.promiscuous.unwrap_or(resource.promiscuous),
        all_multicast: resource.all_multicast,
        // With addresses everything is done again: the lease may have been lost with the first answer.
        repeat: if network.ipam.is_some() { Repeat::Rebuild } else { Repeat::Keep },
    };
    let made = attach_nic(call, attachment, network, &mut kernel, request);
    if made.is_err() {
        ipam::put_back(&mut kernel, &attachment.ifname);
    }
    made
}

fn attach_nic(
    call: &Call,
    attachment: &Attachment,
    network: &Network,
    kernel: &mut Rtnl,
    request: Request,
) -> Result<CniResult, CniError> {
    let delegate = Delegate::new(call, network.ipam.as_ref())?;
    match host_device::begin(&call.paths, kernel, request)? {
        Begun::Present(link) => report(attachment, network, &link, None),
        Begun::New(taking) => take(*taking, attachment, network, delegate.as_ref()),
    }
}

/// The NIC comes back, and the lease is given back, when a step fails.
fn take(
    mut taking: Taking<'_>,
    attachment: &Attachment,
    network: &Network,
    delegate: Option<&Delegate<'_>>,
) -> Result<CniResult, CniError> {
    if let (Some(delegate), true) = (delegate, taking.is_repeat()) {
        // Plugins refuse a second lease for the same container and interface.
        delegate.del()?;
        ipam::put_back(taking.kernel(), &attachment.ifname);
    }
    let source = Source::open(delegate, taking.kernel())?;
    if let Some(mac) = source.mac() {
        tell_overruled(network.mac, mac);
        taking.wish_mac(mac);
    }
    taking.move_in()?;
    let lease = raise(&mut taking, source, network.announce)?;
    let link = taking.finish()?;
    report(attachment, network, &link, lease.map(Lease::keep))
}

impl Raise for Taking<'_> {
    fn kernel(&mut self) -> &mut Rtnl {
        Taking::kernel(self)
    }

    fn link(&mut self) -> Result<Link, CniError> {
        Ok(Taking::link(self)?)
    }

    /// The pod itself speaks on its NIC, not a guest behind it.
    fn keep_silent(&mut self) -> Result<(), CniError> {
        Ok(())
    }

    fn up(&mut self) -> Result<(), CniError> {
        Ok(Taking::change(self, Change::Up)?)
    }

    /// A frame that a NIC does not get rid of holds the network namespace of the socket it was sent from. That could not end
    /// then, and only its end brings the NIC back when there was no DEL. The kernel's own announcements hold nothing.
    fn is_announced_by_us(&self) -> bool {
        false
    }
}

impl From<TakeError> for CniError {
    fn from(error: TakeError) -> Self {
        let code = match &error {
            TakeError::MtuTooHigh { .. } | TakeError::Claim(ClaimError::TwoNetworks { .. }) => Code::Config,
            TakeError::Claim(ClaimError::InUse { .. })
            | TakeError::Missing { .. }
            | TakeError::Tied { .. } => Code::TryAgain,
            TakeError::NameTaken { .. }
            | TakeError::OwnOtherName { .. }
            | TakeError::OddName { .. }
            | TakeError::Lock(_)
            | TakeError::Record(_)
            | TakeError::TakeOver(_)
            | TakeError::Netlink(_)
            | TakeError::Changed { .. } => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}
