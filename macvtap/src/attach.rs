//! Attaching: the one procedure by which a device's link, node and record come to be, for a pod's network (the
//! plugin's ADD) and for a pod that has only the tap (the agent).
//!
//! ```text
//! begin         lock the device, judge its record, record "Creating"
//! create_link   node-wide lock: create the link down, refuse a minor that a record still names
//! change        what the network needs; up comes last
//! finish        device node, read back, record "Attached"
//! ```
//! A value that is dropped before [`Attaching::finish`] succeeded undoes every step taken.

mod error;

pub use error::AttachError;

use crate::claim::{self, Claim};
use crate::detach;
use crate::device_id::DeviceId;
use crate::kernel::{Home, Kernel, NewLink, Place};
use crate::link::{By, Change, Link, Macvtap};
use crate::lock::{self, Lock};
use crate::mac::MacAddr;
use crate::mode::Mode;
use crate::netns::{self, NetnsId};
use crate::park;
use crate::paths::Paths;
use crate::record::{self, Attachment, DeviceNumber, Holder, State};
use crate::records;
use crate::table::Owner;
use crate::tap::{self, Node};
use rustix::io::Errno;
use tracing::{info, warn};

/// How many minors in a row may be taken by pods that lost their links before an ADD gives up.
const MINOR_ROUNDS: u32 = 64;

const TARGET: Place = Place::Home(Home::Target);

/// A link that somebody shall get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The device.
    pub device: DeviceId,
    /// Who gets it.
    pub holder: Holder,
    /// Name of the pod's network; none for a pod that has only the tap.
    pub network: Option<String>,
    /// Number of the pod's namespace; none for a pod that has only the tap.
    pub netns_id: Option<NetnsId>,
    /// Name of the lower link, for messages.
    pub lower_name: String,
    /// The link.
    pub link: Macvtap,
    /// Who may open the device node.
    pub owner: Owner,
    /// What happens when the same holder has the device already.
    pub repeat: Repeat,
}

/// What happens when the same holder asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A link that is as requested stays.
    Keep,
    /// The link is made anew.
    Rebuild,
}

/// A device that is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The link, as the kernel describes it.
    pub link: Link,
    /// Its tap.
    pub tap: DeviceNumber,
}

/// How [`begin`] found the device.
#[derive(Debug)]
pub enum Begun<'k, K: Kernel> {
    /// Free, or free now.
    New(Box<Attaching<'k, K>>),
    /// The same holder has it, as requested ([`Repeat::Keep`]).
    Present(Attached),
}

/// An attachment in the making. Dropping it undoes it.
#[derive(Debug)]
pub struct Attaching<'k, K: Kernel> {
    paths: &'k Paths,
    kernel: &'k mut K,
    request: Request,
    record: Attachment,
    is_repeat: bool,
    progress: Progress,
    /// Held until everything is undone or done.
    _lock: Lock,
}

/// How far an attachment has come, and so what there is to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Recorded,
    Linked,
    WithNode,
    Finished,
}

/// Locks the device and records that a link is being made. Changes nothing when it fails.
pub fn begin<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    request: Request,
) -> Result<Begun<'k, K>, AttachError> {
    let lock = lock::device(paths, &request.device)?;
    let existing = records::read(paths, &request.device)?;
    begin_locked(paths, kernel, request, existing.as_ref(), lock)
}

/// For a container that is about to start: makes the link of a device that its pod has no network for. A device whose
/// link exists, for a network or from an earlier start, is left alone.
pub fn tap_only<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    request: Request,
) -> Result<Option<Attached>, AttachError> {
    let lock = lock::device(paths, &request.device)?;
    if let Some(record) = records::read(paths, &request.device)? {
        return match detach::link_of(kernel, &record)? {
            Some(_) => Ok(None),
            None => Err(AttachError::LinkLost { device: request.device }),
        };
    }
    match begin_locked(paths, kernel, request, None, lock)? {
        Begun::Present(attached) => Ok(Some(attached)),
        Begun::New(mut attaching) => {
            attaching.create_link()?;
            attaching.change(Change::NoLinkLocalAddress)?;
            attaching.change(Change::Up)?;
            attaching.finish().map(Some)
        }
    }
}

