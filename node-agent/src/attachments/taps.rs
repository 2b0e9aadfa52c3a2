//! Links for pods that have only the tap: made when their container starts, removed when the device is handed out again.

use super::sandbox::{Fate, Sandboxes};
use crate::pods::{Listing, PodAges, PodName};
use macvtap::attach::{self, AttachError, Repeat, Request};
use macvtap::detach::{self, DetachError};
use macvtap::device_id::DeviceId;
use macvtap::kernel::{OpenError, Rtnl};
use macvtap::link::{IfName, Macvtap};
use macvtap::paths::Paths;
use macvtap::record::{Attachment, Holder};
use macvtap::records::{self, RecordError};
use macvtap::table_file::{self, TableFileError};
use macvtap::tap_pods::{self, TapNote, TapPods};
use std::collections::HashSet;
use std::time::Instant;

/// A tap could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TapOnlyError {
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] TableFileError),
    /// The device is not in the table.
    #[error("device {0} is not in the device table")]
    Unknown(DeviceId),
    /// The kernel cannot be reached.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The link could not be made.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// What a former pod left could not be removed.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// A pod that had the device before still has it.
    #[error(
        "device {device} is still attached to pod {namespace}/{pod}; it is free when the sandbox of that pod is gone"
    )]
    Former {
        /// The device.
        device: DeviceId,
        /// Namespace of the pod; empty when unknown.
        namespace: String,
        /// Its name; empty when unknown.
        pod: String,
    },
    /// A pod that the kubelet does not list yet may have the device.
    #[error(
        "device {0} has the link of another pod, and the kubelet does not list all of its pods yet; it starts the container again"
    )]
    Unclear(DeviceId),
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The holder that the device's record names.
pub fn holder(paths: &Paths, device: &DeviceId) -> Result<Option<Holder>, RecordError> {
    Ok(records::read(paths, device)?.map(|record| record.holder))
}

/// Returns the IDs of devices that have a record, readable or not. Reads one directory in memory.
pub fn attached(paths: &Paths) -> HashSet<String> {
    let entries = std::fs::read_dir(paths.attachments()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether the device is attached without a network.
pub fn is_tap_only(paths: &Paths, device: &DeviceId) -> bool {
    holder(paths, device).is_ok_and(|holder| holder == Some(Holder::Host))
}

/// What is known of the pod whose container is about to start.
#[derive(Clone, Copy, Debug)]
pub struct Start<'s> {
    /// Who had the device when it was allocated, if that was a pod's network.
    pub former: Option<&'s Holder>,
    /// The kubelet's list, if it serves one.
    pub listing: Option<&'s Listing>,
    /// Since when it lists its pods.
    pub ages: &'s PodAges,
    /// When the device was allocated, unless a container has started with it since.
    pub allocated: Option<Instant>,
    /// ID of the kubelet that serves, if known.
    pub kubelet: Option<&'s str>,
    /// UID of the container's pod, by the kubelet's checkpoint.
    pub pod_uid: Option<&'s str>,
    /// This moment.
    pub now: Instant,
}

impl Start<'_> {
    /// Whether this kubelet has seen the pod of the record. One that started later may have lost its checkpoint.
    fn kubelet_knew(&self, record: &Attachment) -> bool {
        record.kubelet.is_some() && record.kubelet.as_deref() == self.kubelet
    }
}

/// Whose the link of a device without a network is, when a container is about to start with that device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    /// The container's pod's, as far as is known.
    Theirs,
    /// Another pod's, which is still there.
    Former(PodName),
    /// A pod's that has ended.
    Nobodys,
    /// A pod's that has ended, or that the kubelet does not list yet.
    Unclear,
}

/// Removes the link of a device that was attached without a network, and that this kubelet takes for free, unless a pod that
/// may have it is listed. Without a list, the kubelet's word that the device is free decides. A kubelet that started later
/// than the link was made may have lost its checkpoint: the start of the container decides, or the collector.
pub fn end_tap_only(
    paths: &Paths,
    device: &DeviceId,
    listing: Option<&Listing>,
    kubelet: Option<&str>,
) -> Result<(), TapOnlyError> {
    let Some(record) = records::read(paths, device)? else { return Ok(()) };
    let noted = tap_pods::read(paths, device);
    let is_held = |listing: &Listing| match &noted {
        Some(noted) => {
            listed_of(noted, listing).is_some()
                || record.kubelet.is_none()
                || record.kubelet.as_deref() != kubelet
        }
        None => listing.devices.contains_key(device),
    };
    if listing.is_some_and(is_held) {
        return Ok(());
    }
    remove_tap(paths, device)
}

