//! Pods by name, and what the kubelet lists of them: the types that every other room may know.

use macvtap::device_id::DeviceId;
use macvtap::record::Holder;
use std::collections::BTreeMap;

/// A pod by name. The interface tells no UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What the kubelet says at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Devices of ours, with the pod that has each.
    pub devices: BTreeMap<DeviceId, PodName>,
    /// Every pod it knows, with devices or without.
    pub pods: Vec<PodName>,
}

/// Whether the holder is that pod, as far as it tells.
pub(crate) fn is_theirs(holder: &Holder, pod: &PodName) -> bool {
    match holder {
        Holder::Host => true,
        // Some runtimes do not tell the pod.
        Holder::Pod { pod_name, pod_namespace, .. } => {
            pod_name.is_empty() || (*pod_name == pod.name && *pod_namespace == pod.namespace)
        }
    }
}
