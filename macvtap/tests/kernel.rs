//! The procedures on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise, its helpers too"
)]

mod support;

use macvtap::adopt::{self, Unrecorded};
use macvtap::attach::{self, AttachError, Attached, Begun, Repeat, Request};
use macvtap::detach::{self, Detached};
use macvtap::file::FileError;
use macvtap::kernel::{Home, Kernel, NewLink, Place, Rtnl};
use macvtap::link::{By, Change, IfName, Link, Macvtap};
use macvtap::mode::Mode;
use macvtap::netlink::NetlinkError;
use macvtap::netns::{Netns, NetnsId};
use macvtap::record::{Attachment, DeviceNumber, Holder as RecordHolder};
use macvtap::tap::{Node as DeviceNode, TapError};
use macvtap::{park, records};
use rustix::io::Errno;
use std::path::Path;
use support::{Holder, Node, is_root, pod};

/// The kernel, except that call number `fail_at` fails instead.
struct Faulty {
    kernel: Rtnl,
    calls: usize,
    fail_at: usize,
}

impl Faulty {
    fn fails(&mut self) -> bool {
        self.calls += 1;
        self.calls == self.fail_at
    }

    fn netlink(&mut self, what: &str) -> Result<(), NetlinkError> {
        let error = || NetlinkError::Refused { what: what.into(), said: None, errno: Errno::NOBUFS };
        if self.fails() { Err(error()) } else { Ok(()) }
    }
}

impl Kernel for Faulty {
    fn number(&mut self, path: &Path, inode: u64) -> Result<Option<NetnsId>, NetlinkError> {
        self.netlink("number").and_then(|()| self.kernel.number(path, inode))
    }
    fn find(&mut self, place: Place, by: &By) -> Result<Option<Link>, NetlinkError> {
        self.netlink("find").and_then(|()| self.kernel.find(place, by))
    }
    fn create(&mut self, home: Home, link: NewLink<'_>) -> Result<(), NetlinkError> {
        self.netlink("create").and_then(|()| self.kernel.create(home, link))
    }
    fn change(&mut self, index: u32, change: Change) -> Result<(), NetlinkError> {
        self.netlink("change").and_then(|()| self.kernel.change(index, change))
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
}

fn request(node: &Node, slot: u32, pod: Option<(&Holder, &str)>) -> Request {
    let table = node.table();
    let id = format!("dataplaneMvp{slot}").parse().unwrap();
    let device = table.device(&id).unwrap();
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
        repeat: Repeat::Keep,
    }
}

/// What ADD does, without addresses.
fn attach(node: &Node, request: Request, kernel: &mut impl Kernel) -> Result<Attached, AttachError> {
    let paths = node.paths();
    match attach::begin(&paths, kernel, request)? {
        Begun::Present(attached) => Ok(attached),
        Begun::New(mut attaching) => {
            attaching.create_link()?;
            attaching.change(Change::NoLinkLocalAddress)?;
            attaching.change(Change::Up)?;
            attaching.finish()
        }
    }
}

fn attach_in(node: &Node, slot: u32, pod: &Holder, container: &str) -> Result<Attached, AttachError> {
    let mut request = request(node, slot, Some((pod, container)));
    node.inside(|| {
        let mut kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
        request.netns_id = kernel.pod_id().unwrap();
        attach(node, request, &mut kernel)
    })
}

#[test]
fn a_failure_of_any_step_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    let before = (node.traces(), Node::ip(&pod, "-br link"));
    let mut succeeded_after = None;
    for fail_at in 1..50 {
        let request = request(&node, 0, Some((&pod, "c1")));
        let attached = node.inside(|| {
            let kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
            attach(&node, request, &mut Faulty { kernel, calls: 0, fail_at })
        });
        if attached.is_ok() {
            succeeded_after = Some(fail_at);
            break;
        }
        assert_eq!((node.traces(), Node::ip(&pod, "-br link")), before, "call {fail_at}");
    }
    assert!(succeeded_after.is_some_and(|n| n > 6), "{succeeded_after:?}: the steps were not all tried");
}

