//! The number of a new tap is the kernel's, whatever processes of the pod announce.

use crate::fixtures::request;
use crate::support::node_and_pods;
use macvtap::kernel::{Home, Kernel, NewLink, Place, Rtnl};
use macvtap::netns::Netns;
use macvtap::park;
use macvtap::table::PLACEHOLDER_IFINDEX_FIRST;
use macvtap::tap::Sysfs;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};

/// What a process that administers its namespace can do: announce a device. `/dev/null` in this case.
fn announce(netns: &Netns, action: &str, ifindex: u32) {
    let path = format!("/devices/virtual/net/net1/macvtap/tap{ifindex}");
    let text =
        format!("{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=macvtap\0MAJOR=1\0MINOR=3\0");
    // `struct nlmsghdr`, with the first type that is free for use and `NLM_F_REQUEST`.
    let mut message = u32::try_from(16 + text.len()).unwrap().to_ne_bytes().to_vec();
    message.extend(16_u16.to_ne_bytes());
    message.extend(1_u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(text.bytes());
    let sent = netns.enter(|| {
        let socket = Socket::new(NETLINK_KOBJECT_UEVENT).unwrap();
        socket.send_to(&message, &SocketAddr::new(0, 0), 0)
    });
    sent.unwrap().unwrap();
}

#[test]
fn announcements_of_a_process_in_the_pod_never_give_it_a_foreign_device() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let link = request(&node, 0, Some((&pod, "c1"))).link;
    let netns = Netns::open(&pod.netns()).unwrap();
    let disturbances: [(&[&str], &[&str]); 5] = [
        (&[], &[]),
        (&["add"], &[]),
        (&["add", "remove"], &[]),
        (&[], &["remove", "add"]),
        (&["add"; 500], &["add"; 3]),
    ];
    node.inside(|| {
        for (before, after) in disturbances {
            let mut kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
            for action in before {
                announce(&netns, action, link.index);
            }
            kernel.create(Home::Target, NewLink::Macvtap(&link)).unwrap();
            for action in after {
                announce(&netns, action, link.index);
            }
            let number = kernel.tap(Home::Target, &link.name, link.index).unwrap();
            let shown = netns.enter(Sysfs::open).unwrap().unwrap().tap(&link.name, link.index).unwrap();
            assert_eq!(number, shown, "{} before and {} after", before.len(), after.len());
            kernel.delete(Place::Home(Home::Target), link.index).unwrap();
        }
    });
}

#[test]
fn a_link_that_is_made_again_is_asked_for_its_new_number() {
    let Some((node, [pod, other])) = node_and_pods() else { return };
    let link = request(&node, 0, Some((&pod, "c1"))).link;
    let stranger = request(&node, 1, Some((&other, "c2"))).link;
    let netns = Netns::open(&pod.netns()).unwrap();
    node.inside(|| {
        let mut kernel = Rtnl::with_pod(Netns::open(&pod.netns()).unwrap()).unwrap();
        let mut elsewhere = Rtnl::with_pod(Netns::open(&other.netns()).unwrap()).unwrap();
        kernel.create(Home::Target, NewLink::Macvtap(&link)).unwrap();
        let first = kernel.tap(Home::Target, &link.name, link.index).unwrap();
        kernel.delete(Place::Home(Home::Target), link.index).unwrap();
        // Takes the number, unless a test that runs beside this one was faster.
        elsewhere.create(Home::Target, NewLink::Macvtap(&stranger)).unwrap();
        kernel.create(Home::Target, NewLink::Macvtap(&link)).unwrap();
        let second = kernel.tap(Home::Target, &link.name, link.index).unwrap();
        let shown = netns.enter(Sysfs::open).unwrap().unwrap().tap(&link.name, link.index).unwrap();
        assert_eq!(second, shown, "after {first}");
    });
}

#[test]
fn a_placeholder_that_got_another_minor_than_it_says_is_removed() {
    let Some((node, [])) = node_and_pods() else { return };
    // As of a maker that was killed between making and looking: no tap has this minor.
    let minor = 0xf_fffe;
    let index = PLACEHOLDER_IFINDEX_FIRST | minor;
    node.sh(&format!(
        "ip link add mvtpark-a type veth peer name mvtpark-b; ip link add link mvtpark-a name mvtpark{minor} index {index} type macvtap mode bridge"
    ));
    node.inside(|| park::release(&node.paths(), &mut Rtnl::node().unwrap())).unwrap();
    assert!(!node.sh("ip -br link").contains("mvtpark"));
}