fn remove_tap(paths: &Paths, device: &DeviceId) -> Result<(), TapOnlyError> {
    let mut kernel = Rtnl::node()?;
    detach::detach(paths, &mut kernel, device, |record| record.holder == Holder::Host)?;
    Ok(())
}

/// The listed pod that may hold the link, by what was noted.
fn listed_of<'l>(noted: &TapNote, listing: &'l Listing) -> Option<&'l PodName> {
    listing.pods.iter().find(|pod| noted.pods.contains(pod))
}

/// Turns off IPv6 autoconfiguration of links that an earlier release made without a network: they are in the namespace of the
/// node, which a router on their wire would configure.
pub fn ignore_routers(paths: &Paths) -> Result<(), TapOnlyError> {
    let mut kernel = Rtnl::node()?;
    let mut outcome = Ok(());
    for record in records::list(paths)?.records.iter().filter(|record| record.holder == Holder::Host) {
        // One that ends meanwhile must not keep the others from it.
        outcome = outcome.and(attach::ignore_routers(&mut kernel, record).map_err(TapOnlyError::from));
    }
    outcome
}

/// Makes sure that the device has a link: its network's, or else one in the namespace of the node. A link of a former pod,
/// or of another pod that is listed, is not the container's.
pub fn ensure(paths: &Paths, device: &DeviceId, start: Start<'_>) -> Result<(), TapOnlyError> {
    let record = records::read(paths, device)?.filter(|record| record.holder == Holder::Host);
    if let (Some(record), Some(listing)) = (record, start.listing) {
        let noted = tap_pods::read(paths, device);
        match whose(&record, noted.as_ref(), listing, start) {
            Whose::Theirs => {}
            Whose::Former(PodName { namespace, name: pod }) => {
                return Err(TapOnlyError::Former { device: device.clone(), namespace, pod });
            }
            Whose::Unclear => return Err(TapOnlyError::Unclear(device.clone())),
            Whose::Nobodys => remove_tap(paths, device)?,
        }
    }
    let note = start.listing.and_then(|listing| note(device, listing, start));
    let table = table_file::load_current(paths)?;
    let known = table.macvtap(device).ok_or_else(|| TapOnlyError::Unknown(device.clone()))?;
    let request = Request {
        device: device.clone(),
        holder: Holder::Host,
        network: None,
        netns_id: None,
        lower_name: known.link.name.clone(),
        lower_identity: known.link.identity.clone(),
        link: Macvtap {
            lower: known.link.ifindex,
            index: known.ifindex,
            name: IfName::tap_only(known.ifindex),
            mode: known.link.mode,
            mac: None,
            mtu: known.resource.mtu,
            promiscuous: known.resource.promiscuous,
            all_multicast: known.resource.all_multicast,
        },
        owner: known.resource.owner,
        spare_macs: Vec::new(),
        also_mac: None,
        has_ipv6: false,
        repeat: Repeat::Keep,
    };
    let mut kernel = Rtnl::node()?;
    if let Some(former) = start.former {
        end_former(paths, &mut kernel, device, former)?;
    }
    attach::tap_only(paths, &mut kernel, request, note.as_ref())?;
    Ok(())
}

/// Removes what a pod left whose DEL did not come. What is not surely gone is waited for.
fn end_former(
    paths: &Paths,
    kernel: &mut Rtnl,
    device: &DeviceId,
    former: &Holder,
) -> Result<(), TapOnlyError> {
    let Holder::Pod { pod_namespace, pod_name, .. } = former else {
        return Ok(());
    };
    let Some(record) = records::read(paths, device)?.filter(|record| record.holder == *former) else {
        return Ok(());
    };
    if let Fate::Gone(_) = Sandboxes::new(Rtnl::node().ok()).fate(&record) {
        detach::detach(paths, kernel, device, |current| *current == record)?;
        return Ok(());
    }
    let (namespace, pod) = (pod_namespace.clone(), pod_name.clone());
    Err(TapOnlyError::Former { device: device.clone(), namespace, pod })
}

