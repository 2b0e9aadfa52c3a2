//! Several queues of one tap, as QEMU opens them for a guest with several processors.

use crate::support::flows::{received, send, send_until_received};
use crate::support::port::Port;
use crate::support::queue::Queue;
use crate::support::{Call, node_and_pods, octets};

const QUEUES: usize = 4;

#[test]
fn a_guest_sends_and_receives_through_several_queues_of_its_tap() {
    let Some((node, [near, far])) = node_and_pods() else { return };
    let add = |pod, slot: u32| {
        let result = Call::new(&node, pod, &format!("c{slot}")).device(slot).ok("ADD");
        let path = node.paths().device_node(node.first_ifindex + slot);
        let open = || -> Box<dyn Port> {
            let queue = Queue::of_macvtap(&path).unwrap();
            queue.take_segments(true).unwrap();
            Box::new(queue)
        };
        let queues: Vec<_> = std::iter::repeat_with(open).take(QUEUES).collect();
        (octets(&result["interfaces"][0]["mac"]), queues)
    };
    let ((from, mut sending), (to, mut receiving)) = (add(&near, 0), add(&far, 1));
    send(&mut sending, from, to);
    let flows = received(&mut receiving);
    // The probability that chance puts 64 flows into one of four queues is 2^-126.
    assert!(flows.iter().filter(|flows| !flows.is_empty()).count() > 1, "{flows:?}");
    // A queue that is closed leaves its flows to the others.
    receiving.truncate(1);
    send_until_received(&mut sending, from, to, receiving[0].as_mut());
}
