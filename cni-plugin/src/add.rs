//! ADD: the pod gets its device as an interface, with a device node and, where configured, addresses.
//!
//! ```text
//! configuration -> device table -> IPAM plugin found -> record -> lease -> link in the pod, down
//!   -> addresses -> UP -> routes -> node, report
//! ```
//! One procedure ([`serve`]) for each kind of link ([`Pending`]). An IPAM plugin that asks the network for addresses
//! (dhcp) is run when the link is up. Whatever fails, what was done before is undone: the link first, then the lease.

mod raise;

use crate::config::Network;
use crate::follow::{self, Following};
use crate::ipam::{self, Delegate, Lease, Note};
use crate::protocol::environment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::result::{CniResult, Interface};
use crate::target::{self, Target};
use crate::{Call, address};
use macvtap::adopt::{self, UnrecordedNic};
use macvtap::attach::{self, AttachError, Begun, Pending, Repeat, Request};
use macvtap::claim::ClaimError;
use macvtap::device_id::DeviceId;
use macvtap::fit::{UnfitError, UnfitHostLink, UnfitNic};
use macvtap::host_device;
use macvtap::host_link;
use macvtap::kernel::{OpenError, Rtnl};
use macvtap::link::{IfName, Link, Macvtap};
use macvtap::mode::Mode;
use macvtap::netns::{self, Netns, NetnsError, NetnsId};
use macvtap::record::Holder;
use macvtap::table::{DeviceTable, Owner, TableMacvtap, TableNic};
use tracing::warn;

/// What every kind of link needs to be attached.
struct Adding<'a> {
    call: &'a Call,
    attachment: &'a Attachment,
    network: Network,
    delegate: Option<Delegate<'a>>,
    note: Note,
    /// What an earlier ADD leased and the link has.
    leased: Option<CniResult>,
    holder: Holder,
    netns_id: Option<NetnsId>,
    /// What should follow its guest, if anything, and its device.
    following: Option<(DeviceId, Following)>,
}

/// Serves ADD.
pub fn add(call: &Call, attachment: &Attachment) -> Result<CniResult, CniError> {
    let mut network = call.document.network(&attachment.args, &call.settings)?;
    let netns = open_netns(attachment)?;
    let table = target::table(call);
    let target = target::resolve(call, &network, &table)?;
    // A missing plugin is found before anything is touched: a repeated ADD must not cost a running pod its link.
    let delegate = Delegate::new(call, network.ipam.as_ref())?;
    let holder = holder(attachment, &netns)?;
    let (mut kernel, has_users) = Rtnl::with_pod_and_users(netns).map_err(|error| open_error(&error))?;
    if let (Target::Device(id, _), true) = (&target, has_users) {
        return Err(user_namespace(id));
    }
    let netns_id = kernel.pod_id().map_err(|error| CniError::from_chain(Code::Attach, &error))?;
    let note = Note::about(&call.paths, attachment);
    let leased = delegate.as_ref().and_then(|delegate| delegate.leased(&note));
    let leased = leased.filter(|lease| ipam::is_in_use(&mut kernel, &attachment.ifname, lease));
    network.mac = leased.as_ref().and_then(ipam::leased_mac).or(network.mac);
    let mut adding =
        Adding { call, attachment, network, delegate, note, leased, holder, netns_id, following: None };
    follow::mend(&call.paths);
    match target {
        Target::Device(id, device) => add_macvtap(&mut adding, &mut kernel, id, &device),
        Target::Nic(id, nic) => add_nic(&adding, &mut kernel, id, nic),
        Target::HostLink(name) => add_host_link(&adding, &mut kernel, name, table.as_ref().ok()),
    }
}

/// In a user namespace a runtime cannot make the tap's node: it shows the container what the node's own `/dev` has under
/// that name, which nobody in the pod may open, and which may be another pod's.
fn user_namespace(id: &DeviceId) -> CniError {
    let message = format!(
        "the tap of device {id} cannot be opened in a pod with a user namespace of its own; remove hostUsers: false from the pod"
    );
    CniError::new(Code::Config, message)
}

