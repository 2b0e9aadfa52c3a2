//! Two pods with a cable between them and the kernel's own sockets: what a container has instead of a guest with a tap.

use crate::processor;
use crate::support::{Holder, Node, pod};
use crate::traffic::{ROUND_TRIPS, STREAM, Stream};
use macvtap::netns::Netns;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// The pods.
pub(crate) struct Cable {
    pods: [Holder; 2],
}

impl Cable {
    pub(crate) fn new() -> Self {
        let pods = [pod(), pod()];
        Node::ip(&pods[0], &format!("link add net1 type veth peer name net1 netns {}", pods[1].pid()));
        for (pod, address) in pods.iter().zip(ADDRESSES) {
            Node::ip(pod, &format!("addr add {address}/24 dev net1"));
            Node::ip(pod, "link set net1 up");
        }
        Self { pods }
    }

    fn inside<T>(&self, pod: usize, work: impl FnOnce() -> T) -> T {
        Netns::open(&self.pods[pod].netns()).unwrap().enter(work).unwrap()
    }

    /// One TCP connection.
    pub(crate) fn stream(&self, mtu: u16) -> Stream {
        for pod in &self.pods {
            Node::ip(pod, &format!("link set net1 mtu {mtu}"));
        }
        let listener = self.inside(1, || TcpListener::bind((ADDRESSES[1], 0))).unwrap();
        let to = listener.local_addr().unwrap();
        let mut sender = self.inside(0, || TcpStream::connect(to)).unwrap();
        let mut receiver = listener.accept().unwrap().0;
        let end = AtomicBool::new(false);
        let (before, begun) = (processor::used(), Instant::now());
        let (bytes, took) = thread::scope(|scope| {
            let end = &end;
            let arrived = scope.spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                let mut bytes = 0;
                while let Ok(length @ 1..) = receiver.read(&mut buffer) {
                    bytes += length;
                }
                (bytes, begun.elapsed())
            });
            scope.spawn(move || {
                let buffer = vec![0; 1 << 16];
                while !end.load(Ordering::Relaxed) {
                    sender.write_all(&buffer).unwrap();
                }
            });
            thread::sleep(STREAM);
            end.store(true, Ordering::Relaxed);
            arrived.join().unwrap()
        });
        let used = processor::used().saturating_sub(before);
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let bytes = bytes as f64;
        // In segments of 64 KiB, to compare.
        let segments = bytes / 65_536.0;
        let seconds = took.as_secs_f64();
        Stream {
            rate: segments / seconds,
            bytes: bytes / seconds,
            processor: used.div_f64(segments),
            lost: 0,
        }
    }

    /// Datagrams that make the smallest frame, one after the other.
    pub(crate) fn round_trips(&self) -> Vec<Duration> {
        let [near, far] =
            [0, 1].map(|pod| self.inside(pod, || UdpSocket::bind((ADDRESSES[pod], 0))).unwrap());
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 64];
                for _ in 0..ROUND_TRIPS {
                    let length = far.recv(&mut buffer).unwrap();
                    far.send(&buffer[..length]).unwrap();
                }
            });
            let trip = |_| {
                let begun = Instant::now();
                near.send(&[0; 18]).unwrap();
                near.recv(&mut [0; 64]).unwrap();
                begun.elapsed()
            };
            (0..ROUND_TRIPS).map(trip).collect()
        })
    }
}