impl<K: Kernel> Attaching<'_, K> {
    /// The kernel, for what a network needs beside its link.
    pub fn kernel(&mut self) -> &mut K {
        self.kernel
    }

    /// Whether the same holder had the device before, so that what belongs to it beside the link may exist.
    pub fn is_repeat(&self) -> bool {
        self.is_repeat
    }

    /// The address the link shall get, from now on.
    pub fn wish_mac(&mut self, mac: MacAddr) {
        self.request.link.mac = Some(mac);
    }

    /// Looks whether the lower link can carry the device, for a caller that does something costly first. Otherwise
    /// [`Attaching::create_link`] finds out.
    pub fn check_lower(&mut self) -> Result<(), AttachError> {
        check_lower(self.kernel, &self.request)
    }

    /// Makes the link, down. Its tap has a minor that no record names.
    pub fn create_link(&mut self) -> Result<(), AttachError> {
        let _lock = lock::node(self.paths)?;
        for _ in 0..MINOR_ROUNDS {
            self.try_create()?;
            self.progress = Progress::Linked;
            let link = &self.request.link;
            let tap = self.kernel.tap(Home::Target, &link.name, link.index)?;
            if self.is_free(tap) {
                self.record.tap = Some(tap);
                self.record.mac = link.mac;
                // Before the lock is free: the next link must not get this minor even if this one vanishes.
                records::write(self.paths, &self.record)?;
                return self.address_in_passthru();
            }
            info!(%tap, "tap number belongs to a pod that lost its link, set aside");
            self.kernel.delete(TARGET, link.index)?;
            self.progress = Progress::Recorded;
            park::park(self.kernel, tap)?;
        }
        Err(AttachError::NoFreeMinor)
    }

    /// A new link in passthru mode takes its lower link's address, whatever the request that makes it says.
    fn address_in_passthru(&mut self) -> Result<(), AttachError> {
        match (self.request.link.mode, self.request.link.mac) {
            (Mode::Passthru, Some(mac)) => self.change(Change::Mac(mac)),
            _ => Ok(()),
        }
    }

    /// Changes the link.
    pub fn change(&mut self, change: Change) -> Result<(), AttachError> {
        let changed = self.kernel.change(self.request.link.index, change);
        changed.map_err(|error| match (error.errno(), self.mac()) {
            (Some(Errno::ADDRINUSE), Some(mac)) => {
                AttachError::MacInUse { mac, lower: self.request.lower_name.clone() }
            }
            _ => error.into(),
        })
    }

    /// The link as it is now.
    pub fn link(&mut self) -> Result<Link, AttachError> {
        let wanted = &self.request.link;
        let found = self.kernel.find(TARGET, &By::Index(wanted.index))?;
        let same = |link: &Link| link.is_macvtap() && link.name == wanted.name.as_str();
        found.filter(same).ok_or_else(|| AttachError::Changed { name: wanted.name.clone() })
    }

    /// Makes the device node, reads the link back and records that everything is in place.
    pub fn finish(mut self) -> Result<Attached, AttachError> {
        let name = || self.request.link.name.clone();
        let number = self.record.tap.ok_or_else(|| AttachError::Changed { name: name() })?;
        let node = Node { number, owner: self.request.owner };
        self.progress = Progress::WithNode;
        self.kernel.make_node(&self.paths.device_node(self.record.ifindex), node)?;
        let link = self.link()?;
        if !link.up {
            return Err(AttachError::Changed { name: self.request.link.name.clone() });
        }
        self.record.mac = link.device_mac();
        self.record.state = State::Attached;
        records::write(self.paths, &self.record)?;
        self.progress = Progress::Finished;
        Ok(Attached { link, tap: number })
    }

    fn mac(&mut self) -> Option<MacAddr> {
        let known = self.request.link.mac;
        known.or_else(|| self.link().ok().and_then(|link| link.device_mac()))
    }

    /// Whether no other device's record names this number. One that cannot be read might.
    fn is_free(&self, tap: DeviceNumber) -> bool {
        match records::with_tap(self.paths, tap) {
            Ok(record) => record.is_none_or(|record| record.device == self.record.device),
            Err(_) => false,
        }
    }

    fn try_create(&mut self) -> Result<(), AttachError> {
        let request = &self.request;
        let link = &request.link;
        let Err(error) = self.kernel.create(Home::Target, NewLink::Macvtap(link)) else {
            return Ok(());
        };
        if error.errno().is_none() {
            // The kernel did not refuse: its answer was lost, and there may be a link.
            self.progress = Progress::Linked;
        }
        match error.errno() {
            Some(Errno::EXIST | Errno::BUSY) => {
                if self.kernel.find(TARGET, &By::Name(link.name.clone()))?.is_some() {
                    return Err(AttachError::NameTaken(link.name.clone()));
                }
                if let Some(taken) = self.kernel.find(TARGET, &By::Index(link.index))? {
                    return Err(AttachError::IndexTaken {
                        device: request.device.clone(),
                        ifindex: link.index,
                        taken_by: taken.name,
                    });
                }
                Err(AttachError::LowerBusy { name: request.lower_name.clone(), source: error })
            }
            // With an MTU that fits, what is left is a sibling in passthru mode.
            Some(Errno::INVAL | Errno::RANGE) => {
                check_lower(self.kernel, request)?;
                Err(AttachError::LowerBusy { name: request.lower_name.clone(), source: error })
            }
            Some(Errno::NODEV) => {
                check_lower(self.kernel, request)?;
                Err(error.into())
            }
            _ => Err(error.into()),
        }
    }
}

