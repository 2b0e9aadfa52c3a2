//! `kubectl macvtap migrate`, `macvtap-operator migrate` and a real API server: what they print is taken as it is.

mod api;

use anyhow::{Result, ensure};
use api::Api;
use e2e::layout::Checkout;
use e2e::process;
use serde_json::{Value, json};
use std::process::Command;

/// What both programs print.
fn migrate(api: &Api, args: &[&str], input: &str) -> Result<String> {
    let by = |program: &str| {
        api::build(&Checkout::here(), program)?;
        let mut command = Command::new(Checkout::here().path("target/debug").join(program));
        command.env("KUBECONFIG", api.kubectl.kubeconfig()).arg("migrate").args(args);
        process::output_with_input(&mut command, input)
    };
    let (by_operator, by_cli) = (by("macvtap-operator"), by("kubectl-macvtap"));
    ensure!(by_operator.as_ref().ok() == by_cli.as_ref().ok(), "{by_operator:?}, but by the CLI {by_cli:?}");
    by_cli
}

fn config_map(name: &str, entries: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"DP_MACVTAP_CONF": entries.to_string()},
    })
}

#[test]
fn what_is_printed_is_applied_and_keeps_every_resource_name() -> Result<()> {
    let api = Api::own()?;
    let entries = json!([
        {"name": "dataplane", "lowerDevice": "eth0", "mode": "bridge", "capacity": 50},
        {"name": "Old_One", "master": "eth0"},
        {"name": "whole", "lowerDevice": "eth1", "mode": "passthru", "capacity": 10},
    ]);
    api.replace(&config_map("macvtap-deviceplugin-config", &entries))?;
    api.replace(&config_map("auto", &json!([])))?;
    let from_cluster = migrate(&api, &["--namespace", "default"], "")?;
    api.kubectl.apply(&from_cluster)?;
    for (pool, resource, overlap) in [
        ("dataplane", Value::Null, "Shared"),
        ("old-one", "Old_One".into(), "Shared"),
        ("whole", Value::Null, "Exclusive"),
    ] {
        let spec = api.kubectl.get("", &format!("mrp/{pool}"))?["spec"].clone();
        assert_eq!((&spec["resourceName"], &spec["overlap"]), (&resource, &json!(overlap)), "{spec}");
        assert_eq!(spec["tapOnly"], "Allowed");
    }
    let text = api.kubectl.run(&["get", "configmap", "macvtap-deviceplugin-config", "-o", "yaml"])?;
    let from_input = migrate(&api, &["-"], &text)?;
    assert_eq!(from_input, from_cluster);
    let auto = migrate(&api, &["--name", "auto"], "")?;
    api.kubectl.apply(&auto)?;
    assert_eq!(api.kubectl.get("", "mrp/every-link")?["spec"]["resourcePer"], "Link");
    let nodes = [
        "--name",
        "auto",
        "--name",
        "macvtap-deviceplugin-config",
        "--nodes",
        "auto=zone=a",
        "--nodes",
        "macvtap-deviceplugin-config=zone=b",
    ];
    api.kubectl.apply(&migrate(&api, &nodes, "")?)?;
    let spec = api.kubectl.get("", "mrp/every-link")?["spec"].clone();
    assert_eq!(
        (&spec["nodeSelector"]["matchLabels"]["zone"], &spec["overlap"]),
        (&json!("a"), &json!("Shared"))
    );
    Ok(())
}

#[test]
fn what_cannot_be_migrated_fails_and_says_where() -> Result<()> {
    let api = Api::shared()?;
    for (input, words) in [
        (r#"[{"name": "a b", "lowerDevice": "eth0"}]"#, "no pool for 1 of the entries"),
        ("kind: Secret", "holds a Secret"),
    ] {
        let error = migrate(&api, &["-"], input).map(|text| format!("it printed {text}")).unwrap_err();
        ensure!(format!("{error:#}").contains(words), "{error:#}");
    }
    let error = migrate(&api, &["--name", "none"], "").unwrap_err();
    ensure!(format!("{error:#}").contains("read ConfigMap default/none"), "{error:#}");
    Ok(())
}
