//! The link in the making, until everything is in place or undone.

use super::error::{AttachError, MINOR_ROUNDS, NUMBER_ROUNDS};
use super::pending::Pending;
use super::request::{Request, TARGET};
use crate::fit::{self, UnfitError};
use crate::kernel::{Home, Kernel, NewLink, Place};
use crate::link::{By, Change, IfName, Link};
use crate::lock::{self, Lock};
use crate::mac::MacAddr;
use crate::mode::Mode;
use crate::park;
use crate::paths::Paths;
use crate::record::{Attachment, DeviceNumber, State};
use crate::records::{self, RecordError};
use crate::tap::Node;
use crate::tap_pods;
use rustix::io::Errno;
use tracing::{info, warn};

/// An attachment in the making. Dropping it undoes it.
#[derive(Debug)]
pub struct Attaching<'k, K: Kernel> {
    pub(super) paths: &'k Paths,
    pub(super) kernel: &'k mut K,
    pub(super) request: Request,
    pub(super) record: Attachment,
    pub(super) is_repeat: bool,
    /// The record of the device that its pod had without a network, where that gets one now.
    pub(super) spare: Option<Attachment>,
    pub(super) progress: Progress,
    /// Held until everything is undone or done.
    pub(super) _lock: Lock,
}

/// How far an attachment has come, and so what there is to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    Recorded,
    Linked,
    WithNode,
    Finished,
}

impl<K: Kernel> Pending for Attaching<'_, K> {
    type Kernel = K;

    fn kernel(&mut self) -> &mut K {
        self.kernel
    }

    fn is_repeat(&self) -> bool {
        self.is_repeat
    }

    fn check(&mut self) -> Result<(), AttachError> {
        check_lower(self.kernel, &self.request).map(drop)
    }

    fn wish_mac(&mut self, mac: MacAddr) {
        self.request.link.mac = Some(mac);
        self.request.spare_macs.clear();
    }

    /// Its tap has a minor that no record names.
    fn place(&mut self) -> Result<(), AttachError> {
        // The kernel takes whatever link has the index of the lower link by now.
        self.check()?;
        let _lock = lock::node(self.paths)?;
        if let Some(number) = self.spare.as_ref().and_then(|spare| spare.tap) {
            self.create_numbered(number)?;
            return self.address_in_passthru();
        }
        for _ in 0..MINOR_ROUNDS {
            self.try_create()?;
            self.progress = Progress::Linked;
            let link = &self.request.link;
            let tap = self.kernel.tap(Home::Target, &link.name, link.index)?;
            // Before the lock is free: the next link must not get this minor even if this one vanishes.
            if records::reserve_tap(self.paths, tap, &self.record.device)? {
                self.record.tap = Some(tap);
                return self.address_in_passthru();
            }
            info!(%tap, "tap number belongs to a pod that lost its link, set aside");
            self.kernel.delete(TARGET, link.index)?;
            self.progress = Progress::Recorded;
            park::park(self.kernel, tap)?;
        }
        Err(AttachError::NoFreeMinor)
    }

    fn index(&self) -> u32 {
        self.request.link.index
    }

    fn ifname(&self) -> &IfName {
        &self.request.link.name
    }

    fn link(&mut self) -> Result<Link, AttachError> {
        let wanted = &self.request.link;
        let found = self.kernel.find(TARGET, &By::Index(wanted.index))?;
        let same = |link: &Link| {
            link.is_macvtap() && link.name == wanted.name.as_str() && link.lower == Some(wanted.lower)
        };
        if let Some(link) = found.filter(same) {
            return Ok(link);
        }
        // On a lower link of some kinds the kernel makes a macvtap of the link below that one.
        self.check()?;
        Err(self.changed())
    }

    fn up(&mut self) -> Result<(), AttachError> {
        let mut spare = std::mem::take(&mut self.request.spare_macs).into_iter();
        loop {
            let taken = match self.change(Change::up(true)) {
                Err(error @ AttachError::Unfit(UnfitError::MacInUse { .. })) => error,
                outcome => return outcome,
            };
            let Some(mac) = spare.next() else { return Err(taken) };
            info!(%mac, "MAC address was taken, next one used");
            self.request.link.mac = Some(mac);
            self.change(Change::mac(mac))?;
        }
    }

    /// Makes the device node, reads the link back and records that everything is in place.
    fn finish(mut self) -> Result<Link, AttachError> {
        let number = self.record.tap.ok_or_else(|| self.changed())?;
        let node = Node { number, owner: self.request.owner };
        self.progress = Progress::WithNode;
        self.kernel.make_node(&self.paths.device_node(self.record.ifindex), node)?;
        let link = self.link()?;
        if !link.up {
            return Err(self.changed());
        }
        self.record.mac = link.device_mac();
        self.record.state = State::Attached;
        records::write(self.paths, &self.record)?;
        self.progress = Progress::Finished;
        if self.spare.is_some() {
            tap_pods::forget(self.paths, &self.record.device).map_err(RecordError::from)?;
        }
        Ok(link)
    }
}