/// A macvtap is made for the pod.
fn add_macvtap(
    adding: &mut Adding<'_>,
    kernel: &mut Rtnl,
    id: DeviceId,
    device: &TableMacvtap<'_>,
) -> Result<CniResult, CniError> {
    let TableMacvtap { resource, link: lower, ifindex } = *device;
    let following = Following::wanted(&adding.network, &adding.holder, lower, ifindex);
    adding.following = following.map(|following| (id.clone(), following));
    let Adding { call, attachment, network, following, .. } = &*adding;
    let following = following.as_ref().map(|(_, following)| following);
    check_mode(network, &id, lower.mode)?;
    // In passthru mode the address of a device becomes the lower link's, which keeps its own unless asked otherwise.
    let asked = following.map(|following| following.away).or(network.mac);
    let candidates = match (asked, lower.mode) {
        (None, Mode::Bridge | Mode::Vepa | Mode::Private) => 0..address::CANDIDATES,
        (Some(_), _) | (None, Mode::Passthru) => 0..0,
    };
    let (pod, ifname) = (&attachment.args.pod_uid, attachment.ifname.as_str());
    let mut derived = candidates.filter_map(|n| address::derived(pod, ifname, n));
    let request = Request {
        device: id,
        holder: adding.holder.clone(),
        network: Some(call.document.name.clone()),
        netns_id: adding.netns_id,
        lower_name: lower.name.clone(),
        lower_identity: lower.identity.clone(),
        link: Macvtap {
            lower: lower.ifindex,
            index: ifindex,
            name: attachment.ifname.clone(),
            mode: lower.mode,
            mac: asked.or_else(|| derived.next()),
            mtu: network.mtu.or(resource.mtu),
            promiscuous: network.promiscuous.unwrap_or(resource.promiscuous),
            all_multicast: resource.all_multicast,
        },
        spare_macs: derived.collect(),
        also_mac: following.map(|following| following.mac),
        has_ipv6: adding.leased.as_ref().is_some_and(ipam::configure::has_ipv6),
        owner: owner(network, resource.owner),
        repeat: adding.repeat(),
    };
    serve(attach::begin(&call.paths, kernel, request)?, adding)
}

/// A NIC of the node moves into the pod as a whole.
fn add_nic(
    adding: &Adding<'_>,
    kernel: &mut Rtnl,
    id: DeviceId,
    TableNic { resource, nic }: TableNic<'_>,
) -> Result<CniResult, CniError> {
    let Adding { call, attachment, network, .. } = adding;
    call.document.refuse_for_nic()?;
    let lost = UnrecordedNic { device: &id, nic };
    if adopt::adopt_nic_of(&call.paths, kernel, lost, adding.holder.clone()).unwrap_or_default() {
        warn!(device = %id, "the record of the NIC was lost and is written again");
    }
    let request = host_device::TakeRequest {
        device: id,
        holder: adding.holder.clone(),
        network: call.document.name.clone(),
        netns_id: adding.netns_id,
        pci: nic.address,
        identity: nic.identity.clone(),
        nic_name: nic.name.clone(),
        ifname: attachment.ifname.clone(),
        mac: network.mac,
        mtu: network.mtu.or(resource.mtu),
        promiscuous: network.promiscuous.unwrap_or(resource.promiscuous),
        all_multicast: resource.all_multicast,
        repeat: adding.repeat(),
    };
    serve(host_device::begin(&call.paths, kernel, request)?, adding)
}

/// An existing macvtap of the node moves into the pod.
fn add_host_link(
    adding: &Adding<'_>,
    kernel: &mut Rtnl,
    name: IfName,
    table: Option<&DeviceTable>,
) -> Result<CniResult, CniError> {
    let Adding { call, attachment, network, .. } = adding;
    let request = host_link::MoveRequest {
        name,
        ifname: attachment.ifname.clone(),
        mac: network.mac,
        mtu: network.mtu,
        promiscuous: network.promiscuous,
        owner: owner(network, Owner::default()),
    };
    match (host_link::begin(&call.paths, kernel, request), table) {
        (Err(AttachError::HostLink(UnfitHostLink::Missing(name))), Some(table)) => {
            // More likely a device that this node does not have.
            let id = name.as_str().parse().ok();
            let unknown = id.map(|id| target::unknown_device(&id, table));
            Err(unknown.unwrap_or_else(|| AttachError::from(UnfitHostLink::Missing(name)).into()))
        }
        (moving, _) => serve(Begun::New(Box::new(moving?)), adding),
    }
}

/// Attaches a link of any kind, unless it is there. When a step fails the link goes before the lease is given back, so that nobody else gets
/// an address that is still in use; but for a plugin that gives it back through the link.
fn serve<P: Pending<Kernel = Rtnl>>(begun: Begun<P>, adding: &Adding<'_>) -> Result<CniResult, CniError> {
    let mut pending = match begun {
        Begun::Present(link) => return Ok(adding.report(link, adding.leased.clone())),
        Begun::New(pending) => *pending,
    };
    let mut lease = None;
    match raise::raise(&mut pending, adding, &mut lease).and_then(|()| adding.start_follower()) {
        Ok(()) => {
            let link = pending.finish()?;
            Ok(adding.report(link, lease.map(Lease::keep)))
        }
        Err(error) => {
            let through_link = adding.delegate.as_ref().is_some_and(Delegate::needs_link);
            let early = lease.take_if(|_| through_link).map(Lease::give_back);
            drop(pending);
            if let Some(Err(problem)) = early.or_else(|| lease.take().map(Lease::give_back)) {
                warn!(%problem, "addresses could not be given back; the DEL tries again");
            }
            Err(error)
        }
    }
}

