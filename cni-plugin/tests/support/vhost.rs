//! A queue of a tap behind vhost-net: the kernel moves frames between the tap and rings in this program's memory, as it
//! does for QEMU. Split rings of virtio 0.9, with the header that a tap has by default; little-endian machines only.

#![allow(dead_code, reason = "each program uses another part")]

use super::port::Port;
use super::queue::Queue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{NoArg, Setter, ioctl};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// The device of the machine's vhost-net.
pub(crate) const DEVICE: &str = "/dev/vhost-net";

/// Descriptors of a ring, and bytes of each buffer: a segment and its header.
const ENTRIES: u16 = 64;
const BUFFER: usize = 1 << 16;

// Requests of `linux/vhost.h`.
const SET_OWNER: u32 = 0xaf01;
const SET_FEATURES: u32 = 0x4008_af00;
const SET_MEMORY: u32 = 0x4008_af03;
const SET_RING_LENGTH: u32 = 0x4008_af10;
const SET_RING_ADDRESSES: u32 = 0x4028_af11;
const SET_RING_BASE: u32 = 0x4008_af12;
const SET_RING_KICK: u32 = 0x4008_af20;
const SET_RING_CALL: u32 = 0x4008_af21;
const SET_BACKEND: u32 = 0x4008_af30;

/// Which ring: frames to the guest, and from it.
const RECEIVE: u32 = 0;
const SEND: u32 = 1;

/// `VRING_DESC_F_WRITE` and `VRING_USED_F_NO_NOTIFY`.
const WRITABLE: u64 = 2;
const NO_NOTIFY: u32 = 1;

/// `struct vhost_memory` with the buffers of both rings.
#[repr(C)]
struct Memory {
    regions: u32,
    padding: u32,
    region: [[u64; 4]; 2],
}

/// `struct vhost_vring_addr`
#[repr(C)]
struct Addresses {
    ring: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// Memory that the kernel reads and writes while this program does: atomics, whose place never changes.
struct Ring {
    /// Two words each: address; length, flags and next.
    descriptors: Box<[AtomicU64]>,
    /// Flags, index, then the ring.
    available: Box<[AtomicU16]>,
    /// Flags and index in one word, then two words for each entry.
    used: Box<[AtomicU32]>,
    buffers: Box<[AtomicU64]>,
    kick: OwnedFd,
    call: OwnedFd,
    offered: u16,
    taken: u16,
    free: Vec<u16>,
}

/// A queue whose frames the kernel moves.
pub(crate) struct Vhost {
    // Closed first: the kernel's thread ends before its memory goes.
    fd: OwnedFd,
    tap: Queue,
    receive: Ring,
    send: Ring,
}

fn zeroed<T: Default>(length: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(length).collect()
}

fn address<T>(memory: &[T]) -> u64 {
    memory.as_ptr() as u64
}

impl Ring {
    fn new(free: Vec<u16>) -> rustix::io::Result<Self> {
        let entries = usize::from(ENTRIES);
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Ok(Self {
            descriptors: zeroed(2 * entries),
            available: zeroed(3 + entries),
            used: zeroed(2 + 2 * entries),
            buffers: zeroed(entries * BUFFER / 8),
            kick: event()?,
            call: event()?,
            offered: 0,
            taken: 0,
            free,
        })
    }

    fn buffer(&self, entry: u16) -> &[AtomicU64] {
        &self.buffers[usize::from(entry) * BUFFER / 8..][..BUFFER / 8]
    }

