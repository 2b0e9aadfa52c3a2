//! Guests whose frames the kernel moves: vhost-net, which the machine that runs the other tests may lack.

use crate::support::agent::Agent;
use crate::support::cni::Pod;
use crate::support::flows::{received, send};
use crate::support::kubelet::Kubelet;
use crate::support::machine::ip;
use crate::support::port::Port;
use crate::support::queue::Queue;
use crate::support::vhost::{DEVICE, Vhost};
use crate::support::{Node, in_guest};
use std::path::Path;

const QUEUES: usize = 2;

/// The taps of a pod's link, each behind vhost-net, and the link's address.
fn attach(pod: &Pod) -> ([u8; 6], Vec<Box<dyn Port>>) {
    let mac = pod.ok("ADD")["interfaces"][0]["mac"].as_str().unwrap().to_owned();
    let octets: Vec<u8> = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    let path = format!("/run/macvtap/dev/{}", pod.link().unwrap()["ifindex"]);
    let open = || -> Box<dyn Port> {
        let queue = Queue::of_macvtap(Path::new(&path)).unwrap();
        queue.take_segments(true).unwrap();
        Box::new(Vhost::new(queue).unwrap())
    };
    (octets.try_into().unwrap(), std::iter::repeat_with(open).take(QUEUES).collect())
}

#[test]
fn a_guest_sends_and_receives_through_vhost_net() {
    if !in_guest() {
        return;
    }
    assert!(Vhost::is_present(), "this kernel has no {DEVICE}");
    ip("link set eth1 up");
    let kubelet = Kubelet::start(&Node);
    let _agent = Agent::standalone(r#"[{"name":"dataplane","lowerDevice":"eth1","capacity":2}]"#);
    kubelet.await_healthy("dataplane", 2);
    let pods = [("near", "dataplaneMvp0"), ("far", "dataplaneMvp1")].map(|(name, device)| {
        kubelet.allocate("dataplane", &[device]).unwrap();
        Pod::new(name, device)
    });
    let [(from, mut sending), (to, mut receiving)] = pods.each_ref().map(attach);
    send(&mut sending, from, to);
    received(&mut receiving);
    send(&mut receiving, to, from);
    received(&mut sending);
}
