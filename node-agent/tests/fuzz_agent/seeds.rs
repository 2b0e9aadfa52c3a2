//! Valid inputs, from which others grow.

use crate::harness::Target;
use crate::readers;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use macvtap_proto::deviceplugin::{ContainerAllocateResponse, DeviceSpec};
use macvtap_proto::podresources::{
    ContainerDevices, ContainerResources, ListPodResourcesResponse, PodResources,
};
use prost::Message as _;
use serde_json::{Value, json};

pub(super) fn targets() -> Vec<Target> {
    let texts = |all: &[Value]| all.iter().map(|json| serde_json::to_vec(json).unwrap()).collect();
    let target = |name, seeds, read| Target { name, seeds, read };
    // A damaged number once led to an index that was given twice.
    let mut low = table();
    low["nextIfindex"] = json!(16_777_216);
    low["bootId"] = json!("another");
    // One whose numbers are used up once led to a table that the plugin refused.
    let mut high = table();
    high["nextIfindex"] = json!(0x7fff_ffff);
    vec![
        target("device table", texts(&[table(), low, high]), readers::table as fn(&[u8])),
        target("record", texts(&[record()]), readers::record),
        target("tap note", texts(&tap_notes()), |bytes| drop(readers::tap_note(bytes))),
        target("checkpoint", texts(&[checkpoint()]), readers::checkpoint),
        target("pod resources", vec![pod_resources()], readers::pod_resources),
        target("node state", texts(&node_states()), readers::node_state),
        target("DP_MACVTAP_CONF", texts(&configurations()), readers::standalone),
        target("devices to allocate", vec![b"dataplaneMvp0\ndataplaneMvp1".to_vec()], readers::allocation),
        target("kernel's answer", vec![kernels_answer()], readers::link),
        target("kernel's notification", notifications(), |bytes| drop(readers::notified(bytes))),
    ]
}

fn tap_notes() -> [Value; 3] {
    let pod = |name: &str| json!({"namespace": "tenant", "name": name});
    [
        json!({"owner": pod("vm"), "podUid": "u"}),
        json!({"candidates": [pod("vm"), pod("other")]}),
        json!([pod("vm"), pod("other")]),
    ]
}

/// A link, an address, a default route and a nexthop object, with their types.
fn notifications() -> Vec<Vec<u8>> {
    let typed = |kind: u16, payload: &[&[u8]]| [&kind.to_ne_bytes()[..], &payload.concat()].concat();
    let (link, address) = (attribute(4, &3_u32.to_ne_bytes()), attribute(1, &[10, 0, 0, 1]));
    vec![
        typed(16, &[&kernels_answer()]),
        typed(20, &[&[2, 24, 0, 0, 3, 0, 0, 0], &address]),
        typed(24, &[&[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], &link]),
        typed(104, &[&[2, 0, 0, 3, 0, 0, 0, 0], &attribute(1, &1_u32.to_ne_bytes()), &link]),
    ]
}

fn table() -> Value {
    let owner = json!({"uid": 107, "gid": 107});
    json!({"version": 1, "bootId": "boot-1", "nextIfindex": 16_777_600, "resources": {
        "dataplane": {"pool": "dataplane", "prefix": "macvtap.network.kubevirt.io", "type": "Macvtap", "mtu": 9000, "promiscuous": false,
            "allMulticast": true, "owner": owner, "tapOnly": "Forbidden",
            "links": [{"ifindex": 3, "name": "dp0", "identity": {"by": "name", "kind": "veth", "name": "dp0"}, "mode": "bridge",
                "ranges": [{"firstSlot": 0, "count": 4, "firstIfindex": 16_777_216}, {"firstSlot": 4, "count": 4, "firstIfindex": 16_777_300}]}]},
        "virt": {"prefix": "kernel.org", "type": "HostDevice", "promiscuous": false, "allMulticast": true, "owner": owner, "tapOnly": "Forbidden",
            "links": [{"ifindex": 4, "name": "ens10", "identity": {"by": "hardware", "mac": "52:54:00:00:00:01", "parent": "virtio4"}, "mode": "passthru",
                "pci": "0000:00:04.0", "ranges": [{"firstSlot": 0, "count": 1, "firstIfindex": 16_777_500}]}]}}})
}

fn record() -> Value {
    json!({"version": 1, "device": "dataplaneMvp0", "state": "Attached", "ifindex": 16_777_216, "lowerIfindex": 3, "mac": "02:00:00:00:00:01",
        "tap": {"major": 246, "minor": 5}, "netnsId": 4, "network": "dataplane",
        "holder": {"kind": "pod", "containerId": "c1", "ifname": "net1", "podUid": "u", "podNamespace": "a", "podName": "b",
            "netns": "/var/run/netns/cni-1", "netnsInode": 4_026_531_840_u64}})
}

