//! Attachment records: who has which device, from the moment its link begins to exist.
//!
//! One small JSON file per device in [`Paths::attachments`](crate::paths::Paths::attachments), written to a temporary
//! name and renamed. They lie on a tmpfs: links do not survive a reboot, so records must not either.

use crate::device_id::DeviceId;
use crate::mac::MacAddr;
use crate::netns;
use crate::pci::PciAddress;
use crate::table::{LinkIdentity, Owner};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The version this program writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Stands for a container ID or a pod's UID that was unknown when a lost record was rewritten. No runtime gives
/// a container an empty ID.
pub const UNKNOWN: &str = "";

/// The content of one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// [`VERSION`].
    pub version: u32,
    /// The device; also the file's name.
    pub device: DeviceId,
    /// Where the link is and which pod holds it.
    pub holder: Holder,
    /// How far the attachment has come.
    pub state: State,
    /// Index of the link, in the namespace of its holder. Of a NIC that is being moved: its index on the node.
    pub ifindex: u32,
    /// Index of the lower link, in the namespace of the node; of a NIC: its own index there.
    pub lower_ifindex: u32,
    /// The address the link was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Device number of the link's tap; absent until the link exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<DeviceNumber>,
    /// The pod's namespace as the node's namespace numbers it: finds the link when the path is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_id: Option<i32>,
    /// `name` of the network configuration; absent for a pod that has only the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The NIC as it was on the node, when the pod gets a whole NIC; written before the NIC is touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic: Option<Nic>,
    /// What was asked for; absent in a record of an earlier release and in one that was rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
    /// ID of the kubelet that served when the record was made, if it was known: see [`crate::kubelet_id`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<String>,
}

/// What a device's pool and network asked for when it was attached. Both can be edited since; that holds for devices made
/// after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Made {
    /// The MTU; absent: none, so that of the lower link, or the NIC's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The owner of the device node; absent: a NIC has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// A NIC as it was on the node before a pod got it, and as it must be there again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// Where it is.
    pub pci: PciAddress,
    /// Its identity wherever it is.
    pub identity: LinkIdentity,
    /// Its name.
    pub name: String,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it was administratively up.
    pub up: bool,
    /// Whether it was set to receive every frame.
    #[serde(default)]
    pub promiscuous: bool,
    /// Whether it was set to receive every multicast frame.
    #[serde(default)]
    pub all_multicast: bool,
    /// Its alias, if somebody had given it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Its other names; those that a pod adds do not come back with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alt_names: Vec<String>,
    /// Its queue, group and mode.
    #[serde(default)]
    pub tuning: Tuning,
    /// The kernel's numbers of the XDP programs that it had; absent in a record of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Vec<u32>>,
}

/// Settings of a NIC that it keeps wherever it goes. Absent in a record of an earlier release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tuning {
    /// How many frames its queue takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u32>,
    /// The group it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Whether it stays dormant until a program of the user says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dormant: Option<bool>,
}

/// Who holds a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Holder {
    /// A pod network: the link is in the pod's network namespace.
    #[serde(rename_all = "camelCase")]
    Pod {
        /// `CNI_CONTAINERID` of the sandbox; [`UNKNOWN`] in a record that was rewritten.
        container_id: String,
        /// `CNI_IFNAME`.
        ifname: String,
        /// `K8S_POD_UID`; empty when the runtime does not pass it.
        pod_uid: String,
        /// `K8S_POD_NAMESPACE`.
        pod_namespace: String,
        /// `K8S_POD_NAME`.
        pod_name: String,
        /// `CNI_NETNS` without links of the file system.
        netns: String,
        /// Inode of that namespace: a path may be used again for another one.
        netns_inode: u64,
    },
    /// A pod that has only the tap: the link is in the namespace of the node.
    Host,
}

impl Holder {
    /// Whether this is the interface that a runtime means by this namespace and name, in a record that was rewritten
    /// and so knows no container.
    pub fn is_adopted(&self, ifname: &str, netns: Option<&Path>) -> bool {
        let (Self::Pod { container_id, ifname: own, netns: path, netns_inode, .. }, Some(wanted)) =
            (self, netns)
        else {
            return false;
        };
        container_id == UNKNOWN
            && own == ifname
            && match std::fs::metadata(wanted) {
                Ok(found) => found.ino() == *netns_inode,
                Err(_) => netns::canonical(wanted) == netns::canonical(Path::new(path)),
            }
    }
}

/// How far an attachment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Being made; if nobody holds the device's lock, its maker died.
    Creating,
    /// Link, addresses and node are in place.
    Attached,
}

/// A character device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// The driver's number; macvtap's is given by the kernel at load time.
    pub major: u32,
    /// The tap's number, given by the kernel: the lowest free one.
    pub minor: u32,
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A text that is not a device number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device number of the form <major>:<minor>")]
pub struct BadDeviceNumber(pub String);

impl std::str::FromStr for DeviceNumber {
    type Err = BadDeviceNumber;

    fn from_str(text: &str) -> Result<Self, BadDeviceNumber> {
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        let parts = text.split_once(':').and_then(|(major, minor)| number(major).zip(number(minor)));
        let (major, minor) = parts.ok_or_else(|| BadDeviceNumber(text.to_owned()))?;
        Ok(Self { major, minor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_written_anew_is_known_by_namespace_and_interface() {
        let dir = tempfile::tempdir().unwrap();
        let (here, elsewhere) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&here, "").unwrap();
        std::fs::write(&elsewhere, "").unwrap();
        let inode = std::fs::metadata(&here).unwrap().ino();
        let holder = |container: &str| Holder::Pod {
            container_id: container.into(),
            ifname: "net1".into(),
            pod_uid: UNKNOWN.into(),
            pod_namespace: "default".into(),
            pod_name: "vm".into(),
            netns: here.display().to_string(),
            netns_inode: inode,
        };
        assert!(holder(UNKNOWN).is_adopted("net1", Some(&here)));
        assert!(!holder(UNKNOWN).is_adopted("net2", Some(&here)));
        assert!(!holder(UNKNOWN).is_adopted("net1", Some(&elsewhere)));
        assert!(!holder(UNKNOWN).is_adopted("net1", None));
        assert!(!holder("c1").is_adopted("net1", Some(&here)));
        std::fs::remove_file(&here).unwrap();
        assert!(holder(UNKNOWN).is_adopted("net1", Some(&here)), "the sandbox is gone, the path is known");
    }

    #[test]
    fn only_two_numbers_are_a_device_number() {
        let number = DeviceNumber { major: 246, minor: 5 };
        assert_eq!(number.to_string().parse(), Ok(number));
        for text in ["", "246", "246:", ":5", "246:5:6", "a:b", "246:-5", "246:+5", "246: 5", ".246:5.new"] {
            assert_eq!(text.parse::<DeviceNumber>(), Err(BadDeviceNumber(text.into())));
        }
    }
}
