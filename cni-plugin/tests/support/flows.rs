//! Flows between two guests with several queues each.

#![allow(dead_code, reason = "each program uses another part")]

use super::port::Port;
use super::queue::HEADER;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long all of them may take.
const DEADLINE: Duration = Duration::from_mins(1);

const FLOWS: u16 = 64;
const FIRST_PORT: u16 = 20_000;

/// A UDP frame behind an empty virtio header: flows differ by their port.
fn frame(from: [u8; 6], to: [u8; 6], port: u16) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([to, from].concat());
    // IPv4 without options, 46 bytes, UDP, from 10.9.0.1 to 10.9.0.2; the kernel forwards it unread.
    frame.extend([8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0x26, 0xaa, 10, 9, 0, 1, 10, 9, 0, 2]);
    frame.extend([port, FIRST_PORT, 26, 0].map(u16::to_be_bytes).concat());
    frame.resize(HEADER + 60, 0);
    frame
}

fn port(frame: &[u8]) -> Option<u16> {
    let ipv4 = frame.get(HEADER + 12..HEADER + 14)? == [8, 0];
    ipv4.then(|| Some(u16::from_be_bytes(frame.get(HEADER + 34..HEADER + 36)?.try_into().ok()?))).flatten()
}

/// Returns the flows whose frames wait in a queue.
fn waiting(queue: &mut dyn Port, buffer: &mut [u8]) -> Vec<u16> {
    let mut flows = Vec::new();
    while let Some(length) = queue.receive(buffer).unwrap() {
        flows.extend(port(&buffer[..length]).filter(|port| (FIRST_PORT..FIRST_PORT + FLOWS).contains(port)));
    }
    flows
}

/// Sends a frame of each flow again and again until all have arrived. A queue that was closed is gone only when no process
/// that another test starts at that moment has it, too.
pub(crate) fn send_until_received(
    sending: &mut [Box<dyn Port>],
    from: [u8; 6],
    to: [u8; 6],
    queue: &mut dyn Port,
) {
    let (begun, mut buffer, mut flows) = (Instant::now(), vec![0; 1 << 16], BTreeSet::new());
    while flows.len() < usize::from(FLOWS) {
        assert!(begun.elapsed() < DEADLINE, "only {flows:?} arrived");
        send(sending, from, to);
        queue.wait(Duration::from_millis(1));
        flows.extend(waiting(queue, &mut buffer));
    }
}

/// Returns the flows that each queue received, when all have arrived once.
pub(crate) fn received(queues: &mut [Box<dyn Port>]) -> Vec<Vec<u16>> {
    let mut flows = vec![Vec::new(); queues.len()];
    let mut buffer = vec![0; 1 << 16];
    let begun = Instant::now();
    while flows.iter().map(Vec::len).sum::<usize>() < usize::from(FLOWS) {
        assert!(begun.elapsed() < DEADLINE, "only {flows:?} arrived");
        for (queue, flows) in queues.iter_mut().zip(&mut flows) {
            flows.extend(waiting(queue.as_mut(), &mut buffer));
        }
        queues[0].wait(Duration::from_millis(1));
    }
    let mut all = flows.concat();
    all.sort_unstable();
    assert_eq!(all, (FIRST_PORT..FIRST_PORT + FLOWS).collect::<Vec<_>>());
    flows
}

/// Sends a frame of each flow; the queues take turns.
pub(crate) fn send(queues: &mut [Box<dyn Port>], from: [u8; 6], to: [u8; 6]) {
    let (begun, count) = (Instant::now(), queues.len());
    for flow in 0..FLOWS {
        let queue = &mut queues[usize::from(flow) % count];
        while !queue.send(&frame(from, to, FIRST_PORT + flow)).unwrap() {
            assert!(begun.elapsed() < DEADLINE, "the link takes no frame");
        }
    }
}
