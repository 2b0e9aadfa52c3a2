//! ADD: the pod gets its device as an interface, with a device node and, where configured, addresses.
//!
//! ```text
//! judge the configuration -> device table -> record -> IPAM -> link down -> addresses -> UP -> routes -> node, report
//! ```
//! An IPAM plugin that asks the network for addresses (dhcp) is run when the link is up.
//! Whatever fails, what was done before is undone, the IPAM plugin's part too.

mod nic;
mod raise;

use crate::config::Network;
use crate::ipam::{Delegate, Lease};
use crate::protocol::environment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::{CniResult, Interface};
use crate::target::{self, Target};
use crate::{Call, address, ipam};
use macvtap::attach::{self, AttachError, Attached, Attaching, Begun, Repeat, Request};
use macvtap::claim::ClaimError;
use macvtap::device_id::DeviceId;
use macvtap::fit::UnfitError;
use macvtap::host_link::{self, MoveError};
use macvtap::kernel::{OpenError, Rtnl};
use macvtap::link::{IfName, Link, Macvtap};
use macvtap::mac::MacAddr;
use macvtap::mode::Mode;
use macvtap::netns::{Netns, NetnsError, NetnsId};
use macvtap::record::Holder;
use macvtap::table::{Device, DeviceTable, Owner};
use raise::{DeviceLink, Source, raise};
use tracing::warn;

/// Serves ADD.
pub fn add(call: &Call, attachment: &Attachment) -> Result<CniResult, CniError> {
    let network = call.document.network(&attachment.args, &call.settings)?;
    let netns = open_netns(attachment)?;
    let table = target::table(call);
    let id = match target::resolve(call, &network, &table)? {
        Target::Device(id) => id,
        Target::Nic(id, pci) => return nic::add(call, attachment, &network, &table?, netns, (id, pci)),
        Target::HostLink(name) => return add_host_link(call, attachment, &network, &table, netns, name),
    };
    let table = table?;
    let device = target::device(&table, &id)?;
    check_mode(&network, &id, &device)?;
    let holder = holder(attachment, &netns)?;
    let mut kernel = Rtnl::with_pod(netns).map_err(|error| open_error(&error))?;
    let netns_id = kernel.pod_id().map_err(|error| CniError::from_chain(Code::Attach, &error))?;
    let mut request = request(attachment, &network, id, &device, holder);
    request.netns_id = netns_id;
    request.network = Some(call.document.name.clone());
    let made = attach_device(call, attachment, &network, &mut kernel, request);
    if made.is_err() {
        ipam::put_back(&mut kernel, &attachment.ifname);
    }
    made
}

fn attach_device(
    call: &Call,
    attachment: &Attachment,
    network: &Network,
    kernel: &mut Rtnl,
    request: Request,
) -> Result<CniResult, CniError> {
    let asked_for_mac = network.mac.is_some() || request.link.mac.is_none();
    match attach::begin(&call.paths, kernel, request)? {
        Begun::Present(attached) => report(attachment, network, &attached.link, None),
        Begun::New(attaching) => {
            let delegate = Delegate::new(call, network.ipam.as_ref())?;
            make(*attaching, attachment, network, delegate.as_ref(), asked_for_mac)
        }
    }
}

/// Link, addresses, node. The attachment and the lease undo themselves when a step fails.
fn make(
    mut attaching: Attaching<'_, Rtnl>,
    attachment: &Attachment,
    network: &Network,
    delegate: Option<&Delegate<'_>>,
    asked_for_mac: bool,
) -> Result<CniResult, CniError> {
    if let (Some(delegate), true) = (delegate, attaching.is_repeat()) {
        // Plugins refuse a second lease for the same container and interface.
        delegate.del()?;
        ipam::put_back(attaching.kernel(), &attachment.ifname);
    }
    if delegate.is_some() {
        // Before addresses are leased in vain.
        attaching.check_lower()?;
    }
    let source = Source::open(delegate, attaching.kernel())?;
    let leased_mac = source.mac();
    if let Some(mac) = leased_mac {
        tell_overruled(network.mac, mac);
        attaching.wish_mac(mac);
    }
    attaching.create_link()?;
    let derived = !asked_for_mac && leased_mac.is_none();
    let mut link = DeviceLink { attaching, derived_for: derived.then_some(attachment) };
    let lease = raise(&mut link, source, network.announce)?;
    let Attached { link, .. } = link.attaching.finish()?;
    report(attachment, network, &link, lease.map(Lease::keep))
}

