//! The kubelet's own note of which devices pods have, in its device plugin directory. Read where pod resources are not
//! to be had, and before they are. It lags behind when devices become free, never when they are taken.

use super::answer::{self, LowerLinks};
use super::{CHECKPOINT, instance};
use crate::devices::nics::{self, NicNames};
use crate::pods::KubeletMemory;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use macvtap::device_id::DeviceId;
use macvtap::kubelet_id::ServingKubelet;
use macvtap::pci::PciAddress;
use macvtap_proto::deviceplugin::ContainerAllocateResponse;
use prost::Message as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Devices that the kubelet has given to one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// UID of the container's pod.
    pub pod_uid: String,
    /// The resource, with its prefix.
    pub resource: String,
    /// The devices, in the order of their slots.
    pub devices: Vec<DeviceId>,
    /// Whole NICs: what our answer to Allocate passed to the container.
    pub nics: Vec<PciAddress>,
    /// The indexes that were promised to the container, ascending. Which is whose the kubelet does not note; for the
    /// container it does not matter, since it has them all.
    pub ifindexes: Vec<u32>,
    /// The links of the devices, by promised index, as our answer noted them.
    pub lower: LowerLinks,
}

/// Returns the devices of ours that the kubelet has given to pods; none when there is no checkpoint that can be read, which
/// does not show that pods hold none.
pub fn devices(plugins: &Path, names: &NicNames) -> Option<BTreeSet<DeviceId>> {
    let given = read(plugins)?.into_iter();
    let devices = given.flat_map(|Given { resource, devices, nics, .. }| {
        let nics = nics.into_iter().filter_map(move |nic| names.device(&resource, &nic.to_string()));
        devices.into_iter().chain(nics)
    });
    Some(devices.collect())
}

/// Returns the same, by container, with what was promised; nothing when there is no checkpoint that can be read.
pub fn given(plugins: &Path) -> Vec<Given> {
    read(plugins).unwrap_or_default()
}

/// Returns what the kubelet remembers of the pods that hold macvtaps, of which pod resources lack init containers and UIDs.
/// None when that cannot be read.
pub fn memory(plugins: &Path, kubelet: Option<&ServingKubelet>) -> Option<KubeletMemory> {
    let version = instance::version(&plugins.join(CHECKPOINT))?;
    let mut holders: BTreeMap<DeviceId, BTreeSet<String>> = BTreeMap::new();
    for Given { pod_uid, devices, .. } in read(plugins)? {
        for device in devices {
            holders.entry(device).or_default().insert(pod_uid.clone());
        }
    }
    // Replaced as a whole: what was read is at least as new as this version.
    let is_current = kubelet.is_some_and(|kubelet| kubelet.checkpoint.as_ref() != Some(&version));
    Some(KubeletMemory { holders, version, is_current })
}

fn read(plugins: &Path) -> Option<Vec<Given>> {
    let text = std::fs::read(plugins.join(CHECKPOINT)).ok()?;
    let checkpoint: Value = serde_json::from_slice(&text).ok()?;
    let entries = checkpoint.get("Data")?.as_object()?.get("PodDeviceEntries").and_then(Value::as_array);
    let given = entries.into_iter().flatten().map(entry);
    Some(given.filter(|given| !given.devices.is_empty() || !given.nics.is_empty()).collect())
}

fn entry(entry: &Value) -> Given {
    let resource = entry.get("ResourceName").and_then(Value::as_str).unwrap_or_default();
    let name = resource.rsplit_once('/').map_or(resource, |(_, name)| name);
    // A list per memory node since Kubernetes 1.20.
    let nodes = entry.get("DeviceIDs").and_then(Value::as_object);
    let ids = nodes.into_iter().flat_map(|nodes| nodes.values()).filter_map(Value::as_array).flatten();
    let mut devices: Vec<DeviceId> = ids
        .filter_map(|id| id.as_str()?.parse::<DeviceId>().ok())
        .filter(|device| device.resource().as_str() == name)
        .collect();
    devices.sort_unstable();
    let answer = allocated(entry);
    let mut ifindexes = answer.as_ref().and_then(promised).unwrap_or_default();
    ifindexes.sort_unstable();
    let nics = answer.as_ref().map(nics::from_answer).unwrap_or_default();
    let lower = answer.as_ref().map(answer::lower_links).unwrap_or_default();
    let pod_uid = entry.get("PodUID").and_then(Value::as_str).unwrap_or_default().to_owned();
    Given { pod_uid, resource: resource.to_owned(), devices, nics, ifindexes, lower }
}

/// Our answer to Allocate.
fn allocated(entry: &Value) -> Option<ContainerAllocateResponse> {
    let answer = BASE64.decode(entry.get("AllocResp")?.as_str()?).ok()?;
    ContainerAllocateResponse::decode(answer.as_slice()).ok()
}

