//! Raw Ethernet frames on one interface.

#![expect(unsafe_code, reason = "no safe wrapper knows the address of a packet socket")]

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, getsockname,
    recvfrom, send, socket_with,
};
use std::ptr;

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// `struct sockaddr_ll` of `linux/if_packet.h`, as bind reads it.
#[repr(C)]
struct LinkAddress {
    head: Head,
    address: [u8; 8],
}

/// What the kernel always writes of it.
#[repr(C)]
struct Head {
    family: u16,
    /// In network byte order.
    protocol: u16,
    ifindex: i32,
    hardware: u16,
    kind: u8,
    length: u8,
}

impl Head {
    fn of(address: &SocketAddrAny) -> Option<Self> {
        let is_whole = address.addr_len() as usize >= size_of::<Self>();
        // SAFETY: the kernel wrote this much of a `struct sockaddr_ll`; the storage is aligned for every address.
        is_whole.then(|| unsafe { address.as_ptr().cast::<Self>().read() })
    }
}

/// A socket on one interface, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

// SAFETY: `with_sockaddr` passes a pointer to a whole `struct sockaddr_ll`, readable for its length while the closure runs.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        const LENGTH: SocketAddrLen = 20;
        const { assert!(size_of::<Self>() == 20) };
        f(ptr::from_ref(self).cast(), LENGTH)
    }
}

impl PacketSocket {
    /// Opens a socket on an interface of the calling thread's namespace. It receives frames of this Ethernet type
    /// (`ETH_P_ALL` = 3: of every type, also those sent here), none when there is no type, and sends any.
    pub fn open(ifindex: u32, ethertype: Option<u16>) -> Result<Self, Errno> {
        let protocol = ethertype.unwrap_or_default().to_be();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without a protocol it receives nothing before it is bound to its interface.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None::<Protocol>)?;
        let ifindex = i32::try_from(ifindex).map_err(|_| Errno::NODEV)?;
        let family = AddressFamily::PACKET.as_raw();
        let head = Head { family, protocol, ifindex, hardware: 0, kind: 0, length: 0 };
        let address = LinkAddress { head, address: [0; 8] };
        bind(&socket, &address)?;
        Ok(Self(socket))
    }

    /// Reads the beginning of a frame, as much as there is room for, and says whether it was sent through this interface
    /// (else it arrived there).
    pub fn receive(&self, buffer: &mut [u8]) -> Result<(usize, bool), Errno> {
        let (_, length, from) = recvfrom(&self.0, &mut *buffer, RecvFlags::empty())?;
        let kind = from.and_then(|from| Head::of(&from)).map(|from| from.kind);
        Ok((length.min(buffer.len()), kind == Some(OUTGOING)))
    }

    /// Whether its interface still exists: when that goes, the kernel binds the socket to none, also if another interface
    /// has the same index by now.
    pub fn is_bound(&self) -> Result<bool, Errno> {
        let own = getsockname(&self.0)?;
        Ok(Head::of(&own).is_some_and(|own| own.ifindex > 0))
    }

    /// Sends a frame, beginning with the destination's address.
    pub fn send(&self, frame: &[u8]) -> Result<(), Errno> {
        send(&self.0, frame, SendFlags::empty()).map(drop)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
