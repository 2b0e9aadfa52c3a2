//! Valid inputs, from which others grow.

use crate::admission;
use crate::harness::Target;
use crate::readers;
use serde_json::{Value, json};

pub(super) fn targets() -> Vec<Target> {
    let texts = |all: &[Value]| all.iter().map(|json| serde_json::to_vec(json).unwrap()).collect();
    let target = |name, seeds, read| Target { name, seeds, read };
    let configuration = json!([{"name": "dataplane", "lowerDevice": "dp0", "mode": "bridge", "capacity": 50}, {"name": "old", "lowerDevice": "bond0"}]);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "macvtap-deviceplugin-config"},
        "data": {"DP_MACVTAP_CONF": configuration.to_string()}});
    vec![
        target("pool", texts(&[pool("first"), whole_pool()]), readers::pool as fn(&[u8])),
        target("node state", texts(&[node_state()]), readers::node_state),
        target("network", texts(&[network()]), readers::network),
        target("configuration", texts(&[configuration, map]), readers::configuration),
        target("admission review", texts(&reviews()), admission::review),
    ]
}

/// A pool with this name and an UID of it.
pub(super) fn pool(name: &str) -> Value {
    json!({"apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 2, "creationTimestamp": "2026-11-01T00:00:00Z", "resourceVersion": "7"},
        "spec": {"links": [{"names": ["dp*"]}], "networks": [{"name": name, "namespaces": {"names": ["tenant-a"], "selector": {"matchLabels": {"macvtap": "yes"}}}}]}})
}

/// A pod with containers of all kinds and networks, and one with the other forms of the annotations.
fn reviews() -> [Value; 2] {
    let held = json!({"limits": {"cpu": "1", "kernel.org/virt": "1"}, "requests": {"kernel.org/virt": 1}});
    let review = |annotations: Value, spec: Value| {
        let pod = json!({"metadata": {"name": "p", "annotations": annotations}, "spec": spec});
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "namespace": "tenant-a", "object": pod}})
    };
    let networks = json!([{"name": "dataplane"}, {"name": "virt", "namespace": "tenant-b", "interface": "net2"}, {"name": "invalid"}]);
    [
        review(
            json!({"k8s.v1.cni.cncf.io/networks": networks.to_string()}),
            json!({"containers": [{"name": "a"}, {"name": "b", "resources": held}], "initContainers": [{"name": "c", "restartPolicy": "Always", "resources": {"limits": null}}]}),
        ),
        review(
            json!({"k8s.v1.cni.cncf.io/networks": "dataplane, dataplane@net2,tenant-b/virt", "v1.multus-cni.io/default-network": "tenant-a/dataplane"}),
            json!({"containers": [{"name": "a", "resources": {"requests": {}}}]}),
        ),
    ]
}

fn whole_pool() -> Value {
    let mut pool = pool("whole");
    pool["spec"] = json!({
        "resourceName": "whole", "resourcePrefix": "macvtap.network.kubevirt.io", "priority": 100,
        "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n1"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]},
        "links": [{"kinds": ["Physical"], "names": ["ens*"], "vendors": ["0x15b3"], "minSpeedMbps": 10000}], "exclude": [{"names": ["ens9"]}],
        "excludeDefaultRoute": true, "overlap": "Shared", "resourcePer": "Link", "advertisement": "Enabled", "capacity": {"perLink": 10, "perNode": 15},
        "allocation": "Pack", "tapOnly": "Allowed", "topology": "None", "health": {"carrier": "Ignored", "downDelaySeconds": 1, "upDelaySeconds": 2},
        "type": "Macvtap", "macvtap": {"mode": "Private", "mtu": 9000, "promiscuous": true, "allMulticast": false, "owner": {"uid": 1, "gid": 2}},
        "rollout": {"type": "Staged", "staged": {"batch": "10%", "maxDegraded": 1}},
        "networks": [{"name": "{link}", "namespaces": {"names": ["tenant-b"]}, "cniVersion": "1.0.0", "mtu": 1500, "announce": "Never",
            "ipam": {"kubeOVN": {"serverSocket": "/run/openvswitch/kube-ovn-daemon.sock"}}}]});
    pool["status"] = json!({"observedGeneration": 1, "conditions": [
        {"type": "Ready", "status": "False", "reason": "NodesNotReady", "message": "m", "lastTransitionTime": "2026-11-01T00:00:00Z"}]});
    pool
}

/// The state of the node that the readers have.
pub(super) fn node_state() -> Value {
    json!({"metadata": {"name": "n1", "uid": "state", "generation": 4, "resourceVersion": "12",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "node"}]},
        "spec": {"configHash": "h", "pools": [{"name": "dataplane", "uid": "uid-dataplane", "generation": 2, "resourceName": "dataplane", "phase": "Active",
            "links": [{"names": ["dp*"]}]}]},
        "status": {"observedGeneration": 4, "observedHash": "h", "bootID": "b",
            "pools": [{"name": "dataplane", "generation": 2, "capacity": 100, "allocatable": 99, "allocated": 3, "dead": 1, "links": ["dp0"],
                "unhealthyLinks": ["dp1"], "contestedLinks": [], "resources": ["dataplane"],
                "conditions": [{"type": "Ready", "status": "True", "reason": "AsExpected", "message": "", "lastTransitionTime": "2026-11-01T00:00:00Z"},
                    {"type": "Degraded", "status": "True", "reason": "DevicesDead", "message": "1", "lastTransitionTime": "2026-11-01T00:00:00Z"}]}],
            "links": [{"name": "dp0", "kind": "Veth", "pools": ["dataplane"]}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "AsExpected", "message": "", "lastTransitionTime": "2026-11-01T00:00:00Z"}]}})
}

fn network() -> Value {
    json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "dataplane", "namespace": "tenant-a", "uid": "network",
            "labels": {"macvtap.network.kubevirt.io/pool": "dataplane", "macvtap.network.kubevirt.io/pool-uid": "uid-dataplane"},
            "annotations": {"k8s.v1.cni.cncf.io/resourceName": "macvtap.network.kubevirt.io/dataplane"},
            "managedFields": [{"manager": "macvtap-operator", "operation": "Apply", "apiVersion": "k8s.cni.cncf.io/v1"}]},
        "spec": {"config": "{\"cniVersion\": \"1.0.0\", \"name\": \"dataplane\", \"type\": \"macvtap\"}"}})
}