/// The indexes in it; none if it names anything else.
fn promised(answer: &ContainerAllocateResponse) -> Option<Vec<u32>> {
    let index = |path: &str| path.strip_prefix("/dev/tap")?.parse().ok();
    answer.devices.iter().map(|device| index(&device.container_path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CHECKPOINT), text).unwrap();
        let devices = devices(dir.path(), &NicNames::default()).unwrap();
        devices.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn devices_of_ours_are_found_on_every_memory_node() {
        let text = r#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"u","ContainerName":"c","ResourceName":"macvtap.network.kubevirt.io/dataplane",
             "DeviceIDs":{"-1":["dataplaneMvp7"],"1":["dataplaneMvp9"]},"AllocResp":"AA=="},
            {"PodUID":"u","ContainerName":"d","ResourceName":"example.com/gpu","DeviceIDs":{"-1":["g0"]}}
            ],"RegisteredDevices":{}},"Checksum":1}"#;
        assert_eq!(read(text), ["dataplaneMvp7", "dataplaneMvp9"]);
    }

    #[test]
    fn the_promised_indexes_are_found_in_the_answer_that_the_kubelet_kept() {
        let answer = |paths: &[&str]| {
            let devices = paths.iter().map(|path| macvtap_proto::deviceplugin::DeviceSpec {
                container_path: (*path).to_owned(),
                ..Default::default()
            });
            BASE64.encode(
                ContainerAllocateResponse { devices: devices.collect(), ..Default::default() }
                    .encode_to_vec(),
            )
        };
        let promised = |ids: &str, answer: &str| {
            let text =
                format!(r#"{{"ResourceName":"x/a","DeviceIDs":{{"-1":{ids}}},"AllocResp":"{answer}"}}"#);
            let given = entry(&serde_json::from_str(&text).unwrap());
            assert!(given.devices.is_sorted_by_key(DeviceId::slot));
            given.ifindexes
        };
        assert_eq!(promised(r#"["aMvp0"]"#, &answer(&["/dev/tap16777216"])), [16_777_216]);
        assert_eq!(
            promised(r#"["aMvp10","aMvp9"]"#, &answer(&["/dev/tap16777217", "/dev/tap16777216"])),
            [16_777_216, 16_777_217]
        );
        for other in [&answer(&["/dev/kvm"]), &answer(&["/dev/tap7", "/dev/kvm"]), "no base64", ""] {
            assert_eq!(promised(r#"["aMvp0"]"#, other), [0_u32; 0], "{other}");
        }
    }

    #[test]
    fn whole_nics_are_found_by_what_the_container_was_told_and_other_plugins_addresses_are_not() {
        let entry = |resource: &str, variable: &str| {
            let envs = [(variable.to_owned(), "0000:00:0a.0,0000:00:0b.0,".to_owned())];
            let answer = ContainerAllocateResponse { envs: envs.into(), ..Default::default() };
            let answer = BASE64.encode(answer.encode_to_vec());
            let ids = r#"{"0":["0000:00:0a.0"],"1":["0000:00:0b.0"]}"#;
            let text = format!(r#"{{"ResourceName":"{resource}","DeviceIDs":{ids},"AllocResp":"{answer}"}}"#);
            super::entry(&serde_json::from_str(&text).unwrap())
        };
        let given = entry("kernel.org/virt", "VIRT-PCI-ADDR");
        let nics: Vec<String> = given.nics.iter().map(ToString::to_string).collect();
        assert_eq!(
            (nics, given.resource.as_str()),
            (vec!["0000:00:0a.0".into(), "0000:00:0b.0".into()], "kernel.org/virt")
        );
        assert_eq!(entry("intel.com/sriov", "PCIDEVICE_INTEL_COM_SRIOV").nics, []);
    }

    #[test]
    fn the_pods_of_devices_are_known_by_uid_and_only_a_kubelet_that_wrote_since_it_started_remembers() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(memory(dir.path(), None), None);
        let text = r#"{"Data":{"PodDeviceEntries":[
            {"PodUID":"u","ContainerName":"init","ResourceName":"x/a","DeviceIDs":{"-1":["aMvp7"]},"AllocResp":""},
            {"PodUID":"u","ContainerName":"c","ResourceName":"x/a","DeviceIDs":{"-1":["aMvp7"]},"AllocResp":""}
            ],"RegisteredDevices":{}},"Checksum":1}"#;
        std::fs::write(dir.path().join(CHECKPOINT), text).unwrap();
        let version = instance::version(&dir.path().join(CHECKPOINT)).unwrap();
        let kubelet = |checkpoint| ServingKubelet { id: "k".into(), checkpoint };
        let read = memory(dir.path(), Some(&kubelet(Some(version)))).unwrap();
        assert_eq!(read.holder(&"aMvp7".parse().unwrap()), Some("u"));
        assert!(!read.is_current, "it may have lost this one");
        assert!(memory(dir.path(), Some(&kubelet(None))).unwrap().is_current);
        // What Go writes when there is nothing.
        std::fs::write(dir.path().join(CHECKPOINT), r#"{"Data":{"PodDeviceEntries":null},"Checksum":1}"#)
            .unwrap();
        assert!(memory(dir.path(), None).unwrap().holders.is_empty());
        for damaged in ["", "{", "{}", r#"{"Data":null}"#] {
            std::fs::write(dir.path().join(CHECKPOINT), damaged).unwrap();
            assert_eq!(memory(dir.path(), None), None, "{damaged}");
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_read_does_not_show_that_pods_hold_nothing() {
        assert_eq!(read(r#"{"Data":{"PodDeviceEntries":[{"DeviceIDs":[1]},7]}}"#), [""; 0]);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(devices(dir.path(), &NicNames::default()), None);
        for damaged in ["", "{", "[]"] {
            std::fs::write(dir.path().join(CHECKPOINT), damaged).unwrap();
            assert_eq!(devices(dir.path(), &NicNames::default()), None, "{damaged}");
        }
    }
}
