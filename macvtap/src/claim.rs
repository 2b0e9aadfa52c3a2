//! Who may take a device that somebody had: judged by its attachment record.

use crate::detach;
use crate::device_id::DeviceId;
use crate::kernel::Kernel;
use crate::netns;
use crate::paths::Paths;
use crate::record::{Attachment, Holder, UNKNOWN};
use crate::records;
use crate::tap_pods;
use std::path::Path;

/// What happens when the same holder asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A link that is as requested stays.
    Keep,
    /// The link is recreated.
    Rebuild,
}

/// What a device's record means to somebody who wants the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nobody has it.
    Free,
    /// The same holder asks again.
    Again,
    /// The former holder is dead, or is the same pod in an earlier sandbox.
    TakeOver,
}

/// A device is not the caller's to take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else has the device.
    #[error("device {device} is in use by {holder}")]
    InUse {
        /// The device.
        device: DeviceId,
        /// Who has it.
        holder: String,
    },
    /// The same pod has the device on another interface.
    #[error(
        "device {device} is already interface {ifname} of this pod: one device cannot serve two networks; request one device per network, each from the resource its network names{}",
        spare.as_ref().map(|id| format!("; the pod holds {id} without a network, attach that one")).unwrap_or_default()
    )]
    TwoNetworks {
        /// The device.
        device: DeviceId,
        /// The other interface.
        ifname: String,
        /// A device that the pod holds without a network.
        spare: Option<DeviceId>,
    },
}

/// Judges the record of a device that `wanted` asks for, with what else is noted on the node.
pub(crate) fn judge_on<K: Kernel>(
    paths: &Paths,
    kernel: &mut K,
    existing: Option<&Attachment>,
    wanted: &Holder,
) -> Result<Claim, ClaimError> {
    if existing.is_some_and(|record| is_spare_of(paths, record, wanted)) {
        return Ok(Claim::TakeOver);
    }
    // Only a link that can be seen says that it lives.
    let is_linked = existing.is_some_and(|record| matches!(detach::link_of(kernel, record), Ok(Some(_))));
    judge(existing, wanted, is_linked, netns::is_gone).map_err(|error| match error {
        ClaimError::TwoNetworks { device, ifname, .. } => {
            ClaimError::TwoNetworks { device, ifname, spare: spare_of(paths, wanted) }
        }
        error @ ClaimError::InUse { .. } => error,
    })
}

/// Whether the record is of a link without a network that only this pod may hold: one of its networks can get it.
fn is_spare_of(paths: &Paths, record: &Attachment, wanted: &Holder) -> bool {
    record.holder == Holder::Host
        && tap_pods::read(paths, &record.device).is_some_and(|note| note.is_only(wanted))
}

/// Returns a device that a pod holds without a network, if there is one.
fn spare_of(paths: &Paths, wanted: &Holder) -> Option<DeviceId> {
    let mut records = records::list(paths).ok()?.records.into_iter();
    records.find(|record| is_spare_of(paths, record, wanted)).map(|record| record.device)
}

/// Judges a record. `is_linked` says whether its link is in its namespace, `is_gone` whether the namespace with that inode
/// is not at that path any more.
fn judge(
    existing: Option<&Attachment>,
    wanted: &Holder,
    is_linked: bool,
    is_gone: impl Fn(&Path, u64) -> bool,
) -> Result<Claim, ClaimError> {
    let Some(record) = existing else {
        return Ok(Claim::Free);
    };
    let in_use = || ClaimError::InUse { device: record.device.clone(), holder: describe(&record.holder) };
    let (
        Holder::Pod { container_id, ifname, pod_uid, pod_namespace, pod_name, netns, netns_inode },
        Holder::Pod {
            container_id: wanted_container,
            ifname: wanted_ifname,
            pod_uid: wanted_uid,
            pod_namespace: wanted_namespace,
            pod_name: wanted_name,
            netns: wanted_netns,
            netns_inode: wanted_inode,
        },
    ) = (&record.holder, wanted)
    else {
        return Err(in_use());
    };
    // A record that was rewritten knows neither container nor UID.
    let adopted = container_id == UNKNOWN;
    let same_sandbox = if adopted { netns_inode == wanted_inode } else { container_id == wanted_container };
    let same_uid = pod_uid != UNKNOWN && pod_uid == wanted_uid;
    let same_name = adopted && (pod_namespace, pod_name) == (wanted_namespace, wanted_name);
    let same_pod = same_uid || same_name;
    if same_sandbox && ifname == wanted_ifname {
        Ok(Claim::Again)
    } else if same_sandbox {
        let (device, ifname) = (record.device.clone(), ifname.clone());
        Err(ClaimError::TwoNetworks { device, ifname, spare: None })
    // A pod has one sandbox, so what an earlier one had is free, whichever of the pod's networks had it there. And where
    // path and inode of the record's namespace are the new sandbox's, the old one has ended, unless two containers share
    // a namespace: then its link is still there.
    } else if same_pod
        || ((netns, netns_inode) == (wanted_netns, wanted_inode) && !is_linked)
        || is_gone(Path::new(netns), *netns_inode)
    {
        Ok(Claim::TakeOver)
    } else {
        Err(in_use())
    }
}

