//! GC: of this network, only the attachments that the runtime names remain, and only their addresses.

use crate::Call;
use crate::ipam::{Delegate, Note};
use crate::protocol::error::{CniError, Code};
use macvtap::detach;
use macvtap::kernel::Rtnl;
use macvtap::record::{Attachment, Holder};
use macvtap::records;
use std::collections::HashSet;
use tracing::{info, warn};

/// Attachments, by container and interface.
type Attachments = HashSet<(String, String)>;

/// Serves GC. Continues after an error and returns the first one.
pub fn gc(call: &Call) -> Result<(), CniError> {
    let Some(valid) = call.document.valid_attachments()? else {
        // The specification requires the list, so its absence is a runtime's mistake, not the wish to lose everything.
        warn!("nothing removed: the configuration has no list cni.dev/valid-attachments");
        return Ok(());
    };
    let delegate = find(call);
    let through_link = matches!(&delegate, Ok(Some(found)) if found.needs_link());
    let links = |call| remove_links(call, &valid);
    let leases =
        |present: &Attachments| release(call, &delegate, |one| valid.contains(one) || present.contains(one));
    let (first, second) = if through_link {
        (leases(&Attachments::new()), links(call))
    } else {
        let removed = links(call);
        // What could not be removed has its addresses, and so has what was attached meanwhile.
        (removed, leases(&present(call)))
    };
    let third = delegate.and_then(|delegate| delegate.map_or(Ok(()), |delegate| delegate.gc()));
    first.and(second).and(third)
}

/// Returns the attachments that have a record now.
fn present(call: &Call) -> Attachments {
    let records = records::list(&call.paths).unwrap_or_default().records;
    records.iter().filter_map(names).collect()
}

fn names(record: &Attachment) -> Option<(String, String)> {
    match &record.holder {
        Holder::Pod { container_id, ifname, .. } => Some((container_id.clone(), ifname.clone())),
        Holder::Host => None,
    }
}

fn remove_links(call: &Call, valid: &Attachments) -> Result<(), CniError> {
    let mut outcome = Ok(());
    let mut kernel = Rtnl::node().map_err(|error| failed(&error))?;
    let listing = records::list(&call.paths).map_err(|error| failed(&error))?;
    let stale = |record: &&Attachment| {
        let of_network = record.network.as_deref() == Some(call.document.name.as_str());
        of_network && names(record).is_some_and(|names| !valid.contains(&names))
    };
    for record in listing.records.iter().filter(stale) {
        info!(device = %record.device, "attachment without a container removed");
        let detached = detach::detach(&call.paths, &mut kernel, &record.device, |now| now == record);
        outcome = outcome.and(detached.map(drop).map_err(|error| failed(&error)));
    }
    outcome
}

fn find(call: &Call) -> Result<Option<Delegate<'_>>, CniError> {
    let ipam = call.document.ipam(&call.settings)?;
    Delegate::new(call, ipam.as_ref())
}

/// Gives back what was leased for attachments that are not kept: not every plugin knows GC.
fn release(
    call: &Call,
    delegate: &Result<Option<Delegate<'_>>, CniError>,
    is_kept: impl Fn(&(String, String)) -> bool,
) -> Result<(), CniError> {
    let notes = Note::list(&call.paths, &call.document.name).into_iter();
    let mut outcome = Ok(());
    for note in notes.filter(|note| !is_kept(&note.names())) {
        let other = note.releasing(call);
        let released = match (&other, delegate) {
            (Some(other), _) => find(other).and_then(|found| found.map_or(Ok(()), |found| found.del(&note))),
            (None, Ok(Some(delegate))) => delegate.del(&note),
            (None, _) => Ok(()),
        };
        outcome = outcome.and(released);
    }
    outcome
}

fn failed(error: &dyn std::error::Error) -> CniError {
    CniError::from_chain(Code::Detach, error)
}
