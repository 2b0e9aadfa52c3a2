//! Queues of a tap, opened and set up as QEMU does: with a virtio header in front of each frame and, if the guest takes
//! them, segments of up to 64 KiB.

#![allow(dead_code, reason = "each program uses another part")]

use super::port::Port;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Setter, ioctl};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Length of `struct virtio_net_hdr`, the default of a tap.
pub(crate) const HEADER: usize = 10;

/// `TUNSETIFF` of `linux/if_tun.h`.
const SET_INTERFACE: u32 = 0x4004_54ca;

/// `TUNSETOFFLOAD` of `linux/if_tun.h`.
const SET_OFFLOAD: u32 = 0x4004_54d0;

/// `TUNSETSNDBUF` of `linux/if_tun.h`.
const SET_SEND_BUFFER: u32 = 0x4004_54d4;

/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE`
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000 | 0x0100;

/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6`
const SEGMENTS: usize = 0x01 | 0x02 | 0x04;

/// `struct ifreq` of `linux/if.h`, for a request about flags.
#[repr(C)]
struct FlagsRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// One open file of a tap, which is one queue of its link.
#[derive(Debug)]
pub(crate) struct Queue {
    fd: OwnedFd,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Queue {
    /// Opens a queue of the macvtap whose device node is at `path`.
    pub(crate) fn of_macvtap(path: &Path) -> rustix::io::Result<Self> {
        Self::open(path, "")
    }

    /// Opens a queue of the tap `name` of the calling thread's network namespace.
    pub(crate) fn of_tap(name: &str) -> rustix::io::Result<Self> {
        Self::open(Path::new("/dev/net/tun"), name)
    }

    fn open(path: &Path, name: &str) -> rustix::io::Result<Self> {
        let fd = open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let mut request = FlagsRequest { name: [0; 16], flags: FLAGS, rest: [0; 22] };
        for (place, byte) in request.name.iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        #[expect(unsafe_code, reason = "no safe wrapper knows this request")]
        // SAFETY: the kernel reads, and for a tap writes, at most `sizeof(struct ifreq)` = 40 bytes, the size of
        // FlagsRequest, all of which may hold any value; it keeps no pointer.
        unsafe { ioctl(&fd, Setter::<SET_INTERFACE, FlagsRequest>::new(request)) }?;
        #[expect(unsafe_code, reason = "no safe wrapper knows this request")]
        // SAFETY: the kernel reads an int and keeps no pointer.
        unsafe { ioctl(&fd, Setter::<SET_SEND_BUFFER, i32>::new(i32::MAX)) }?;
        Ok(Self { fd })
    }

    /// Whether frames to the guest may be segments of up to 64 KiB without checksums; otherwise the kernel makes frames
    /// of them.
    pub(crate) fn take_segments(&self, takes: bool) -> rustix::io::Result<()> {
        let offload = if takes { SEGMENTS } else { 0 };
        #[expect(unsafe_code, reason = "no safe wrapper knows this request")]
        // SAFETY: the argument of this request is a number.
        unsafe {
            ioctl(&self.fd, IntegerSetter::<SET_OFFLOAD>::new_usize(offload))
        }
    }
}

impl Port for Queue {
    fn send(&mut self, frame: &[u8]) -> rustix::io::Result<bool> {
        match rustix::io::write(&self.fd, frame) {
            Ok(_) => Ok(true),
            // A link that is not up, or has no room.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::IO | Errno::NETDOWN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> rustix::io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn wait(&self, at_most: Duration) {
        let timeout = Timespec::try_from(at_most).unwrap();
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)).unwrap();
    }
}