#[test]
fn a_failure_of_any_step_of_the_minor_guard_leaves_no_link_of_the_device() {
    if !is_root() {
        return;
    }
    let (node, lost, next) = (Node::with_table(), pod(), pod());
    attach_in(&node, 0, &lost, "lost").unwrap();
    Node::ip(&lost, "link del net1");
    let before = Node::ip(&next, "-br link");
    let mut done = false;
    for fail_at in 1..60 {
        let request = request(&node, 1, Some((&next, "next")));
        let attached = node.inside(|| {
            let kernel = Rtnl::with_pod(Netns::open(&next.netns()).unwrap()).unwrap();
            attach(&node, request, &mut Faulty { kernel, calls: 0, fail_at })
        });
        if attached.is_ok() {
            done = true;
            break;
        }
        assert_eq!(Node::ip(&next, "-br link"), before, "call {fail_at}");
        assert!(!node.traces().contains("dataplaneMvp1"), "call {fail_at}: {}", node.traces());
    }
    assert!(done);
}

#[test]
fn a_link_is_lost_although_one_of_its_index_and_number_is_in_another_namespace() {
    if !is_root() {
        return;
    }
    let (node, pod, elsewhere) = (Node::with_table(), pod(), pod());
    attach_in(&node, 0, &pod, "pod").unwrap();
    attach_in(&node, 1, &elsewhere, "elsewhere").unwrap();
    let [ours, other] = [0, 1].map(|slot| {
        let device = format!("dataplaneMvp{slot}").parse().unwrap();
        records::read(&node.paths(), &device).unwrap().unwrap()
    });
    let is_lost = |record: &Attachment| node.inside(|| detach::is_lost(&mut Rtnl::node().unwrap(), record));
    assert_eq!([is_lost(&ours), is_lost(&other)], [false, false]);
    // What a second node on the same kernel does when it gives its pod the same index, and the kernel the freed number.
    let reused = Attachment { ifindex: other.ifindex, tap: other.tap, ..ours.clone() };
    assert!(is_lost(&reused));
    Node::ip(&pod, "link del net1");
    assert!(is_lost(&ours));
    // Of a namespace that cannot be told apart nothing is known.
    let RecordHolder::Pod { container_id, ifname, pod_uid, pod_namespace, pod_name, netns_inode, .. } =
        other.holder
    else {
        panic!("not a pod's")
    };
    let netns = "/nowhere".to_owned();
    let holder =
        RecordHolder::Pod { container_id, ifname, pod_uid, pod_namespace, pod_name, netns, netns_inode };
    assert!(!is_lost(&Attachment { holder, netns_id: None, ..other }));
}

#[test]
fn the_minor_of_a_lost_link_goes_to_nobody_until_its_record_is_gone() {
    if !is_root() {
        return;
    }
    let node = Node::with_table();
    let detach = |record: &Attachment| {
        node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), record).unwrap())
    };
    let record = |slot: u32| {
        let device = format!("dataplaneMvp{slot}").parse().unwrap();
        records::read(&node.paths(), &device).unwrap().unwrap()
    };
    // Minors are the machine's: another test may get the lost one before our next link does.
    let parked = (0..200).any(|_| {
        let (lost, next) = (pod(), pod());
        let old = attach_in(&node, 0, &lost, "lost").unwrap();
        Node::ip(&lost, "link del net1");
        let new = attach_in(&node, 1, &next, "next").unwrap();
        assert_ne!(new.tap, old.tap, "the new pod got the tap that the old one may still open");
        detach(&record(1));
        let parked = node.sh("ip -br link").contains(&format!("mvtpark{}@", old.tap.minor));
        if !parked {
            detach(&record(0));
        }
        parked
    });
    assert!(parked, "no placeholder was ever needed");
    let release = || node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap()).unwrap());
    assert_eq!((release().removed, release().kept), (0, 1));
    // The dead pod is collected: its number may be used again, and nothing of the guard remains.
    assert!(matches!(detach(&record(0)), Detached::Removed(_)));
    assert_eq!(release().removed, 1);
    assert!(!node.sh("ip -br link").contains("mvtpark"), "the cable stayed");
}

