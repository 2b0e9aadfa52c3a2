//! What two guests send each other.

use crate::frames::{self, FLOWS, Kind, Mac};
use crate::processor;
use crate::scene::{End, Scene};
use crate::support::port::Port;
use crate::support::queue::HEADER;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How many frames of all senders may be under way: a window, as of TCP, that no queue (500 frames) overflows.
const WINDOW: u64 = 256;

/// Of segments, as many as TCP has under way by default: 4 MiB.
const SEGMENTS_WINDOW: u64 = 64;

/// How long nothing may arrive before frames under way count as lost.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long a stream is measured.
pub(crate) const STREAM: Duration = Duration::from_millis(700);

/// Round trips of one round.
pub(crate) const ROUND_TRIPS: usize = 2_000;

/// The sender of the frames before a measurement, which count for none.
const PROBE: u16 = 1_000;

/// How long the links may take until the first frame arrives.
const SETTLE: Duration = Duration::from_secs(20);

/// What a stream gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Frames or segments a second that arrived.
    pub(crate) rate: f64,
    /// Bytes a second of these, without virtio headers.
    pub(crate) bytes: f64,
    /// Processor time for each, of all of the machine that is ours.
    pub(crate) processor: Duration,
    pub(crate) lost: u64,
}

/// What senders and receivers share.
struct Shared {
    /// Frames that arrived, by sender.
    received: Vec<AtomicU64>,
    bytes: AtomicU64,
    /// The senders, known before they begin.
    senders: OnceLock<Vec<Thread>>,
    /// Nothing more is sent.
    full: AtomicBool,
    end: AtomicBool,
}

/// Waits until all that was sent has arrived, or nothing arrives any more; returns how many frames did.
fn arrivals(shared: &Shared, sent: u64) -> u64 {
    let arrived = || shared.received.iter().map(|received| received.load(Ordering::Acquire)).sum::<u64>();
    let (mut before, mut since) = (arrived(), Instant::now());
    while before < sent && since.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
        let now = arrived();
        if now > before {
            (before, since) = (now, Instant::now());
        }
    }
    before
}

