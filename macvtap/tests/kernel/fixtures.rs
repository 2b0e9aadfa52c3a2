//! Attaching as ADD does, and a kernel that fails.

use crate::support::{Holder, Node};
use macvtap::attach::{self, AttachError, Begun, Pending as _, Repeat, Request};
use macvtap::file::FileError;
use macvtap::kernel::{Home, Kernel, NewLink, OpenError, Place, Rtnl};
use macvtap::link::{By, Change, IfName, Link, Macvtap, Move, NicLink};
use macvtap::links::Links;
use macvtap::mode::Mode;
use macvtap::netlink::{NetlinkError, Socket};
use macvtap::netns::{Netns, NetnsId};
use macvtap::record::{DeviceNumber, Holder as RecordHolder};
use macvtap::tap::{Node as DeviceNode, TapError};
use rustix::io::Errno;
use std::cell::Cell;
use std::fmt::Display;
use std::path::Path;
use std::rc::Rc;

/// Counts calls; number `fail_at` fails.
#[derive(Clone)]
pub(super) struct Counter {
    calls: Rc<Cell<usize>>,
    fail_at: usize,
}

impl Counter {
    fn fails(&self) -> bool {
        self.calls.set(self.calls.get() + 1);
        self.calls.get() == self.fail_at
    }

    fn netlink(&self, what: &str) -> Result<(), NetlinkError> {
        let error = || NetlinkError::Refused { what: what.into(), said: None, errno: Errno::NOBUFS };
        if self.fails() { Err(error()) } else { Ok(()) }
    }
}

/// The kernel, except that one call fails instead.
pub(super) struct Faulty {
    kernel: Rtnl,
    counter: Counter,
    node: FaultyLinks,
}

impl Faulty {
    pub(super) fn new(kernel: Rtnl, fail_at: usize) -> Self {
        let counter = Counter { calls: Rc::default(), fail_at };
        let node = FaultyLinks { socket: Socket::open().unwrap(), counter: counter.clone() };
        Self { kernel, counter, node }
    }

    pub(super) fn calls(&self) -> usize {
        self.counter.calls.get()
    }

    fn fails(&mut self) -> bool {
        self.counter.fails()
    }

    fn netlink(&mut self, what: &str) -> Result<(), NetlinkError> {
        self.counter.netlink(what)
    }
}

/// The links of one namespace, with the same counter.
pub(super) struct FaultyLinks {
    socket: Socket,
    counter: Counter,
}

impl Links for FaultyLinks {
    fn nics(&mut self) -> Result<Vec<NicLink>, NetlinkError> {
        self.counter.netlink("nics").and_then(|()| self.socket.nics())
    }
    fn set(&mut self, index: u32, change: Change<'_>, what: &dyn Display) -> Result<(), NetlinkError> {
        self.counter.netlink("set").and_then(|()| self.socket.set(index, change, what))
    }
    fn transfer(&mut self, to: Move<'_>, what: &dyn Display) -> Result<(), NetlinkError> {
        self.counter.netlink("transfer").and_then(|()| self.socket.transfer(to, what))
    }
    fn remove_names(&mut self, index: u32, names: &[&[u8]], what: &dyn Display) -> Result<(), NetlinkError> {
        self.counter.netlink("remove names").and_then(|()| self.socket.remove_names(index, names, what))
    }
    fn delete(&mut self, index: u32, what: &dyn Display) -> Result<(), NetlinkError> {
        self.counter.netlink("delete").and_then(|()| Links::delete(&mut self.socket, index, what))
    }
    fn has_default_route(&mut self, index: u32) -> Result<bool, NetlinkError> {
        self.counter.netlink("routes").and_then(|()| self.socket.has_default_route(index))
    }
    fn has_address(&mut self, index: u32) -> Result<bool, NetlinkError> {
        self.counter.netlink("addresses").and_then(|()| self.socket.has_address(index))
    }
}

impl Kernel for Faulty {
    type Links = FaultyLinks;