impl<K: Kernel> Attaching<'_, K> {
    /// Makes the link with the number that a running container has a node of: with another one its tap could not be opened,
    /// and the container could open the next link with the old one. The kernel gives the lowest free minor, so for this
    /// moment placeholders have those below.
    fn create_numbered(&mut self, number: DeviceNumber) -> Result<(), AttachError> {
        let mut below = Vec::new();
        let made = self.try_numbered(number, &mut below);
        for index in below {
            // One that stays keeps nobody from anything, and the agent removes it.
            if let Err(error) = self.kernel.delete(Place::Home(Home::Node), index) {
                warn!(%error, "placeholder for a tap minor left behind");
            }
        }
        made
    }

    fn try_numbered(&mut self, number: DeviceNumber, below: &mut Vec<u32>) -> Result<(), AttachError> {
        let link = (self.request.link.name.clone(), self.request.link.index);
        for _ in 0..NUMBER_ROUNDS {
            park::make_lowest(self.kernel, number, below)?;
            self.try_create()?;
            self.progress = Progress::Linked;
            if self.kernel.tap(Home::Target, &link.0, link.1)? == number {
                self.record.tap = Some(number);
                return Ok(());
            }
            self.kernel.delete(TARGET, link.1)?;
            self.progress = Progress::Recorded;
        }
        Err(AttachError::NumberTaken { device: self.request.device.clone(), number })
    }

    /// A new link in passthru mode takes its lower link's address, whatever the request that makes it says.
    fn address_in_passthru(&mut self) -> Result<(), AttachError> {
        match (self.request.link.mode, self.request.link.mac) {
            (Mode::Passthru, Some(mac)) => self.change(Change::mac(mac)),
            _ => Ok(()),
        }
    }

    pub(super) fn change(&mut self, change: Change<'_>) -> Result<(), AttachError> {
        let changed = self.kernel.change(self.request.link.index, change);
        changed.map_err(|error| fit::explain(error, self.mac(), &self.request.lower_name))
    }

    fn changed(&self) -> AttachError {
        AttachError::Changed { name: self.request.link.name.to_string() }
    }

    fn mac(&mut self) -> Option<MacAddr> {
        let known = self.request.link.mac;
        known.or_else(|| self.link().ok().and_then(|link| link.device_mac()))
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
                    return Err(UnfitError::NameTaken(link.name.clone()).into());
                }
                if let Some(taken) = self.kernel.find(TARGET, &By::Index(link.index))? {
                    return Err(AttachError::IndexTaken {
                        device: request.device.clone(),
                        ifindex: link.index,
                        taken_by: taken.name,
                    });
                }
                // Kernels before 6.13 also search the caller's namespace for it.
                if let Some(taken) = self.kernel.find(Place::Home(Home::Node), &By::Index(link.index))? {
                    return Err(AttachError::IndexTakenOnNode {
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
        let (index, device) = (self.record.ifindex, &self.record.device);
        let link = if self.progress >= Progress::Linked { self.kernel.delete(TARGET, index) } else { Ok(()) };
        // Also when the link could not be deleted: no container may be given its node.
        let has_node = self.progress >= Progress::WithNode;
        let node = if has_node { self.kernel.remove_node(&self.paths.device_node(index)) } else { Ok(()) };
        if let Err(error) = &link {
            warn!(%device, %error, "link left behind");
        }
        if let Err(error) = &node {
            warn!(%device, %error, "device node left behind");
        }
        if link.is_err() || node.is_err() {
            // The record stays: by it the rest is found.
            return;
        }
        let undone = match &self.spare {
            // Without its link, but its container still has the number.
            Some(spare) => records::write(self.paths, spare),
            None => records::remove(self.paths, &self.record),
        };
        if let Err(error) = undone {
            warn!(device = %self.record.device, %error, "attachment record left behind");
        }
    }
}

/// Whether the lower link can carry the device.
pub(super) fn check_lower<K: Kernel>(kernel: &mut K, request: &Request) -> Result<Link, AttachError> {
    let ifindex = request.link.lower;
    let lower = kernel.find(Place::Home(Home::Node), &By::Index(ifindex))?;
    let lower = lower.ok_or_else(|| AttachError::LowerGone {
        device: request.device.clone(),
        name: request.lower_name.clone(),
        ifindex,
    })?;
    // Under its own name it is what the administrator of the node means, whatever it was.
    let is_meant = lower.name == request.lower_name
        || request.lower_identity.may_be(lower.kind.as_deref(), lower.parent.as_deref());
    if !is_meant && fit::can_carry(lower.kind.as_deref()) {
        return Err(AttachError::LowerReplaced {
            device: request.device.clone(),
            name: request.lower_name.clone(),
            ifindex,
            now: lower.name,
            kind: lower.kind.unwrap_or_else(|| "a NIC".to_owned()),
        });
    }
    fit::judge(request.link.mtu, &lower)?;
    match request.also_mac.filter(|mac| lower.device_mac() == Some(*mac)) {
        Some(mac) => Err(UnfitError::MacInUse { mac, lower: request.lower_name.clone() }.into()),
        None => Ok(lower),
    }
}