/// Frames from the first guest to the second, one sender and one receiver for each queue.
pub(crate) fn stream(scene: &Scene, end: End, kind: Kind, queues: usize) -> Stream {
    let [from, to] = &scene.guests;
    let segments = matches!(kind, Kind::Segments(_));
    let (mut near, mut far) = (from.open(end, queues, segments), to.open(end, queues, segments));
    settle(&mut near, &mut far, from.mac, to.mac);
    let shared = Shared {
        received: near.iter().map(|_| AtomicU64::new(0)).collect(),
        bytes: AtomicU64::new(0),
        senders: OnceLock::new(),
        full: AtomicBool::new(false),
        end: AtomicBool::new(false),
    };
    let window = if segments { SEGMENTS_WINDOW } else { WINDOW } / queues as u64;
    let flows = |sender| (0..FLOWS).map(move |flow| frames::frame(kind, from.mac, to.mac, sender, flow));
    thread::scope(|scope| {
        let shared = &shared;
        let spawned = near.iter_mut().zip(0_u16..).map(|(queue, number)| {
            let frames: Vec<_> = flows(number).collect();
            let received = &shared.received[usize::from(number)];
            scope.spawn(move || send(&mut **queue, &frames, received, window, shared))
        });
        let senders: Vec<_> = spawned.collect();
        let receivers: Vec<_> =
            far.iter_mut().map(|queue| scope.spawn(move || receive(&mut **queue, shared))).collect();
        let (before, begun) = (processor::used(), Instant::now());
        shared.senders.set(senders.iter().map(|sender| sender.thread().clone()).collect()).unwrap();
        for sender in &senders {
            sender.thread().unpark();
        }
        thread::sleep(STREAM);
        shared.full.store(true, Ordering::Release);
        let took = begun.elapsed();
        let sent: u64 = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        let frames = arrivals(shared, sent);
        shared.end.store(true, Ordering::Release);
        for receiver in receivers {
            receiver.join().unwrap();
        }
        let used = processor::used().saturating_sub(before);
        result(frames, shared.bytes.load(Ordering::Relaxed), sent - frames, took, used)
    })
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
fn result(frames: u64, bytes: u64, lost: u64, took: Duration, used: Duration) -> Stream {
    let seconds = took.as_secs_f64();
    Stream {
        rate: frames as f64 / seconds,
        bytes: bytes as f64 / seconds,
        processor: used.div_f64(frames.max(1) as f64),
        lost,
    }
}

/// Sends until it is enough, never more than the window ahead of what arrived; returns how many frames.
fn send(queue: &mut dyn Port, frames: &[Vec<u8>], received: &AtomicU64, window: u64, shared: &Shared) -> u64 {
    while shared.senders.get().is_none() {
        thread::park_timeout(PATIENCE);
    }
    let (mut sent, mut lost) = (0, 0);
    for frame in frames.iter().cycle() {
        loop {
            if shared.full.load(Ordering::Relaxed) {
                return sent;
            }
            let arrived = received.load(Ordering::Acquire);
            if sent - lost < window + arrived {
                break;
            }
            let waiting = Instant::now();
            thread::park_timeout(PATIENCE);
            if waiting.elapsed() >= PATIENCE && received.load(Ordering::Acquire) == arrived {
                lost = sent - arrived;
            }
        }
        if queue.send(frame).unwrap() {
            sent += 1;
        } else {
            thread::yield_now();
        }
    }
    sent
}

/// Receives until the end.
fn receive(queue: &mut dyn Port, shared: &Shared) {
    let mut buffer = vec![0; 1 << 17];
    let continue_at = |number: usize| shared.senders.get().map(|senders| senders[number].unpark());
    while !shared.end.load(Ordering::Relaxed) {
        let Some(length) = queue.receive(&mut buffer).unwrap() else {
            // Nothing is left: a sender that waits for room can go on.
            for number in 0..shared.received.len() {
                continue_at(number);
            }
            queue.wait(Duration::from_millis(10));
            continue;
        };
        let Some(number) = frames::sender(&buffer[..length]) else { continue };
        let Some(received) = shared.received.get(number) else { continue };
        shared.bytes.fetch_add((length - HEADER) as u64, Ordering::Relaxed);
        if received.fetch_add(1, Ordering::AcqRel) % 32 == 31 {
            continue_at(number);
        }
    }
}

/// Round trips of the smallest frame, one after the other.
pub(crate) fn round_trips(scene: &Scene, end: End) -> Vec<Duration> {
    let [from, to] = &scene.guests;
    let (mut near, mut far) = (from.open(end, 1, false), to.open(end, 1, false));
    settle(&mut near, &mut far, from.mac, to.mac);
    let ended = AtomicBool::new(false);
    let (near, far) = (&mut *near[0], &mut *far[0]);
    let frame = frames::frame(Kind::Frames(60), from.mac, to.mac, 0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 16];
            while !ended.load(Ordering::Relaxed) {
                match far.receive(&mut buffer).unwrap() {
                    Some(length) if frames::sender(&buffer[..length]).is_some() => {
                        frames::turn(&mut buffer[..length]);
                        far.send(&buffer[..length]).unwrap();
                    }
                    Some(_) => {}
                    None => far.wait(Duration::from_millis(10)),
                }
            }
        });
        let mut buffer = vec![0; 1 << 16];
        let trip = |_| {
            let begun = Instant::now();
            near.send(&frame).unwrap();
            await_from(near, to.mac, &mut buffer, begun + SETTLE).expect("the answer was lost");
            begun.elapsed()
        };
        let trips = (0..ROUND_TRIPS).map(trip).collect();
        ended.store(true, Ordering::Relaxed);
        trips
    })
}

/// Waits until frames pass both ways, which also lets bridges learn where the guests are.
fn settle(near: &mut [Box<dyn Port>], far: &mut [Box<dyn Port>], from: Mac, to: Mac) {
    for is_back in [false, true] {
        let (sending, receiving, source, target) =
            if is_back { (&mut *far, &mut *near, to, from) } else { (&mut *near, &mut *far, from, to) };
        let frame = frames::frame(Kind::Frames(60), source, target, PROBE, 0);
        let begun = Instant::now();
        let mut buffer = vec![0; 1 << 17];
        let arrived = |receiving: &mut [Box<dyn Port>], buffer: &mut [u8]| {
            receiving.iter_mut().any(|queue| {
                let deadline = Instant::now() + Duration::from_millis(10);
                await_from(&mut **queue, source, buffer, deadline).is_some()
            })
        };
        while !(sending[0].send(&frame).unwrap() && arrived(receiving, &mut buffer)) {
            assert!(begun.elapsed() < SETTLE, "no frame arrives");
        }
    }
    // What is left of that.
    let mut buffer = vec![0; 1 << 17];
    for queue in near.iter_mut().chain(far) {
        while queue.receive(&mut buffer).unwrap().is_some() {}
    }
}

/// The next frame of this source.
fn await_from(queue: &mut dyn Port, source: Mac, buffer: &mut [u8], deadline: Instant) -> Option<usize> {
    loop {
        match queue.receive(buffer).unwrap() {
            Some(length) if buffer[..length].get(HEADER + 6..HEADER + 12) == Some(&source[..]) => {
                return Some(length);
            }
            Some(_) => {}
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                queue.wait(left);
            }
        }
    }
}
