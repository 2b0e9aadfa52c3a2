//! Bringing a link up in the pod, with its addresses in the order that each source of addresses needs.

use super::Adding;
use crate::config::{Announce, Dad};
use crate::ipam::{self, Delegate, Lease, Note, Objections, configure};
use crate::protocol::error::CniError;
use macvtap::attach::Pending;
use macvtap::kernel::Rtnl;
use macvtap::link::Carrier;
use macvtap::mac::MacAddr;
use tracing::warn;

/// Takes the steps from an attachment that has begun to a link that is up, with addresses and routes. What was leased is
/// in `lease` also when a later step fails.
pub(super) fn raise<'a>(
    pending: &mut impl Pending<Kernel = Rtnl>,
    adding: &'a Adding<'_>,
    lease: &mut Option<Lease<'a>>,
) -> Result<(), CniError> {
    let (delegate, network) = (adding.delegate.as_ref(), &adding.network);
    if let Some(delegate) = delegate {
        pending.check()?;
        if pending.is_repeat() {
            // Plugins refuse a second lease for the same container and interface.
            delegate.del(&adding.note)?;
        }
        if !delegate.needs_link() {
            let taken = lease_before(delegate, &adding.note, pending.kernel())?;
            if let Some(mac) = taken.mac() {
                warn_overruled(network.mac, mac);
                pending.wish_mac(mac);
            }
            *lease = Some(taken);
        }
    }
    pending.place()?;
    if !lease.as_ref().is_some_and(|lease| configure::has_ipv6(lease.result())) {
        // Nothing on the wire configures the link, and the guest behind it has addresses of its own.
        pending.no_autoconfiguration()?;
    }
    let mut objections = None;
    if let Some(lease) = lease {
        let now = pending.link()?;
        configure::addresses(pending.kernel(), &now, lease.result(), network)?;
        if configure::has_ipv6(lease.result()) && network.dad == Dad::Auto {
            objections = Objections::listen(pending.kernel(), &now);
        }
    }
    pending.up()?;
    if let Some(delegate) = delegate.filter(|delegate| delegate.needs_link()) {
        let taken = lease.insert(delegate.lease(&adding.note)?);
        let now = pending.link()?;
        configure::addresses(pending.kernel(), &now, taken.result(), network)?;
    }
    match lease {
        Some(lease) => settle(pending, lease, network.announce, objections.as_ref()),
        None => Ok(()),
    }
}

/// Leases addresses before there is a link.
fn lease_before<'d>(
    delegate: &'d Delegate<'_>,
    note: &'d Note,
    kernel: &mut Rtnl,
) -> Result<Lease<'d>, CniError> {
    let lease = delegate.lease(note)?;
    if lease.is_kube_ovns() {
        ipam::refuse_twice(kernel, lease.result())?;
    }
    Ok(lease)
}

/// Does what the kernel takes only when the link is up.
fn settle(
    pending: &mut impl Pending<Kernel = Rtnl>,
    lease: &Lease<'_>,
    announce: Announce,
    objections: Option<&Objections>,
) -> Result<(), CniError> {
    // It may have got another MAC address on its way up.
    let mut now = pending.link()?;
    let sends_at_once = pending.sends_without_carrier();
    if !sends_at_once && now.carrier == Carrier::Absent {
        now = configure::await_carrier(pending.kernel(), &now)?;
    }
    // What the kernel announced when the link came up was lost if the carrier came later, which nobody saw.
    let can_send = sends_at_once || now.carrier == Carrier::Present;
    configure::await_uniqueness(pending.kernel(), &now, lease.result(), objections)?;
    configure::routes(pending.kernel(), &now, lease.result())?;
    if announce == Announce::Auto && can_send {
        ipam::announce(pending.kernel(), &now, lease.result());
    }
    Ok(())
}

fn warn_overruled(asked: Option<MacAddr>, leased: MacAddr) {
    if let Some(asked) = asked.filter(|asked| *asked != leased) {
        warn!(%asked, used = %leased, "the IPAM plugin's MAC address is used instead of the one asked for");
    }
}
