//! Whether the running kernel has macvtap at all: some distributions ship it in a package of additional modules.

use crate::netlink::{Kind, NetlinkError, Socket};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rustix::io::Errno;

/// Returns whether the kernel has macvtap. Asks for a macvtap without a link below it, which no kernel makes: one that
/// has macvtap, or loads it now, refuses the request as invalid (`EINVAL`), another one does not know the kind
/// (`EOPNOTSUPP`).
pub fn has_macvtap() -> Result<bool, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVtap)]));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match Socket::open()?.act(Kind::NewLink, &message, flags, &"ask whether the kernel has macvtap") {
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Ok(false),
        Err(error) if error.errno().is_none() => Err(error),
        // Without the right to ask nothing is known against it.
        Ok(()) | Err(_) => Ok(true),
    }
}
