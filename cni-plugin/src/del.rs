//! DEL: what ADD made is gone afterwards. Succeeds when it was gone before, also with its namespace.

use crate::Call;
use crate::config::{Document, Ipam};
use crate::follow;
use crate::ipam::{Delegate, Note};
use crate::protocol::environment::{Attachment, Deletion};
use crate::protocol::error::{CniError, Code, chain};
use crate::target;
use macvtap::adopt::{self, UnrecordedNic};
use macvtap::detach::{self, DetachBegun, DetachError, Detaching};
use macvtap::device_id::DeviceId;
use macvtap::give_back::ReturnError;
use macvtap::kernel::{Kernel, Place, Rtnl};
use macvtap::link::By;
use macvtap::netns::{self, Netns};
use macvtap::record::{self, Holder};
use macvtap::records::{self, Listing, RecordError};
use macvtap::table::{Device, IFINDEX_FIRST};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long a NIC may take from a namespace that ends to the node, and how often it is looked for.
const NIC_PATIENCE: Duration = Duration::from_secs(5);
const NIC_PAUSE: Duration = Duration::from_millis(20);

/// When what an ADD made went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// Before this call, or there never was anything.
    Before,
    /// By this call.
    Now,
}

/// Serves DEL. The link goes first, then the addresses are given back, but for a plugin that gives them back through the
/// link. What could not be given back is remembered, so that a later DEL knows that something was leased.
pub fn del(call: &Call, attachment: &Deletion) -> Result<(), CniError> {
    let note = Note::about(&call.paths, attachment);
    let releasing = note.releasing(call);
    let leasing = releasing.as_ref().unwrap_or(call);
    let delegate = match leasing.document.ipam(&call.settings) {
        Ok(ipam) => find(leasing, ipam.as_ref()),
        // No ADD leased anything by such a configuration.
        Err(error) => {
            warn!(%error, "no addresses to give back");
            Ok(None)
        }
    };
    let leased = Leased { delegate, note, document: &leasing.document };
    let mut deleted = delete(call, attachment, &leased);
    // A plugin that never answered ADD may be one that cannot: then the configuration that replaced its own decides, and
    // the note stays for a GC, by which the plugin is asked again.
    if deleted.is_err() && releasing.is_some() && leased.note.may_run() {
        let delegate = call.document.ipam(&call.settings).and_then(|ipam| find(call, ipam.as_ref()));
        let corrected = Leased { delegate, document: &call.document, note: leased.note.kept() };
        deleted = delete(call, attachment, &corrected).or(deleted);
    }
    follow::mend(&call.paths);
    deleted
}

type Found<'c> = Result<Option<Delegate<'c>>, CniError>;

/// What an ADD may have leased, and who takes it back.
pub(crate) struct Leased<'c> {
    pub(crate) delegate: Found<'c>,
    pub(crate) note: Note,
    pub(crate) document: &'c Document,
}

fn delete(call: &Call, attachment: &Deletion, leased: &Leased<'_>) -> Result<(), CniError> {
    let mut kernel = Rtnl::node().map_err(|error| CniError::from_chain(Code::Detach, &error))?;
    let mine = |record: &record::Attachment| is_theirs(record, attachment);
    let named = call.document.device_id().ok().flatten().and_then(|id| target::known(call, &id));
    if let Some(id) = &named {
        if matches!(records::read(&call.paths, id), Err(RecordError::Damaged { .. })) {
            adopt_nic(call, &mut kernel, attachment);
        }
        match begin(call, &mut kernel, id, mine)? {
            DetachBegun::Theirs(detaching) => return undo(detaching, leased),
            DetachBegun::NotTheirs(_) => {
                info!(device = %id, "device belongs to another container, left alone");
            }
            DetachBegun::Absent => {}
        }
    }
    // The configuration may have changed, or lost its deviceID, since the ADD.
    let listing = records::list(&call.paths).map_err(|error| failed(&error))?;
    for (device, error) in &listing.damaged {
        warn!(%device, %error, "attachment record cannot be read");
    }
    if let Some(record) = listing.records.iter().find(|record| mine(record))
        && let DetachBegun::Theirs(detaching) = begin(call, &mut kernel, &record.device, mine)?
    {
        return undo(detaching, leased);
    }
    if let Some(id) = adopt_nic(call, &mut kernel, attachment)
        && let DetachBegun::Theirs(detaching) = begin(call, &mut kernel, &id, mine)?
    {
        return undo(detaching, leased);
    }
    let early = leased.through_link();
    let gone = delete_unrecorded(call, &mut kernel, attachment, &listing);
    let released = match (early, &leased.delegate, &gone) {
        (Some(released), ..) => released,
        // Nor did an ADD find the plugin, so it leased nothing. And the pod must go.
        (None, Err(error), Ok(Gone::Before)) if !leased.note.is_there() => {
            warn!(%error, "no addresses to give back");
            Ok(())
        }
        (None, Ok(Some(delegate)), Ok(Gone::Before)) => delegate.del_unfound(&leased.note),
        (None, ..) => leased.release(),
    };
    gone.map(drop).and(released)
}

fn begin<'k>(
    call: &'k Call,
    kernel: &'k mut Rtnl,
    device: &DeviceId,
    is_meant: impl FnOnce(&record::Attachment) -> bool,
) -> Result<DetachBegun<'k, Rtnl>, CniError> {
    detach::begin(&call.paths, kernel, device, is_meant).map_err(|error| failed(&error))
}

/// Gives addresses back while the device is locked: an ADD of the same container that begins meanwhile waits, and its
/// lease is not given away.
pub(crate) fn undo(mut detaching: Detaching<'_, Rtnl>, leased: &Leased<'_>) -> Result<(), CniError> {
    let early = leased.through_link();
    remove_parts(&mut detaching)?;
    let released = early.unwrap_or_else(|| leased.release());
    detaching.finish().map_err(|error| failed(&error)).and(released)
}

