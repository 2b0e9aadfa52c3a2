//! A whole NIC of the node, given to a pod: moved into its namespace, and brought back when the pod is gone.
//!
//! ```text
//! begin      lock the device, judge its record, look whether the node uses the NIC, record "Creating" with the NIC as it is
//! place      NIC down, address, MTU, flags, old name as alias; into the pod's namespace under the pod's name
//! up         after what the network needs
//! finish     read back, record "Attached"
//! ```
//! A value that is dropped before [`Pending::finish`] succeeded brings the NIC back as it was.
//! [`detach`](crate::detach::detach) and [`collect`](crate::detach::collect) bring back a NIC that a record names, also
//! when its namespace is gone or its maker was killed.

mod ties;

use crate::attach::{AttachError, Begun, Pending};
use crate::claim::{self, Claim, Repeat};
use crate::detach;
use crate::device_id::DeviceId;
use crate::fit::UnfitNic;
use crate::give_back;
use crate::kernel::{Home, Kernel, Place};
use crate::kubelet_id;
use crate::link::{self, BadIfName, Change, IfName, Link, NicLink};
use crate::links::Links;
use crate::lock::{self, Lock};
use crate::mac::MacAddr;
use crate::netns::NetnsId;
use crate::paths::Paths;
use crate::pci::PciAddress;
use crate::record::{self, Attachment, Holder, Made, Nic, State};
use crate::records;
use crate::table::LinkIdentity;
use tracing::{info, warn};

const NODE: Place = Place::Home(Home::Node);
const TARGET: Place = Place::Home(Home::Target);

/// A NIC to give to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeRequest {
    /// The device.
    pub device: DeviceId,
    /// Its future holder.
    pub holder: Holder,
    /// Name of the pod's network.
    pub network: String,
    /// Number of the pod's namespace.
    pub netns_id: Option<NetnsId>,
    /// Where the NIC is.
    pub pci: PciAddress,
    /// Its identity.
    pub identity: LinkIdentity,
    /// Its name in the device table, for messages.
    pub nic_name: String,
    /// Its name in the pod.
    pub ifname: IfName,
    /// Another address; absent: its own.
    pub mac: Option<MacAddr>,
    /// Another MTU; absent: the one it has.
    pub mtu: Option<u32>,
    /// Whether it takes every frame.
    pub promiscuous: bool,
    /// Whether it takes every multicast frame.
    pub all_multicast: bool,
    /// What happens when the same holder has the device already.
    pub repeat: Repeat,
}

/// A NIC on its way into a pod. Dropping it brings it back.
#[derive(Debug)]
pub struct Taking<'k, K: Kernel> {
    paths: &'k Paths,
    kernel: &'k mut K,
    request: TakeRequest,
    record: Attachment,
    nic: Nic,
    is_repeat: bool,
    is_finished: bool,
    /// Held until everything is undone or done.
    _lock: Lock,
}

/// Locks the device and records that the NIC is about to move. Changes nothing on the NIC when it fails.
pub fn begin<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    request: TakeRequest,
) -> Result<Begun<Taking<'k, K>>, AttachError> {
    let lock = lock::device(paths, &request.device)?;
    let existing = records::read(paths, &request.device)?;
    let claim = claim::judge_on(paths, kernel, existing.as_ref(), &request.holder)?;
    if let Some(existing) = &existing {
        if claim == Claim::Again
            && request.repeat == Repeat::Keep
            && let Some(link) = present(kernel, &request, existing)?
        {
            return Ok(Begun::Present(link));
        }
        if claim == Claim::TakeOver {
            info!(from = %claim::describe(&existing.holder), "device taken over");
        }
        detach::remove_parts(paths, kernel, existing)?;
        records::remove(paths, existing)?;
    }
    let before = find_free(paths, kernel, &request)?;
    let nic = before.as_nic(request.pci, request.identity.clone());
    let nic = nic.map_err(|BadIfName(name)| UnfitNic::OddName { name, pci: request.pci })?;
    let record = Attachment {
        version: record::VERSION,
        device: request.device.clone(),
        holder: request.holder.clone(),
        state: State::Creating,
        ifindex: before.link.index,
        lower_ifindex: before.link.index,
        mac: None,
        tap: None,
        netns_id: request.netns_id.map(|NetnsId(id)| id),
        network: Some(request.network.clone()),
        nic: Some(nic.clone()),
        made: Some(Made { mtu: request.mtu, owner: None }),
        kubelet: kubelet_id::read(paths).map(|kubelet| kubelet.id),
    };
    records::write(paths, &record)?;
    let is_repeat = claim == Claim::Again;
    let taking = Taking { paths, kernel, request, record, nic, is_repeat, is_finished: false, _lock: lock };
    Ok(Begun::New(Box::new(taking)))
}

