//! The kubelet's own note of which devices pods have, in its device plugin directory. Read where pod resources are not
//! to be had, and before they are. It lags behind when devices become free, never when they are taken.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use macvtap::device_id::DeviceId;
use macvtap_proto::deviceplugin::ContainerAllocateResponse;
use prost::Message as _;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const FILE: &str = "kubelet_internal_checkpoint";

/// A device that the kubelet has given to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The device.
    pub device: DeviceId,
    /// The index that was promised to the pod, where the note tells it beyond doubt.
    pub ifindex: Option<u32>,
}

/// Devices of ours that the kubelet has given to pods.
pub fn devices(plugins: &Path) -> BTreeSet<DeviceId> {
    given(plugins).into_iter().map(|given| given.device).collect()
}

/// The same, with what was promised. None when there is no note, or none that can be read.
pub fn given(plugins: &Path) -> Vec<Given> {
    let text = std::fs::read(plugins.join(FILE)).unwrap_or_default();
    let note: Value = serde_json::from_slice(&text).unwrap_or_default();
    let entries = note.pointer("/Data/PodDeviceEntries").and_then(Value::as_array);
    entries.into_iter().flatten().flat_map(entry).collect()
}

fn entry(entry: &Value) -> Vec<Given> {
    let resource = entry.get("ResourceName").and_then(Value::as_str).unwrap_or_default();
    let name = resource.rsplit_once('/').map_or(resource, |(_, name)| name);
    // A list per memory node since Kubernetes 1.20.
    let nodes = entry.get("DeviceIDs").and_then(Value::as_object);
    let ids = nodes.into_iter().flat_map(|nodes| nodes.values()).filter_map(Value::as_array).flatten();
    let devices: Vec<DeviceId> = ids
        .filter_map(|id| id.as_str()?.parse::<DeviceId>().ok())
        .filter(|device| device.resource().as_str() == name)
        .collect();
    // The answer does not say which path is whose.
    let ifindex = promised(entry).filter(|_| devices.len() == 1);
    devices.into_iter().map(|device| Given { device, ifindex }).collect()
}

/// The index in our answer to Allocate, if it named one device.
fn promised(entry: &Value) -> Option<u32> {
    let answer = BASE64.decode(entry.get("AllocResp")?.as_str()?).ok()?;
    let answer = ContainerAllocateResponse::decode(answer.as_slice()).ok()?;
    let [device] = answer.devices.as_slice() else { return None };
    device.container_path.strip_prefix("/dev/tap")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        devices(dir.path()).iter().map(ToString::to_string).collect()
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
    fn the_promised_index_is_found_where_it_is_beyond_doubt() {
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
            entry(&serde_json::from_str(&text).unwrap())
                .into_iter()
                .map(|given| given.ifindex)
                .collect::<Vec<_>>()
        };
        assert_eq!(promised(r#"["aMvp0"]"#, &answer(&["/dev/tap16777216"])), [Some(16_777_216)]);
        assert_eq!(
            promised(r#"["aMvp0","aMvp1"]"#, &answer(&["/dev/tap16777216", "/dev/tap16777217"])),
            [None, None]
        );
        assert_eq!(promised(r#"["aMvp0"]"#, &answer(&["/dev/kvm"])), [None]);
        assert_eq!(promised(r#"["aMvp0"]"#, "no base64"), [None]);
    }

    #[test]
    fn a_note_that_cannot_be_read_tells_nothing() {
        for text in ["", "{", "[]", r#"{"Data":{"PodDeviceEntries":[{"DeviceIDs":[1]},7]}}"#] {
            assert_eq!(read(text), [""; 0]);
        }
        assert!(devices(Path::new("/nonexistent")).is_empty());
    }
}