impl<K: Kernel> Drop for Attaching<'_, K> {
    fn drop(&mut self) {
        if self.progress == Progress::Finished {
            return;
        }
        // Each undone though another failed; who is left is found by the record.
        if self.progress >= Progress::Linked
            && let Err(error) = self.kernel.delete(TARGET, self.record.ifindex)
        {
            warn!(device = %self.record.device, %error, "link left behind");
            return;
        }
        let node = self.paths.device_node(self.record.ifindex);
        if self.progress >= Progress::WithNode
            && let Err(error) = self.kernel.remove_node(&node)
        {
            warn!(device = %self.record.device, %error, "device node left behind");
            return;
        }
        if let Err(error) = records::remove(self.paths, &self.record) {
            warn!(device = %self.record.device, %error, "attachment record left behind");
        }
    }
}

fn begin_locked<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    request: Request,
    existing: Option<&Attachment>,
    lock: Lock,
) -> Result<Begun<'k, K>, AttachError> {
    let claim = claim::judge(existing, &request.holder, |path, inode| !netns::is_at(path, inode))?;
    if let Some(existing) = existing {
        // What a former holder has is not removed for a request that cannot succeed.
        check_lower(kernel, &request)?;
        if claim == Claim::Again
            && request.repeat == Repeat::Keep
            && let Some(attached) = present(paths, kernel, &request, existing)?
        {
            return Ok(Begun::Present(attached));
        }
        if claim == Claim::TakeOver {
            info!(from = %claim::describe(&existing.holder), "device taken over");
        }
        detach::remove_parts(paths, kernel, existing)?;
    }
    let record = Attachment {
        version: record::VERSION,
        device: request.device.clone(),
        holder: request.holder.clone(),
        state: State::Creating,
        ifindex: request.link.index,
        lower_ifindex: request.link.lower,
        mac: None,
        tap: None,
        netns_id: request.netns_id.map(|NetnsId(id)| id),
        network: request.network.clone(),
        nic: None,
    };
    records::write(paths, &record)?;
    Ok(Begun::New(Box::new(Attaching {
        paths,
        kernel,
        request,
        record,
        is_repeat: claim == Claim::Again,
        progress: Progress::Recorded,
        _lock: lock,
    })))
}

fn check_lower<K: Kernel>(kernel: &mut K, request: &Request) -> Result<(), AttachError> {
    let ifindex = request.link.lower;
    let lower = kernel.find(Place::Home(Home::Node), &By::Index(ifindex))?;
    let lower = lower.ok_or_else(|| AttachError::LowerGone {
        device: request.device.clone(),
        name: request.lower_name.clone(),
        ifindex,
    })?;
    match request.link.mtu {
        Some(mtu) if mtu > lower.mtu => {
            Err(AttachError::MtuTooHigh { mtu, lower: lower.name, lower_mtu: lower.mtu })
        }
        _ => Ok(()),
    }
}

/// The existing attachment, if it is what the same holder asks for again. Makes the device node anew.
fn present<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    request: &Request,
    record: &Attachment,
) -> Result<Option<Attached>, AttachError> {
    let (State::Attached, Some(number)) = (record.state, record.tap) else {
        return Ok(None);
    };
    let Some((_, link)) = detach::link_of(kernel, record)? else {
        return Ok(None);
    };
    let wanted = &request.link;
    let as_wanted = link.up
        && link.name == wanted.name.as_str()
        && link.mode == Some(wanted.mode)
        && link.all_multicast == wanted.all_multicast
        && link.promiscuous == wanted.promiscuous
        && wanted.mac.is_none_or(|mac| link.device_mac() == Some(mac))
        && wanted.mtu.is_none_or(|mtu| link.mtu == mtu);
    if !as_wanted || kernel.tap(Home::Target, &wanted.name, wanted.index)? != number {
        return Ok(None);
    }
    let node = Node { number, owner: request.owner };
    let path = paths.device_node(record.ifindex);
    if tap::node_at(&path) != Some(node) {
        kernel.make_node(&path, node)?;
    }
    Ok(Some(Attached { link, tap: number }))
}
