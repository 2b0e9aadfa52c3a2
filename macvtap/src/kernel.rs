//! What attaching and detaching ask of the kernel, and the kernel itself.
//!
//! The procedures know the [`Kernel`] trait only, so a test can fail any step of them.

use crate::file::FileError;
use crate::link::{self, By, Change, IfName, Link, Macvtap, Move, NicLink, Veth};
use crate::links::{self, Links};
use crate::netlink::{Kind, NetlinkError, Socket};
use crate::netns::{self, Netns, NetnsError, NetnsId};
use crate::record::DeviceNumber;
use crate::switch::{self, Family, SwitchError};
use crate::tap::{self, Node, Sysfs, TapError};
use crate::uevent::Announcements;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rustix::io::Errno;
use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use tracing::warn;

/// A namespace in which we make links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// The node's own, where the lower links are.
    Node,
    /// The one the device's link belongs in: a pod's, or the node's for a pod that has only the tap.
    Target,
}

/// A namespace in which we look for and delete links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// One of those in which we make links.
    Home(Home),
    /// Any that the node's namespace has a number for.
    Numbered(NetnsId),
}

/// A link to be made.
#[derive(Clone, Copy, Debug)]
pub enum NewLink<'a> {
    /// A macvtap.
    Macvtap(&'a Macvtap),
    /// A cable.
    Veth(&'a Veth),
}

/// The steps of attaching and detaching.
pub trait Kernel {
    /// The links of one namespace.
    type Links: Links;
    /// The links of the node.
    fn node_links(&mut self) -> &mut Self::Links;
    /// The links of the pod namespace with this inode at this path; none when it is not there any more.
    fn enter(&mut self, path: &Path, inode: u64) -> Result<Option<Self::Links>, OpenError>;
    /// Moves a link of the node into [`Home::Target`] under this name.
    fn move_in(&mut self, index: u32, name: &IfName, what: &dyn Display) -> Result<(), NetlinkError>;
    /// The number of the pod namespace with this inode at this path; none when it is not there any more.
    fn number(&mut self, path: &Path, inode: u64) -> Result<Option<NetnsId>, NetlinkError>;
    /// One link; none when there is no such link or no such namespace.
    fn find(&mut self, place: Place, by: &By) -> Result<Option<Link>, NetlinkError>;
    /// All links with what distinguishes NICs; none when there is no such namespace.
    fn nics(&mut self, place: Place) -> Result<Vec<NicLink>, NetlinkError>;
    /// Makes a link, down.
    fn create(&mut self, home: Home, link: NewLink<'_>) -> Result<(), NetlinkError>;
    /// Changes a link in [`Home::Target`].
    fn change(&mut self, index: u32, change: Change<'_>) -> Result<(), NetlinkError>;
    /// Turns off what IPv6 configures on a link in [`Home::Target`] without being asked: addresses that the kernel makes
    /// by itself, and addresses and routes that a router on the wire advertises.
    fn no_autoconfiguration(&mut self, index: u32, name: &str) -> Result<(), NetlinkError>;
    /// Deletes a link; succeeds when there is none.
    fn delete(&mut self, place: Place, index: u32) -> Result<(), NetlinkError>;
    /// The device number of a macvtap's tap.
    fn tap(&mut self, home: Home, name: &IfName, index: u32) -> Result<DeviceNumber, TapError>;
    /// Makes or replaces a device node.
    fn make_node(&mut self, path: &Path, node: Node) -> Result<(), FileError>;
    /// Removes a device node; succeeds when there is none.
    fn remove_node(&mut self, path: &Path) -> Result<(), FileError>;
    /// Every tap of the machine with the index of its link, in whatever namespace.
    fn taps(&mut self) -> io::Result<Vec<(DeviceNumber, u32)>>;
}

/// The running kernel, as the namespace of the calling thread and at most one pod's see it.
#[derive(Debug)]
pub struct Rtnl {
    node: Socket,
    /// Opened when first needed: only the guard of tap minors and taps without a pod network need it.
    node_sysfs: Option<Sysfs>,
    pod: Option<Pod>,
}

#[derive(Debug)]
struct Pod {
    netns: Netns,
    socket: Socket,
    /// Listens before any link is made. Without it taps are read from sysfs.
    announcements: Option<Announcements>,
}

/// The kernel cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No socket.
    #[error("open a netlink socket")]
    Netlink(#[from] NetlinkError),
    /// The pod's namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

impl Rtnl {
    /// [`Home::Target`] is the node's namespace, which is the calling thread's.
    pub fn node() -> Result<Self, OpenError> {
        Ok(Self { node: Socket::open()?, node_sysfs: None, pod: None })
    }

    /// [`Home::Target`] is `netns`; the node's namespace is the calling thread's.
    pub fn with_pod(netns: Netns) -> Result<Self, OpenError> {
        Ok(Self::entering(netns, || ())?.0)
    }

    /// The same, and whether the pod has a user namespace of its own (`hostUsers: false`).
    pub fn with_pod_and_users(netns: Netns) -> Result<(Self, bool), OpenError> {
        let path = netns.path().to_owned();
        let (kernel, has_users) = Self::entering(netns, netns::is_in_user_namespace)?;
        let failed = |errno| NetnsError::Failed { step: "look at", path, errno };
        Ok((kernel, has_users.map_err(failed)?))
    }

    /// Opens what is needed in the pod's namespace, and does `also` there.
    fn entering<T>(netns: Netns, also: impl FnOnce() -> T) -> Result<(Self, T), OpenError> {
        let open = || (Socket::open(), Announcements::open().ok(), also());
        let (socket, announcements, also) = netns.enter(open)?;
        let pod = Pod { netns, socket: socket?, announcements };
        Ok((Self { pod: Some(pod), ..Self::node()? }, also))
    }

    /// The pod's namespace.
    pub fn netns(&self) -> Option<&Netns> {
        self.pod.as_ref().map(|pod| &pod.netns)
    }

    /// The number of the pod's namespace as seen from the node's, given one if it has none.
    pub fn pod_id(&mut self) -> Result<Option<NetnsId>, NetlinkError> {
        match &self.pod {
            Some(pod) => pod.netns.id(&mut self.node).map(Some),
            None => Ok(None),
        }
    }

    /// Returns whether a namespace has this number as seen from the node's.
    pub fn is_assigned(&mut self, id: NetnsId) -> Result<bool, NetlinkError> {
        netns::is_assigned(&mut self.node, id)
    }

    /// Returns the number of a namespace as seen from the node's, if it has one.
    pub fn assigned_id(&mut self, netns: &Netns) -> Result<Option<NetnsId>, NetlinkError> {
        netns.assigned_id(&mut self.node)
    }

    /// The socket in the target namespace, for what a network needs beside its link.
    pub fn target_socket(&mut self) -> &mut Socket {
        self.socket(Home::Target)
    }

    /// Sets a switch of a link in the target namespace.
    pub fn set_switch(&self, family: Family, link: &str, name: &str, value: &str) -> Result<(), SwitchError> {
        let set = || switch::set(family, link, name, value);
        match &self.pod {
            Some(pod) => pod.netns.enter(set).map_err(SwitchError::from)?,
            None => set(),
        }
    }

    /// Lets no router advertisement configure a link of the target namespace.
    fn ignore_routers(&self, link: &str) -> Result<(), NetlinkError> {
        match self.set_switch(Family::Ipv6, link, "accept_ra", "0") {
            // In a container whose /proc/sys is read-only and which has not the node's either: the agent's, or Multus'.
            Err(error) if error.is_forbidden() => {
                warn!(link, %error, "router advertisements on this link can configure its namespace; mount the node's /proc/sys/net at /host/proc/sys/net");
                Ok(())
            }
            Err(error) if !error.is_absent() => {
                let what = format!("turn off router advertisements for {link}");
                Err(NetlinkError::Switch { what, source: std::io::Error::other(error) })
            }
            _ => Ok(()),
        }
    }

    fn socket(&mut self, home: Home) -> &mut Socket {
        match (home, &mut self.pod) {
            (Home::Target, Some(pod)) => &mut pod.socket,
            _ => &mut self.node,
        }
    }

    fn reach(&mut self, place: Place) -> (&mut Socket, Option<NetnsId>) {
        match place {
            Place::Home(home) => (self.socket(home), None),
            Place::Numbered(id) => (&mut self.node, Some(id)),
        }
    }
}

impl Kernel for Rtnl {
    type Links = Socket;

    fn node_links(&mut self) -> &mut Socket {
        &mut self.node
    }

    fn enter(&mut self, path: &Path, inode: u64) -> Result<Option<Socket>, OpenError> {
        let pod = match Netns::open(path) {
            Ok(found) if found.inode() == inode => found,
            Ok(_) | Err(NetnsError::Missing(_) | NetnsError::NotNetns(_) | NetnsError::Own(_)) => {
                return Ok(None);
            }
            Err(error @ NetnsError::Failed { .. }) => return Err(error.into()),
        };
        Ok(Some(pod.enter(Socket::open)??))
    }

    fn move_in(&mut self, index: u32, name: &IfName, what: &dyn Display) -> Result<(), NetlinkError> {
        let Some(pod) = &self.pod else {
            return Err(NetlinkError::Refused { what: what.to_string(), said: None, errno: Errno::INVAL });
        };
        self.node.transfer(Move { index, name, new_index: None, netns: pod.netns.as_fd() }, what)
    }

    fn number(&mut self, path: &Path, inode: u64) -> Result<Option<NetnsId>, NetlinkError> {
        match Netns::open(path) {
            Ok(netns) if netns.inode() == inode => match netns.id(&mut self.node) {
                // A namespace of another kind.
                Err(error) if error.errno() == Some(Errno::INVAL) => Ok(None),
                id => id.map(Some),
            },
            // Whatever is there by now is not the namespace that was meant.
            Ok(_) | Err(_) => Ok(None),
        }
    }

    fn find(&mut self, place: Place, by: &By) -> Result<Option<Link>, NetlinkError> {
        let (socket, id) = self.reach(place);
        let what = format_args!("look for {by}");
        match socket.get(Kind::GetLink, &link::get(by, id), &what) {
            Ok(payload) => {
                let unreadable = |problem| NetlinkError::Answer { what: what.to_string(), problem };
                Link::parse(payload).map(Some).map_err(unreadable)
            }
            Err(error) if is_absent(&error, id) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn nics(&mut self, place: Place) -> Result<Vec<NicLink>, NetlinkError> {
        let (socket, id) = self.reach(place);
        match links::list(socket, id) {
            Err(error) if is_absent(&error, id) => Ok(Vec::new()),
            links => links,
        }
    }

    fn create(&mut self, home: Home, link: NewLink<'_>) -> Result<(), NetlinkError> {
        let netns = match home {
            Home::Target => self.pod.as_ref().map(|pod| pod.netns.as_fd()),
            Home::Node => None,
        };
        // Sent from the node's namespace always: that is where the lower link is.
        let (message, what) = match link {
            NewLink::Macvtap(macvtap) => {
                let what = format!("create macvtap {} with index {}", macvtap.name, macvtap.index);
                (link::create_macvtap(macvtap, netns), what)
            }
            NewLink::Veth(veth) => {
                (link::create_veth(veth), format!("create veth pair {} {}", veth.name, veth.peer))
            }
        };
        self.node.act(Kind::NewLink, &message, NLM_F_CREATE | NLM_F_EXCL, &what)
    }

    fn change(&mut self, index: u32, change: Change<'_>) -> Result<(), NetlinkError> {
        let message = link::change(index, change);
        let what = format_args!("{change} link with index {index}");
        self.socket(Home::Target).act(Kind::SetLink, &message, 0, &what)
    }

    fn no_autoconfiguration(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let what = format_args!("turn off IPv6 autoconfiguration of link with index {index}");
        match self.socket(Home::Target).act(Kind::SetLink, &link::no_ipv6_address(index), 0, &what) {
            Ok(()) => self.ignore_routers(name),
            // The kernel has no IPv6, or the link none, for its MTU is too small.
            Err(error) if error.errno() == Some(Errno::AFNOSUPPORT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn delete(&mut self, place: Place, index: u32) -> Result<(), NetlinkError> {
        let (socket, id) = self.reach(place);
        let message = link::delete(index, id);
        match socket.act(Kind::DelLink, &message, 0, &format_args!("delete link with index {index}")) {
            Err(error) if !is_absent(&error, id) => Err(error),
            _ => Ok(()),
        }
    }

    fn tap(&mut self, home: Home, name: &IfName, index: u32) -> Result<DeviceNumber, TapError> {
        if let (Home::Target, Some(pod)) = (home, &mut self.pod) {
            if let Some(number) = pod.announcements.as_mut().and_then(|announced| announced.tap(index)) {
                return Ok(number);
            }
            // A socket that has lost messages once does not report further losses.
            pod.announcements = None;
            return pod.netns.enter(Sysfs::open)??.tap(name, index);
        }
        let sysfs = match self.node_sysfs.take() {
            Some(sysfs) => sysfs,
            None => Sysfs::of_node()?,
        };
        self.node_sysfs.insert(sysfs).tap(name, index)
    }

    fn make_node(&mut self, path: &Path, node: Node) -> Result<(), FileError> {
        tap::make_node(path, node)
    }

    fn remove_node(&mut self, path: &Path) -> Result<(), FileError> {
        tap::remove_node(path)
    }

    fn taps(&mut self) -> io::Result<Vec<(DeviceNumber, u32)>> {
        tap::all()
    }
}

/// `ENODEV`: no such link. `EINVAL` to a request with a namespace's number: no such namespace.
fn is_absent(error: &NetlinkError, id: Option<NetnsId>) -> bool {
    match error.errno() {
        Some(Errno::NODEV) => true,
        Some(Errno::INVAL) => id.is_some(),
        _ => false,
    }
}
