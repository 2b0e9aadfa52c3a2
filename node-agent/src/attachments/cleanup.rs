//! Acts on the collector's plan: removes orphaned attachments and writes lost records again.

use super::collector::{NewNote, Plan};
use super::sandbox::NAMESPACES;
use crate::pods::PodName;
use macvtap::adopt::{self, AdoptError, Unrecorded, UnrecordedNic};
use macvtap::detach::{self, Detached};
use macvtap::device_id::DeviceId;
use macvtap::kernel::{Kernel, Rtnl};
use macvtap::lock;
use macvtap::paths::Paths;
use macvtap::record::Attachment;
use macvtap::records::{self, RecordError};
use macvtap::table::Device;
use macvtap::tap_pods;
use macvtap::{park, table_file};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tracing::{info, warn};

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Orphaned attachments removed.
    pub(crate) removed: u64,
    /// Records rewritten.
    pub(crate) adopted: u64,
}

/// Why orphans could not be removed, so that each reason is logged once: a NIC in a namespace that somebody keeps stays
/// there for as long as they do.
pub(crate) type Troubles = BTreeMap<DeviceId, String>;

/// Removes orphans, then the placeholders nobody needs any more, and writes lost records again. Goes on after an error.
pub(crate) fn clean(paths: &Paths, plan: &Plan, troubles: &mut Troubles) -> Done {
    let mut kernel = match Rtnl::node() {
        Ok(kernel) => kernel,
        Err(error) => {
            let reason = crate::error_chain(&error);
            warn!(%reason, "orphaned attachments not removed");
            return Done::default();
        }
    };
    clean_through(paths, &mut kernel, plan, troubles)
}

/// The same, through a kernel that is open.
pub(crate) fn clean_through(
    paths: &Paths,
    kernel: &mut impl Kernel,
    plan: &Plan,
    troubles: &mut Troubles,
) -> Done {
    for new in &plan.tap_notes {
        if let Err(error) = note(paths, new) {
            let (device, reason) = (&new.record.device, crate::error_chain(&error));
            warn!(%device, %reason, "pod of a tap not noted");
        }
    }
    let done = Done { removed: remove(paths, kernel, plan, troubles), adopted: adopt(paths, kernel, plan) };
    if let Err(error) = park::release(paths, kernel) {
        let reason = crate::error_chain(&error);
        warn!(%reason, "placeholders not released");
    }
    done
}

/// Notes the pod of a tap, unless something changed since it was judged: the device may be another pod's by now.
fn note(paths: &Paths, NewNote { record, before, after }: &NewNote) -> Result<(), RecordError> {
    let device = &record.device;
    let Ok(Some(_lock)) = lock::try_device(paths, device) else { return Ok(()) };
    if records::read(paths, device)?.as_ref() == Some(record) && tap_pods::read(paths, device) == *before {
        tap_pods::write(paths, device, after)?;
    }
    Ok(())
}

fn remove(paths: &Paths, kernel: &mut impl Kernel, plan: &Plan, troubles: &mut Troubles) -> u64 {
    let mut removed = 0;
    let mut now = Troubles::new();
    for orphan in &plan.orphans {
        let record = orphan.record();
        let is_still_orphaned =
            || orphan.note().is_none_or(|note| tap_pods::read(paths, &record.device).as_ref() == Some(note));
        match detach::collect_if(paths, kernel, record, is_still_orphaned) {
            Ok(Detached::Removed(record)) => {
                let (device, holder, reason) = (&record.device, &record.holder, orphan.reason());
                info!(%device, ?holder, reason, "orphaned attachment removed");
                removed += 1;
            }
            Ok(Detached::NotTheirs(_) | Detached::Absent) => {}
            Err(error) => {
                let (device, reason) = (&record.device, crate::error_chain(&error));
                if troubles.get(device) != Some(&reason) {
                    warn!(%device, %reason, "orphaned attachment not removed, trying again");
                }
                now.insert(device.clone(), reason);
            }
        }
    }
    *troubles = now;
    removed
}

