//! The agent without operator, in the place of macvtap-cni's device plugin, on a cluster of its own: what its users
//! have applied for years works with our programs, unchanged.

mod manifests;

use anyhow::{Context, Result, ensure};
use e2e::layout::Checkout;
use e2e::{Cluster, Kubectl, Options, images};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(1);
const RESOURCE: &str = "macvtap.network.kubevirt.io/dataplane";

/// All tests use the one agent of the node.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test on the cluster with this configuration and the agent's daemon set applied.
fn with_agent(config: &str, test: impl FnOnce(&Cluster, &Kubectl) -> Result<()>) -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !Cluster::permitted()? {
        return Ok(());
    }
    // Before the cluster, which loads what is there.
    images::build(&Checkout::here(), &images::ALL)?;
    let cluster = Cluster::up("standalone", Options { nodes: 1, ..Options::default() })?;
    let kubectl = cluster.kubectl();
    let daemonset = std::fs::read_to_string(cluster.checkout().path("examples/standalone/daemonset.yaml"))?;
    let ours = images::reference("macvtap-node-agent");
    let daemonset: String = daemonset
        .lines()
        .map(|line| match line.split_once("image: ") {
            Some((indent, _)) => format!("{indent}image: {ours}\n"),
            None => format!("{line}\n"),
        })
        .collect();
    kubectl.delete(&daemonset)?;
    // The pod outlives its daemon set, and would be taken for the next one's.
    kubectl.wait_until("kube-system", "pods", PATIENCE, |pods| {
        pods["items"].as_array()?.is_empty().then_some(())
    })?;
    cluster.explain(|| {
        // Where the DaemonSet is.
        kubectl.apply(&config.replace(
            "  name: macvtap-deviceplugin-config",
            "  name: macvtap-deviceplugin-config\n  namespace: kube-system",
        ))?;
        kubectl.apply(&daemonset)?;
        test(&cluster, kubectl)
    })
}

fn ready(kubectl: &Kubectl) -> Result<()> {
    let rollout = ["-n", "kube-system", "rollout", "status", "daemonset/macvtap-cni", "--timeout=60s"];
    kubectl.run(&rollout).map(drop)
}

fn allocatable(kubectl: &Kubectl, resource: &str, count: &str) -> Result<()> {
    kubectl.wait_until("", "node/n1", PATIENCE, |node| {
        (node["status"]["allocatable"][resource].as_str().unwrap_or("0") == count).then_some(())
    })
}

/// What the agent has said since its container started, this time or the last.
fn log(kubectl: &Kubectl) -> Result<String> {
    let now =
        ["-n", "kube-system", "logs", "--selector=name=macvtap-cni", "--container=macvtap-cni", "--tail=-1"];
    kubectl.run(&now)
}

#[test]
fn the_manifests_of_macvtap_cni_work_unchanged() -> Result<()> {
    with_agent(manifests::CONFIG, |_, kubectl| {
        ready(kubectl)?;
        allocatable(kubectl, RESOURCE, "50")?;
        let objects = [manifests::NETWORK, manifests::POD, manifests::POD_WITH_MAC, manifests::CONSUMER];
        for object in objects {
            kubectl.apply(object)?;
        }
        for pod in ["pod", "pod-with-mac", "macvtap-consumer"] {
            kubectl.wait_for("default", &format!("pod/{pod}"), "condition=Ready", PATIENCE)?;
            let node = kubectl.exec("default", pod, &["sh", "-c", "stat -c '%u:%g %F' /dev/tap*"])?;
            ensure!(node.trim() == "107:107 character special file", "{pod}: {node}");
        }
        for pod in ["pod", "pod-with-mac"] {
            let link = kubectl.exec("default", pod, &["ip", "link", "show", "net1"])?;
            println!("{pod}: {link}");
            ensure!(link.contains("UP") && link.contains("mtu 1500"), "{pod}: {link}");
            let tap = "test -c /dev/tap$(cat /sys/class/net/net1/ifindex)";
            kubectl.exec("default", pod, &["sh", "-c", tap]).context("the tap is named after the link")?;
        }
        let link = kubectl.exec("default", "pod-with-mac", &["cat", "/sys/class/net/net1/address"])?;
        ensure!(link.trim() == "02:23:45:67:89:01", "{link}");
        // All at once: a shell that is process 1 takes its whole grace period to end.
        kubectl.delete(&objects.join("---\n"))
    })
}

#[test]
fn the_key_of_the_first_device_plugin_works_with_a_warning() -> Result<()> {
    with_agent(manifests::OLDEST_CONFIG, |_, kubectl| {
        ready(kubectl)?;
        allocatable(kubectl, "macvtap.network.kubevirt.io/eth0", "50")?;
        let log = log(kubectl)?;
        ensure!(log.contains("master") && log.contains("lowerDevice"), "{log}");
        Ok(())
    })
}

#[test]
fn an_empty_array_on_a_node_without_nic_or_bond_is_ready_and_says_why_it_offers_nothing() -> Result<()> {
    with_agent(&configuration("[]"), |_, kubectl| {
        ready(kubectl)?;
        let log = log(kubectl)?;
        // The links of this cluster's nodes are veths; the kernel here makes neither NICs nor bonds.
        let words =
            ["no link of this node matches: it has neither a NIC nor a bond", "macvtap-node-agent links"];
        ensure!(words.iter().all(|words| log.contains(words)), "{log}");
        let pods = kubectl.get("kube-system", "pods")?;
        let restarts = &pods["items"][0]["status"]["containerStatuses"][0]["restartCount"];
        ensure!(restarts == 0, "restarted {restarts} times");
        Ok(())
    })
}

#[test]
fn a_bad_configuration_ends_the_agent_with_entry_value_and_remedy() -> Result<()> {
    for (config, words) in [
        (r#"[{"name": "a", "lowerDevice": "eth0"},]"#, &["DP_MACVTAP_CONF"][..]),
        (r#"[{"name": "a", "lowerDevice": "eth0", "capcity": 5}]"#, &["\"a\"", "capcity", "capacity"]),
        (r#"[{"name": "a", "lowerDevice": "eth0", "mode": "brigde"}]"#, &["\"a\"", "brigde", "bridge"]),
        (r#"[{"lowerDevice": "eth0"}]"#, &["entry 1", "name"]),
    ] {
        with_agent(&configuration(config), |_, kubectl| {
            let code = kubectl.wait_until("kube-system", "pods", PATIENCE, |pods| {
                let status = &pods["items"][0]["status"]["containerStatuses"][0];
                let ended =
                    status["state"].get("terminated").or_else(|| status["lastState"].get("terminated"))?;
                ended["exitCode"].as_i64()
            })?;
            ensure!(code != 0, "{config}: ended with 0");
            // That of a container that has just been started again is empty for a moment.
            e2e::wait::until(&format!("{words:?} in the log of {config}"), PATIENCE, || {
                let log = log(kubectl)?;
                Ok(words.iter().all(|word| log.contains(*word)).then(|| println!("{config}: {}", log.trim())))
            })
        })?;
    }
    Ok(())
}

fn configuration(json: &str) -> String {
    format!(
        "kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: macvtap-deviceplugin-config\ndata:\n  DP_MACVTAP_CONF: '{json}'\n"
    )
}
