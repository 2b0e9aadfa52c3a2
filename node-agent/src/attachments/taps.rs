//! Links for pods that have only the tap: made when their container starts, removed when the device is handed out anew.

use super::sandbox::{Fate, Sandboxes};
use crate::pods::{Listing, PodAges, PodName};
use macvtap::attach::{self, AttachError, Repeat, Request};
use macvtap::detach::{self, DetachError};
use macvtap::device_id::DeviceId;
use macvtap::kernel::{OpenError, Rtnl};
use macvtap::link::{IfName, Macvtap};
use macvtap::paths::Paths;
use macvtap::record::Holder;
use macvtap::records::{self, RecordError};
use macvtap::table_file::{self, TableFileError};
use macvtap::tap_pods::{self, TapPods};
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
        /// Namespace of the pod; empty when nobody told it.
        namespace: String,
        /// Its name; empty when nobody told it.
        pod: String,
    },
    /// The record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Whom the device's record names.
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
}

/// Removes the link of a device that was attached without a network, unless a pod that may have it is listed. Without a
/// list, the kubelet's word that the device is free decides.
pub fn end_tap_only(paths: &Paths, device: &DeviceId, listing: Option<&Listing>) -> Result<(), TapOnlyError> {
    let noted = tap_pods::read(paths, device);
    let is_held = |listing: &Listing| match noted.as_ref().and_then(|noted| listed_of(noted, listing)) {
        Some(_) => true,
        None => noted.is_none() && listing.devices.contains_key(device),
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
fn listed_of<'l>(noted: &TapPods, listing: &'l Listing) -> Option<&'l PodName> {
    listing.pods.iter().find(|pod| noted.contains(pod))
}

/// Makes sure that the device has a link: its network's, or else one in the namespace of the node. A link of a former pod,
/// or of another pod that is listed, is not the container's.
pub fn ensure(paths: &Paths, device: &DeviceId, start: Start<'_>) -> Result<(), TapOnlyError> {
    if let Some(listing) = start.listing.filter(|_| is_tap_only(paths, device)) {
        let noted = tap_pods::read(paths, device);
        match whose(device, noted.as_ref(), listing, start) {
            Whose::Theirs => {}
            Whose::Former(PodName { namespace, name: pod }) => {
                return Err(TapOnlyError::Former { device: device.clone(), namespace, pod });
            }
            Whose::Nobodys => remove_tap(paths, device)?,
        }
    }
    let pods = start.listing.and_then(|listing| pods_to_note(device, listing, start));
    let table = table_file::load_current(paths)?;
    let known = table.device(device).ok_or_else(|| TapOnlyError::Unknown(device.clone()))?;
    let request = Request {
        device: device.clone(),
        holder: Holder::Host,
        network: None,
        netns_id: None,
        lower_name: known.link.name.clone(),
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
        also_mac: None,
        repeat: Repeat::Keep,
    };
    let mut kernel = Rtnl::node()?;
    if let Some(former) = start.former {
        end_former(paths, &mut kernel, device, former)?;
    }
    attach::tap_only(paths, &mut kernel, request, pods.as_ref())?;
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

/// The pods that may hold the link from now on. None if the list does not have the container's pod.
fn pods_to_note(device: &DeviceId, listing: &Listing, start: Start<'_>) -> Option<TapPods> {
    if let Some(owner) = listing.devices.get(device) {
        return Some(TapPods::Owner(owner.clone()));
    }
    let candidates = start.ages.admitted(listing, start.allocated);
    (!candidates.is_empty()).then_some(TapPods::Candidates(candidates))
}

/// Judges a link by the pods that were noted for it. The kubelet does not list devices of init containers: what it lists for
/// nobody may be that of an init container that is started again.
fn whose(device: &DeviceId, noted: Option<&TapPods>, listing: &Listing, start: Start<'_>) -> Whose {
    let Some(noted) = noted else { return Whose::Theirs };
    let owner = listing.devices.get(device);
    if owner.is_some_and(|owner| noted.contains(owner)) {
        return Whose::Theirs;
    }
    let Some(holder) = listed_of(noted, listing) else { return Whose::Nobodys };
    let may_be_theirs = owner.is_none()
        && match (noted, start.allocated) {
            (TapPods::Owner(_), _) => false,
            (TapPods::Candidates(_), None) => true,
            (TapPods::Candidates(noted), Some(_)) => {
                !noted.is_disjoint(&start.ages.admitted(listing, start.allocated))
            }
        };
    if may_be_theirs { Whose::Theirs } else { Whose::Former(holder.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::collector::tests::{listing, pod};
    use std::time::Duration;

    #[test]
    fn a_tap_goes_to_no_pod_but_the_one_that_was_noted() {
        let device: DeviceId = "aMvp0".parse().unwrap();
        let (ages, begun) = (PodAges::default(), Instant::now());
        ages.observe(&listing(&[], &["first", "proxy"]), begun);
        let later = begun + Duration::from_mins(2);
        let judge = |noted: &TapPods, owner: Option<&str>, pods: &[&str], allocated| {
            let devices: Vec<_> = owner.into_iter().map(|owner| ("aMvp0", owner)).collect();
            let start = Start { former: None, listing: None, ages: &ages, allocated };
            whose(&device, Some(noted), &listing(&devices, pods), start)
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
        let start = Start { former: None, listing: None, ages: &ages, allocated: None };
        assert_eq!(whose(&device, None, &listing(&[], &both), start), Whose::Theirs);
    }
}
