//! The binary as a runtime sees it: versions, codes and messages, without a kernel.

use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

fn call(variables: &[(&str, &str)], stdin: &str) -> (bool, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_macvtap"))
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A call that fails early may not read its input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
}

const ADD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "net1"),
    ("CNI_NETNS", "/proc/self/ns/net"),
];

#[test]
fn version_answers_in_the_version_asked_for() {
    let version = |stdin: &str| call(&[("CNI_COMMAND", "VERSION")], stdin);
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for asked in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (success, json) = version(&json!({"cniVersion": asked}).to_string());
        assert_eq!(
            (success, &json["cniVersion"], &json["supportedVersions"]),
            (true, &json!(asked), &supported)
        );
    }
    assert_eq!(version("").1["supportedVersions"], supported);
    assert_eq!(version("{\"cniVersion\": \"7.0.0\"}").1["cniVersion"], "1.1.0");
    assert_eq!(version("{").1["code"], 6);
}

#[test]
fn each_mistake_has_its_code_and_names_what_is_wrong() {
    let without = |name: &str| ADD.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| {
        let mut variables = without(name);
        variables.push((name, value));
        variables
    };
    let config = json!({"cniVersion": "1.0.0", "name": "dataplane", "type": "macvtap"});
    let and = |more: Value| {
        let mut config = config.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config.to_string()
    };
    let plain = config.to_string();
    for (variables, stdin, code, named) in [
        (Vec::new(), plain.clone(), 4, "CNI_COMMAND"),
        (with("CNI_COMMAND", "PUSH"), plain.clone(), 4, "PUSH"),
        (without("CNI_CONTAINERID"), plain.clone(), 4, "CNI_CONTAINERID"),
        (without("CNI_IFNAME"), plain.clone(), 4, "CNI_IFNAME"),
        (without("CNI_NETNS"), plain.clone(), 4, "CNI_NETNS"),
        (with("CNI_ARGS", "COLOUR=red"), plain.clone(), 4, "COLOUR=red"),
        (ADD.to_vec(), plain.clone(), 4, "network namespace of the node itself"),
        (ADD.to_vec(), String::new(), 6, "not JSON"),
        (ADD.to_vec(), "[]".to_owned(), 6, "object"),
        (ADD.to_vec(), and(json!({"cniVersion": "0.2.0"})), 1, "0.2.0"),
        (ADD.to_vec(), and(json!({"mtu": "big"})), 7, "mtu"),
        (
            ADD.to_vec(),
            and(json!({"runtimeConfig": ["mac"]})),
            7,
            "runtimeConfig is [\"mac\"]; it must be an object",
        ),
        (
            ADD.to_vec(),
            and(json!({"prevResult": {"ips": [{"address": "10.0.0.2"}]}})),
            7,
            "prevResult is not a CNI result: \"10.0.0.2\" is not an address with prefix length, for example 10.0.0.2/24",
        ),
        (ADD.to_vec(), " ".repeat(5 << 20), 5, "longer than 4194304 bytes"),
        (ADD.to_vec(), and(json!({"mode": "source"})), 7, "mode"),
        (ADD.to_vec(), and(json!({"ipam": {"type": "../sh"}})), 7, "ipam.type"),
        (ADD.to_vec(), and(json!({"logFile": "/etc/passwd"})), 7, "logFile"),
    ] {
        let (success, json) = call(&variables, &stdin);
        assert!(!success, "{variables:?} {stdin}");
        assert_eq!(json["code"], code, "{json}");
        assert!(json["msg"].as_str().unwrap().contains(named), "{json}");
    }
}

#[test]
fn a_message_has_a_length_that_can_be_shown() {
    let config = json!({"cniVersion": "9".repeat(1 << 20), "name": "dataplane", "type": "macvtap"});
    let (_, json) = call(&ADD, &config.to_string());
    let message = json["msg"].as_str().unwrap();
    assert!(message.starts_with("cniVersion \"999") && message.ends_with("99..."), "{message}");
    assert!(message.len() < 5_000, "{}", message.len());
}

#[test]
fn an_error_has_the_version_of_the_configuration() {
    for version in ["0.3.1", "1.1.0"] {
        let config = json!({"cniVersion": version, "name": "dataplane", "type": "macvtap", "mtu": -1});
        assert_eq!(call(&ADD, &config.to_string()).1["cniVersion"], version);
        // Whatever else is wrong.
        let config = json!({"cniVersion": version, "name": "a b"}).to_string();
        for variables in [&ADD[..], &ADD[..2]] {
            assert_eq!(call(variables, &config).1["cniVersion"], version);
        }
    }
}
