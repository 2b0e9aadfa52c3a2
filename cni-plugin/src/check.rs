//! CHECK: everything is still as ADD reported it.

use crate::config::Migration;
use crate::del::is_theirs;
use crate::ipam::{self, Delegate};
use crate::protocol::environment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::Interface;
use crate::target::{self, Target};
use crate::{Call, add};
use macvtap::device_id::DeviceId;
use macvtap::kernel::{Home, Kernel, Place, Rtnl};
use macvtap::link::{By, Link};
use macvtap::record::{self, Made, State};
use macvtap::table::Owner;
use macvtap::tap::{self, Node};
use macvtap::{give_back, records, table::TableMacvtap};
use rustix::fs::stat;

/// Serves CHECK.
pub fn check(call: &Call, attachment: &Attachment) -> Result<(), CniError> {
    let network = call.document.network(&attachment.args, &call.settings)?;
    let reported = network.prev_result.as_ref().ok_or_else(|| {
        CniError::new(
            Code::Config,
            "network configuration: prevResult is missing; a CHECK needs the result of the ADD",
        )
    })?;
    let sandbox = attachment.netns.display().to_string();
    // The same namespace may be named in another way: /var/run is a link to /run.
    let file = |path: &str| stat(path).ok().map(|file| (file.st_dev, file.st_ino));
    let same =
        |other: &str| other == sandbox || file(other).is_some_and(|other| file(&sandbox) == Some(other));
    let ours = |i: &&Interface| i.name == attachment.ifname.as_str() && same(&i.sandbox);
    let interface = reported.interfaces.iter().find(ours).ok_or_else(|| {
        let message =
            format!("network configuration: prevResult has no interface {} in {sandbox}", attachment.ifname);
        CniError::new(Code::Config, message)
    })?;
    let table = target::table(call);
    let netns = add::open_netns(attachment)?;
    let mut kernel = Rtnl::with_pod(netns).map_err(|error| add::open_error(&error))?;
    let found = kernel.find(Place::Home(Home::Target), &By::Name(attachment.ifname.clone()));
    let link = found
        .map_err(|error| CniError::from_chain(Code::Check, &error))?
        .ok_or_else(|| differs(attachment, "is gone"))?;
    let target = target::resolve(call, &network, &table)?;
    if !matches!(target, Target::Nic(..)) && !link.is_macvtap() {
        let kind = link.kind.as_deref().unwrap_or("physical link");
        return Err(differs(attachment, &format!("is a {kind}, not a macvtap")));
    }
    // A link that follows its guest may have another address than the guest.
    let mac = (network.migration == Migration::Fixed).then_some(interface.mac.as_str());
    compare(attachment, &link, mac.filter(|mac| !mac.is_empty()))?;
    match target {
        Target::Device(id, device) => {
            let record = record(call, attachment, &id)?;
            let made = record.made.unwrap_or_else(|| Made {
                mtu: network.mtu.or(device.resource.mtu),
                owner: Some(add::owner(&network, device.resource.owner)),
            });
            compare_mtu(attachment, &link, interface, made.mtu)?;
            check_device(call, attachment, &mut kernel, &link, &record, &device, made.owner)?;
        }
        Target::Nic(id, found) => {
            let record = record(call, attachment, &id)?;
            let made = record.made.map_or_else(|| network.mtu.or(found.resource.mtu), |made| made.mtu);
            compare_mtu(attachment, &link, interface, made)?;
            check_nic(attachment, &mut kernel, &link, &record)?;
        }
        Target::HostLink(_) => compare_mtu(attachment, &link, interface, network.mtu)?,
    }
    ipam::check(&mut kernel, &link, reported)?;
    match Delegate::new(call, network.ipam.as_ref())? {
        Some(delegate) => delegate.check(),
        None => Ok(()),
    }
}

fn compare(attachment: &Attachment, link: &Link, wanted: Option<&str>) -> Result<(), CniError> {
    if !link.up {
        return Err(differs(attachment, "is down"));
    }
    let mac = link.device_mac().map(|mac| mac.to_string()).unwrap_or_default();
    if let Some(wanted) = wanted.filter(|wanted| !mac.eq_ignore_ascii_case(wanted)) {
        return Err(differs(attachment, &format!("has MAC address {mac}, ADD gave it {wanted}")));
    }
    Ok(())
}

/// Compares the MTU with the one that was asked for when the link was made. Without one it follows the lower link and plugins
/// later in the chain, such as tuning, which do not report the MTU that they set; one that does is right.
fn compare_mtu(
    attachment: &Attachment,
    link: &Link,
    reported: &Interface,
    wanted: Option<u32>,
) -> Result<(), CniError> {
    match wanted {
        Some(wanted) if link.mtu != wanted && reported.mtu != Some(link.mtu) => {
            Err(differs(attachment, &format!("has MTU {}, it was made with {wanted}", link.mtu)))
        }
        _ => Ok(()),
    }
}

fn check_nic(
    attachment: &Attachment,
    kernel: &mut Rtnl,
    link: &Link,
    record: &record::Attachment,
) -> Result<(), CniError> {
    let id = &record.device;
    let nic = record.nic.as_ref();
    let nic = nic.ok_or_else(|| differs(attachment, &format!("is not the NIC of device {id}")))?;
    let found = give_back::find(kernel, Place::Home(Home::Target), nic);
    match found.map_err(|error| CniError::from_chain(Code::Check, &error))? {
        Some(found) if found.index == link.index => Ok(()),
        _ => Err(differs(attachment, &format!("is not NIC {} of device {id}", nic.pci))),
    }
}

/// The record of the attachment, which is complete.
fn record(call: &Call, attachment: &Attachment, id: &DeviceId) -> Result<record::Attachment, CniError> {
    let found = records::read(&call.paths, id).map_err(|error| CniError::from_chain(Code::Check, &error))?;
    let theirs = found.filter(|record| record.state == State::Attached && is_theirs(record, attachment));
    theirs.ok_or_else(|| differs(attachment, &format!("has no attachment record for device {id}")))
}

fn check_device(
    call: &Call,
    attachment: &Attachment,
    kernel: &mut Rtnl,
    link: &Link,
    record: &record::Attachment,
    device: &TableMacvtap<'_>,
    owner: Option<Owner>,
) -> Result<(), CniError> {
    let id = &record.device;
    if (link.index, link.lower) != (device.ifindex, Some(device.link.ifindex)) {
        return Err(differs(attachment, &format!("is not the link of device {id}")));
    }
    if link.mode != Some(device.link.mode) {
        let mode = link.mode.map_or("another mode", macvtap::mode::Mode::as_str);
        let problem = format!("is in mode {mode}, its pool says {}: the pod changed it", device.link.mode);
        return Err(differs(attachment, &problem));
    }
    let number = kernel
        .tap(Home::Target, &attachment.ifname, link.index)
        .map_err(|error| CniError::from_chain(Code::Check, &error))?;
    let path = call.paths.device_node(link.index);
    let Owner { uid, gid } = owner.unwrap_or_default();
    let wanted = Node { number, owner: Owner { uid, gid } };
    if record.tap != Some(number) || tap::node_at(&path) != Some(wanted) {
        let problem =
            format!("has tap {number}, but {} is not that device with owner {uid}:{gid}", path.display());
        return Err(differs(attachment, &problem));
    }
    Ok(())
}

fn differs(attachment: &Attachment, problem: &str) -> CniError {
    let message = format!("interface {} {problem}; delete the pod to have it recreated", attachment.ifname);
    CniError::new(Code::Check, message)
}
