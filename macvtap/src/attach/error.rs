//! Why a link cannot be attached.

use crate::claim::ClaimError;
use crate::detach::DetachError;
use crate::device_id::DeviceId;
use crate::file::FileError;
use crate::fit::{UnfitError, UnfitHostLink, UnfitNic};
use crate::lock::LockError;
use crate::netlink::NetlinkError;
use crate::park::ParkError;
use crate::record::DeviceNumber;
use crate::records::RecordError;
use crate::tap::TapError;
use rustix::io::Errno;

/// How often a link is created for a certain number, which another process on the machine can take meanwhile.
pub(super) const NUMBER_ROUNDS: u32 = 8;

/// How many minors in a row may be taken by pods that lost their links before an ADD is aborted.
pub(super) const MINOR_ROUNDS: u32 = 64;

/// A link cannot be attached, of whatever kind it is.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The device is not the caller's to take.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A container may still have the tap of a link that is gone.
    #[error("link lost: the link of device {device} is gone while its pod exists; delete the pod")]
    LinkLost {
        /// The device.
        device: DeviceId,
    },
    /// The lower link is gone.
    #[error("lower link {name} (index {ifindex}) of device {device} does not exist any more")]
    LowerGone {
        /// The device.
        device: DeviceId,
        /// Name of the lower link in the device table.
        name: String,
        /// Its index.
        ifindex: u32,
    },
    /// Another link has the index of the lower link.
    #[error(
        "lower link {name} (index {ifindex}) of device {device} does not exist any more: link {now} ({kind}) has its index; the node agent offers other devices once it runs"
    )]
    LowerReplaced {
        /// The device.
        device: DeviceId,
        /// Name of the lower link in the device table.
        name: String,
        /// Its index.
        ifindex: u32,
        /// Who has the index.
        now: String,
        /// What that is.
        kind: String,
    },
    /// The lower link cannot carry a macvtap now.
    #[error(
        "lower link {name} cannot carry a macvtap: it belongs to a bridge or bond, or another device holds it in passthru mode"
    )]
    LowerBusy {
        /// The lower link.
        name: String,
        /// What the kernel answered.
        #[source]
        source: NetlinkError,
    },
    /// It does not fit its lower link or the pod.
    #[error(transparent)]
    Unfit(#[from] UnfitError),
    /// The NIC cannot be given to the pod.
    #[error(transparent)]
    Nic(#[from] UnfitNic),
    /// The link of the node cannot be moved.
    #[error(transparent)]
    HostLink(#[from] UnfitHostLink),
    /// The node's own namespace could not be opened.
    #[error("open the network namespace of the node")]
    Namespace(#[source] Errno),
    /// The index is taken on the node.
    #[error("index {ifindex} of device {device} is taken by link {taken_by} of the node; delete it")]
    IndexTakenOnNode {
        /// The device.
        device: DeviceId,
        /// Its index.
        ifindex: u32,
        /// Who has it.
        taken_by: String,
    },
    /// The index is taken.
    #[error(
        "index {ifindex} of device {device} is taken by interface {taken_by} of the pod's network namespace; delete it"
    )]
    IndexTaken {
        /// The device.
        device: DeviceId,
        /// Its index.
        ifindex: u32,
        /// Who has it.
        taken_by: String,
    },
    /// The number that a running container knows the tap by is another link's.
    #[error(
        "tap number {number} of device {device}, by which a container of the pod knows it, is not free any more; delete the pod"
    )]
    NumberTaken {
        /// The device.
        device: DeviceId,
        /// Its number.
        number: DeviceNumber,
    },
    /// Every minor tried belongs to a pod that lost its link.
    #[error("{MINOR_ROUNDS} tap minors in a row belong to pods that lost their links; delete those pods")]
    NoFreeMinor,
    /// A lock could not be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A record could not be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// What the former holder left could not be removed.
    #[error("take over from the former holder")]
    TakeOver(#[from] DetachError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tap is unknown.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A minor could not be kept from the new link.
    #[error(transparent)]
    Park(#[from] ParkError),
    /// The device node could not be made, or given to its owner.
    #[error("device node")]
    Node(#[from] FileError),
    /// The link is not what was made.
    #[error("link {name} vanished or was changed while it was being attached")]
    Changed {
        /// Its name.
        name: String,
    },
}
