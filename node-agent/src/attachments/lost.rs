//! Links that vanished under their pods.

use crate::pods::PodName;
use macvtap::device_id::DeviceId;
use macvtap::record::{Attachment, Holder};
use std::collections::BTreeMap;

/// Devices whose link vanished under a pod.
pub type Lost = BTreeMap<DeviceId, LostLink>;

/// A link that vanished under a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostLink {
    /// The pod.
    pub pod: PodName,
    /// Its UID; empty when unknown.
    pub pod_uid: String,
    /// The interface; none for a pod that has only the tap.
    pub interface: Option<String>,
    /// The sandbox it was in; empty for a tap.
    pub sandbox: String,
}

impl LostLink {
    /// What a record contains about the link of that pod.
    pub fn of(record: &Attachment, pod: PodName) -> Self {
        match &record.holder {
            Holder::Pod { pod_uid, ifname, container_id, .. } => Self {
                pod,
                pod_uid: pod_uid.clone(),
                interface: Some(ifname.clone()),
                sandbox: container_id.clone(),
            },
            Holder::Host => Self { pod, pod_uid: String::new(), interface: None, sandbox: String::new() },
        }
    }
}
