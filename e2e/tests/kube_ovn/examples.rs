//! Every manifest of `examples/kube-ovn`, as its reader applies it.

use crate::pods::{Interface, interface_in, ping_in};
use crate::stage::{PATIENCE, Stage, play};
use anyhow::{Context, Result, ensure};
use e2e::Kubectl;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What they are written for: the namespace that everybody has.
const NAMESPACE: &str = "default";

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

/// The manifests, which go from the cluster with this value.
struct Examples {
    kubectl: &'static Kubectl,
    dir: PathBuf,
}

impl Examples {
    fn new(stage: &Stage) -> Result<Self> {
        let dir = stage.cluster.checkout().path("examples/kube-ovn");
        let files: BTreeSet<String> = std::fs::read_dir(&dir)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned))
            .collect();
        let pods = PODS.iter().map(|(pod, ..)| *pod);
        let known = pods.chain(["network", "pool", "subnets"]).map(str::to_owned).collect();
        ensure!(files == known, "not all of them are tested: {files:?}");
        Ok(Self { kubectl: stage.kubectl, dir })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(format!("{name}.yaml")).display().to_string()
    }

    fn apply(&self, name: &str) -> Result<()> {
        self.kubectl.run(&["apply", "-f", &self.path(name)]).map(drop)
    }

    fn delete(&self, name: &str, more: &[&str]) {
        let path = self.path(name);
        let words = ["delete", "--ignore-not-found", "-f", &path];
        if let Err(error) = self.kubectl.run(&[&words, more].concat()) {
            println!("example {name} stays: {error:#}");
        }
    }

    fn network(&self, name: &str) -> Result<Value> {
        let object = format!("net-attach-def/{name}");
        self.kubectl.wait_until(NAMESPACE, &object, PATIENCE, |network| Some(network.clone()))
    }

    /// The pool's network is the one that is written by hand, but for the mode, which the device has anyway.
    fn check_network(&self) -> Result<()> {
        let dry = ["create", "--dry-run=client", "-o", "json", "-f", &self.path("network")];
        let by_hand: Value = serde_json::from_str(&self.kubectl.run(&dry)?)?;
        let rendered = self.network("p4p1")?;
        let essence = |network: &Value| -> Result<(Value, Value)> {
            let text = network["spec"]["config"].as_str().context("it has a configuration")?;
            let mut config: Value = serde_json::from_str(text)?;
            config.as_object_mut().context("it is an object")?.remove("mode");
            Ok((config, network["metadata"]["annotations"]["k8s.v1.cni.cncf.io/resourceName"].clone()))
        };
        ensure!(essence(&rendered)? == essence(&by_hand)?, "{rendered} {by_hand}");
        Ok(())
    }

    /// Waits for a pod and looks whether it has what was promised.
    fn check_pod(
        &self,
        (pod, name, addresses, mac): (&str, &str, &[&str], Option<&str>),
    ) -> Result<Interface> {
        self.kubectl.wait_for(NAMESPACE, &format!("pod/{pod}"), "condition=Ready", PATIENCE)?;
        let interface = interface_in(self.kubectl, NAMESPACE, pod, name)?;
        println!("{pod}: {interface:?}");
        let found = &interface.addresses;
        let fits = found.iter().zip(addresses).all(|(address, start)| address.starts_with(start));
        ensure!(fits && found.len() == addresses.len(), "{pod}: {interface:?}");
        ensure!(mac.is_none_or(|mac| interface.mac == mac), "{pod}: {interface:?}");
        Ok(interface)
    }
}

impl Drop for Examples {
    fn drop(&mut self) {
        for more in [&["--grace-period=1", "--wait=false"][..], &["--wait", "--timeout=60s"]] {
            for (pod, ..) in PODS {
                self.delete(pod, more);
            }
        }
        for name in ["pool", "subnets"] {
            self.delete(name, &["--wait", "--timeout=60s"]);
        }
    }
}

#[test]
fn every_example_gives_what_it_says_and_its_pods_reach_each_other() -> Result<()> {
    play("examples", |stage| {
        let examples = Examples::new(stage)?;
        examples.apply("pool")?;
        examples.apply("subnets")?;
        stage.kubectl.wait_for("", "macvtapresourcepool/p4p1", "condition=Ready", PATIENCE)?;
        examples.network("p4p1-dual")?;
        examples.check_network()?;
        PODS.iter().try_for_each(|(pod, ..)| examples.apply(pod))?;
        let found = PODS.into_iter().map(|pod| examples.check_pod(pod)).collect::<Result<Vec<_>>>()?;
        // The first is on the network of all but the last.
        for interface in &found[1..6] {
            let address =
                interface.addresses[0].split('/').next().context("an address has a prefix length")?;
            ping_in(stage.kubectl, NAMESPACE, "pod", address)?;
        }
        Ok(())
    })
}