fn adopt(paths: &Paths, kernel: &mut impl Kernel, plan: &Plan) -> u64 {
    if plan.unrecorded.is_empty() && plan.unreadable.is_empty() {
        return 0;
    }
    // Pods that take no network of their device are without a record for as long as they live: only where the machine
    // has a tap with the device's index, namespaces are looked into.
    let (Ok(table), Ok(taps)) = (table_file::load_current(paths), kernel.taps()) else { return 0 };
    let taps: BTreeSet<u32> = taps.into_iter().map(|(_, ifindex)| ifindex).collect();
    let nobody = PodName { namespace: String::new(), name: String::new() };
    let listed = plan.unrecorded.iter().map(|(device, pod)| (device, pod));
    let mut adopted = 0;
    for (device, pod) in listed.chain(plan.unreadable.iter().map(|device| (device, &nobody))) {
        let known = match table.device(device) {
            Some(Device::Macvtap(known)) => known,
            Some(Device::Nic(known)) => {
                adopted += u64::from(adopt_nic(paths, kernel, UnrecordedNic { device, nic: known.nic }, pod));
                continue;
            }
            None => continue,
        };
        let lost = Unrecorded {
            device: device.clone(),
            ifindex: known.ifindex,
            lower_ifindex: known.link.ifindex,
            owner: known.resource.owner,
            pod_namespace: pod.namespace.clone(),
            pod_name: pod.name.clone(),
        };
        if taps.contains(&lost.ifindex) && adopt_one(paths, kernel, &lost) {
            adopted += 1;
        } else if *pod == nobody && !taps.contains(&known.ifindex) {
            // The tap may be in a namespace that cannot be seen from here.
            discard(paths, kernel, device, known.ifindex);
        }
    }
    adopted
}

/// The same for a whole NIC, which is away from the node. A record of one that is there names nobody.
fn adopt_nic(paths: &Paths, kernel: &mut impl Kernel, lost: UnrecordedNic<'_>, pod: &PodName) -> bool {
    if matches!(adopt::is_on_node(kernel, lost), Ok(true)) {
        if pod.name.is_empty() {
            discard(paths, kernel, lost.device, lost.nic.ifindex);
        }
        return false;
    }
    let pod = (pod.namespace.as_str(), pod.name.as_str());
    let namespaces = NAMESPACES.map(Path::new).into_iter();
    let adopted = namespaces.map(|namespaces| adopt::adopt_nic(paths, kernel, lost, pod, namespaces));
    report(lost.device, adopted)
}

fn adopt_one(paths: &Paths, kernel: &mut impl Kernel, lost: &Unrecorded) -> bool {
    let namespaces = NAMESPACES.map(Path::new).into_iter();
    report(&lost.device, namespaces.map(|namespaces| adopt::adopt(paths, kernel, lost, namespaces)))
}

/// Reports the first record that was written, or the first error. Returns whether there is such a record.
fn report(
    device: &DeviceId,
    mut adopted: impl Iterator<Item = Result<Option<Attachment>, AdoptError>>,
) -> bool {
    match adopted.find_map(Result::transpose) {
        Some(Ok(record)) => {
            warn!(%device, holder = ?record.holder, "lost record rewritten");
            if record.tap.is_none() && record.nic.is_none() {
                warn!(%device, "tap number not known: it is not kept from new links should this one vanish");
            }
            true
        }
        None => false,
        Some(Err(error)) => {
            let reason = crate::error_chain(&error);
            warn!(%device, %reason, "lost record not rewritten");
            false
        }
    }
}

fn discard(paths: &Paths, kernel: &mut impl Kernel, device: &DeviceId, ifindex: u32) {
    match adopt::discard(paths, kernel, device, ifindex) {
        Ok(true) => warn!(%device, "damaged attachment record of a device that no pod has discarded"),
        Ok(false) => {}
        Err(error) => {
            let reason = crate::error_chain(&error);
            warn!(%device, %reason, "damaged attachment record not discarded");
        }
    }
}
