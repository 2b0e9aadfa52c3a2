//! A macvtap that somebody made on the node, moved into a pod: what `deviceID` meant before there were device tables.
//!
//! Allowed where the agent is standalone or the node's settings say so. There is neither a record nor a device
//! node of this project: the program that made the link also gave the pod its tap in devtmpfs, and that node gets the pod's owner. Links with our indexes
//! are never moved.

use crate::attach::{AttachError, Pending};
use crate::fit::{self, UnfitError, UnfitHostLink};
use crate::kernel::{Home, Kernel, Place, Rtnl};
use crate::link::{By, Change, IfName, Link, Move};
use crate::links::Links;
use crate::mac::MacAddr;
use crate::netns;
use crate::paths::Paths;
use crate::records;
use crate::table::{IFINDEX_FIRST, Owner};
use crate::tap;
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
    /// The future owner of its tap.
    pub owner: Owner,
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
    /// Its index in the pod, once it is there.
    index: u32,
    /// Whether dropping this takes the link back.
    is_touched: bool,
}

/// Finds the link, and judges whether it can move. Changes nothing.
pub fn begin<'k>(
    paths: &Paths,
    kernel: &'k mut Rtnl,
    request: MoveRequest,
) -> Result<Moving<'k>, AttachError> {
    let before = find(paths, kernel, &request.name)?;
    if kernel.find(TARGET, &By::Name(request.ifname.clone()))?.is_some() {
        return Err(UnfitError::NameTaken(request.ifname.clone()).into());
    }
    let lower = before.lower.map(|index| kernel.find(NODE, &By::Index(index))).transpose()?.flatten();
    if let Some(lower) = &lower {
        fit::judge_mtu(request.mtu, lower)?;
    }
    let lower_name = lower.map(|lower| lower.name).unwrap_or_default();
    let node = netns::own().map_err(AttachError::Namespace)?;
    let index = before.index;
    Ok(Moving { kernel, node, before, request, lower_name, index, is_touched: false })
}

fn find(paths: &Paths, kernel: &mut Rtnl, name: &IfName) -> Result<Link, AttachError> {
    let link =
        kernel.find(NODE, &By::Name(name.clone()))?.ok_or_else(|| UnfitHostLink::Missing(name.clone()))?;
    if !link.is_macvtap() {
        let kind = link.kind.unwrap_or_else(|| "a physical link".to_owned());
        return Err(UnfitHostLink::NotMacvtap { name: name.clone(), kind }.into());
    }
    let recorded =
        || records::list(paths).map(|all| all.records.iter().any(|record| record.ifindex == link.index));
    if link.index >= IFINDEX_FIRST || recorded()? {
        return Err(UnfitHostLink::Ours(name.clone()).into());
    }
    Ok(link)
}

impl Pending for Moving<'_> {
    type Kernel = Rtnl;

    fn kernel(&mut self) -> &mut Rtnl {
        self.kernel
    }

    /// It has no record, so a repetition finds no link.
    fn is_repeat(&self) -> bool {
        false
    }

    fn wish_mac(&mut self, mac: MacAddr) {
        self.request.mac = Some(mac);
    }

    /// Moving a link that is up makes the kernel wait twice as long.
    fn place(&mut self) -> Result<(), AttachError> {
        self.is_touched = true;
        let index = self.before.index;
        let request = &self.request;
        let change = Change {
            mac: request.mac,
            mtu: request.mtu,
            promiscuous: request.promiscuous,
            ..Change::up(false)
        };
        let what = format!("change {}", request.name);
        let changed = self.kernel.node_links().set(index, change, &what);
        changed.map_err(|error| fit::explain::<AttachError>(error, request.mac, &self.lower_name))?;
        let what = format!("move {} into the pod as {}", request.name, request.ifname);
        self.kernel.move_in(index, &request.ifname, &what)?;
        // Its index was perhaps taken there.
        self.index = self.link()?.index;
        Ok(())
    }

    fn index(&self) -> u32 {
        self.index
    }

    fn ifname(&self) -> &IfName {
        &self.request.ifname
    }

    fn link(&mut self) -> Result<Link, AttachError> {
        let found = self.kernel.find(TARGET, &By::Name(self.request.ifname.clone()))?;
        found.ok_or_else(|| AttachError::Changed { name: self.request.ifname.to_string() })
    }

    fn up(&mut self) -> Result<(), AttachError> {
        let Err(error) = self.kernel.change(self.index, Change::up(true)) else { return Ok(()) };
        let mac = self.request.mac.or(self.before.device_mac());
        Err(fit::explain(error, mac, &self.lower_name))
    }

    /// The link stays in the pod, and its tap in devtmpfs becomes the owner's, if that is where the container has it from.
    fn finish(mut self) -> Result<Link, AttachError> {
        let link = self.link()?;
        let number = self.kernel.tap(Home::Target, &self.request.ifname, link.index)?;
        let path = Path::new(DEVTMPFS).join(format!("tap{}", link.index));
        // devtmpfs has one directory for the machine: under this name there may be the tap of another namespace's link.
        if tap::node_at(&path).is_some_and(|node| node.number == number) {
            tap::give_to(&path, self.request.owner)?;
        } else {
            warn!(path = %path.display(), %number, "tap is not there under its name, so its owner was not set");
        }
        self.is_touched = false;
        Ok(link)
    }
}

impl Moving<'_> {
    fn take_back(&mut self) -> Result<(), AttachError> {
        let name = self.request.name.clone();
        // A failed move may have moved the link nevertheless, under either name.
        for known in [self.request.ifname.clone(), name.clone()] {
            let found = self.kernel.find(TARGET, &By::Name(known))?;
            if let Some(link) = found.filter(|link| link.is_macvtap() && link.lower == self.before.lower) {
                let to = Move { index: link.index, name: &name, new_index: None, netns: self.node.as_fd() };
                self.kernel.target_socket().transfer(to, &format_args!("take {name} back"))?;
            }
        }
        let Some(link) = self.kernel.find(NODE, &By::Name(name.clone()))? else {
            return Err(UnfitHostLink::Missing(name).into());
        };
        let as_before = Change {
            mac: self.before.device_mac(),
            mtu: Some(self.before.mtu),
            promiscuous: Some(self.before.promiscuous),
            ..Change::up(self.before.up)
        };
        Ok(self.kernel.node_links().set(link.index, as_before, &format_args!("restore {name}"))?)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        if self.is_touched
            && let Err(error) = self.take_back()
        {
            warn!(link = self.before.name, %error, "link not taken back to the node");
        }
    }
}
