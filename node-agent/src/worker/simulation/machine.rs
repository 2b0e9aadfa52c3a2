//! A kernel with network namespaces, links and tap numbers, as far as attaching and detaching can tell it from the real
//! one. It may refuse any call, and whoever calls may be killed at any.

use macvtap::file::FileError;
use macvtap::kernel::{Home, Kernel, NewLink, OpenError, Place};
use macvtap::link::{By, Carrier, Change, IfName, Link, Move, NicLink};
use macvtap::links::Links;
use macvtap::netlink::NetlinkError;
use macvtap::netns::NetnsId;
use macvtap::record::DeviceNumber;
use macvtap::tap::{Node as DeviceNode, TapError};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// The namespace of the node; those of pods have numbers from 0.
pub(super) const NODE: i32 = -1;

const MAJOR: u32 = 246;

#[derive(Debug)]
pub(super) struct Wired {
    pub(super) link: Link,
    pub(super) minor: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Space {
    pub(super) path: PathBuf,
    pub(super) inode: u64,
}

#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) links: BTreeMap<(i32, u32), Wired>,
    pub(super) spaces: BTreeMap<i32, Space>,
    pub(super) nodes: BTreeMap<PathBuf, u32>,
    /// Links that went with the one below.
    pub(super) swept: BTreeSet<(i32, u32)>,
    /// Links below that somebody has enslaved.
    pub(super) enslaved: BTreeSet<u32>,
    made: u64,
    next_index: u32,
}

impl Machine {
    /// A namespace gets the lowest number that is free, so a number comes again.
    pub(super) fn new_space(&mut self, directory: &Path) -> i32 {
        let number = (0..i32::MAX).find(|number| !self.spaces.contains_key(number)).unwrap();
        self.made += 1;
        let path = directory.join(format!("cni-{}", self.made));
        // What cannot be examined, as a namespace that lives cannot be told gone: a symbolic link to itself.
        std::os::unix::fs::symlink(&path, &path).unwrap();
        // The inode numbers of namespaces come again too.
        let used: BTreeSet<u64> = self.spaces.values().map(|space| space.inode).collect();
        let inode = (4_026_532_000..u64::MAX).find(|inode| !used.contains(inode)).unwrap();
        self.spaces.insert(number, Space { path, inode });
        number
    }

    pub(super) fn end_space(&mut self, number: i32) {
        if let Some(space) = self.spaces.remove(&number) {
            std::fs::remove_file(space.path).unwrap();
        }
        self.links.retain(|(netns, _), _| *netns != number);
    }

    pub(super) fn fresh_index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index + 1
    }

    pub(super) fn plug(&mut self, index: u32, name: &str) {
        let link = blank(index, name, None, None);
        self.links.insert((NODE, index), Wired { link, minor: None });
    }

    pub(super) fn unplug(&mut self, index: u32) {
        self.delete(NODE, index);
    }

    pub(super) fn by_minor(&self, minor: u32) -> Option<(i32, u32)> {
        self.links.iter().find(|(_, wired)| wired.minor == Some(minor)).map(|(at, _)| *at)
    }

    fn delete(&mut self, netns: i32, index: u32) -> bool {
        let Some(gone) = self.links.remove(&(netns, index)) else { return false };
        if netns == NODE {
            let above = self.links.iter().filter(|(_, wired)| wired.link.lower == Some(index));
            let above: Vec<(i32, u32)> = above.map(|(at, _)| *at).collect();
            for at in above {
                self.links.remove(&at);
                self.swept.insert(at);
            }
        }
        if gone.link.kind.as_deref() == Some("veth") {
            self.links.retain(|_, wired| wired.link.kind.as_deref() != Some("veth"));
        }
        true
    }

    fn taken(&self, netns: i32, index: u32, name: &str) -> bool {
        self.links
            .iter()
            .any(|((there, has), wired)| *there == netns && (*has == index || wired.link.name == name))
    }

    fn free_minor(&self) -> u32 {
        let used: BTreeSet<u32> = self.links.values().filter_map(|wired| wired.minor).collect();
        (0..u32::MAX).find(|minor| !used.contains(minor)).unwrap()
    }
}

fn blank(index: u32, name: &str, kind: Option<&str>, lower: Option<u32>) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        mode: None,
        lower,
        parent: None,
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: kind.is_none(),
        carrier: Carrier::Present,
        promiscuous: false,
        all_multicast: true,
    }
}

/// What happens to whoever works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Call number n is refused.
    Refused(usize),
    /// Killed at call number n.
    Killed(usize),
}

