//! Bringing a link up in the pod, with its addresses in the order that each source of addresses needs.

use crate::address;
use crate::config::Announce;
use crate::ipam::{self, Delegate, Lease, configure};
use crate::protocol::environment::Attachment;
use crate::protocol::error::CniError;
use macvtap::attach::{AttachError, Attaching};
use macvtap::fit::UnfitError;
use macvtap::host_link::Moving;
use macvtap::kernel::Rtnl;
use macvtap::link::{Change, Link};
use macvtap::mac::MacAddr;
use tracing::info;

/// A link in the pod that is not in place yet.
pub(super) trait Raise {
    fn kernel(&mut self) -> &mut Rtnl;
    fn link(&mut self) -> Result<Link, CniError>;
    /// No addresses of the kernel's own: whoever is behind the link has its own.
    fn keep_silent(&mut self) -> Result<(), CniError>;
    /// UP, where the kernel finds that an address is taken.
    fn up(&mut self) -> Result<(), CniError>;
    /// Whether to announce addresses beside the kernel, which does so only while no setting of the pod forbids it.
    fn is_announced_by_us(&self) -> bool {
        true
    }
}

/// A device's link.
pub(super) struct DeviceLink<'a> {
    /// Its attachment.
    pub(super) attaching: Attaching<'a, Rtnl>,
    /// Whose address it may get another one for, if nobody asked for the one it has.
    pub(super) derived_for: Option<&'a Attachment>,
}

impl Raise for DeviceLink<'_> {
    fn kernel(&mut self) -> &mut Rtnl {
        self.attaching.kernel()
    }

    fn link(&mut self) -> Result<Link, CniError> {
        Ok(self.attaching.link()?)
    }

    fn keep_silent(&mut self) -> Result<(), CniError> {
        Ok(self.attaching.change(Change::NoLinkLocalAddress)?)
    }

    /// A derived address that is taken is exchanged for the next candidate.
    fn up(&mut self) -> Result<(), CniError> {
        let mut candidates = 1..address::CANDIDATES;
        loop {
            let taken = match self.attaching.change(Change::Up) {
                Err(error @ AttachError::Unfit(UnfitError::MacInUse { .. })) => error,
                outcome => return Ok(outcome?),
            };
            let next = self.derived_for.zip(candidates.next());
            let next = next.and_then(|(pod, n)| address::derived(&pod.args.pod_uid, pod.ifname.as_str(), n));
            let Some(mac) = next else { return Err(taken.into()) };
            info!(%mac, "derived MAC address was taken, next one used");
            self.attaching.wish_mac(mac);
            self.attaching.change(Change::Mac(mac))?;
        }
    }
}

impl Raise for Moving<'_> {
    fn kernel(&mut self) -> &mut Rtnl {
        Moving::kernel(self)
    }

    fn link(&mut self) -> Result<Link, CniError> {
        Ok(Moving::link(self)?)
    }

    fn keep_silent(&mut self) -> Result<(), CniError> {
        Ok(Moving::change(self, Change::NoLinkLocalAddress)?)
    }

    fn up(&mut self) -> Result<(), CniError> {
        Ok(Moving::change(self, Change::Up)?)
    }
}

/// Where the pod's addresses come from.
pub(super) enum Source<'d> {
    /// It gets none.
    None,
    /// They are leased.
    Lease(Lease<'d>),
    /// They are leased through the link, when it is up.
    Later(&'d Delegate<'d>),
}

impl<'d> Source<'d> {
    /// Leases what can be leased before there is a link.
    pub(super) fn open(delegate: Option<&'d Delegate<'d>>, kernel: &mut Rtnl) -> Result<Self, CniError> {
        let Some(delegate) = delegate else { return Ok(Self::None) };
        if delegate.needs_link() {
            return Ok(Self::Later(delegate));
        }
        let lease = delegate.lease()?;
        if lease.is_kube_ovns() {
            ipam::refuse_twice(kernel, lease.result())?;
        }
        Ok(Self::Lease(lease))
    }

    /// The address of the link that came with them.
    pub(super) fn mac(&self) -> Option<MacAddr> {
        match self {
            Self::Lease(lease) => lease.mac(),
            Self::None | Self::Later(_) => None,
        }
    }
}

/// Addresses while the link is down, UP, and what the kernel takes only then.
pub(super) fn raise<'d>(
    link: &mut impl Raise,
    source: Source<'d>,
    announce: Announce,
) -> Result<Option<Lease<'d>>, CniError> {
    let lease = match source {
        Source::None => {
            link.keep_silent()?;
            link.up()?;
            return Ok(None);
        }
        Source::Lease(lease) => {
            let now = link.link()?;
            configure::addresses(link.kernel(), &now, lease.result(), announce)?;
            link.up()?;
            lease
        }
        Source::Later(delegate) => {
            link.up()?;
            let lease = delegate.lease()?;
            let now = link.link()?;
            configure::addresses(link.kernel(), &now, lease.result(), announce)?;
            lease
        }
    };
    settle(link, &lease, announce)?;
    Ok(Some(lease))
}

/// Routes come after everything that may fail: they may replace those that another interface has.
fn settle(link: &mut impl Raise, lease: &Lease<'_>, announce: Announce) -> Result<(), CniError> {
    // It may have got another MAC address on its way up.
    let now = link.link()?;
    configure::await_uniqueness(link.kernel(), &now, lease.result())?;
    configure::routes(link.kernel(), &now, lease.result())?;
    if announce == Announce::Auto && link.is_announced_by_us() {
        ipam::announce(link.kernel(), &now, lease.result());
    }
    Ok(())
}
