//! The CNI project's own library and newest plugins, built from the module in `tests/reference`.

use crate::support::{Call, Holder, Node, link, node_and_pods, record};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The directory with the plugins, and `cnitool`; Go compiles what has changed.
pub(crate) fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cni-reference");
        std::fs::create_dir_all(&directory).unwrap();
        let built = Command::new("go")
            .args(["build", "-mod=readonly", "-trimpath", "-o"])
            .args([&directory, Path::new("tool")])
            .env("CGO_ENABLED", "0")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference"))
            .output()
            .unwrap();
        assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
        directory
    })
}

fn host_local() -> Value {
    json!({"type": "host-local", "dataDir": "/run/leases", "ranges": [[{"subnet": "10.9.0.0/24"}]]})
}

/// What `cnitool` does with the network of this node.
struct Tool<'n> {
    node: &'n Node,
    pod: &'n Holder,
}

impl Tool<'_> {
    fn run(&self, command: &str) -> Output {
        let ours = Path::new(env!("CARGO_BIN_EXE_macvtap")).parent().unwrap();
        let mut process = self.node.command(programs().join("cnitool").to_str().unwrap());
        process.args([command, "dataplane"]).arg(self.pod.netns());
        process.env("CNI_PATH", std::env::join_paths([ours, programs()]).unwrap());
        process.env("NETCONFPATH", "/run/net.d").env("CNI_IFNAME", "net1");
        process.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_UID=6f1c;K8S_POD_NAME=web-0");
        process.env("CAP_ARGS", json!({"mac": "02:00:00:00:00:07"}).to_string()).output().unwrap()
    }

    fn ok(&self, command: &str) -> Value {
        let output = self.run(command);
        assert!(output.status.success(), "{command}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

#[test]
fn the_projects_own_library_drives_every_verb() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let before = node.traces();
    let macvtap = json!({"type": "macvtap", "deviceID": "dataplaneMvp0", "mtu": 1450, "capabilities": {"mac": true}, "ipam": host_local()});
    let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.net1.arp_filter": "1"}});
    let list = json!({"cniVersion": "1.1.0", "name": "dataplane", "plugins": [macvtap, tuning]});
    node.sh(&format!("mkdir /run/net.d; cat >/run/net.d/10.conflist <<'END'\n{list}\nEND"));
    let tool = Tool { node: &node, pod: &pod };
    tool.ok("status");
    let result = tool.ok("add");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:07", "{result}");
    assert_eq!(result["interfaces"][0]["mtu"], 1450, "{result}");
    assert_eq!(result["ips"][0]["address"], "10.9.0.2/24", "{result}");
    tool.ok("check");
    Node::ip(&pod, "link set net1 mtu 1400");
    let told = tool.run("check");
    assert!(!told.status.success());
    assert!(
        String::from_utf8_lossy(&told.stderr).contains("has MTU 1400, it was made with 1450"),
        "{told:?}"
    );
    tool.ok("del");
    assert_eq!((node.traces(), link(&pod)), (before.clone(), Value::Null));
    // The tool sends no list of valid attachments, which the specification requires: nothing is removed by that.
    tool.ok("add");
    node.sh("rm -r /var/lib/cni");
    tool.ok("gc");
    assert!(record(&node, 0).is_some());
    tool.ok("del");
    assert_eq!((node.traces(), link(&pod)), (before, Value::Null));
    std::fs::remove_file(node.paths().table()).unwrap();
    let told = tool.run("status");
    assert!(
        String::from_utf8_lossy(&told.stderr).contains("the node agent has not written it yet"),
        "{told:?}"
    );
}

#[test]
fn a_gc_whose_list_is_empty_in_gos_way_keeps_nothing() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({"cniVersion": "1.1.0"}));
    for list in ["null", "[]"] {
        call.ok("ADD");
        call.clone().raw("cni.dev/valid-attachments", serde_json::from_str(list).unwrap()).ok("GC");
        assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null), "{list}");
    }
    call.ok("ADD");
    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    // The specification's two names of the key; a runtime may know either.
    for keys in [
        json!({"cni.dev/attachments": valid}),
        json!({"cni.dev/attachments": [{"ContainerID": "c1", "ifName": "net1"}]}),
        json!({"cni.dev/attachments": [], "cni.dev/valid-attachments": valid}),
        json!({}),
    ] {
        call.clone().with(keys.clone()).ok("GC");
        assert!(record(&node, 0).is_some() && link(&pod) != Value::Null, "{keys}");
    }
    call.clone().with(json!({"cni.dev/attachments": []})).ok("GC");
    assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null));
    for wrong in [json!("all"), json!([{"containerID": "c1"}])] {
        let message = call.clone().raw("cni.dev/valid-attachments", wrong).fails("GC", 7);
        assert!(message.contains("cni.dev/valid-attachments"), "{message}");
    }
}

#[test]
fn a_plugin_that_is_older_than_gc_and_status_fails_neither() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").with(json!({"cniVersion": "1.1.0", "ipam": host_local()}));
    call.ok("ADD");
    // As the reference library calls them.
    let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
    let without = names.into_iter().fold(call, Call::without);
    without.ok("STATUS");
    without.with(json!({"cni.dev/valid-attachments": []})).ok("GC");
    assert_eq!((record(&node, 0), link(&pod)), (None, Value::Null));
    assert_eq!(node.sh("ls /run/leases/dataplane | grep '^10' || true"), "", "its lease is kept");
}

#[test]
fn the_newest_plugins_have_gc_and_status_too() {
    let Some((node, [pod])) = node_and_pods() else { return };
    let call = Call::new(&node, &pod, "c1").var("CNI_PATH", programs().to_str().unwrap());
    let call = call.with(json!({"cniVersion": "1.1.0", "ipam": host_local()}));
    call.ok("STATUS");
    let result = call.ok("ADD");
    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    call.clone().with(json!({"cni.dev/valid-attachments": valid})).ok("GC");
    call.clone().with(json!({"prevResult": result})).ok("CHECK");
    node.sh("rm /run/leases/dataplane/10.9.0.2");
    let message = call.clone().with(json!({"prevResult": result})).fails("CHECK", 101);
    assert!(
        message.contains("IPAM plugin host-local: CHECK: host-local: Failed to find address"),
        "{message}"
    );
    call.ok("DEL");
}
