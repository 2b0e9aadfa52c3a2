//! The three kinds of link that a pod can be given, as one: a new macvtap, a whole NIC, an existing macvtap of the node.

use crate::address;
use crate::follow::{self, Following};
use crate::protocol::environment::Attachment;
use crate::protocol::error::{CniError, Code};
use macvtap::attach::{AttachError, Attached, Attaching};
use macvtap::claim::ClaimError;
use macvtap::fit::UnfitError;
use macvtap::host_device::{TakeError, Taking};
use macvtap::host_link::{MoveError, Moving};
use macvtap::kernel::Rtnl;
use macvtap::link::{Change, Link};
use macvtap::mac::MacAddr;
use macvtap::paths::Paths;
use macvtap::table::Owner;
use tracing::info;

/// A link on its way into a pod. Dropping it undoes every step taken.
pub(super) trait Pending: Sized {
    /// The kernel, for what a network needs in addition to its link.
    fn kernel(&mut self) -> &mut Rtnl;
    /// Whether the same holder had the device before, so that its addresses may still be leased.
    fn is_repeat(&self) -> bool;
    /// Fails if the link cannot be placed, as far as that can be known: asked before an IPAM plugin is run. Otherwise
    /// [`Pending::place`] or [`Pending::finish`] finds out.
    fn check(&mut self) -> Result<(), CniError>;
    /// Sets the address that the link gets when it is placed.
    fn wish_mac(&mut self, mac: MacAddr);
    /// Puts the link into the pod, down.
    fn place(&mut self) -> Result<(), CniError>;
    /// Returns the link as it is now, in the pod.
    fn link(&mut self) -> Result<Link, CniError>;
    /// Turns off what IPv6 configures on the link without being asked.
    fn no_autoconfiguration(&mut self) -> Result<(), CniError>;
    /// Sets the link up; the kernel finds here that its address is taken.
    fn up(&mut self) -> Result<(), CniError>;
    /// Completes the attachment: nothing is undone any more.
    fn finish(self) -> Result<Link, CniError>;
    /// Whether frames of ours may be sent from the link while it has no carrier.
    fn sends_without_carrier(&self) -> bool {
        true
    }
}

/// A new macvtap of a device.
pub(super) struct NewLink<'a> {
    /// Its attachment.
    pub(super) attaching: Attaching<'a, Rtnl>,
    /// The holder whose derived address it has, which can be exchanged; none if its address was asked for.
    pub(super) derived_for: Option<&'a Attachment>,
    /// What should follow its guest, if anything.
    pub(super) following: Option<Following>,
    /// Where followers are recorded.
    pub(super) paths: &'a Paths,
}

impl Pending for NewLink<'_> {
    fn kernel(&mut self) -> &mut Rtnl {
        self.attaching.kernel()
    }

    fn is_repeat(&self) -> bool {
        self.attaching.is_repeat()
    }

    fn check(&mut self) -> Result<(), CniError> {
        Ok(self.attaching.check_lower()?)
    }

    fn wish_mac(&mut self, mac: MacAddr) {
        self.derived_for = None;
        self.attaching.wish_mac(mac);
    }

    fn place(&mut self) -> Result<(), CniError> {
        Ok(self.attaching.create_link()?)
    }

    fn link(&mut self) -> Result<Link, CniError> {
        Ok(self.attaching.link()?)
    }

    fn no_autoconfiguration(&mut self) -> Result<(), CniError> {
        Ok(self.attaching.no_autoconfiguration()?)
    }

    /// A derived address that is taken is exchanged for the next candidate.
    fn up(&mut self) -> Result<(), CniError> {
        let mut candidates = 1..address::CANDIDATES;
        loop {
            let taken = match self.attaching.change(Change::up(true)) {
                Err(error @ AttachError::Unfit(UnfitError::MacInUse { .. })) => error,
                outcome => return Ok(outcome?),
            };
            let next = self.derived_for.zip(candidates.next());
            let next = next.and_then(|(pod, n)| address::derived(&pod.args.pod_uid, pod.ifname.as_str(), n));
            let Some(mac) = next else { return Err(taken.into()) };
            info!(%mac, "derived MAC address was taken, next one used");
            self.attaching.wish_mac(mac);
            self.attaching.change(Change::mac(mac))?;
        }
    }

    /// A follower that cannot be started fails the attachment, which is undone then.
    fn finish(self) -> Result<Link, CniError> {
        if let Some(following) = &self.following {
            follow::start(self.paths, &self.attaching.request().device, following)
                .map_err(|error| CniError::from_chain(Code::Attach, &error))?;
        }
        let Attached { link, .. } = self.attaching.finish()?;
        Ok(follow::reported(link, self.following.as_ref()))
    }
}