impl Leased<'_> {
    fn through_link(&self) -> Option<Result<(), CniError>> {
        let delegate = self.delegate.as_ref().ok()?.as_ref().filter(|found| found.needs_link())?;
        Some(delegate.del(&self.note))
    }

    fn release(&self) -> Result<(), CniError> {
        let released = match &self.delegate {
            Ok(Some(delegate)) => return delegate.del(&self.note),
            Ok(None) => Ok(()),
            Err(error) => Err(error.clone()),
        };
        self.note.settle(self.document, &released).map_err(|error| failed(&error)).and(released)
    }
}

fn find<'c>(call: &'c Call, ipam: Option<&Ipam>) -> Result<Option<Delegate<'c>>, CniError> {
    match Delegate::new(call, ipam) {
        // As when its daemon is away: it frees an address when the Pod object goes.
        Err(error) if ipam.is_some_and(|ipam| ipam.kube_ovn.is_some()) => {
            warn!(%error, "kube-ovn was not notified, it frees the addresses by itself");
            Ok(None)
        }
        found => found,
    }
}

/// Whether a record is this container's and interface's.
fn is_of(record: &record::Attachment, container: &str, interface: &str) -> bool {
    match &record.holder {
        Holder::Pod { container_id, ifname, .. } => container_id == container && ifname == interface,
        Holder::Host => false,
    }
}

/// The same for a verb that receives the namespace, which identifies a record that the agent had to rewrite.
pub(crate) fn is_theirs<N>(record: &record::Attachment, attachment: &Attachment<N>) -> bool
where
    for<'a> &'a N: Into<Option<&'a PathBuf>>,
{
    let netns: Option<&PathBuf> = (&attachment.netns).into();
    is_of(record, &attachment.container_id, attachment.ifname.as_str())
        || record.holder.is_adopted(attachment.ifname.as_str(), netns.map(PathBuf::as_path))
}

/// The kernel ends a namespace in the background, so its NIC may come to light a moment later.
fn remove_parts(detaching: &mut Detaching<'_, Rtnl>) -> Result<(), CniError> {
    let deadline = Instant::now() + NIC_PATIENCE;
    loop {
        match detaching.remove_parts() {
            Err(error) if is_in_transit(&error) && Instant::now() < deadline => thread::sleep(NIC_PAUSE),
            Err(error) if is_in_transit(&error) => return Err(CniError::from_chain(Code::TryAgain, &error)),
            outcome => return outcome.map_err(|error| failed(&error)),
        }
    }
}

fn is_in_transit(error: &DetachError) -> bool {
    matches!(error, DetachError::Nic { source, .. } if matches!(**source, ReturnError::InTransit { .. }))
}

/// Returns the NIC that is this container's interface while its record was lost; it is recorded again.
fn adopt_nic(call: &Call, kernel: &mut Rtnl, attachment: &Deletion) -> Option<DeviceId> {
    let table = target::table(call).ok()?;
    let netns = Netns::open(attachment.netns.as_deref()?).ok()?;
    let holder = Holder::Pod {
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.to_string(),
        pod_uid: record::UNKNOWN.to_owned(),
        pod_namespace: String::new(),
        pod_name: String::new(),
        netns: netns::canonical(netns.path()).to_string_lossy().into_owned(),
        netns_inode: netns.inode(),
    };
    let mut nics = table.nics().map(|(device, found)| (device, found.nic));
    let adopted = nics.find(|(device, nic)| {
        let lost = UnrecordedNic { device, nic };
        let adopted = adopt::adopt_nic_of(&call.paths, kernel, lost, holder.clone());
        adopted.unwrap_or_else(|error| {
            warn!(%device, error = chain(&error), "NIC whose record was lost not looked for");
            false
        })
    });
    adopted.map(|(device, _)| device)
}

/// A macvtap under the interface's name that no record knows: the record was lost, or the link was moved here.
fn delete_unrecorded(
    call: &Call,
    kernel: &mut Rtnl,
    attachment: &Deletion,
    listing: &Listing,
) -> Result<Gone, CniError> {
    // A namespace that is gone has taken its links along.
    let Some(Ok(netns)) = attachment.netns.as_deref().map(Netns::open) else {
        return Ok(Gone::Before);
    };
    let number = kernel.number(netns.path(), netns.inode()).map_err(|error| failed(&error))?;
    let Some(place) = number.map(Place::Numbered) else {
        return Ok(Gone::Before);
    };
    let found = kernel.find(place, &By::Name(attachment.ifname.clone())).map_err(|error| failed(&error))?;
    match found {
        // With the path used again, this may be the next container's.
        Some(link) if link.is_macvtap() && !may_be_recorded(call, listing, link.index) => {
            info!(index = link.index, "link without a record deleted");
            kernel.delete(place, link.index).map(|()| Gone::Now).map_err(|error| failed(&error))
        }
        _ => Ok(Gone::Before),
    }
}

/// Whether a record names the link of this index, or would if it could be read.
fn may_be_recorded(call: &Call, listing: &Listing, index: u32) -> bool {
    let table = target::table(call);
    let may_be = |device| match table.as_ref().ok().and_then(|table| table.device(device)) {
        Some(Device::Macvtap(macvtap)) => macvtap.ifindex == index,
        Some(Device::Nic(_)) => false,
        None => index >= IFINDEX_FIRST,
    };
    listing.records.iter().any(|record| record.ifindex == index)
        || listing.damaged.iter().any(|(device, _)| may_be(device))
}

fn failed(error: &dyn std::error::Error) -> CniError {
    CniError::from_chain(Code::Detach, error)
}
