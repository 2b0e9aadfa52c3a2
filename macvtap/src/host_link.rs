//! A macvtap that somebody made on the node, moved into a pod: what `deviceID` meant before there were device tables.
//!
//! Allowed where the agent is standalone or the node's settings say so. There is neither a record nor a device
//! node of this project: the program that made the link also gave the pod its tap in devtmpfs, and that node gets the pod's owner. Links with our indexes
//! are never moved.

use crate::file::FileError;
use crate::fit::{self, UnfitError};
use crate::kernel::{Home, Kernel, Place, Rtnl};
use crate::link::{By, Change, IfName, Link, Move};
use crate::links::Links;
use crate::mac::MacAddr;
use crate::netlink::NetlinkError;
use crate::netns;
use crate::paths::Paths;
use crate::records::{self, RecordError};
use crate::table::{IFINDEX_FIRST, Owner};
use crate::tap::{self, TapError};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use tracing::warn;

/// Where the kernel makes the nodes of taps.
const DEVTMPFS: &str = "/dev";

const NODE: Place = Place::Home(Home::Node);
const TARGET: Place = Place::Home(Home::Target);

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveRequest {
    /// The link's name on the node.
    pub name: IfName,
    /// Its name in the pod.
    pub ifname: IfName,
    /// Another address.
    pub mac: Option<MacAddr>,
    /// Another MTU.
    pub mtu: Option<u32>,
    /// Whether it takes every frame; absent: as it does now.
    pub promiscuous: Option<bool>,
}

/// A link on its way into a pod, down. Dropping it takes the link back.
#[derive(Debug)]
pub struct Moving<'k> {
    kernel: &'k mut Rtnl,
    /// The way back.
    node: OwnedFd,
    before: Link,
    request: MoveRequest,
    lower_name: String,
    progress: Progress,
}

/// How far a move has come, and so what there is to undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Begun,
    Touched,
    Finished,
}

/// A link of the node cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// There is no such link.
    #[error("deviceID {0} is neither a device of this node nor an interface on it")]
    Missing(IfName),
    /// It is something else.
    #[error(
        "deviceID {name} is an interface of this node, but not a macvtap ({kind}); only a macvtap is moved into a pod"
    )]
    NotMacvtap {
        /// The link.
        name: IfName,
        /// What it is.
        kind: String,
    },
    /// It is a device's.
    #[error(
        "deviceID {0} is the link of a device of this node; leave deviceID out of the configuration, Multus fills it in"
    )]
    Ours(IfName),
    /// It does not fit its lower link or the pod.
    #[error(transparent)]
    Unfit(#[from] UnfitError),
    /// The node's own namespace could not be opened.
    #[error("open the network namespace of the node")]
    Node(#[source] Errno),
    /// The records could not be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tap is unknown.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The tap could not be given to its owner.
    #[error("device node")]
    Owner(#[from] FileError),
}

/// Finds the link, and judges whether it can move. Changes nothing.
pub fn begin<'k>(paths: &Paths, kernel: &'k mut Rtnl, request: MoveRequest) -> Result<Moving<'k>, MoveError> {
    let before = find(paths, kernel, &request.name)?;
    if kernel.find(TARGET, &By::Name(request.ifname.clone()))?.is_some() {
        return Err(UnfitError::NameTaken(request.ifname.clone()).into());
    }
    let lower = before.lower.map(|index| kernel.find(NODE, &By::Index(index))).transpose()?.flatten();
    if let Some(lower) = &lower {
        fit::judge_mtu(request.mtu, lower)?;
    }
    let lower_name = lower.map(|lower| lower.name).unwrap_or_default();
    let node = netns::own().map_err(MoveError::Node)?;
    Ok(Moving { kernel, node, before, request, lower_name, progress: Progress::Begun })
}

fn find(paths: &Paths, kernel: &mut Rtnl, name: &IfName) -> Result<Link, MoveError> {
    let link = kernel.find(NODE, &By::Name(name.clone()))?.ok_or_else(|| MoveError::Missing(name.clone()))?;
    if !link.is_macvtap() {
        let kind = link.kind.unwrap_or_else(|| "a physical link".to_owned());
        return Err(MoveError::NotMacvtap { name: name.clone(), kind });
    }
    let recorded =
        || records::list(paths).map(|all| all.records.iter().any(|record| record.ifindex == link.index));
    if link.index >= IFINDEX_FIRST || recorded()? {
        return Err(MoveError::Ours(name.clone()));
    }
    Ok(link)
}

