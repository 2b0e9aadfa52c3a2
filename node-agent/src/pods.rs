//! Pods by name, and what the kubelet lists of them: the types that every other room may know.

use macvtap::device_id::DeviceId;
use macvtap::record::Holder;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use macvtap::tap_pods::PodName;

/// What the kubelet lists at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Devices of ours, with the pod that has each.
    pub devices: BTreeMap<DeviceId, PodName>,
    /// Every pod it knows, with devices or without.
    pub pods: Vec<PodName>,
}

/// What the kubelet remembers of the pods that hold devices, by its checkpoint: it names devices of init containers, and pods
/// by UID, and lags behind when devices become free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletMemory {
    /// UIDs of the pods that hold each device.
    pub holders: BTreeMap<DeviceId, BTreeSet<String>>,
    /// Which of the checkpoints at its place it is.
    pub version: String,
    /// Whether it was written by the kubelet that serves now. Else that may never have read it.
    pub is_current: bool,
}

impl KubeletMemory {
    /// Returns the UID of the only pod that holds the device.
    pub fn holder(&self, device: &DeviceId) -> Option<&str> {
        let mut holders = self.holders.get(device)?.iter();
        let holder = holders.next()?;
        (holders.next().is_none() && !holder.is_empty()).then_some(holder)
    }
}

/// Whether the kubelet runs this pod without an API server: it calls it after the node.
pub(crate) fn is_static(pod: &PodName, node: &str) -> bool {
    pod.name.strip_suffix(&node.to_lowercase()).is_some_and(|name| name.ends_with('-'))
}

/// Since when the kubelet has listed each pod.
#[derive(Debug, Default)]
pub struct PodAges {
    own: Option<PodName>,
    node: Option<String>,
    since: Mutex<BTreeMap<PodName, Instant>>,
    /// When this kubelet was first seen.
    kubelet_since: Mutex<Option<Instant>>,
}

/// How long a kubelet must be up for its list to be believed: it admits its pods one after the other.
pub const WARM_UP: Duration = Duration::from_mins(1);

/// A kubelet lists a pod a moment before it allocates the pod's devices. That moment is never so long.
const ADMISSION: Duration = Duration::from_mins(1);

impl PodAges {
    /// No pod has been listed yet. `own` is the agent's own pod, if known, `node` the name of the node.
    pub fn new(own: Option<PodName>, node: Option<String>) -> Self {
        let (since, kubelet_since) = (Mutex::default(), Mutex::new(Some(Instant::now())));
        Self { own, node, since, kubelet_since }
    }

    /// Returns the name of the node, if known: names of static pods end with it.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Whether the kubelet has reached the API server and admitted its pods, as far as that is known: at first it lists
    /// its static pods alone, and then one pod after the other.
    pub fn is_complete(&self, listing: &Listing, now: Instant) -> bool {
        let since = *self.kubelet_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some_and(|since| now.saturating_duration_since(since) < WARM_UP) {
            return false;
        }
        let is_heard = |pod: &PodName| self.node().is_none_or(|node| !is_static(pod, node));
        self.own.as_ref().is_none_or(|own| listing.pods.contains(own) && listing.pods.iter().any(is_heard))
    }

    /// Returns the agent's own pod, if known.
    pub fn own(&self) -> Option<&PodName> {
        self.own.as_ref()
    }

    /// Takes what the kubelet lists now.
    pub fn observe(&self, listing: &Listing, now: Instant) {
        let mut since = self.lock();
        let known = |pod: &PodName| (pod.clone(), since.get(pod).copied().unwrap_or(now));
        *since = listing.pods.iter().map(known).collect();
    }

    /// Forgets all pods: a kubelet that has just started may allocate for any of them.
    pub fn forget(&self, now: Instant) {
        *self.kubelet_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        self.lock().clear();
    }

