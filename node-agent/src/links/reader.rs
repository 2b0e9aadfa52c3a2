//! Turns rtnetlink messages into links, completed with what sysfs reports about the device behind each.
//!
//! A device stays what it is although the kernel cannot describe it for a moment: without carrier a NIC has no speed,
//! and a file of sysfs can be unreadable. So the last known value of every attribute holds while the link exists;
//! whether the link works is decided by its carrier alone.

use crate::links::link::{Hardware, Kind, Link, LinkError};
use crate::links::notification::Notification;
use crate::links::sysfs;
use macvtap::mac::MacAddr;
use macvtap::park;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tracing::debug;

/// Reads messages, and remembers devices so that an event without news costs no access to sysfs.
#[derive(Debug)]
pub(super) struct Reader {
    sysfs: PathBuf,
    devices: BTreeMap<u32, KnownDevice>,
    /// Links whose speed may have changed.
    outdated: BTreeSet<u32>,
    /// The nexthop objects that default routes use.
    nexthops: BTreeSet<u32>,
    /// Others that changed since these were read.
    changed_nexthops: BTreeSet<u32>,
}

/// What is known of a NIC or a bond.
#[derive(Clone, Debug)]
struct KnownDevice {
    name: String,
    permanent_mac: Option<MacAddr>,
    carrier: bool,
    /// The bond that it is a member of.
    bond: Option<u32>,
    hardware: Hardware,
}

/// What a message is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing that matters here.
    Irrelevant,
    /// A link appeared or changed.
    Link(Box<Link>),
    /// A link went away, or to another namespace.
    Gone(u32),
    /// Addresses that hosts can use were added or removed.
    Addresses,
    /// A default route was added or removed, or goes another way.
    DefaultRoutes,
    /// The kernel could not deliver an event.
    Overflow,
}

impl Default for Reader {
    fn default() -> Self {
        Self::of(sysfs::LINKS.into())
    }
}

impl Reader {
    fn of(sysfs: PathBuf) -> Self {
        Self {
            sysfs,
            devices: BTreeMap::new(),
            outdated: BTreeSet::new(),
            nexthops: BTreeSet::new(),
            changed_nexthops: BTreeSet::new(),
        }
    }