impl Adding<'_> {
    /// Starts what follows the guest. Before the attachment is complete: one that cannot be followed is undone.
    fn start_follower(&self) -> Result<(), CniError> {
        match &self.following {
            Some((device, following)) => follow::start(&self.call.paths, device, following)
                .map_err(|error| CniError::from_chain(Code::Attach, &error)),
            None => Ok(()),
        }
    }

    /// A link whose lease was lost with the first answer, or that has not all of its addresses, is recreated.
    fn repeat(&self) -> Repeat {
        if self.network.ipam.is_some() && self.leased.is_none() { Repeat::Rebuild } else { Repeat::Keep }
    }

    fn report(&self, link: Link, lease: Option<CniResult>) -> CniResult {
        let link = follow::reported(link, self.following.as_ref().map(|(_, following)| following));
        let mut result = self.network.prev_result.clone().unwrap_or_default();
        let interface = Interface {
            name: link.name.clone(),
            mac: link.device_mac().map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(link.mtu),
            sandbox: self.attachment.netns.display().to_string(),
            more: serde_json::Map::new(),
        };
        // A result that came from an earlier ADD of this attachment has it already, as it was.
        let same = |other: &Interface| other.name == interface.name && other.sandbox == interface.sandbox;
        let ours = result.interfaces.iter().position(same).unwrap_or(result.interfaces.len());
        if let Some(known) = result.interfaces.get_mut(ours) {
            *known = interface;
        } else {
            result.interfaces.push(interface);
        }
        let lease = lease.unwrap_or_default();
        // A result of an earlier ADD also has what was leased then.
        result.ips.retain(|ip| ip.interface != Some(ours) || lease.ips.is_empty());
        result.routes.retain(|route| !lease.routes.contains(route));
        result.ips.extend(lease.ips.into_iter().map(|mut ip| {
            ip.interface = Some(ours);
            ip
        }));
        result.routes.extend(lease.routes);
        if !lease.dns.is_empty() {
            result.dns = lease.dns;
        } else if result.dns.is_empty() {
            result.dns = self.network.dns.clone();
        }
        result
    }
}

/// The owner of the device node, where the pool says `default`.
pub(crate) fn owner(network: &Network, default: Owner) -> Owner {
    Owner { uid: network.owner.unwrap_or(default.uid), gid: network.group.unwrap_or(default.gid) }
}

fn check_mode(network: &Network, id: &DeviceId, actual: Mode) -> Result<(), CniError> {
    match network.mode {
        Some(mode) if mode != actual => {
            let message = format!(
                "network configuration: mode is {mode}, but device {id} is {actual}; remove mode here or change it in the pool"
            );
            Err(CniError::new(Code::Config, message))
        }
        _ => Ok(()),
    }
}

fn holder(attachment: &Attachment, netns: &Netns) -> Result<Holder, CniError> {
    let path = netns::canonical(netns.path());
    let path = path.to_str().ok_or_else(|| {
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
    Netns::open(&attachment.netns).map_err(|error| netns_error(&error))
}

pub(crate) fn open_error(error: &OpenError) -> CniError {
    match error {
        OpenError::Netns(error) => netns_error(error),
        OpenError::Netlink(_) => CniError::from_chain(Code::Attach, error),
    }
}

/// A path that is not a pod's namespace is a wrong `CNI_NETNS`.
fn netns_error(error: &NetnsError) -> CniError {
    let CniError { code, message, details } = CniError::from_chain(Code::Environment, error);
    CniError { code, message: format!("environment variable CNI_NETNS: {message}"), details }
}

impl From<AttachError> for CniError {
    fn from(error: AttachError) -> Self {
        let code = match &error {
            AttachError::Unfit(UnfitError::MtuTooHigh { .. } | UnfitError::LowerKind { .. })
            | AttachError::Nic(UnfitNic::MtuTooHigh { .. })
            | AttachError::HostLink(_)
            | AttachError::Claim(ClaimError::TwoNetworks { .. }) => Code::Config,
            AttachError::Claim(ClaimError::InUse { .. })
            | AttachError::Nic(UnfitNic::Missing { .. } | UnfitNic::Tied { .. })
            | AttachError::LowerGone { .. }
            | AttachError::LowerReplaced { .. }
            | AttachError::LowerBusy { .. }
            | AttachError::NoFreeMinor => Code::TryAgain,
            _ => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}