    /// Returns the pods for which the kubelet may have allocated a device at that moment; all when it is unknown. It
    /// allocates for a pod once, when it admits the pod. Never the agent's own pod.
    pub fn admitted(&self, listing: &Listing, allocated: Option<Instant>) -> BTreeSet<PodName> {
        let since = self.lock();
        let others = || listing.pods.iter().filter(|pod| Some(*pod) != self.own.as_ref());
        let is_new = |pod: &&PodName| match (since.get(*pod), allocated) {
            (Some(since), Some(allocated)) => *since + ADMISSION > allocated,
            (None, _) | (_, None) => true,
        };
        let admitted: BTreeSet<PodName> = others().filter(is_new).cloned().collect();
        if admitted.is_empty() { others().cloned().collect() } else { admitted }
    }

    /// A map of plain values stays consistent when a thread panics while holding it.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodName, Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the holder is that pod, as far as the holder is known.
pub(crate) fn is_theirs(holder: &Holder, pod: &PodName) -> bool {
    match holder {
        Holder::Host => true,
        // Some runtimes do not pass the pod.
        Holder::Pod { pod_name, pod_namespace, .. } => {
            pod_name.is_empty() || (*pod_name == pod.name && *pod_namespace == pod.namespace)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::collector::tests::pod;

    #[test]
    fn a_list_of_static_pods_alone_is_not_complete() {
        let list = |pods: &[&str]| Listing {
            pods: pods.iter().map(|name| pod(name)).collect(),
            ..Listing::default()
        };
        let ages = |own: &str| PodAges::new(Some(pod(own)), Some("Node-1".into()));
        let later = Instant::now() + WARM_UP + Duration::from_secs(1);
        let is_complete = |own: &str, pods: &[&str]| ages(own).is_complete(&list(pods), later);
        assert!(is_complete("agent-x7k2p", &["agent-x7k2p"]));
        assert!(!is_complete("agent-x7k2p", &["etcd-node-1"]));
        assert!(!is_complete("agent-node-1", &["agent-node-1", "etcd-node-1"]));
        assert!(is_complete("agent-node-1", &["agent-node-1", "vm"]));
        let unnamed = PodAges::new(None, None);
        assert!(unnamed.is_complete(&list(&[]), later), "the agent does not know its own pod");
        let restarted = ages("agent-x7k2p");
        restarted.forget(later);
        let soon = later + Duration::from_secs(59);
        assert!(!restarted.is_complete(&list(&["agent-x7k2p"]), soon), "it admits one pod after the other");
    }

    #[test]
    fn a_device_is_allocated_for_a_pod_that_was_admitted_just_then() {
        let listing = |pods: &[&str]| Listing {
            devices: BTreeMap::new(),
            pods: pods.iter().map(|name| pod(name)).collect(),
        };
        let (ages, start) = (PodAges::new(Some(pod("agent")), Some("node-1".into())), Instant::now());
        let seconds = |seconds| start + Duration::from_secs(seconds);
        let admitted = |pods: &[&str], allocated| {
            let admitted = ages.admitted(&listing(pods), allocated);
            admitted.into_iter().map(|pod| pod.name).collect::<Vec<_>>()
        };
        ages.observe(&listing(&["proxy", "agent"]), start);
        let now = ["proxy", "vm", "agent"];
        assert_eq!(admitted(&now, Some(seconds(59))), ["proxy", "vm"], "the agent has just started");
        assert_eq!(admitted(&now, Some(seconds(61))), ["vm"]);
        assert_eq!(admitted(&now, None), ["proxy", "vm"]);
        // It was listed a moment before its devices were allocated.
        ages.observe(&listing(&now), seconds(70));
        assert_eq!(admitted(&now, Some(seconds(71))), ["vm"]);
        assert_eq!(admitted(&now, Some(seconds(140))), ["proxy", "vm"], "one of them it must be");
        // Its name was another pod's before.
        ages.observe(&listing(&["proxy", "agent"]), seconds(150));
        assert_eq!(admitted(&now, Some(seconds(151))), ["vm"]);
        ages.observe(&listing(&now), seconds(160));
        ages.forget(seconds(170));
        assert_eq!(admitted(&now, Some(seconds(300))), ["proxy", "vm"]);
    }
}