impl Moving<'_> {
    /// The kernel, for what a network needs beside its link.
    pub fn kernel(&mut self) -> &mut Rtnl {
        self.kernel
    }

    /// The link as it is now, in the pod. Its index may be another than on the node.
    pub fn link(&mut self) -> Result<Link, MoveError> {
        let found = self.kernel.find(TARGET, &By::Name(self.request.ifname.clone()))?;
        found.ok_or_else(|| MoveError::Missing(self.request.ifname.clone()))
    }

    /// Changes the link in the pod.
    pub fn change(&mut self, change: Change) -> Result<(), MoveError> {
        let link = self.link()?;
        let changed = self.kernel.change(link.index, change);
        changed.map_err(|error| fit::explain(error, link.device_mac(), &self.lower_name))
    }

    /// Turns off what IPv6 configures on the link without being asked.
    pub fn no_autoconfiguration(&mut self) -> Result<(), MoveError> {
        let link = self.link()?;
        Ok(self.kernel.no_autoconfiguration(link.index, &link.name)?)
    }

    /// The link stays in the pod, and its tap in devtmpfs becomes `owner`'s, if that is where the container has it from.
    pub fn finish(mut self, owner: Owner) -> Result<Link, MoveError> {
        let link = self.link()?;
        let number = self.kernel.tap(Home::Target, &self.request.ifname, link.index)?;
        let path = Path::new(DEVTMPFS).join(format!("tap{}", link.index));
        // devtmpfs has one directory for the machine: under this name there may be the tap of another namespace's link.
        if tap::node_at(&path).is_some_and(|node| node.number == number) {
            tap::give_to(&path, owner)?;
        } else {
            warn!(path = %path.display(), %number, "tap is not there under its name, so its owner was not set");
        }
        self.progress = Progress::Finished;
        Ok(link)
    }

    /// Sets the address that the link gets when it moves.
    pub fn wish_mac(&mut self, mac: MacAddr) {
        self.request.mac = Some(mac);
    }

    /// Moves the link into the pod, down: moving a link that is up makes the kernel wait twice as long.
    pub fn move_in(&mut self) -> Result<(), MoveError> {
        self.progress = Progress::Touched;
        let index = self.before.index;
        let request = &self.request;
        let settings = Change {
            mac: request.mac,
            mtu: request.mtu,
            promiscuous: request.promiscuous,
            up: Some(false),
            ..Change::default()
        };
        let what = format!("change {}", request.name);
        let changed = self.kernel.node_links().set(index, settings, &what);
        changed.map_err(|error| fit::explain::<MoveError>(error, request.mac, &self.lower_name))?;
        let what = format!("move {} into the pod as {}", request.name, request.ifname);
        Ok(self.kernel.move_in(index, &request.ifname, &what)?)
    }

    fn take_back(&mut self) -> Result<(), MoveError> {
        let name: IfName =
            self.before.name.parse().map_err(|_| MoveError::Missing(self.request.ifname.clone()))?;
        // A failed move may have moved the link nevertheless, under either name.
        for known in [self.request.ifname.clone(), name.clone()] {
            let found = self.kernel.find(TARGET, &By::Name(known))?;
            if let Some(link) = found.filter(|link| link.is_macvtap() && link.lower == self.before.lower) {
                let to = Move { index: link.index, name: &name, new_index: None, netns: self.node.as_fd() };
                self.kernel.target_socket().transfer(to, &format_args!("take {name} back"))?;
            }
        }
        let Some(link) = self.kernel.find(NODE, &By::Name(name.clone()))? else {
            return Err(MoveError::Missing(name));
        };
        let as_before = Change {
            mac: self.before.device_mac(),
            mtu: Some(self.before.mtu),
            promiscuous: Some(self.before.promiscuous),
            up: Some(self.before.up),
            ..Change::default()
        };
        Ok(self.kernel.node_links().set(link.index, as_before, &format_args!("restore {name}"))?)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        if self.progress == Progress::Touched
            && let Err(error) = self.take_back()
        {
            warn!(link = self.before.name, %error, "link not taken back to the node");
        }
    }
}