/// The kernel as one process sees it.
pub(super) struct Hands<'m> {
    pub(super) machine: &'m mut Machine,
    /// The pod's namespace, or the node's.
    pub(super) target: i32,
    trouble: Option<Trouble>,
    calls: usize,
    killed: bool,
    nics: NoNics,
    files: Option<(PathBuf, PathBuf, Left)>,
}

/// What a killed process leaves on the disk: its record and the notes of tap numbers.
type Left = (Option<Vec<u8>>, Vec<(PathBuf, PathBuf)>);

impl<'m> Hands<'m> {
    pub(super) fn new(machine: &'m mut Machine, target: i32) -> Self {
        Self { machine, target, trouble: None, calls: 0, killed: false, nics: NoNics, files: None }
    }

    /// With trouble ahead.
    pub(super) fn troubled(self, trouble: Option<Trouble>) -> Self {
        Self { trouble, ..self }
    }

    /// With the files that whoever is killed must leave as they are.
    pub(super) fn leaving(self, record: PathBuf, taps: PathBuf) -> Self {
        Self { files: Some((record, taps, Left::default())), ..self }
    }

    /// Undoes what destructors did after the process was dead.
    pub(super) fn bury(self) -> bool {
        if let Some((record, taps, (content, entries))) = self.files.filter(|_| self.killed) {
            if let Some(content) = content {
                std::fs::write(record, content).unwrap();
            }
            let there = listed(&taps);
            for (entry, target) in entries.into_iter().filter(|entry| !there.contains(entry)) {
                let _ = std::fs::remove_file(&entry);
                std::os::unix::fs::symlink(target, entry).unwrap();
            }
        }
        self.killed
    }

    fn call(&mut self, what: &str) -> Result<(), NetlinkError> {
        self.calls += 1;
        match self.trouble {
            Some(Trouble::Killed(at)) if at == self.calls => {
                self.killed = true;
                if let Some((record, taps, left)) = &mut self.files {
                    *left = (std::fs::read(record).ok(), listed(taps));
                }
            }
            Some(Trouble::Refused(at)) if at == self.calls => return Err(refused(what, Errno::NOBUFS)),
            _ => {}
        }
        let dead = || NetlinkError::Socket { what: what.into(), source: io::Error::other("killed") };
        if self.killed { Err(dead()) } else { Ok(()) }
    }

    fn file(&mut self, step: &'static str, path: &Path) -> Result<(), FileError> {
        self.call(step).map_err(|_| FileError { step, path: path.into(), source: Errno::NOSPC.into() })
    }

    fn place(&self, place: Place) -> i32 {
        match place {
            Place::Home(Home::Node) => NODE,
            Place::Home(Home::Target) => self.target,
            Place::Numbered(NetnsId(number)) => number,
        }
    }
}

fn listed(taps: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = std::fs::read_dir(taps).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), std::fs::read_link(entry.path()).ok()?))).collect()
}

fn refused(what: &str, errno: Errno) -> NetlinkError {
    NetlinkError::Refused { what: what.into(), said: None, errno }
}

/// Whole NICs are not simulated.
#[derive(Debug)]
pub(super) struct NoNics;

impl NoNics {
    fn none<T>() -> Result<T, NetlinkError> {
        Err(refused("whole NICs", Errno::OPNOTSUPP))
    }
}

impl Links for NoNics {
    fn nics(&mut self) -> Result<Vec<NicLink>, NetlinkError> {
        Self::none()
    }
    fn set(&mut self, _: u32, _: Change<'_>, _: &dyn Display) -> Result<(), NetlinkError> {
        Self::none()
    }
    fn transfer(&mut self, _: Move<'_>, _: &dyn Display) -> Result<(), NetlinkError> {
        Self::none()
    }
    fn remove_names(&mut self, _: u32, _: &[&[u8]], _: &dyn Display) -> Result<(), NetlinkError> {
        Self::none()
    }
    fn delete(&mut self, _: u32, _: &dyn Display) -> Result<(), NetlinkError> {
        Self::none()
    }
    fn has_default_route(&mut self, _: u32) -> Result<bool, NetlinkError> {
        Self::none()
    }
    fn has_address(&mut self, _: u32) -> Result<bool, NetlinkError> {
        Self::none()
    }
}

