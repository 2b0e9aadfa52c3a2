//! Which pod holds the link of a device that is attached without a network. Neither its record nor the kernel knows; the
//! kubelet does when the container starts, so the agent notes it then, in a small file for each device.

use crate::device_id::DeviceId;
use crate::file::{self, Durability, FileError};
use crate::paths::Paths;
use crate::record::Holder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// No list of a node's pods is longer, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// A pod by name: the kubelet does not report UIDs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The pods that may hold the link of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TapPods {
    /// The pod that the kubelet listed with the device.
    Owner(PodName),
    /// Pods one of which holds the link: the kubelet does not list devices of init containers.
    Candidates(BTreeSet<PodName>),
}

impl TapPods {
    /// Whether this pod may hold the link.
    pub fn contains(&self, pod: &PodName) -> bool {
        match self {
            Self::Owner(owner) => owner == pod,
            Self::Candidates(pods) => pods.contains(pod),
        }
    }
}

/// What is noted of the pod of a link without a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TapNote {
    /// The pods that may hold the link.
    #[serde(flatten)]
    pub pods: TapPods,
    /// UID of the pod that holds it, if the kubelet's checkpoint named one. It names devices of init containers too, and
    /// a pod that was created again under its name has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
}

impl From<TapPods> for TapNote {
    fn from(pods: TapPods) -> Self {
        Self { pods, pod_uid: None }
    }
}

impl TapNote {
    /// Whether this pod, and no other, may hold the link.
    pub(crate) fn is_only(&self, holder: &Holder) -> bool {
        let Holder::Pod { pod_namespace, pod_name, pod_uid, .. } = holder else { return false };
        let is_theirs = |pod: &PodName| pod.namespace == *pod_namespace && pod.name == *pod_name;
        match (&self.pod_uid, &self.pods) {
            (Some(noted), _) if !pod_uid.is_empty() => noted == pod_uid,
            (_, TapPods::Owner(pod)) => is_theirs(pod),
            (_, TapPods::Candidates(pods)) => pods.len() == 1 && pods.iter().all(is_theirs),
        }
    }
}

/// Returns what is noted for a device, if anything is.
pub fn read(paths: &Paths, device: &DeviceId) -> Option<TapNote> {
    let text = file::read(&path(paths, device), SIZE_MAX).ok()??;
    // Before notes distinguished owners, a note was a list of pods.
    let candidates = || serde_json::from_slice(&text).map(TapPods::Candidates).map(TapNote::from);
    serde_json::from_slice(&text).or_else(|_| candidates()).ok()
}

/// Notes the pod of the link of a device. The caller holds the device's lock.
pub fn write(paths: &Paths, device: &DeviceId, note: &TapNote) -> Result<(), FileError> {
    // Texts always have a form in JSON.
    let text = serde_json::to_vec(note).unwrap_or_default();
    file::make_directory(&directory(paths))?;
    file::replace(&path(paths, device), &text, Durability::Memory)
}

/// Forgets the pods of a device; succeeds when there were none. The caller holds the device's lock.
pub(crate) fn forget(paths: &Paths, device: &DeviceId) -> Result<(), FileError> {
    file::remove(&path(paths, device))
}

fn directory(paths: &Paths) -> PathBuf {
    paths.run().join("tap-pods")
}

fn path(paths: &Paths, device: &DeviceId) -> PathBuf {
    directory(paths).join(device.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodName {
        PodName { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn notes_are_read_in_every_form_in_which_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, device) = (Paths::new(dir.path(), dir.path()), "aMvp0".parse().unwrap());
        let candidates = TapPods::Candidates([pod("a"), pod("b")].into());
        for note in [
            TapNote { pods: TapPods::Owner(pod("a")), pod_uid: Some("u".into()) },
            TapNote { pods: candidates.clone(), pod_uid: Some("u".into()) },
            candidates.clone().into(),
        ] {
            write(&paths, &device, &note).unwrap();
            assert_eq!(read(&paths, &device), Some(note));
        }
        for (text, pods) in [
            (r#"{"owner":{"namespace":"default","name":"a"}}"#, TapPods::Owner(pod("a"))),
            (r#"[{"namespace":"default","name":"a"},{"namespace":"default","name":"b"}]"#, candidates),
        ] {
            std::fs::write(super::path(&paths, &device), text).unwrap();
            assert_eq!(read(&paths, &device), Some(pods.into()), "{text}");
        }
        std::fs::write(super::path(&paths, &device), "{").unwrap();
        assert_eq!(read(&paths, &device), None);
    }

    #[test]
    fn a_pod_that_was_created_again_under_its_name_is_another_one() {
        let holder = |uid: &str| Holder::Pod {
            container_id: "c".into(),
            ifname: "net1".into(),
            pod_uid: uid.into(),
            pod_namespace: "default".into(),
            pod_name: "a".into(),
            netns: "/run/netns/x".into(),
            netns_inode: 1,
        };
        let note = TapNote { pods: TapPods::Owner(pod("a")), pod_uid: Some("u1".into()) };
        assert!(note.is_only(&holder("u1")) && !note.is_only(&holder("u2")));
        assert!(note.is_only(&holder("")), "some runtimes do not pass UIDs");
        let many = TapPods::Candidates([pod("a"), pod("b")].into());
        let known = TapNote { pods: many.clone(), pod_uid: Some("u1".into()) };
        assert!(known.is_only(&holder("u1")) && !TapNote::from(many).is_only(&holder("u1")));
    }
}