    /// Hands a buffer over to the kernel.
    fn offer(&mut self, entry: u16, length: usize, flags: u64) {
        let at = 2 * usize::from(entry);
        self.descriptors[at].store(address(self.buffer(entry)), Ordering::Relaxed);
        self.descriptors[at + 1].store(length as u64 | flags << 32, Ordering::Relaxed);
        self.available[2 + usize::from(self.offered % ENTRIES)].store(entry, Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
        self.available[1].store(self.offered, Ordering::Release);
    }

    /// Wakes the kernel unless it is awake.
    fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.used[0].load(Ordering::Relaxed) & NO_NOTIFY == 0 {
            rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Takes back the next buffer that the kernel is done with, and how many bytes it wrote there.
    fn take(&mut self) -> Option<(u16, usize)> {
        if self.used[0].load(Ordering::Acquire) >> 16 == u32::from(self.taken) {
            return None;
        }
        let at = 1 + 2 * usize::from(self.taken % ENTRIES);
        let [entry, length] = [at, at + 1].map(|at| self.used[at].load(Ordering::Relaxed));
        self.taken = self.taken.wrapping_add(1);
        Some((u16::try_from(entry).unwrap(), usize::try_from(length).unwrap()))
    }
}

impl Vhost {
    /// Whether this machine has vhost-net.
    pub(crate) fn is_present() -> bool {
        Path::new(DEVICE).exists()
    }

    /// Lets the kernel move the frames of a queue of a tap.
    pub(crate) fn new(tap: Queue) -> rustix::io::Result<Self> {
        let fd = open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let (receive, send) = (Ring::new(Vec::new())?, Ring::new((0..ENTRIES).collect())?);
        let mut vhost = Self { fd, tap, receive, send };
        vhost.set_up()?;
        for entry in 0..ENTRIES {
            vhost.receive.offer(entry, BUFFER, WRITABLE);
        }
        for ring in [RECEIVE, SEND] {
            let backend = u32::try_from(vhost.tap.as_fd().as_raw_fd()).unwrap();
            vhost.set::<SET_BACKEND, _>([ring, backend])?;
        }
        vhost.receive.notify();
        Ok(vhost)
    }

    fn set_up(&self) -> rustix::io::Result<()> {
        #[expect(unsafe_code, reason = "no safe wrapper knows this request")]
        // SAFETY: it has no argument.
        unsafe { ioctl(&self.fd, NoArg::<SET_OWNER>::new()) }?;
        self.set::<SET_FEATURES, _>(0_u64)?;
        let rings = [(RECEIVE, &self.receive), (SEND, &self.send)];
        let region = rings.map(|(_, ring)| {
            let at = address(&ring.buffers);
            [at, size_of_val(&*ring.buffers) as u64, at, 0]
        });
        self.set::<SET_MEMORY, _>(Memory { regions: 2, padding: 0, region })?;
        for (number, ring) in rings {
            self.set::<SET_RING_LENGTH, _>([number, ENTRIES.into()])?;
            self.set::<SET_RING_BASE, _>([number, 0])?;
            self.set::<SET_RING_ADDRESSES, _>(Addresses {
                ring: number,
                flags: 0,
                descriptors: address(&ring.descriptors),
                used: address(&ring.used),
                available: address(&ring.available),
                log: 0,
            })?;
            let file = |fd: &OwnedFd| [number, u32::try_from(fd.as_raw_fd()).unwrap()];
            self.set::<SET_RING_KICK, _>(file(&ring.kick))?;
            self.set::<SET_RING_CALL, _>(file(&ring.call))?;
        }
        Ok(())
    }

    fn set<const REQUEST: u32, T>(&self, value: T) -> rustix::io::Result<()> {
        #[expect(unsafe_code, reason = "no safe wrapper knows these requests")]
        // SAFETY: each request is called with the structure that it reads, and keeps no pointer to that. The memory that
        // the structures name consists of atomics in boxes of this value, which outlive the descriptor.
        unsafe {
            ioctl(&self.fd, Setter::<REQUEST, T>::new(value))
        }
    }
}

impl Port for Vhost {
    fn send(&mut self, frame: &[u8]) -> rustix::io::Result<bool> {
        while let Some((entry, _)) = self.send.take() {
            self.send.free.push(entry);
        }
        let Some(entry) = self.send.free.pop() else { return Ok(false) };
        for (word, bytes) in self.send.buffer(entry).iter().zip(frame.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        self.send.offer(entry, frame.len(), 0);
        self.send.notify();
        Ok(true)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
        let Some((entry, length)) = self.receive.take() else { return Ok(None) };
        for (bytes, word) in buffer[..length].chunks_mut(8).zip(self.receive.buffer(entry)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..bytes.len()]);
        }
        self.receive.offer(entry, BUFFER, WRITABLE);
        self.receive.notify();
        Ok(Some(length))
    }

    fn wait(&self, at_most: Duration) {
        let timeout = Timespec::try_from(at_most).unwrap();
        poll(&mut [PollFd::new(&self.receive.call, PollFlags::IN)], Some(&timeout)).unwrap();
        let _ = rustix::io::read(&self.receive.call, &mut [0; 8]);
    }
}