/// An existing macvtap of the node moves into the pod.
fn add_host_link(
    call: &Call,
    attachment: &Attachment,
    network: &Network,
    table: &Result<DeviceTable, CniError>,
    netns: Netns,
    name: IfName,
) -> Result<CniResult, CniError> {
    let mut kernel = Rtnl::with_pod(netns).map_err(|error| open_error(&error))?;
    let delegate = Delegate::new(call, network.ipam.as_ref())?;
    let source = Source::open(delegate.as_ref(), &mut kernel)?;
    let mac = source.mac().or(network.mac);
    let (mtu, promiscuous) = (network.mtu, network.promiscuous);
    let default = Owner::default();
    let owner =
        Owner { uid: network.owner.unwrap_or(default.uid), gid: network.group.unwrap_or(default.gid) };
    let request = host_link::Request { name, ifname: attachment.ifname.clone(), mac, mtu, promiscuous };
    let mut link = match (host_link::begin(&call.paths, &mut kernel, &request), table) {
        (Err(error @ MoveError::Missing(_)), Ok(table)) => {
            // More likely a device that this node does not have.
            let id = request.name.as_str().parse().ok();
            return Err(id.map_or_else(|| error.into(), |id| target::unknown_device(&id, table)));
        }
        (begun, _) => begun?,
    };
    let made = raise(&mut link, source, network.announce)
        .and_then(|lease| report(attachment, network, &link.finish(owner)?, lease.map(Lease::keep)));
    if made.is_err() {
        ipam::put_back(&mut kernel, &attachment.ifname);
    }
    made
}

fn report(
    attachment: &Attachment,
    network: &Network,
    link: &Link,
    lease: Option<CniResult>,
) -> Result<CniResult, CniError> {
    let mut result = network.prev_result.clone().unwrap_or_default();
    let ours = result.interfaces.len();
    result.interfaces.push(Interface {
        name: link.name.clone(),
        mac: link.device_mac().map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        sandbox: attachment.required_netns()?.display().to_string(),
        more: serde_json::Map::new(),
    });
    let lease = lease.unwrap_or_default();
    result.ips.extend(lease.ips.into_iter().map(|mut ip| {
        ip.interface = Some(ours);
        ip
    }));
    result.routes.extend(lease.routes);
    if !lease.dns.is_empty() {
        result.dns = lease.dns;
    } else if result.dns.is_empty() {
        result.dns = network.dns.clone();
    }
    Ok(result)
}

fn request(
    attachment: &Attachment,
    network: &Network,
    device_id: DeviceId,
    device: &Device<'_>,
    holder: Holder,
) -> Request {
    let Device { resource, link: lower, ifindex } = *device;
    // In passthru mode the address of a device becomes the lower link's, which keeps its own unless told otherwise.
    let derived = || match lower.mode {
        Mode::Passthru => None,
        Mode::Bridge | Mode::Vepa | Mode::Private => {
            address::derived(&attachment.args.pod_uid, attachment.ifname.as_str(), 0)
        }
    };
    Request {
        device: device_id,
        holder,
        network: None,
        netns_id: None::<NetnsId>,
        lower_name: lower.name.clone(),
        link: Macvtap {
            lower: lower.ifindex,
            index: ifindex,
            name: attachment.ifname.clone(),
            mode: lower.mode,
            mac: network.mac.or_else(derived),
            mtu: network.mtu.or(resource.mtu),
            promiscuous: network.promiscuous.unwrap_or(resource.promiscuous),
            all_multicast: resource.all_multicast,
        },
        owner: Owner {
            uid: network.owner.unwrap_or(resource.owner.uid),
            gid: network.group.unwrap_or(resource.owner.gid),
        },
        // With addresses everything is done again: the lease may have been lost with the first answer.
        repeat: if network.ipam.is_some() { Repeat::Rebuild } else { Repeat::Keep },
    }
}

