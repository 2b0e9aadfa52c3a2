//! The kubelet's own note of which devices pods have, in its device plugin directory. Read where pod resources are not
//! to be had, and before they are. It lags behind when devices become free, never when they are taken.

use macvtap::device_id::DeviceId;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const FILE: &str = "kubelet_internal_checkpoint";

/// Devices of ours that the kubelet has given to pods. None when there is no note, or none that can be read.
pub fn devices(plugins: &Path) -> BTreeSet<DeviceId> {
    let text = std::fs::read(plugins.join(FILE)).unwrap_or_default();
    let note: Value = serde_json::from_slice(&text).unwrap_or_default();
    let entries = note.pointer("/Data/PodDeviceEntries").and_then(Value::as_array);
    entries.into_iter().flatten().flat_map(entry).collect()
}

fn entry(entry: &Value) -> Vec<DeviceId> {
    let resource = entry.get("ResourceName").and_then(Value::as_str).unwrap_or_default();
    let name = resource.rsplit_once('/').map_or(resource, |(_, name)| name);
    // A list per memory node since Kubernetes 1.20.
    let nodes = entry.get("DeviceIDs").and_then(Value::as_object);
    let ids = nodes.into_iter().flat_map(|nodes| nodes.values()).filter_map(Value::as_array).flatten();
    ids.filter_map(|id| id.as_str()?.parse::<DeviceId>().ok())
        .filter(|device| device.resource().as_str() == name)
        .collect()
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
    fn a_note_that_cannot_be_read_tells_nothing() {
        for text in ["", "{", "[]", r#"{"Data":{"PodDeviceEntries":[{"DeviceIDs":[1]},7]}}"#] {
            assert_eq!(read(text), [""; 0]);
        }
        assert!(devices(Path::new("/nonexistent")).is_empty());
    }
}