impl Kernel for Hands<'_> {
    type Links = NoNics;

    fn node_links(&mut self) -> &mut NoNics {
        &mut self.nics
    }

    fn enter(&mut self, _: &Path, _: u64) -> Result<Option<NoNics>, OpenError> {
        Ok(self.call("enter").and_then(|()| NoNics::none())?)
    }

    fn move_in(&mut self, _: u32, _: &IfName, _: &dyn Display) -> Result<(), NetlinkError> {
        self.call("move in").and_then(|()| NoNics::none())
    }

    fn number(&mut self, path: &Path, inode: u64) -> Result<Option<NetnsId>, NetlinkError> {
        self.call("number")?;
        let mut spaces = self.machine.spaces.iter();
        let found = spaces.find(|(_, space)| space.path == path && space.inode == inode);
        Ok(found.map(|(number, _)| NetnsId(*number)))
    }

    fn find(&mut self, place: Place, by: &By) -> Result<Option<Link>, NetlinkError> {
        self.call("find")?;
        let netns = self.place(place);
        let mut links = self.machine.links.iter();
        let found = links.find(|((there, index), wired)| {
            *there == netns
                && match by {
                    By::Index(wanted) => index == wanted,
                    By::Name(name) => wired.link.name == name.as_str(),
                }
        });
        Ok(found.map(|(_, wired)| wired.link.clone()))
    }

    fn nics(&mut self, _: Place) -> Result<Vec<NicLink>, NetlinkError> {
        self.call("nics").map(|()| Vec::new())
    }

    fn create(&mut self, home: Home, link: NewLink<'_>) -> Result<(), NetlinkError> {
        self.call("create")?;
        match link {
            NewLink::Veth(veth) => {
                for name in [&veth.name, &veth.peer] {
                    let index = self.machine.fresh_index();
                    let link = blank(index, name.as_str(), Some("veth"), None);
                    self.machine.links.insert((NODE, index), Wired { link, minor: None });
                }
            }
            NewLink::Macvtap(wanted) => {
                let netns = self.place(Place::Home(home));
                if self.machine.enslaved.contains(&wanted.lower) {
                    return Err(refused("create", Errno::BUSY));
                }
                if !self.machine.links.contains_key(&(NODE, wanted.lower)) {
                    return Err(refused("create", Errno::NODEV));
                }
                if self.machine.taken(netns, wanted.index, wanted.name.as_str()) {
                    return Err(refused("create", Errno::EXIST));
                }
                let made = blank(wanted.index, wanted.name.as_str(), Some("macvtap"), Some(wanted.lower));
                let link = Link { mode: Some(wanted.mode), all_multicast: wanted.all_multicast, ..made };
                let minor = Some(self.machine.free_minor());
                self.machine.swept.remove(&(netns, wanted.index));
                self.machine.links.insert((netns, wanted.index), Wired { link, minor });
            }
        }
        Ok(())
    }

    fn change(&mut self, index: u32, change: Change<'_>) -> Result<(), NetlinkError> {
        self.call("change")?;
        let wired = self.machine.links.get_mut(&(self.target, index));
        let link = &mut wired.ok_or_else(|| refused("change", Errno::NODEV))?.link;
        link.up = change.up.unwrap_or(link.up);
        link.mtu = change.mtu.unwrap_or(link.mtu);
        Ok(())
    }

    fn no_autoconfiguration(&mut self, index: u32, _: &str) -> Result<(), NetlinkError> {
        self.call("no autoconfiguration")?;
        let link = self.machine.links.get(&(self.target, index));
        link.map(drop).ok_or_else(|| refused("change", Errno::NODEV))
    }

    fn delete(&mut self, place: Place, index: u32) -> Result<(), NetlinkError> {
        self.call("delete")?;
        let netns = self.place(place);
        self.machine.delete(netns, index);
        Ok(())
    }

    fn tap(&mut self, home: Home, _: &IfName, index: u32) -> Result<DeviceNumber, TapError> {
        let failed = |errno| TapError::Sysfs { step: "open", errno };
        self.call("tap").map_err(|_| failed(Errno::NOMEM))?;
        let netns = self.place(Place::Home(home));
        let minor = self.machine.links.get(&(netns, index)).and_then(|wired| wired.minor);
        Ok(DeviceNumber { major: MAJOR, minor: minor.ok_or_else(|| failed(Errno::NOENT))? })
    }

    fn make_node(&mut self, path: &Path, node: DeviceNode) -> Result<(), FileError> {
        self.file("create", path)?;
        self.machine.nodes.insert(path.to_owned(), node.number.minor);
        Ok(())
    }

    fn remove_node(&mut self, path: &Path) -> Result<(), FileError> {
        self.file("remove", path)?;
        self.machine.nodes.remove(path);
        Ok(())
    }

    fn taps(&mut self) -> io::Result<Vec<(DeviceNumber, u32)>> {
        self.call("taps").map_err(io::Error::other)?;
        let taps = self.machine.links.iter();
        let taps = taps.filter_map(|((_, index), wired)| Some((wired.minor?, *index)));
        Ok(taps.map(|(minor, index)| (DeviceNumber { major: MAJOR, minor }, index)).collect())
    }
}