pub(crate) fn describe(holder: &Holder) -> String {
    match holder {
        Holder::Host => "a pod that has only the tap".to_owned(),
        Holder::Pod { container_id, ifname, pod_namespace, pod_name, .. } if pod_name.is_empty() => {
            format!("container {container_id} ({ifname}) {pod_namespace}").trim_end().to_owned()
        }
        Holder::Pod { ifname, pod_namespace, pod_name, .. } => {
            format!("pod {pod_namespace}/{pod_name} ({ifname})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{self, State};

    fn pod(container: &str, ifname: &str, uid: &str) -> Holder {
        Holder::Pod {
            container_id: container.into(),
            ifname: ifname.into(),
            pod_uid: uid.into(),
            pod_namespace: "tenant-a".into(),
            pod_name: "web-0".into(),
            netns: "/run/netns/x".into(),
            netns_inode: 4_026_531_840,
        }
    }

    fn in_netns(holder: Holder, inode: u64, name: &str) -> Holder {
        match holder {
            Holder::Pod { container_id, ifname, pod_uid, pod_namespace, netns, .. } => Holder::Pod {
                container_id,
                ifname,
                pod_uid,
                pod_namespace,
                pod_name: name.into(),
                netns,
                netns_inode: inode,
            },
            Holder::Host => Holder::Host,
        }
    }

    fn record(holder: Holder) -> Attachment {
        Attachment {
            version: record::VERSION,
            device: "aMvp0".parse().unwrap(),
            holder,
            state: State::Attached,
            ifindex: 0x0100_0000,
            lower_ifindex: 3,
            mac: None,
            tap: None,
            netns_id: None,
            network: None,
            nic: None,
            made: None,
            kubelet: None,
        }
    }

    #[test]
    fn a_device_goes_to_the_same_pod_or_when_its_namespace_is_gone() {
        let elsewhere = |holder: Holder| in_netns(holder, 2, "web-0");
        let judged = |wanted: &Holder, gone: bool| {
            judge(Some(&record(pod("c1", "net1", "u1"))), wanted, false, |_, _| gone)
        };
        assert_eq!(judged(&pod("c1", "net1", "u1"), false).unwrap(), Claim::Again);
        for ifname in ["net1", "net2"] {
            let next_sandbox = elsewhere(pod("c2", ifname, "u1"));
            assert_eq!(judged(&next_sandbox, false).unwrap(), Claim::TakeOver, "{ifname}, in any order");
        }
        assert_eq!(judged(&elsewhere(pod("c2", "net1", "u2")), true).unwrap(), Claim::TakeOver);
        assert_eq!(
            judged(&pod("c2", "net1", "u2"), false).unwrap(),
            Claim::TakeOver,
            "path and inode used again"
        );
        assert!(matches!(judged(&pod("c1", "net2", "u1"), false), Err(ClaimError::TwoNetworks { .. })));
        let refused = judged(&elsewhere(pod("c2", "net1", "u2")), false).unwrap_err();
        assert_eq!(refused.to_string(), "device aMvp0 is in use by pod tenant-a/web-0 (net1)");
        assert_eq!(judge(None, &pod("c1", "net1", "u1"), false, |_, _| false).unwrap(), Claim::Free);
        let shared =
            judge(Some(&record(pod("c1", "net1", "u1"))), &pod("c2", "net1", "u2"), true, |_, _| false);
        assert!(matches!(shared, Err(ClaimError::InUse { .. })), "two containers in one namespace");
    }

    #[test]
    fn a_record_written_anew_goes_to_its_pod_and_to_nobody_else() {
        let adopted = record(in_netns(pod(UNKNOWN, "net1", UNKNOWN), 1, "web-0"));
        let judged = |ifname: &str, inode: u64, name: &str| {
            judge(Some(&adopted), &in_netns(pod("c1", ifname, "u1"), inode, name), false, |_, _| false)
        };
        assert_eq!(judged("net1", 1, "web-0").unwrap(), Claim::Again);
        assert!(matches!(judged("net2", 1, "web-0"), Err(ClaimError::TwoNetworks { .. })));
        assert_eq!(judged("net1", 2, "web-0").unwrap(), Claim::TakeOver, "its next sandbox");
        assert_eq!(judged("net2", 2, "web-0").unwrap(), Claim::TakeOver, "the link was not the pod's");
        assert!(matches!(judged("net1", 2, "web-1"), Err(ClaimError::InUse { .. })));
    }

    #[test]
    fn two_pods_without_a_uid_are_two_pods() {
        let existing = record(pod("c1", "net1", ""));
        let outcome =
            judge(Some(&existing), &in_netns(pod("c2", "net1", ""), 2, "web-0"), false, |_, _| false);
        assert!(matches!(outcome, Err(ClaimError::InUse { .. })));
    }

    #[test]
    fn a_tap_without_a_network_is_never_taken_by_a_network() {
        let outcome = judge(Some(&record(Holder::Host)), &pod("c1", "net1", "u1"), false, |_, _| true);
        assert!(matches!(outcome, Err(ClaimError::InUse { .. })));
    }
}