/// What is known of the pod that holds the link from now on. None if the list does not have the container's pod.
fn note(device: &DeviceId, listing: &Listing, start: Start<'_>) -> Option<TapNote> {
    let pods = match listing.devices.get(device) {
        Some(owner) => TapPods::Owner(owner.clone()),
        None => TapPods::Candidates(start.ages.admitted(listing, start.allocated)),
    };
    let is_known = !matches!(&pods, TapPods::Candidates(candidates) if candidates.is_empty());
    is_known.then(|| TapNote { pods, pod_uid: start.pod_uid.map(str::to_owned) })
}

/// Judges a link by what was noted of its pod. The kubelet does not list devices of init containers: what it lists for
/// nobody may be that of an init container that is started again. Its checkpoint names their pods, too, by UID.
fn whose(record: &Attachment, noted: Option<&TapNote>, listing: &Listing, start: Start<'_>) -> Whose {
    let Some(noted) = noted else { return Whose::Theirs };
    let owner = listing.devices.get(&record.device);
    let is_noted = owner.is_some_and(|owner| noted.pods.contains(owner));
    let holder = match (&noted.pod_uid, start.pod_uid) {
        (Some(before), Some(now)) if before == now => return Whose::Theirs,
        (Some(_), Some(_)) => {
            // The same pod, created again: a container of the former one may still have the link open.
            if is_noted && matches!(noted.pods, TapPods::Owner(_)) {
                return Whose::Nobodys;
            }
            let mut pods = listing.pods.iter();
            pods.find(|pod| noted.pods.contains(pod) && Some(*pod) != owner)
        }
        _ if is_noted => return Whose::Theirs,
        _ => listed_of(noted, listing),
    };
    let Some(holder) = holder else {
        let is_over = start.kubelet_knew(record) || start.ages.is_complete(listing, start.now);
        return if is_over { Whose::Nobodys } else { Whose::Unclear };
    };
    let is_another = noted.pod_uid.is_some() && start.pod_uid.is_some();
    let may_be_theirs = owner.is_none()
        && !is_another
        && match (&noted.pods, start.allocated) {
            (TapPods::Owner(_), _) => false,
            (TapPods::Candidates(_), None) => true,
            // One that started later may have lost its checkpoint, and give away what an init container has.
            (TapPods::Candidates(noted), Some(_)) => {
                start.kubelet_knew(record)
                    && !noted.is_disjoint(&start.ages.admitted(listing, start.allocated))
            }
        };
    if may_be_theirs { Whose::Theirs } else { Whose::Former(holder.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::collector::tests::{listing, pod, recorded};
    use std::time::Duration;

    /// A link that was made under kubelet `k`.
    fn link() -> Attachment {
        Attachment { holder: Holder::Host, kubelet: Some("k".into()), ..recorded("aMvp0") }
    }

    fn start<'s>(ages: &'s PodAges, allocated: Option<Instant>, pod_uid: Option<&'s str>) -> Start<'s> {
        let now = Instant::now() + Duration::from_mins(2);
        Start { former: None, listing: None, ages, allocated, kubelet: Some("k"), pod_uid, now }
    }

    #[test]
    fn a_tap_goes_to_no_pod_but_the_one_that_was_noted() {
        let (ages, begun) = (PodAges::default(), Instant::now());
        ages.observe(&listing(&[], &["first", "proxy"]), begun);
        let later = begun + Duration::from_mins(2);
        let judge = |noted: &TapPods, owner: Option<&str>, pods: &[&str], allocated| {
            let devices: Vec<_> = owner.into_iter().map(|owner| ("aMvp0", owner)).collect();
            let noted = noted.clone().into();
            whose(&link(), Some(&noted), &listing(&devices, pods), start(&ages, allocated, None))
        };
        let (both, former) = (["first", "next", "proxy"], || Whose::Former(pod("first")));
        let owner = TapPods::Owner(pod("first"));
        assert_eq!(judge(&owner, Some("first"), &both, Some(later)), Whose::Theirs);
        assert_eq!(judge(&owner, Some("next"), &both, Some(later)), former());
        assert_eq!(judge(&owner, None, &both, Some(later)), former(), "an init container of another pod");
        assert_eq!(judge(&owner, None, &["next", "proxy"], Some(later)), Whose::Nobodys);
        let candidates = TapPods::Candidates([pod("first")].into());
        assert_eq!(
            judge(&candidates, None, &both, None),
            Whose::Theirs,
            "the init container is started again"
        );
        assert_eq!(
            judge(&candidates, None, &both, Some(later)),
            former(),
            "it was allocated for another pod"
        );
        let soon = Some(begun + Duration::from_secs(1));
        assert_eq!(judge(&candidates, None, &both, soon), Whose::Theirs, "it may be the same pod");
        assert_eq!(judge(&candidates, Some("next"), &both, Some(later)), former());
        assert_eq!(whose(&link(), None, &listing(&[], &both), start(&ages, None, None)), Whose::Theirs);
    }

    #[test]
    fn a_tap_of_an_init_container_is_known_by_the_uid_of_its_pod() {
        let (ages, begun) = (PodAges::default(), Instant::now());
        // A kubelet that has just started lists all pods at once: any may be the one that it admits.
        ages.observe(&listing(&[], &["first", "next"]), begun);
        let note = |pods| TapNote { pods, pod_uid: Some("u1".into()) };
        let judge = |noted: &TapNote, owner: Option<&str>, pods: &[&str], uid| {
            let devices: Vec<_> = owner.into_iter().map(|owner| ("aMvp0", owner)).collect();
            whose(&link(), Some(noted), &listing(&devices, pods), start(&ages, Some(begun), uid))
        };
        let both = ["first", "next"];
        let candidates = note(TapPods::Candidates([pod("first")].into()));
        assert_eq!(judge(&candidates, None, &both, Some("u1")), Whose::Theirs);
        let former = || Whose::Former(pod("first"));
        assert_eq!(judge(&candidates, None, &both, Some("u2")), former(), "another pod's init container");
        assert_eq!(judge(&candidates, None, &["next"], Some("u2")), Whose::Nobodys);
        assert_eq!(judge(&candidates, None, &["next"], Some("u1")), Whose::Theirs, "the wrong pod was noted");
        let several = note(TapPods::Candidates([pod("first"), pod("next")].into()));
        assert_eq!(judge(&several, Some("next"), &both, Some("u2")), former());
        assert_eq!(judge(&several, Some("next"), &["next"], Some("u2")), Whose::Nobodys);
        let owner = note(TapPods::Owner(pod("first")));
        assert_eq!(judge(&owner, Some("first"), &both, Some("u1")), Whose::Theirs);
        assert_eq!(judge(&owner, Some("first"), &both, Some("u2")), Whose::Nobodys, "it was created again");
    }

    #[test]
    fn a_kubelet_that_started_later_is_not_believed_about_init_containers_nor_before_it_lists_all_pods() {
        let (own, begun) = (pod("agent-node-1"), Instant::now());
        let ages = PodAges::new(Some(own), Some("node-1".into()));
        ages.observe(&listing(&[], &["first", "next"]), begun);
        let judge = |noted: TapPods, pods: &[&str]| {
            let start = Start { kubelet: Some("later"), ..start(&ages, Some(begun), None) };
            whose(&link(), Some(&noted.into()), &listing(&[], pods), start)
        };
        let candidates = || TapPods::Candidates([pod("first")].into());
        assert_eq!(judge(candidates(), &["first", "next"]), Whose::Former(pod("first")));
        assert_eq!(judge(candidates(), &["agent-node-1", "etcd-node-1"]), Whose::Unclear);
        assert_eq!(judge(candidates(), &["agent-node-1", "next"]), Whose::Nobodys);
        // It admits its pods one after the other, and starts the first ones meanwhile.
        ages.forget(Instant::now() + Duration::from_mins(2));
        assert_eq!(judge(candidates(), &["agent-node-1", "next"]), Whose::Unclear);
    }
}