fn check_mode(network: &Network, id: &DeviceId, device: &Device<'_>) -> Result<(), CniError> {
    match network.mode {
        Some(mode) if mode != device.link.mode => {
            let message = format!(
                "network configuration: mode is {mode}, but device {id} is {}; remove mode here or change it in the pool",
                device.link.mode
            );
            Err(CniError::new(Code::Config, message))
        }
        _ => Ok(()),
    }
}

fn holder(attachment: &Attachment, netns: &Netns) -> Result<Holder, CniError> {
    let path = netns.path().to_str().ok_or_else(|| {
        let shown = netns.path().display();
        CniError::new(
            Code::Environment,
            format!("environment variable CNI_NETNS is {shown}; write it in UTF-8"),
        )
    })?;
    Ok(Holder::Pod {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.to_string(),
        pod_uid: attachment.args.pod_uid.clone(),
        pod_namespace: attachment.args.pod_namespace.clone(),
        pod_name: attachment.args.pod_name.clone(),
        netns: path.to_owned(),
        netns_inode: netns.inode(),
    })
}

/// The pod's namespace.
pub(crate) fn open_netns(attachment: &Attachment) -> Result<Netns, CniError> {
    Netns::open(attachment.required_netns()?).map_err(|error| netns_error(&error))
}

pub(crate) fn open_error(error: &OpenError) -> CniError {
    match error {
        OpenError::Netns(error) => netns_error(error),
        OpenError::Netlink(_) => CniError::from_chain(Code::Attach, error),
    }
}

/// What is no pod's namespace is a wrong `CNI_NETNS`.
fn netns_error(error: &NetnsError) -> CniError {
    let CniError { code, message, details } = CniError::from_chain(Code::Environment, error);
    CniError { code, message: format!("environment variable CNI_NETNS: {message}"), details }
}

fn tell_overruled(asked: Option<MacAddr>, leased: MacAddr) {
    if let Some(asked) = asked.filter(|asked| *asked != leased) {
        warn!(%asked, used = %leased, "the IPAM plugin's MAC address is used instead of the one asked for");
    }
}

impl From<AttachError> for CniError {
    fn from(error: AttachError) -> Self {
        let code = match &error {
            AttachError::Unfit(UnfitError::MtuTooHigh { .. })
            | AttachError::Claim(ClaimError::TwoNetworks { .. }) => Code::Config,
            AttachError::Claim(ClaimError::InUse { .. })
            | AttachError::LowerGone { .. }
            | AttachError::LowerBusy { .. }
            | AttachError::NoFreeMinor => Code::TryAgain,
            AttachError::LinkLost { .. }
            | AttachError::Unfit(UnfitError::NameTaken(_) | UnfitError::MacInUse { .. })
            | AttachError::IndexTaken { .. }
            | AttachError::Lock(_)
            | AttachError::Record(_)
            | AttachError::TakeOver(_)
            | AttachError::Netlink(_)
            | AttachError::Tap(_)
            | AttachError::Park(_)
            | AttachError::Node(_)
            | AttachError::Changed { .. } => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}

impl From<MoveError> for CniError {
    fn from(error: MoveError) -> Self {
        let code = match &error {
            MoveError::Missing(_)
            | MoveError::NotMacvtap { .. }
            | MoveError::Ours(_)
            | MoveError::Unfit(UnfitError::MtuTooHigh { .. }) => Code::Config,
            MoveError::Unfit(UnfitError::NameTaken(_) | UnfitError::MacInUse { .. })
            | MoveError::Node(_)
            | MoveError::Record(_)
            | MoveError::Netlink(_)
            | MoveError::Tap(_)
            | MoveError::Owner(_) => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}