impl<K: Kernel> Pending for Taking<'_, K> {
    type Kernel = K;

    fn kernel(&mut self) -> &mut K {
        self.kernel
    }

    fn is_repeat(&self) -> bool {
        self.is_repeat
    }

    fn wish_mac(&mut self, mac: MacAddr) {
        self.request.mac = Some(mac);
    }

    /// Gives the NIC what the pod wants, and the NIC to the pod.
    fn place(&mut self) -> Result<(), AttachError> {
        let index = self.record.lower_ifindex;
        let name = self.nic.name.clone();
        let node = self.kernel.node_links();
        let wanted = [
            // First and alone: few drivers change the address of a link that is up.
            Change::up(false),
            Change { alias: Some(&name), ..Change::default() },
            Change {
                mac: self.request.mac,
                mtu: self.request.mtu,
                promiscuous: Some(self.request.promiscuous),
                all_multicast: Some(self.request.all_multicast),
                ..Change::default()
            },
        ];
        for wanted in wanted {
            node.set(index, wanted, &format_args!("prepare NIC {name} for a pod"))?;
        }
        let ifname = &self.request.ifname;
        self.kernel.move_in(index, ifname, &format_args!("move NIC {name} into the pod as {ifname}"))?;
        // Its index was perhaps taken there.
        self.record.ifindex = self.link()?.index;
        Ok(records::write(self.paths, &self.record)?)
    }

    fn index(&self) -> u32 {
        self.record.ifindex
    }

    fn ifname(&self) -> &IfName {
        &self.request.ifname
    }

    fn link(&mut self) -> Result<Link, AttachError> {
        let found = give_back::find(self.kernel, TARGET, &self.nic)?;
        let found = found.filter(|link| link.name == self.request.ifname.as_str());
        found.ok_or_else(|| AttachError::Changed { name: self.nic.name.clone() })
    }

    fn up(&mut self) -> Result<(), AttachError> {
        Ok(self.kernel.change(self.record.ifindex, Change::up(true))?)
    }

    /// A frame that a NIC cannot send holds the network namespace of the socket it was sent from. That could not end then, and
    /// only its end brings the NIC back when there was no DEL.
    fn sends_without_carrier(&self) -> bool {
        false
    }

    /// Reads the NIC back and records that everything is in place.
    fn finish(mut self) -> Result<Link, AttachError> {
        let link = self.link()?;
        if !link.up {
            return Err(AttachError::Changed { name: self.nic.name.clone() });
        }
        self.record.ifindex = link.index;
        self.record.mac = link.device_mac();
        self.record.state = State::Attached;
        records::write(self.paths, &self.record)?;
        self.is_finished = true;
        Ok(link)
    }
}

impl<K: Kernel> Drop for Taking<'_, K> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        if let Err(error) = detach::remove_parts(self.paths, self.kernel, &self.record) {
            // The record stays: by it the NIC is found.
            warn!(device = %self.record.device, %error, "NIC not brought back to the node");
            return;
        }
        if let Err(error) = records::remove(self.paths, &self.record) {
            warn!(device = %self.record.device, %error, "attachment record left behind");
        }
    }
}

/// The NIC on the node, if nothing there needs it and the pod can take it.
fn find_free<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    request: &TakeRequest,
) -> Result<NicLink, AttachError> {
    let links = kernel.nics(NODE)?;
    let still = links.iter().find(|link| link.is_still(&request.identity));
    let found = still.or_else(|| link::known(&links, &request.identity));
    let found = found.ok_or_else(|| UnfitNic::Missing {
        device: request.device.clone(),
        pci: request.pci,
        name: request.nic_name.clone(),
    })?;
    let name = || found.link.name.clone();
    if let Some(tie) = ties::find(paths, kernel, &links, found)? {
        return Err(UnfitNic::Tied { name: name(), tie }.into());
    }
    if let (Some(mtu), Some(max)) = (request.mtu, found.max_mtu)
        && mtu > max
    {
        return Err(UnfitNic::MtuTooHigh { mtu, name: name(), max }.into());
    }
    if found.alt_names.iter().any(|other| other == request.ifname.as_str()) {
        return Err(UnfitNic::OwnOtherName { name: name(), wanted: request.ifname.clone() }.into());
    }
    let in_pod = kernel.nics(TARGET)?;
    // Its other names come along.
    let needed = std::iter::once(request.ifname.as_str()).chain(found.alt_names.iter().map(String::as_str));
    for wanted in needed {
        if let Some(other) = link::named(&in_pod, wanted) {
            let taken_by = other.link.name.clone();
            return Err(UnfitNic::NameTaken { name: name(), wanted: wanted.to_owned(), taken_by }.into());
        }
    }
    Ok(found.clone())
}

/// The NIC in the pod, if the existing attachment is what the same holder asks for again.
fn present<K: Kernel>(
    kernel: &mut K,
    request: &TakeRequest,
    record: &Attachment,
) -> Result<Option<Link>, AttachError> {
    let (State::Attached, Some(nic)) = (record.state, &record.nic) else {
        return Ok(None);
    };
    if nic.identity != request.identity {
        return Ok(None);
    }
    let as_wanted = |link: &Link| {
        link.up
            && link.name == request.ifname.as_str()
            && link.promiscuous == request.promiscuous
            && link.all_multicast == request.all_multicast
            && link.device_mac() == request.mac.or(nic.mac)
            && link.mtu == request.mtu.unwrap_or(nic.mtu)
    };
    Ok(give_back::find(kernel, TARGET, nic)?.filter(as_wanted))
}
