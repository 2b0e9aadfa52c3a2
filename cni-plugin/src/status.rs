//! STATUS: whether an ADD could be served now.

use crate::Call;
use crate::ipam::Delegate;
use crate::protocol::error::{CniError, Code};
use crate::target;

/// Serves STATUS.
pub fn status(call: &Call) -> Result<(), CniError> {
    if !call.settings.move_host_links {
        target::table(call).map_err(|error| CniError { code: Code::NotAvailable as u32, ..error })?;
    }
    let ipam = call.document.ipam(&call.settings)?;
    let delegate = Delegate::new(call, ipam.as_ref());
    match delegate.map_err(|error| CniError { code: Code::NotAvailable as u32, ..error })? {
        Some(delegate) => delegate.status(),
        None => Ok(()),
    }
}
