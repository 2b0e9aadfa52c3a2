//! Every manifest of `examples/kube-ovn`, as its reader applies it.

use crate::pods::{Interface, interface, ping};
use crate::stage::{PATIENCE, play};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

/// What the reader gets: file, pod's interface, its addresses' start, MAC address.
const PODS: [(&str, &str, &[&str], Option<&str>); 7] = [
    ("pod", "net1", &["172.31.0."], None),
    ("pod-with-ip", "net1", &["172.31.0.10/24"], None),
    ("pod-with-mac", "net1", &["172.31.0."], Some("02:23:45:67:89:01")),
    ("pod-with-ip-and-mac", "net1", &["172.31.0.11/24"], Some("02:23:45:67:89:02")),
    ("pod-with-default-network", "eth0", &["172.31.0.12/24"], None),
    ("pod-with-default-network-and-mac", "eth0", &["172.31.0.13/24"], Some("02:23:45:67:89:03")),
    ("pod-dual-stack", "net1", &["172.32.0.", "fd00:32::"], None),
];

#[test]
fn every_example_gives_what_it_says_and_its_pods_reach_each_other() -> Result<()> {
    play("examples", |stage| {
        // They are written for the namespace that everybody has.
        "default".clone_into(&mut stage.namespace);
        let dir = stage.cluster.checkout().path("examples/kube-ovn");
        let path = |file: &str| dir.join(format!("{file}.yaml")).display().to_string();
        let files: BTreeSet<String> = std::fs::read_dir(&dir)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned))
            .collect();
        let known: BTreeSet<String> = PODS.iter().map(|(pod, ..)| (*pod).to_owned()).collect();
        let networks = ["network", "pool", "subnets"].map(str::to_owned);
        ensure!(files == known.union(&networks.into()).cloned().collect(), "untested: {files:?}");

        let kubectl = stage.kubectl;
        kubectl.run(&["apply", "-f", &path("pool"), "-f", &path("subnets")])?;
        kubectl.wait_for("", "macvtapresourcepool/p4p1", "condition=Ready", PATIENCE)?;
        let network = |name: &str| {
            kubectl.wait_until("default", &format!("net-attach-def/{name}"), PATIENCE, |n| Some(n.clone()))
        };
        network("p4p1-dual")?;
        let rendered = network("p4p1")?;
        // What one would write by hand is the same, but for the mode, which the device has anyway.
        let by_hand: serde_json::Value = serde_json::from_str(&kubectl.run(&[
            "create",
            "--dry-run=client",
            "-o",
            "json",
            "-f",
            &path("network"),
        ])?)?;
        let config = |network: &serde_json::Value| -> Result<serde_json::Value> {
            let text = network["spec"]["config"].as_str().context("it has a configuration")?;
            let mut config: serde_json::Value = serde_json::from_str(text)?;
            config.as_object_mut().context("it is an object")?.remove("mode");
            Ok(config)
        };
        ensure!(config(&rendered)? == config(&by_hand)?, "{rendered} {by_hand}");
        let resource = |network: &serde_json::Value| {
            network["metadata"]["annotations"]["k8s.v1.cni.cncf.io/resourceName"].clone()
        };
        ensure!(resource(&rendered) == resource(&by_hand), "{rendered} {by_hand}");

        let pods: Vec<String> = PODS.iter().map(|(pod, ..)| path(pod)).collect();
        for pod in &pods {
            kubectl.run(&["apply", "-f", pod])?;
        }
        let mut found: Vec<Interface> = Vec::new();
        for (pod, name, addresses, mac) in PODS {
            kubectl.wait_for("default", &format!("pod/{pod}"), "condition=Ready", PATIENCE)?;
            let interface = interface(stage, pod, name)?;
            println!("{pod}: {interface:?}");
            let fits =
                interface.addresses.iter().zip(addresses).all(|(address, start)| address.starts_with(start));
            ensure!(fits && interface.addresses.len() == addresses.len(), "{pod}: {interface:?}");
            ensure!(mac.is_none_or(|mac| interface.mac == mac), "{pod}: {interface:?}");
            found.push(interface);
        }
        for interface in &found[1..6] {
            ping(stage, "pod", interface.addresses[0].split('/').next().context("an address")?)?;
        }
        for pod in &pods {
            kubectl.run(&["delete", "-f", pod, "--grace-period=1", "--wait=false"])?;
        }
        for pod in &pods {
            kubectl.run(&["delete", "-f", pod, "--ignore-not-found", "--wait", "--timeout=60s"])?;
        }
        kubectl.run(&["delete", "-f", &path("pool"), "-f", &path("subnets"), "--wait", "--timeout=60s"])?;
        "examples".clone_into(&mut stage.namespace);
        Ok(())
    })
}