    /// Reads one event.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a socket carries more kinds of message than we ask for"
    )]
    pub(super) fn read(&mut self, payload: NetlinkPayload<Notification>) -> Event {
        let message = match payload {
            NetlinkPayload::InnerMessage(Notification::Read(message)) => message,
            // Of routes that name such an object only, nothing is reported when it is replaced.
            NetlinkPayload::InnerMessage(Notification::Nexthop(id)) if self.nexthops.contains(&id) => {
                return Event::DefaultRoutes;
            }
            NetlinkPayload::InnerMessage(Notification::Nexthop(id)) => {
                self.changed_nexthops.insert(id);
                return Event::Irrelevant;
            }
            NetlinkPayload::Overrun(_) => return Event::Overflow,
            _ => return Event::Irrelevant,
        };
        match message {
            // A bridge reports its ports by messages of its own family: losing a port is not losing a link.
            RouteNetlinkMessage::NewLink(link) if is_link(&link) => {
                let link = present(Link::parse(&link)).map(|link| self.observe(link));
                link.map_or(Event::Irrelevant, |link| Event::Link(Box::new(link)))
            }
            RouteNetlinkMessage::DelLink(link) if is_link(&link) => {
                self.devices.remove(&link.header.index);
                Event::Gone(link.header.index)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                if route.header.destination_prefix_length == 0 =>
            {
                Event::DefaultRoutes
            }
            // Every link of a pod gets a link-local address, which ties nothing to the node.
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address)
                if u8::from(address.header.scope) < u8::from(AddressScope::Link) =>
            {
                Event::Addresses
            }
            _ => Event::Irrelevant,
        }
    }

    /// Takes a full list, completed by [`describe`], in place of everything known. All speeds must be read then.
    pub(super) fn complete(&mut self, mut links: Vec<Link>) -> Vec<Link> {
        for link in &mut links {
            self.remember(link);
        }
        let present: BTreeSet<u32> = links.iter().map(|link| link.ifindex).collect();
        self.devices.retain(|ifindex, _| present.contains(ifindex));
        let with_speed = links.iter().filter(|link| link.carrier && has_speed(link));
        self.outdated = with_speed.map(|link| link.ifindex).collect();
        links
    }

    /// Returns the links whose speed must be read again, by index and name.
    pub(super) fn take_outdated(&mut self) -> Vec<(u32, String)> {
        let outdated = std::mem::take(&mut self.outdated).into_iter();
        outdated.filter_map(|ifindex| Some((ifindex, self.devices.get(&ifindex)?.name.clone()))).collect()
    }

    /// Whether the speed of a link must be read again.
    pub(super) fn has_outdated(&self) -> bool {
        !self.outdated.is_empty()
    }

    /// Takes the speed of a link; returns it if it is another one than before.
    pub(super) fn learn_speed(&mut self, ifindex: u32, speed: Option<u32>) -> Option<u32> {
        let device = self.devices.get_mut(&ifindex)?;
        let before = device.hardware.speed_mbps;
        device.hardware.speed_mbps = speed.or(before);
        speed.filter(|_| speed != before)
    }

    /// Takes the nexthop objects that default routes use. Returns whether one changed that was not known to be among them: it
    /// may have done so after it was read.
    pub(super) fn learn_nexthops(&mut self, nexthops: BTreeSet<u32>) -> bool {
        self.nexthops = nexthops;
        !std::mem::take(&mut self.changed_nexthops).is_disjoint(&self.nexthops)
    }

    /// Completes the link of an event. Reads nothing that waits for the kernel's lock.
    fn observe(&mut self, mut link: Link) -> Link {
        let known = self.devices.get(&link.ifindex);
        // A name that changed just now may have been another link's when sysfs was read.
        let same = known.filter(|known| known.name == link.name && known.is_of(&link));
        if same.is_none() && is_nic(&link) {
            describe_device(&self.sysfs, &mut link);
        }
        if link.carrier && same.is_none_or(|known| !known.carrier) {
            self.outdated.insert(link.ifindex);
        }
        // The speed of a bond is that of its active members, which only they announce.
        self.outdated.extend(known.and_then(|known| known.bond).into_iter().chain(bond_of(&link)));
        self.remember(&mut link);
        link
    }

    /// Fills what cannot be read at the moment with what was known, and keeps the rest.
    fn remember(&mut self, link: &mut Link) {
        if !has_speed(link) {
            return;
        }
        if let Some(known) = self.devices.get(&link.ifindex).filter(|known| known.is_of(link)) {
            link.permanent_mac = link.permanent_mac.or(known.permanent_mac);
            link.set_hardware(link.hardware.clone().or(&known.hardware));
        }
        let device = KnownDevice {
            name: link.name.clone(),
            permanent_mac: link.permanent_mac,
            carrier: link.carrier,
            bond: bond_of(link),
            hardware: link.hardware.clone(),
        };
        self.devices.insert(link.ifindex, device);
    }
}

impl KnownDevice {
    /// Whether this is the device of the link: an index can be another link's if events were lost. Kernels before 5.14
    /// do not announce devices.
    fn is_of(&self, link: &Link) -> bool {
        link.hardware.parent.is_none() || link.hardware.parent == self.hardware.parent
    }
}

/// Returns the link of a message; none for a damaged message, and none for a link that only keeps the number of a tap
/// busy.
pub(super) fn present(read: Result<Link, LinkError>) -> Option<Link> {
    match read {
        Ok(link) => Some(link).filter(|link| !park::is_ours(&link.name)),
        Err(error) => {
            debug!(%error, "link message skipped");
            None
        }
    }
}

/// Completes a link of a list with what sysfs reports without the kernel's lock: everything but the speed.
pub(super) fn describe(mut link: Link) -> Link {
    if is_nic(&link) {
        describe_device(Path::new(sysfs::LINKS), &mut link);
    }
    link
}

/// Completes a link with its speed. May wait for the kernel's lock.
pub(super) fn with_speed(mut link: Link) -> Link {
    if has_speed(&link) {
        link.hardware.speed_mbps = sysfs::speed(Path::new(sysfs::LINKS), &link.name, link.ifindex);
    }
    link
}

fn has_speed(link: &Link) -> bool {
    is_nic(link) || link.kind == Kind::Bond
}

fn describe_device(links: &Path, link: &mut Link) {
    if let Some(hardware) = sysfs::hardware(links, &link.name, link.ifindex) {
        link.set_hardware(hardware);
    }
}

/// Whether the link may have a device: on a node with many pods most links are veths.
fn is_nic(link: &Link) -> bool {
    matches!(&link.kind, Kind::Physical | Kind::Other(_)) && link.kind.rtnetlink().is_empty()
}

fn bond_of(link: &Link) -> Option<u32> {
    link.master.as_ref().filter(|master| master.kind == "bond").map(|bond| bond.ifindex)
}

fn is_link(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

#[cfg(test)]
mod tests;