impl Pending for Taking<'_, Rtnl> {
    fn kernel(&mut self) -> &mut Rtnl {
        Taking::kernel(self)
    }

    fn is_repeat(&self) -> bool {
        Taking::is_repeat(self)
    }

    /// The NIC was judged when the attachment began.
    fn check(&mut self) -> Result<(), CniError> {
        Ok(())
    }

    fn wish_mac(&mut self, mac: MacAddr) {
        Taking::wish_mac(self, mac);
    }

    fn place(&mut self) -> Result<(), CniError> {
        Ok(self.move_in()?)
    }

    fn link(&mut self) -> Result<Link, CniError> {
        Ok(Taking::link(self)?)
    }

    fn no_autoconfiguration(&mut self) -> Result<(), CniError> {
        Ok(Taking::no_autoconfiguration(self)?)
    }

    fn up(&mut self) -> Result<(), CniError> {
        Ok(self.change(Change::up(true))?)
    }

    fn finish(self) -> Result<Link, CniError> {
        Ok(Taking::finish(self)?)
    }

    /// A frame that a NIC cannot send holds the network namespace of the socket it was sent from. That could not end then, and
    /// only its end brings the NIC back when there was no DEL.
    fn sends_without_carrier(&self) -> bool {
        false
    }
}

/// An existing macvtap of the node.
pub(super) struct HostLink<'a> {
    /// Its move.
    pub(super) moving: Moving<'a>,
    /// The future owner of its tap.
    pub(super) owner: Owner,
}

impl Pending for HostLink<'_> {
    fn kernel(&mut self) -> &mut Rtnl {
        self.moving.kernel()
    }

    /// There is no record of it, so a repetition finds no link.
    fn is_repeat(&self) -> bool {
        false
    }

    /// The link was judged when the move began.
    fn check(&mut self) -> Result<(), CniError> {
        Ok(())
    }

    fn wish_mac(&mut self, mac: MacAddr) {
        self.moving.wish_mac(mac);
    }

    fn place(&mut self) -> Result<(), CniError> {
        Ok(self.moving.move_in()?)
    }

    fn link(&mut self) -> Result<Link, CniError> {
        Ok(self.moving.link()?)
    }

    fn no_autoconfiguration(&mut self) -> Result<(), CniError> {
        Ok(self.moving.no_autoconfiguration()?)
    }

    fn up(&mut self) -> Result<(), CniError> {
        Ok(self.moving.change(Change::up(true))?)
    }

    fn finish(self) -> Result<Link, CniError> {
        Ok(self.moving.finish(self.owner)?)
    }
}

impl From<AttachError> for CniError {
    fn from(error: AttachError) -> Self {
        let code = match &error {
            AttachError::Unfit(UnfitError::MtuTooHigh { .. } | UnfitError::LowerKind { .. })
            | AttachError::Claim(ClaimError::TwoNetworks { .. }) => Code::Config,
            AttachError::Claim(ClaimError::InUse { .. })
            | AttachError::LowerGone { .. }
            | AttachError::LowerBusy { .. }
            | AttachError::NoFreeMinor => Code::TryAgain,
            _ => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}

impl From<TakeError> for CniError {
    fn from(error: TakeError) -> Self {
        let code = match &error {
            TakeError::MtuTooHigh { .. } | TakeError::Claim(ClaimError::TwoNetworks { .. }) => Code::Config,
            TakeError::Claim(ClaimError::InUse { .. })
            | TakeError::Missing { .. }
            | TakeError::Tied { .. } => Code::TryAgain,
            _ => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}

impl From<MoveError> for CniError {
    fn from(error: MoveError) -> Self {
        let code = match &error {
            MoveError::Missing(_)
            | MoveError::NotMacvtap { .. }
            | MoveError::Ours(_)
            | MoveError::Unfit(UnfitError::MtuTooHigh { .. } | UnfitError::LowerKind { .. }) => Code::Config,
            _ => Code::Attach,
        };
        Self::from_chain(code, &error)
    }
}
