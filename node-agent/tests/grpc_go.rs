//! The agent and a kubelet's own gRPC library, which is stricter than ours about names of peers and headers.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

#[cfg(test)]
mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Node, is_root};

/// Builds the program beside this file; Go compiles what has changed.
fn program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc_go");
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("grpc-go");
    let built = Command::new("go")
        .args(["build", "-mod=readonly", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(source)
        .output()
        .unwrap();
    assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn the_kubelets_own_library_is_served_in_every_call() {
    if !is_root() {
        return;
    }
    let program = program();
    let node = Node::new();
    node.add_link("dp0");
    let _agent = node.agent(r#"[{"name":"dataplane","lowerDevice":"dp0","capacity":50}]"#);
    let played = node
        .command(program.to_str().unwrap())
        .args(["/var/lib/kubelet/device-plugins", "dataplane"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(played.status.success(), "{}", String::from_utf8_lossy(&played.stderr));
    let mut seen: Value = serde_json::from_slice(&played.stdout).unwrap();
    let endpoint = seen["Register"]["endpoint"].take();
    assert!(endpoint.as_str().unwrap().starts_with("mvt-"));
    let options = json!({"pre_start_required": true, "get_preferred_allocation_available": true});
    assert_eq!(
        seen["Register"],
        json!({
            "version": "v1beta1", "endpoint": null, "options": options,
            "resource_name": "macvtap.network.kubevirt.io/dataplane",
        })
    );
    assert_eq!(seen["Options"], options);
    let authorities = seen["Authorities"].as_object().unwrap();
    assert_eq!(authorities.len(), 4);
    for (authority, outcome) in authorities {
        // Kubelets before 1.26 call us by the path of the socket, which HTTP/2 does not allow: the oldest we serve is 1.26.
        let wanted = if authority.contains('%') { "Internal: " } else { "OK: " };
        assert!(
            outcome.as_str().unwrap().starts_with(wanted),
            "a client that calls us {authority:?}: {outcome}"
        );
    }
    assert_eq!((&seen["Devices"], &seen["SecondList"]), (&json!(50), &json!(50)));
    assert_eq!(seen["FirstDevice"], json!({"ID": "dataplaneMvp0", "health": "Healthy"}));
    let device = |slot: u32| {
        let ifindex = 0x0100_0000 + slot;
        json!({
            "host_path": format!("/run/macvtap/dev/{ifindex}"), "container_path": format!("/dev/tap{ifindex}"),
            "permissions": "rw",
        })
    };
    let answer = &seen["Allocated"]["container_responses"][0];
    assert_eq!(answer["devices"], json!([device(1), device(2)]));
    let links = answer["annotations"]["macvtap.network.kubevirt.io/lower-links.dataplane"].as_str().unwrap();
    let link = json!({"by": "name", "kind": "veth", "name": "dp0"});
    let links: serde_json::Value = serde_json::from_str(links).unwrap();
    assert_eq!(links, json!({"16777217": link, "16777218": link}));
    let told = |key: &str, code: &str, what: &str| {
        let outcome = seen[key].as_str().unwrap();
        assert!(outcome.starts_with(code) && outcome.contains(what), "{key}: {outcome}");
    };
    told("Refused", "InvalidArgument: ", "\"nonsense\" is not of the form");
    told("NotStarted", "InvalidArgument: ", "not offered");
    assert_eq!(seen["Preferred"], json!(["dataplaneMvp5", "dataplaneMvp3"]));
    assert_eq!(seen["PreStarted"], true);
}
