//! Valid inputs, from which others grow.

use crate::harness::Target;
use crate::readers;
use crate::readers::{INDEX, SEQUENCE};
use serde_json::{Value, json};

pub(super) fn targets() -> Vec<Target> {
    let texts = |all: &[Value]| all.iter().map(|json| serde_json::to_vec(json).unwrap()).collect();
    let results = [
        json!({"cniVersion": "1.1.0", "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 1500, "sandbox": "/run/netns/x", "socketPath": "/a"}],
               "ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::2/64", "interface": 0}],
               "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1400, "priority": 5, "scope": 253, "table": 1000, "advmss": 1300}, {"gw": "fd00::9"}],
               "dns": {"nameservers": ["10.0.0.1"], "domain": "a", "search": ["b"], "options": ["c"]}}),
        json!({"ips": [{"address": "172.31.0.41/24", "interface": 0}], "interfaces": null, "dns": {}}),
    ];
    let configurations = [
        json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap", "deviceID": "dataplaneMvp0", "mac": "02:00:00:00:00:01", "mtu": 1500,
               "mode": "bridge", "promiscMode": true, "owner": 107, "group": 107, "announce": "Never", "dns": {"nameservers": ["10.0.0.1"]},
               "runtimeConfig": {"mac": "02:00:00:00:00:03", "ips": ["10.0.0.2/24"], "deviceID": "dataplaneMvp0"},
               "args": {"cni": {"mac": "02:00:00:00:00:04"}}, "ipam": {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}, "prevResult": results[0]}),
        json!({"cniVersion": "1.1.0", "name": "p4p1", "type": "macvtap", "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}],
               "ipam": {"type": "kube-ovn", "server_socket": "/run/openvswitch/kube-ovn-daemon.sock", "provider": "p4p1.default", "routes": [{"gw": "10.0.0.1"}]}}),
        json!({"cniVersion": "0.3.1", "name": "virt", "type": "ehost-device", "deviceID": "0000:00:0a.0", "mac": "02:00:00:00:00:01", "device": ""}),
    ];
    let nics = json!({"prefix": "kernel.org", "type": "HostDevice", "promiscuous": false, "allMulticast": true, "owner": {"uid": 107, "gid": 107}, "tapOnly": "Forbidden",
        "links": [
            {"ifindex": 4, "name": "ens10", "identity": {"by": "hardware", "mac": "52:54:00:00:00:01", "parent": "virtio1"}, "mode": "bridge", "pci": "0000:00:0a.0",
             "ranges": [{"firstSlot": 0, "count": 1, "firstIfindex": 16_777_500}]},
            {"ifindex": 5, "name": "ens11", "identity": {"by": "hardware", "mac": "52:54:00:00:00:02", "parent": "virtio2"}, "mode": "bridge", "pci": "0000:00:0b.0",
             "ranges": [{"firstSlot": 1, "count": 1, "firstIfindex": 16_777_501}]}]});
    let resource = json!({"prefix": "macvtap.network.kubevirt.io", "type": "Macvtap", "mtu": 9000, "promiscuous": false, "allMulticast": true,
        "owner": {"uid": 107, "gid": 107}, "tapOnly": "Forbidden",
        "links": [{"ifindex": 3, "name": "dp0", "identity": {"by": "name", "kind": "veth", "name": "dp0"}, "mode": "bridge",
                   "ranges": [{"firstSlot": 0, "count": 4, "firstIfindex": 16_777_216}, {"firstSlot": 4, "count": 4, "firstIfindex": 16_777_300}]}]});
    let record_seed = json!({"version": 1, "device": "dataplaneMvp0", "state": "Attached", "ifindex": 16_777_216, "lowerIfindex": 3, "mac": "02:00:00:00:00:01",
        "tap": {"major": 246, "minor": 5}, "netnsId": 4, "network": "dataplane",
        "holder": {"kind": "pod", "containerId": "c1", "ifname": "net1", "podUid": "u", "podNamespace": "a", "podName": "b", "netns": "/run/netns/x", "netnsInode": 4_026_531_840_u64}});
    let nic_record = json!({"version": 1, "device": "virtMvp0", "state": "Creating", "ifindex": 4, "lowerIfindex": 4, "network": "virt",
        "nic": {"pci": "0000:00:0a.0", "identity": {"by": "hardware", "mac": "52:54:00:00:00:01", "parent": "virtio1"}, "name": "ens10", "mac": "52:54:00:00:00:01",
                "mtu": 1500, "up": true, "promiscuous": false, "allMulticast": false, "alias": "uplink"},
        "holder": {"kind": "pod", "containerId": "c1", "ifname": "net1", "podUid": "u", "podNamespace": "a", "podName": "b", "netns": "/run/netns/x", "netnsInode": 4_026_531_840_u64}});
    let target = |name, seeds, read| Target { name, seeds, read };
    vec![
        target("configuration", texts(&configurations), readers::configuration as fn(&[u8])),
        target(
            "CNI_ARGS",
            vec![
                b"IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c;MAC=02:00:00:00:00:01;X=y"
                    .to_vec(),
                b"dataplaneMvp7".to_vec(),
                b"0000:00:0a.0".to_vec(),
            ],
            readers::arguments,
        ),
        target(
            "environment",
            vec![environment("ADD"), environment("DEL"), environment("GC")],
            readers::environment,
        ),
        target("prevResult", texts(&results), readers::result),
        target("IPAM answer", texts(&results), readers::answer),
        target(
            "device table",
            texts(&[
                json!({"version": 1, "bootId": "b", "nextIfindex": 16_777_400, "standalone": true, "resources": {"dataplane": resource, "other": resource}}),
                json!({"version": 1, "bootId": "b", "nextIfindex": 16_777_400, "resources": {"dataplane": resource}}),
                json!({"version": 1, "bootId": "b", "nextIfindex": 16_777_600, "resources": {"dataplane": resource, "virt": nics}}),
            ]),
            readers::table,
        ),
        target("record", texts(&[record_seed, nic_record]), readers::record),
        target(
            "node's settings",
            texts(&[
                json!({"logFile": "/var/log/a", "logLevel": "debug", "moveHostLinks": true, "socketDirectories": ["/run/a"], "ipamTimeoutSeconds": 9, "ipamRetrySeconds": 9}),
            ]),
            readers::settings,
        ),
        target("kernel's answer", vec![kernels_answer()], readers::link),
        target("announced taps", vec![announcements()], readers::announcements),
        target("kernel's datagram", datagrams(), readers::datagram),
        target("routes and addresses", ties(), readers::ties),
    ]
}