#[test]
fn what_is_left_of_a_pod_is_collected_by_number_when_its_namespace_has_no_path() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    attach_in(&node, 0, &pod, "c1").unwrap();
    let mut record = records::read(&node.paths(), &"dataplaneMvp0".parse().unwrap()).unwrap().unwrap();
    let RecordHolder::Pod { netns, .. } = &mut record.holder else { panic!("{record:?}") };
    *netns = "/run/netns/unmounted".into();
    records::write(&node.paths(), &record).unwrap();
    let collect =
        || node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), &record).unwrap());
    assert!(matches!(collect(), Detached::Removed(_)));
    assert!(!Node::ip(&pod, "-br link").contains("net1"));
    assert!(!node.traces().contains("macvtap/"), "{}", node.traces());
    assert_eq!(collect(), Detached::Absent);
}

#[test]
fn a_pod_that_only_has_the_tap_gets_its_link_once_and_never_a_lost_one() {
    if !is_root() {
        return;
    }
    let node = Node::with_table();
    let paths = node.paths();
    let prepare = || {
        let request = request(&node, 2, None);
        node.inside(|| attach::tap_only(&paths, &mut Rtnl::node().unwrap(), request))
    };
    let made = prepare().unwrap().expect("a link");
    assert!(made.link.up && made.link.all_multicast);
    assert!(
        !node.sh(&format!("ip -6 addr show dev {}", made.link.name)).contains("inet6"),
        "it has an address"
    );
    assert_eq!(prepare().unwrap(), None, "a second start of the container made another link");
    node.sh(&format!("ip link del {}", made.link.name));
    assert!(matches!(prepare(), Err(AttachError::LinkLost { .. })));
}

#[test]
fn a_foreign_namespace_with_the_recorded_number_loses_nothing() {
    if !is_root() {
        return;
    }
    let (node, mut dead, other) = (Node::with_table(), pod(), pod());
    attach_in(&node, 0, &dead, "dead").unwrap();
    let mut record = records::read(&node.paths(), &"dataplaneMvp0".parse().unwrap()).unwrap().unwrap();
    dead.end();
    // The kernel may give the number to another namespace, where the index may be anything.
    Node::ip(&other, &format!("link add x index {} type veth peer name y", record.ifindex));
    record.netns_id = node.inside(|| {
        let mut socket = macvtap::netlink::Socket::open().unwrap();
        Some(Netns::open(&other.netns()).unwrap().id(&mut socket).unwrap().0)
    });
    records::write(&node.paths(), &record).unwrap();
    let collected =
        node.inside(|| detach::collect(&node.paths(), &mut Rtnl::node().unwrap(), &record).unwrap());
    assert!(matches!(collected, Detached::Removed(_)));
    assert!(Node::ip(&other, "-br link").contains("x@"), "a stranger's link was deleted");
}

/// Looks for a device's link in the node's namespace and in these pods'.
fn adopt(node: &Node, slot: u32, pods: &[&Holder]) -> Option<Attachment> {
    let names = tempfile::tempdir().unwrap();
    std::fs::write(names.path().join("no-namespace"), "").unwrap();
    for (number, pod) in pods.iter().enumerate() {
        std::os::unix::fs::symlink(pod.netns(), names.path().join(number.to_string())).unwrap();
    }
    let table = node.table();
    let id: macvtap::device_id::DeviceId = format!("dataplaneMvp{slot}").parse().unwrap();
    let device = table.device(&id).unwrap();
    let lost = Unrecorded {
        ifindex: device.ifindex,
        lower_ifindex: device.link.ifindex,
        owner: device.resource.owner,
        pod_namespace: "tenant-a".into(),
        pod_name: "vm".into(),
        device: id,
    };
    node.inside(|| adopt::adopt(&node.paths(), &mut Rtnl::node().unwrap(), &lost, names.path()).unwrap())
}