    fn node_links(&mut self) -> &mut FaultyLinks {
        &mut self.node
    }
    fn enter(&mut self, path: &Path, inode: u64) -> Result<Option<FaultyLinks>, OpenError> {
        self.netlink("enter")?;
        let socket = self.kernel.enter(path, inode)?;
        Ok(socket.map(|socket| FaultyLinks { socket, counter: self.counter.clone() }))
    }
    fn move_in(&mut self, index: u32, name: &IfName, what: &dyn Display) -> Result<(), NetlinkError> {
        self.netlink("move in").and_then(|()| self.kernel.move_in(index, name, what))
    }
    fn number(&mut self, path: &Path, inode: u64) -> Result<Option<NetnsId>, NetlinkError> {
        self.netlink("number").and_then(|()| self.kernel.number(path, inode))
    }
    fn find(&mut self, place: Place, by: &By) -> Result<Option<Link>, NetlinkError> {
        self.netlink("find").and_then(|()| self.kernel.find(place, by))
    }
    fn nics(&mut self, place: Place) -> Result<Vec<NicLink>, NetlinkError> {
        self.netlink("nics").and_then(|()| self.kernel.nics(place))
    }
    fn create(&mut self, home: Home, link: NewLink<'_>) -> Result<(), NetlinkError> {
        self.netlink("create").and_then(|()| self.kernel.create(home, link))
    }
    fn change(&mut self, index: u32, change: Change<'_>) -> Result<(), NetlinkError> {
        self.netlink("change").and_then(|()| self.kernel.change(index, change))
    }
    fn no_autoconfiguration(&mut self, index: u32, name: &str) -> Result<(), NetlinkError> {
        self.netlink("autoconfiguration").and_then(|()| self.kernel.no_autoconfiguration(index, name))
    }
    fn delete(&mut self, place: Place, index: u32) -> Result<(), NetlinkError> {
        self.netlink("delete").and_then(|()| self.kernel.delete(place, index))
    }
    fn tap(&mut self, home: Home, name: &IfName, index: u32) -> Result<DeviceNumber, TapError> {
        let failed = TapError::Sysfs { step: "open", errno: Errno::NOMEM };
        if self.fails() { Err(failed) } else { self.kernel.tap(home, name, index) }
    }
    fn make_node(&mut self, path: &Path, node: DeviceNode) -> Result<(), FileError> {
        let failed = FileError { step: "create", path: path.into(), source: Errno::NOSPC.into() };
        if self.fails() { Err(failed) } else { self.kernel.make_node(path, node) }
    }
    fn remove_node(&mut self, path: &Path) -> Result<(), FileError> {
        let failed = FileError { step: "remove", path: path.into(), source: Errno::IO.into() };
        if self.fails() { Err(failed) } else { self.kernel.remove_node(path) }
    }
    fn taps(&mut self) -> std::io::Result<Vec<(DeviceNumber, u32)>> {
        if self.fails() { Err(Errno::NFILE.into()) } else { self.kernel.taps() }
    }
}

pub(super) fn request(node: &Node, slot: u32, pod: Option<(&Holder, &str)>) -> Request {
    let table = node.table();
    let id = format!("dataplaneMvp{slot}").parse().unwrap();
    let device = table.macvtap(&id).unwrap();
    let holder = pod.map_or(RecordHolder::Host, |(pod, container)| RecordHolder::Pod {
        container_id: container.into(),
        ifname: "net1".into(),
        pod_uid: format!("uid-of-{container}"),
        pod_namespace: "tenant-a".into(),
        pod_name: container.into(),
        netns: pod.netns().to_str().unwrap().into(),
        netns_inode: Netns::open(&pod.netns()).unwrap().inode(),
    });
    Request {
        device: id,
        holder,
        network: pod.map(|_| "dataplane".into()),
        netns_id: None,
        lower_name: "dp0".into(),
        lower_identity: device.link.identity.clone(),
        link: Macvtap {
            lower: device.link.ifindex,
            index: device.ifindex,
            name: pod.map_or_else(|| IfName::tap_only(device.ifindex), |_| "net1".parse().unwrap()),
            mode: Mode::Bridge,
            mac: None,
            mtu: None,
            promiscuous: false,
            all_multicast: true,
        },
        owner: device.resource.owner,
        spare_macs: Vec::new(),
        also_mac: None,
        has_ipv6: false,
        repeat: Repeat::Keep,
    }
}

/// What ADD does, without addresses.
pub(super) fn attach(node: &Node, request: Request, kernel: &mut impl Kernel) -> Result<Link, AttachError> {
    let paths = node.paths();
    match attach::begin(&paths, kernel, request)? {
        Begun::Present(link) => Ok(link),
        Begun::New(mut attaching) => {
            attaching.place()?;
            attaching.no_autoconfiguration()?;
            attaching.up()?;
            attaching.finish()
        }
    }
}

pub(super) fn attach_in(node: &Node, slot: u32, pod: &Holder, container: &str) -> Result<Link, AttachError> {
    let mut request = request(node, slot, Some((pod, container)));
    node.inside(|| {
        let mut kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
        request.netns_id = kernel.pod_id().unwrap();
        attach(node, request, &mut kernel)
    })
}
