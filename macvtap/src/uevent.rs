//! Taps as the kernel announces them: one message for every device that appears in a network namespace, with its number.
//!
//! Reading the number from sysfs means to mount a sysfs of the namespace and to unmount it again, for which the kernel
//! waits until all processors have moved on (`namespace_unlock` of `fs/namespace.c`): a tenth of a millisecond, and many
//! on a busy node. The announcement is there when the request that makes the link returns.
//!
//! Who may administer a namespace can announce things in it too, and these announcements look like the kernel's
//! (`uevent_net_rcv_skb` of `lib/kobject_uevent.c`). They come in addition: so a number counts only if the tap was
//! announced exactly once, no message was lost, and sysfs has a tap with this index behind the number.

use crate::record::DeviceNumber;
use crate::tap;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use std::io;

/// The kernel's own group; udev passes events on in another one.
const KERNEL_GROUP: u32 = 1;

/// The kernel's longest message (`UEVENT_BUFFER_SIZE`) is a quarter of it.
const MESSAGE_MAX: usize = 8 << 10;

/// A macvtap has four announcements. Where there are many more, somebody disturbs.
const MESSAGES_MAX: usize = 64;

/// What the kernel announces in the network namespace in which this was opened, from then on.
#[derive(Debug)]
pub(crate) struct Announcements {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What the messages contain about one tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announced {
    /// No announcement.
    #[default]
    Nothing,
    /// One announcement, with this number.
    Once(DeviceNumber),
    /// Twice, or without a number, or that it went away again.
    Unclear,
}

impl Announcements {
    /// Listens in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(MESSAGE_MAX) })
    }

    /// The number of the tap with this index, if what came since the last question leaves no doubt.
    pub(crate) fn tap(&mut self, ifindex: u32) -> Option<DeviceNumber> {
        let mut announced = Announced::Nothing;
        for _ in 0..MESSAGES_MAX {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                // From a process, to this socket alone.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) if length < MESSAGE_MAX => announced = announced.and(&self.buffer, ifindex),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Announced::Once(number) = announced else { return None };
                    return (tap::link_with(number) == Some(ifindex)).then_some(number);
                }
                // ENOBUFS: messages were lost.
                Ok(_) | Err(_) => return None,
            }
        }
        None
    }
}

impl Announced {
    /// With one message more: `add@/devices/virtual/net/net1/macvtap/tap16777216`, then variables, each ending with 0.
    #[must_use]
    pub fn and(self, message: &[u8], ifindex: u32) -> Self {
        let mut lines = message.split(|byte| *byte == 0).map(|line| str::from_utf8(line).unwrap_or_default());
        let Some((action, path)) = lines.next().and_then(|head| head.split_once('@')) else { return self };
        let device = path.rsplit_once('/').map(|(_, device)| device);
        if device.and_then(|device| device.strip_prefix("tap")) != Some(ifindex.to_string().as_str()) {
            return self;
        }
        let (mut major, mut minor) = (None, None);
        for (name, value) in lines.filter_map(|line| line.split_once('=')) {
            match name {
                "MAJOR" => major = value.parse().ok(),
                "MINOR" => minor = value.parse().ok(),
                _ => {}
            }
        }
        match (self, action, major.zip(minor)) {
            (Self::Nothing, "add", Some((major, minor))) => Self::Once(DeviceNumber { major, minor }),
            // Of the link that the guard of tap numbers deleted before.
            (Self::Nothing, "remove", _) => Self::Nothing,
            _ => Self::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INDEX: u32 = 16_777_216;

    fn message(action: &str, index: u32, number: &str) -> Vec<u8> {
        let path = format!("/devices/virtual/net/net1/macvtap/tap{index}");
        format!("{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=macvtap\0{number}SEQNUM=7\0")
            .into_bytes()
    }

    fn announced(messages: &[(&str, u32, &str)]) -> Announced {
        let all = messages.iter().map(|(action, index, number)| message(action, *index, number));
        all.fold(Announced::Nothing, |announced, message| announced.and(&message, INDEX))
    }

    #[test]
    fn a_number_counts_when_the_tap_was_announced_exactly_once() {
        const NUMBER: &str = "MAJOR=246\0MINOR=5\0";
        let once = Announced::Once(DeviceNumber { major: 246, minor: 5 });
        assert_eq!(announced(&[("add", INDEX, NUMBER)]), once);
        assert_eq!(announced(&[("remove", INDEX, NUMBER), ("add", INDEX, NUMBER)]), once);
        assert_eq!(announced(&[("add", INDEX + 1, "MAJOR=1\0MINOR=3\0"), ("add", INDEX, NUMBER)]), once);
        assert_eq!(announced(&[]), Announced::Nothing);
        assert_eq!(announced(&[("add", INDEX, NUMBER), ("add", INDEX, NUMBER)]), Announced::Unclear);
        assert_eq!(announced(&[("add", INDEX, NUMBER), ("remove", INDEX, NUMBER)]), Announced::Unclear);
        assert_eq!(
            announced(&[("add", INDEX, NUMBER), ("remove", INDEX, ""), ("add", INDEX, NUMBER)]),
            Announced::Unclear
        );
        assert_eq!(announced(&[("add", INDEX, "MAJOR=246\0")]), Announced::Unclear);
        assert_eq!(announced(&[("add", INDEX, "MAJOR=246\0MINOR=-1\0")]), Announced::Unclear);
    }

    proptest! {
        #[test]
        fn no_message_makes_the_reader_panic_or_unsays_a_doubt(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Announced::Nothing.and(&noise, INDEX);
            prop_assert_eq!(Announced::Unclear.and(&noise, INDEX), Announced::Unclear);
        }
    }
}
