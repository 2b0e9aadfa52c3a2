//! Attaching: how a link comes to be a pod's ([`Pending`]), and the one procedure by which a macvtap of a device, its node
//! and its record come to be, for a pod's network (the plugin's ADD) and for a pod that has only the tap (the agent).
//!
//! ```text
//! begin         lock the device, judge its record, record "Creating"
//! place         node-wide lock: create the link down, refuse a minor that a record still names
//! up            after what the network needs
//! finish        device node, read back, record "Attached"
//! ```
//! A value that is dropped before [`Attaching::finish`] succeeded undoes every step taken.

mod error;
mod making;
mod pending;
mod request;

pub use crate::claim::Repeat;
pub use error::AttachError;
pub use making::Attaching;
pub use pending::{Begun, Pending};
pub use request::Request;

use crate::claim::{self, Claim};
use crate::detach;
use crate::device_id::DeviceId;
use crate::fit;
use crate::kernel::{Home, Kernel};
use crate::kubelet_id;
use crate::link::{Change, Link};
use crate::lock::{self, Lock};
use crate::mac::MacAddr;
use crate::netns::NetnsId;
use crate::paths::Paths;
use crate::record::{self, Attachment, Holder, State};
use crate::records::{self, RecordError};
use crate::tap::{self, Node};
use crate::tap_pods::{self, TapNote, TapPods};
use making::{Progress, check_lower};
use tracing::info;

/// RFC 8200, 5.
const IPV6_MTU_MIN: u32 = 1280;

/// A link in the namespace of the node must not answer for the node's addresses, which the kernel does on every link: what
/// neighbours then send to the link is the guest's as soon as that has opened the tap. A guest's ARP is not concerned.
const WITHOUT_ARP: Change<'_> = Change {
    arp: Some(false),
    name: None,
    mac: None,
    mtu: None,
    promiscuous: None,
    all_multicast: None,
    multicast: None,
    alias: None,
    queue_length: None,
    group: None,
    dormant: None,
    detach: None,
    up: None,
};

/// Locks the device and records that a link is being made. Changes nothing when it fails.
pub fn begin<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    request: Request,
) -> Result<Begun<Attaching<'k, K>>, AttachError> {
    let lock = lock::device(paths, &request.device)?;
    let existing = records::read(paths, &request.device)?;
    begin_locked(paths, kernel, request, existing.as_ref(), lock)
}

/// For a container that is about to start: makes the link of a device that its pod has no network for. A device whose
/// link exists, for a network or from an earlier start, is left alone. Notes which pods may hold the link, if known.
pub fn tap_only<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    request: Request,
    note: Option<&TapNote>,
) -> Result<Option<Link>, AttachError> {
    let lock = lock::device(paths, &request.device)?;
    let existing = records::read(paths, &request.device)?;
    if let Some(record) = &existing {
        return match detach::link_of(kernel, record)? {
            Some(_) => {
                if record.holder == Holder::Host {
                    note_again(paths, &request.device, note)?;
                }
                Ok(None)
            }
            None => Err(AttachError::LinkLost { device: request.device }),
        };
    }
    match begin_locked(paths, kernel, request, existing.as_ref(), lock)? {
        Begun::Present(link) => Ok(Some(link)),
        Begun::New(mut attaching) => {
            let device = &attaching.request.device;
            let noted = match note {
                Some(note) => tap_pods::write(paths, device, note),
                None => tap_pods::forget(paths, device),
            };
            noted.map_err(RecordError::from)?;
            attaching.place()?;
            attaching.no_autoconfiguration()?;
            attaching.change(Change { up: Some(true), ..WITHOUT_ARP })?;
            attaching.finish().map(Some)
        }
    }
}

/// Turns off IPv6 autoconfiguration and ARP of a link without a network, if it is there.
pub fn ignore_routers<K: Kernel>(kernel: &mut K, record: &Attachment) -> Result<(), AttachError> {
    match detach::link_of(kernel, record)? {
        Some((_, link)) if record.holder == Holder::Host => {
            kernel.no_autoconfiguration(link.index, &link.name)?;
            Ok(kernel.change(link.index, WITHOUT_ARP)?)
        }
        Some(_) | None => Ok(()),
    }
}

fn begin_locked<'k, K: Kernel>(
    paths: &'k Paths,
    kernel: &'k mut K,
    request: Request,
    existing: Option<&Attachment>,
    lock: Lock,
) -> Result<Begun<Attaching<'k, K>>, AttachError> {
    let claim = claim::judge_on(paths, kernel, existing, &request.holder)?;
    if let Some(existing) = existing {
        // What a former holder has is not removed for a request that cannot succeed.
        let lower = check_lower(kernel, &request)?;
        if claim == Claim::Again
            && request.repeat == Repeat::Keep
            && let Some(link) = present(paths, kernel, &request, existing, lower.mtu)?
        {
            return Ok(Begun::Present(link));
        }
        if claim == Claim::TakeOver {
            info!(from = %claim::describe(&existing.holder), "device taken over");
        }
        if is_spare(existing) {
            detach::remove_link(paths, kernel, existing)?;
        } else {
            detach::remove_parts(paths, kernel, existing)?;
            // The noted pods held that link.
            tap_pods::forget(paths, &request.device).map_err(RecordError::from)?;
        }
    }
    let record = Attachment {
        version: record::VERSION,
        device: request.device.clone(),
        holder: request.holder.clone(),
        state: State::Creating,
        ifindex: request.link.index,
        lower_ifindex: request.link.lower,
        mac: None,
        tap: None,
        netns_id: request.netns_id.map(|NetnsId(id)| id),
        network: request.network.clone(),
        nic: None,
        made: Some(request.made()),
        kubelet: kubelet_id::read(paths).map(|kubelet| kubelet.id),
    };
    records::write(paths, &record)?;
    Ok(Begun::New(Box::new(Attaching {
        paths,
        kernel,
        request,
        record,
        is_repeat: claim == Claim::Again,
        spare: existing.filter(|existing| is_spare(existing)).cloned(),
        progress: Progress::Recorded,
        _lock: lock,
    })))
}

