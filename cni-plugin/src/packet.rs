//! Raw Ethernet frames on one interface.

#![expect(unsafe_code, reason = "no safe wrapper knows the address of a packet socket")]

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send, socket_with,
};
use std::ptr;

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// `struct sockaddr_ll` of `linux/if_packet.h`, as bind reads it.
#[repr(C)]
struct LinkAddress {
    family: u16,
    /// In network byte order.
    protocol: u16,
    ifindex: i32,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
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
        let address = LinkAddress {
            family: AddressFamily::PACKET.as_raw(),
            protocol,
            ifindex: i32::try_from(ifindex).map_err(|_| Errno::NODEV)?,
            hardware: 0,
            kind: 0,
            length: 0,
            address: [0; 8],
        };
        bind(&socket, &address)?;
        Ok(Self(socket))
    }

    /// Reads the beginning of a frame, as much as there is room for, and says whether it was sent through this interface
    /// (else it arrived there).
    pub fn receive(&self, buffer: &mut [u8]) -> Result<(usize, bool), Errno> {
        let (_, length, from) = recvfrom(&self.0, &mut *buffer, RecvFlags::empty())?;
        let from = from.filter(|from| from.addr_len() as usize >= size_of::<LinkAddress>());
        // SAFETY: the kernel wrote a `struct sockaddr_ll` of this length; the storage is aligned for every address.
        let kind = from.map(|from| unsafe { from.as_ptr().cast::<LinkAddress>().read() }.kind);
        Ok((length.min(buffer.len()), kind == Some(OUTGOING)))
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