#[test]
fn a_device_whose_record_was_lost_is_adopted_with_its_link_and_can_be_detached() {
    if !is_root() {
        return;
    }
    let (node, other, pod) = (Node::with_table(), pod(), pod());
    let before = node.traces();
    let attached = attach_in(&node, 0, &pod, "c1").unwrap();
    let id = "dataplaneMvp0".parse().unwrap();
    let lost = records::read(&node.paths(), &id).unwrap().unwrap();
    for damage in [
        "rm -r macvtap/attachments macvtap/taps",
        "echo '{' > macvtap/attachments/dataplaneMvp0",
        "rm -r macvtap",
    ] {
        node.sh(&format!("cd /run; {damage}"));
        let record = adopt(&node, 0, &[&other, &pod]).expect(damage);
        assert_eq!(records::read(&node.paths(), &id).unwrap().as_ref(), Some(&record), "{damage}");
        assert_eq!((record.tap, record.mac, record.ifindex), (lost.tap, lost.mac, lost.ifindex), "{damage}");
        assert!(node.paths().device_node(record.ifindex).exists(), "{damage}");
        assert_eq!(records::with_tap(&node.paths(), attached.tap).unwrap(), Some(record), "{damage}");
        assert_eq!(adopt(&node, 0, &[&pod]), None, "a record that is there was replaced");
    }
    let detached = node.inside(|| {
        detach::detach(&node.paths(), &mut Rtnl::node().unwrap(), &id, |record| {
            record.holder.is_adopted("net1", Some(&pod.netns()))
        })
    });
    assert!(matches!(detached.unwrap(), Detached::Removed(_)));
    assert_eq!(node.traces(), before);
    assert!(!Node::ip(&pod, "-br link").contains("net1"));
}

#[test]
fn only_a_record_that_cannot_be_read_is_discarded() {
    if !is_root() {
        return;
    }
    let (node, pod) = (Node::with_table(), pod());
    attach_in(&node, 0, &pod, "c1").unwrap();
    let id = "dataplaneMvp0".parse().unwrap();
    let discard = || {
        let index = node.first_ifindex;
        node.inside(|| adopt::discard(&node.paths(), &mut Rtnl::node().unwrap(), &id, index).unwrap())
    };
    assert!(!discard(), "a good record");
    node.sh("echo '{' > /run/macvtap/attachments/dataplaneMvp0");
    assert!(discard());
    assert!(records::read(&node.paths(), &id).unwrap().is_none());
    assert!(!node.paths().device_node(node.first_ifindex).exists());
    assert!(!discard(), "there is none any more");
}

#[test]
fn a_tap_without_network_is_adopted_too() {
    if !is_root() {
        return;
    }
    let node = Node::with_table();
    let request = request(&node, 2, None);
    node.inside(|| attach::tap_only(&node.paths(), &mut Rtnl::node().unwrap(), request)).unwrap();
    node.sh("rm -r /run/macvtap/attachments");
    let record = adopt(&node, 2, &[]).unwrap();
    assert_eq!((record.holder, record.netns_id), (RecordHolder::Host, None));
}

#[test]
fn a_link_that_is_not_the_devices_is_never_adopted() {
    if !is_root() {
        return;
    }
    let (node, pod, thief) = (Node::with_table(), pod(), pod());
    let index = |slot: u32| node.first_ifindex + slot;
    // The same index on a link of another kind, on another lower link, and on none of ours in the node's namespace.
    Node::ip(&pod, &format!("link add x index {} type veth peer name y", index(0)));
    Node::ip(&pod, &format!("link add link y name z index {} type macvtap", index(1)));
    node.sh(&format!("ip link add link dp0 name foreign index {} type macvtap", index(2)));
    for slot in 0..3 {
        assert_eq!(adopt(&node, slot, &[&pod]), None, "slot {slot}");
    }
    // A pod that gave its own device's link the index of another device.
    attach_in(&node, 0, &thief, "thief").unwrap();
    let renumbered = format!("link set net1 netns {} index {}", pod.pid(), index(3));
    Node::ip(&thief, &renumbered);
    assert!(Node::ip(&pod, "-o link show net1").starts_with(&index(3).to_string()));
    assert_eq!(adopt(&node, 3, &[&pod, &thief]), None);
}