/// Whether a device that is taken over was its pod's without a network: a container that runs has its node, with its
/// number. No other holder gets such a device.
fn is_spare(existing: &Attachment) -> bool {
    existing.holder == Holder::Host
}

/// Notes the pod of a link that exists. The kubelet's word about the owner replaces what was noted, a guess does not.
fn note_again(paths: &Paths, device: &DeviceId, note: Option<&TapNote>) -> Result<(), RecordError> {
    let Some(note) = note else { return Ok(()) };
    let noted = tap_pods::read(paths, device);
    let pods = match (&note.pods, &noted) {
        (TapPods::Candidates(_), Some(noted)) => noted.pods.clone(),
        (TapPods::Owner(_), _) | (_, None) => note.pods.clone(),
    };
    // An earlier one may be of an earlier pod.
    let now = TapNote { pods, pod_uid: note.pod_uid.clone() };
    if noted.as_ref() == Some(&now) { Ok(()) } else { Ok(tap_pods::write(paths, device, &now)?) }
}

/// The existing attachment, if it is what the same holder asks for again. Recreates the device node.
fn present<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    request: &Request,
    record: &Attachment,
    lower_mtu: u32,
) -> Result<Option<Link>, AttachError> {
    let (State::Attached, Some(number)) = (record.state, record.tap) else {
        return Ok(None);
    };
    let Some((_, mut link)) = detach::link_of(kernel, record)? else {
        return Ok(None);
    };
    let wanted = &request.link;
    let as_wanted = link.up && link.name == wanted.name.as_str() && link.mode == Some(wanted.mode);
    if !as_wanted || kernel.tap(Home::Target, &wanted.name, wanted.index)? != number {
        return Ok(None);
    }
    set_again(paths, kernel, request, record, &mut link)?;
    // A lower link that shrinks takes its devices along, and they stay small when it grows again.
    let mtu = wanted.mtu.unwrap_or(lower_mtu);
    if link.mtu != mtu {
        // With an MTU that IPv6 needs at least, the kernel gives the link new IPv6 settings, which must not be used yet.
        let is_new_to_ipv6 = link.mtu < IPV6_MTU_MIN && mtu >= IPV6_MTU_MIN;
        if is_new_to_ipv6 {
            kernel.change(wanted.index, Change::up(false))?;
            let changed = kernel.change(wanted.index, Change::mtu(mtu));
            let changed = changed.and_then(|()| kernel.no_autoconfiguration(wanted.index, &link.name));
            // A pod uses it, whatever failed.
            kernel.change(wanted.index, Change::up(true))?;
            changed?;
        } else {
            kernel.change(wanted.index, Change::mtu(mtu))?;
        }
        link.mtu = mtu;
    }
    // With an MTU that was too small for IPv6 for a while the link lost its settings.
    if !request.has_ipv6 {
        kernel.no_autoconfiguration(wanted.index, &link.name)?;
    }
    let node = Node { number, owner: request.owner };
    let path = paths.device_node(record.ifindex);
    if !tap::is_in_place(&path, node) {
        kernel.make_node(&path, node)?;
    }
    Ok(Some(link))
}

/// Sets what another plugin of the chain (tuning) has changed, in place: a container has the tap of the link open.
fn set_again<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    request: &Request,
    record: &Attachment,
    link: &mut Link,
) -> Result<(), AttachError> {
    let wanted = &request.link;
    let may_stay = |has: MacAddr| {
        let mut others = request.spare_macs.iter().copied().chain(request.also_mac);
        wanted.mac == Some(has) || others.any(|other| other == has)
    };
    let mac = wanted.mac.filter(|_| !link.device_mac().is_some_and(may_stay));
    let change = Change {
        mac,
        promiscuous: Some(wanted.promiscuous).filter(|wanted| *wanted != link.promiscuous),
        all_multicast: Some(wanted.all_multicast).filter(|wanted| *wanted != link.all_multicast),
        ..Change::default()
    };
    if change != Change::default() {
        let changed = kernel.change(wanted.index, change);
        changed.map_err(|error| fit::explain::<AttachError>(error, mac, &request.lower_name))?;
        (link.promiscuous, link.all_multicast) = (wanted.promiscuous, wanted.all_multicast);
    }
    if let Some(mac) = mac {
        link.mac = Some(mac.octets());
    }
    let now = Attachment {
        mac: mac.or(record.mac),
        lower_ifindex: wanted.lower,
        made: Some(request.made()),
        ..record.clone()
    };
    if now != *record {
        records::write(paths, &now)?;
    }
    Ok(())
}
