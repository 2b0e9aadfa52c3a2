//! GC: of this network, only the attachments that the runtime names remain, and only their addresses.

use crate::Call;
use crate::del::{self, Leased};
use crate::ipam::{Delegate, Note};
use crate::protocol::error::{CniError, Code};
use macvtap::detach::{self, DetachBegun};
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
    let removed = remove(call, &valid);
    let released = release(call, &valid);
    let delegate = find(call).and_then(|delegate| delegate.map_or(Ok(()), |delegate| delegate.gc()));
    removed.and(released).and(delegate)
}

fn names(record: &Attachment) -> Option<(String, String)> {
    match &record.holder {
        Holder::Pod { container_id, ifname, .. } => Some((container_id.clone(), ifname.clone())),
        Holder::Host => None,
    }
}

/// Removes attachments and gives back what was leased for them, as a DEL does.
fn remove(call: &Call, valid: &Attachments) -> Result<(), CniError> {
    let mut outcome = Ok(());
    let mut kernel = Rtnl::node().map_err(|error| failed(&error))?;
    let listing = records::list(&call.paths).map_err(|error| failed(&error))?;
    let notes = Note::list(&call.paths, &call.document.name);
    let of_network = |record: &&Attachment| record.network.as_deref() == Some(call.document.name.as_str());
    for record in listing.records.iter().filter(of_network) {
        let Some(names) = names(record).filter(|names| !valid.contains(names)) else { continue };
        let note = notes.iter().find(|note| note.names() == names);
        outcome = outcome.and(remove_one(call, &mut kernel, record, note, &names));
    }
    outcome
}

fn remove_one(
    call: &Call,
    kernel: &mut Rtnl,
    record: &Attachment,
    note: Option<&Note>,
    (container, interface): &(String, String),
) -> Result<(), CniError> {
    let begun = detach::begin(&call.paths, kernel, &record.device, |now| now == record);
    let DetachBegun::Theirs(detaching) = begun.map_err(|error| failed(&error))? else { return Ok(()) };
    info!(device = %record.device, "attachment without a container removed");
    let other = note.and_then(|note| note.releasing(call));
    let leasing = other.as_ref().unwrap_or(call);
    // Without a note nothing was leased.
    let delegate = if note.is_some() { find(leasing) } else { Ok(None) };
    let note = note.cloned().unwrap_or_else(|| Note::of(&call.paths, container, interface));
    del::undo(detaching, &Leased { delegate, note, document: &leasing.document })
}

fn find(call: &Call) -> Result<Option<Delegate<'_>>, CniError> {
    let ipam = call.document.ipam(&call.settings)?;
    Delegate::new(call, ipam.as_ref())
}

/// Gives back what is noted for attachments that are gone: not every plugin knows GC.
fn release(call: &Call, valid: &Attachments) -> Result<(), CniError> {
    let notes = Note::list(&call.paths, &call.document.name);
    // Listed after the notes: an ADD that began meanwhile wrote its record first. And what could not be removed has its
    // addresses.
    let records = records::list(&call.paths).unwrap_or_default().records;
    let present: Attachments = records.iter().filter_map(names).collect();
    let mut outcome = Ok(());
    for note in notes.iter().filter(|note| !valid.contains(&note.names()) && !present.contains(&note.names()))
    {
        let other = note.releasing(call);
        let released = match find(other.as_ref().unwrap_or(call)) {
            Ok(Some(delegate)) => delegate.del(note),
            Err(error) if other.is_some() => Err(error),
            // What is configured cannot have leased it; or GC reports the error.
            Ok(None) | Err(_) => Ok(()),
        };
        outcome = outcome.and(released);
    }
    outcome
}

fn failed(error: &dyn std::error::Error) -> CniError {
    CniError::from_chain(Code::Detach, error)
}