fn environment(command: &str) -> Vec<u8> {
    let sandbox = "CNI_CONTAINERID=c1\0CNI_IFNAME=net1\0CNI_NETNS=/run/netns/x\0CNI_PATH=/opt/cni/bin\0";
    let args = "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;MAC=02:00:00:00:00:01\0";
    format!("CNI_COMMAND={command}\0{sandbox}{args}").into_bytes()
}

/// What the kernel announces of a macvtap, and of another one.
fn announcements() -> Vec<u8> {
    let message = |action: &str, index: u32| {
        let path = format!("/devices/virtual/net/net1/macvtap/tap{index}");
        format!("{action}@{path}\0ACTION={action}\0SUBSYSTEM=macvtap\0MAJOR=246\0MINOR=5\0SEQNUM=7\0")
    };
    let link = format!("add@/devices/virtual/net/net1\0ACTION=add\0INTERFACE=net1\0IFINDEX={INDEX}\0");
    [message("remove", INDEX), link, message("add", INDEX), message("add", INDEX + 1)].join("\n").into_bytes()
}

/// An acknowledgement, an error with words, an object, and a list with its end.
fn datagrams() -> Vec<Vec<u8>> {
    let message = |kind: u16, flags: u16, payload: &[u8]| {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let kinds = [kind.to_ne_bytes(), flags.to_ne_bytes()].concat();
        let mut bytes =
            [&length.to_ne_bytes()[..], &kinds, &SEQUENCE.to_ne_bytes(), &[0; 4], payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let error = |code: i32, more: &[u8]| [&code.to_ne_bytes()[..], &[0; 16], more].concat();
    let words = attribute(1, b"no such device\0");
    let object = kernels_answer();
    vec![
        message(2, 0, &error(0, &[])),
        message(2, 0x200, &error(-19, &words)),
        message(16, 0, &object),
        [message(16, 2, &object), message(16, 2, &object), message(3, 2, &[0; 4])].concat(),
    ]
}

/// An address, a default route through two links, one through a nexthop object, that object, and a group of them.
fn ties() -> Vec<Vec<u8>> {
    let hop = |link: u32| [&[8, 0, 0, 0][..], &link.to_ne_bytes()].concat();
    let route = [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let (nexthop, one) = ([2, 0, 0, 3, 0, 0, 0, 0], 1_u32.to_ne_bytes());
    vec![
        [&[2, 24, 0, 0, 3, 0, 0, 0][..], &attribute(1, &[10, 0, 0, 1])].concat(),
        [&route[..], &attribute(9, &[hop(3), hop(4)].concat()), &attribute(4, &3_u32.to_ne_bytes())].concat(),
        [&route[..], &attribute(30, &one)].concat(),
        [&nexthop[..], &attribute(1, &one), &attribute(5, &3_u32.to_ne_bytes())].concat(),
        [&nexthop[..], &attribute(1, &one), &attribute(2, &hop(4))].concat(),
    ]
}

/// An attribute of netlink.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A link as the kernel describes it: header, name, MTU, lower link, address, kind and mode.
fn kernels_answer() -> Vec<u8> {
    let info = [attribute(1, b"macvtap\0"), attribute(2, &attribute(1, &4_u32.to_ne_bytes()))].concat();
    let header = [0, 0, 1, 0, 7, 0, 0, 1, 0x43, 0x12, 0, 0, 0, 0, 0, 0];
    let attributes = [
        attribute(3, b"net1\0"),
        attribute(4, &1500_u32.to_ne_bytes()),
        attribute(5, &3_u32.to_ne_bytes()),
        attribute(1, &[2, 0, 0, 0, 0, 1]),
        attribute(18, &info),
        attribute(20, b"ens10"),
        attribute(52, &attribute(53, b"enp0s10\0")),
        attribute(54, &[0x52, 0x54, 0, 0, 0, 1]),
        attribute(56, b"virtio1\0"),
    ];
    [&header[..], &attributes.concat()].concat()
}