fn checkpoint() -> Value {
    let answer = |answer: &ContainerAllocateResponse| BASE64.encode(answer.encode_to_vec());
    let path =
        |container_path: &str| DeviceSpec { container_path: container_path.into(), ..DeviceSpec::default() };
    let taps = ["/dev/tap16777216", "/dev/tap16777217"].map(path).to_vec();
    let taps = answer(&ContainerAllocateResponse { devices: taps, ..ContainerAllocateResponse::default() });
    let envs = [("VIRT-PCI-ADDR".to_owned(), "0000:00:04.0,".to_owned())].into();
    let nics = answer(&ContainerAllocateResponse { envs, ..ContainerAllocateResponse::default() });
    json!({"Data": {"PodDeviceEntries": [
            {"PodUID": "u", "ContainerName": "c", "ResourceName": "macvtap.network.kubevirt.io/dataplane",
                "DeviceIDs": {"-1": ["dataplaneMvp0"], "0": ["dataplaneMvp1"]}, "AllocResp": taps},
            {"PodUID": "v", "ContainerName": "c", "ResourceName": "kernel.org/virt", "DeviceIDs": {"0": ["0000:00:04.0"]}, "AllocResp": nics}],
        "RegisteredDevices": {"macvtap.network.kubevirt.io/dataplane": ["dataplaneMvp0"]}}, "Checksum": 1})
}

fn pod_resources() -> Vec<u8> {
    let devices = ContainerDevices {
        resource_name: "macvtap.network.kubevirt.io/dataplane".into(),
        device_ids: vec!["dataplaneMvp0".into(), "dataplaneMvp1".into()],
    };
    let container = ContainerResources { name: "c".into(), devices: vec![devices] };
    let pod = PodResources { name: "vm".into(), namespace: "tenant".into(), containers: vec![container] };
    ListPodResourcesResponse {
        pod_resources: vec![pod.clone(), PodResources { name: "other".into(), ..pod }],
    }
    .encode_to_vec()
}

fn node_states() -> [Value; 2] {
    let links = json!([{"kinds": ["Physical", "Bond"], "names": ["dp*", "bond0"], "vendors": ["0x15b3"], "drivers": ["mlx5_core"],
        "macAddresses": ["52:54:00:00:00:01"], "pciAddresses": ["0000:00:03.0"], "numaNodes": [0], "minSpeedMbps": 10000}, {"names": ["dp0"]}]);
    let pool = |name: &str| {
        json!({"name": name, "uid": "u", "generation": 3, "resourceName": name, "phase": "Active", "links": links, "exclude": [{"names": ["dp1"]}],
            "overlap": "Shared", "resourcePer": "Pool", "capacity": {"perLink": 20, "perNode": 30}, "allocation": "Pack", "tapOnly": "Allowed",
            "macvtap": {"mode": "VEPA", "mtu": 9000, "promiscuous": true, "allMulticast": false, "owner": {"uid": 0, "gid": 0}},
            "health": {"carrier": "Required", "downDelaySeconds": 3, "upDelaySeconds": 5}})
    };
    let per_link = json!({"name": "each", "uid": "w", "generation": 1, "resourcePer": "Link", "links": [{"kinds": ["Physical"]}]});
    [
        json!({"configHash": "h", "pools": [pool("dataplane"), pool("storage")]}),
        json!({"configHash": "h", "pools": [per_link, {"name": "nics", "uid": "x", "generation": 1, "resourceName": "nics",
            "type": "HostDevice", "links": [{"names": ["ens10"]}]}]}),
    ]
}

fn configurations() -> [Value; 3] {
    [
        json!([{"name": "dataplane", "lowerDevice": "dp0", "mode": "bridge", "capacity": 50}, {"name": "old", "master": "bond0"}]),
        json!([{"name": "nics", "type": "HostDevice", "lowerDevice": "ens10"}]),
        json!([]),
    ]
}

/// A NIC as the kernel describes it: header, name, MTU, address, other names, device.
fn kernels_answer() -> Vec<u8> {
    let info = [attribute(1, b"bond\0"), attribute(2, &attribute(1, &4_u32.to_ne_bytes()))].concat();
    let header = [0, 0, 1, 0, 7, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0];
    let attributes = [
        attribute(3, b"ens10\0"),
        attribute(4, &1500_u32.to_ne_bytes()),
        attribute(5, &3_u32.to_ne_bytes()),
        attribute(10, &9_u32.to_ne_bytes()),
        attribute(1, &[2, 0, 0, 0, 0, 1]),
        attribute(18, &info),
        attribute(20, b"uplink"),
        attribute(52, &attribute(53, b"enp0s10\0")),
        attribute(54, &[0x52, 0x54, 0, 0, 0, 1]),
        attribute(56, b"virtio1\0"),
    ];
    [&header[..], &attributes.concat()].concat()
}

/// An attribute of netlink.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
