//! GC: of this network, only the attachments that the runtime names remain.

use crate::Call;
use crate::del::is_of;
use crate::ipam::Delegate;
use crate::protocol::error::{CniError, Code};
use macvtap::detach;
use macvtap::kernel::Rtnl;
use macvtap::record::{Attachment, Holder};
use macvtap::records;
use tracing::{info, warn};

/// Serves GC. Goes on after an error and tells the first one.
pub fn gc(call: &Call) -> Result<(), CniError> {
    let Some(valid) = call.document.valid_attachments()? else {
        // The specification requires the list, so its absence is a runtime's mistake, not the wish to lose everything.
        warn!("nothing removed: the configuration has no list cni.dev/valid-attachments");
        return Ok(());
    };
    let mut first_error = None;
    let mut kernel = Rtnl::node().map_err(|error| failed(&error))?;
    let listing = records::list(&call.paths).map_err(|error| failed(&error))?;
    let stale = |record: &Attachment| {
        let of_network = record.network.as_deref() == Some(call.document.name.as_str());
        of_network
            && matches!(record.holder, Holder::Pod { .. })
            && !valid.iter().any(|(container, interface)| is_of(record, container, interface))
    };
    for record in listing.records.iter().filter(|record| stale(record)) {
        info!(device = %record.device, "attachment without a container removed");
        if let Err(error) = detach::detach(&call.paths, &mut kernel, &record.device, |now| now == record) {
            first_error.get_or_insert_with(|| failed(&error));
        }
    }
    if let Err(error) = leases(call) {
        first_error.get_or_insert(error);
    }
    first_error.map_or(Ok(()), Err)
}

fn leases(call: &Call) -> Result<(), CniError> {
    let ipam = call.document.ipam(&call.settings)?;
    let delegate = Delegate::new(call, ipam.as_ref())?;
    delegate.map_or(Ok(()), |delegate| delegate.gc())
}

fn failed(error: &dyn std::error::Error) -> CniError {
    CniError::from_chain(Code::Detach, error)
}
