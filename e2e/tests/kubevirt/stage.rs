//! The cluster that the tests of this binary share, with KubeVirt, our pools, a pod on each node, and a third host.

use crate::machine::Machine;
use anyhow::{Context, Result, anyhow};
use e2e::wait::Hopeless;
use e2e::{Cluster, Kubectl, Node, Options, kubevirt, namespaces};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// How long a machine may take to boot in emulation, or to migrate, on a busy node.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// The resources of the examples' pools.
pub(crate) const RESOURCE: &str = "macvtap.network.kubevirt.io/machines";
const STORAGE: &str = "macvtap.network.kubevirt.io/storage";

/// The third host's addresses, on the switch between the nodes.
const THIRD: [&str; 3] = ["10.90.0.9/24", "10.91.0.9/24", "fd90::9/64"];

/// The pools of the examples, on the links `dp0` and `dp1`.
pub(crate) const POOLS: [&str; 2] = ["pool.yaml", "pool-storage.yaml"];

/// A network written by hand, as those of a pool are made: the examples' pools make theirs in another namespace.
fn network(name: &str, resource: &str, migration: &str) -> String {
    format!(
        r#"apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {{name: {name}, namespace: {NAMESPACE}, annotations: {{k8s.v1.cni.cncf.io/resourceName: {resource}}}}}
spec:
  config: '{{"cniVersion": "1.0.0", "name": "{name}", "type": "macvtap", "announce": "Never", "migration": "{migration}"}}'
"#
    )
}

/// Machines take turns: each has the processors of an emulator's host.
static TURN: Mutex<()> = Mutex::new(());

/// One test's turn. Its machines go when it ends.
pub(crate) struct Stage {
    pub(crate) cluster: &'static Cluster,
    pub(crate) kubectl: &'static Kubectl,
    _turn: MutexGuard<'static, ()>,
}

/// Where everything is.
pub(crate) const NAMESPACE: &str = "machines";

impl Stage {
    pub(crate) fn node(&self, name: &str) -> Result<&'static Node> {
        self.cluster.node(name)
    }

    /// Applies a machine of the examples, with these addresses on the kernel's command line.
    pub(crate) fn example(&self, file: &str, addresses: &str) -> Result<()> {
        let path = self.cluster.checkout().path("examples/kubevirt").join(file);
        self.kubectl.apply(&kubevirt::bootable(self.kubectl, &path, addresses)?.to_string())
    }

    /// Starts a machine, and waits until the pods of both nodes and the third host reach it.
    pub(crate) fn start(&self, machine: &Machine) -> Result<()> {
        self.kubectl.apply(&machine.manifest())?;
        self.wait_running(machine)?;
        self.wait_reached(machine)
    }

    pub(crate) fn wait_running(&self, machine: &Machine) -> Result<()> {
        let object = format!("vmi/{}", machine.name);
        self.kubectl
            .wait_until(NAMESPACE, &object, PATIENCE, |vmi| {
                (vmi["status"]["phase"] == "Running").then_some(())
            })
            .with_context(|| format!("machine {} does not run", machine.name))
    }

    /// Waits until everybody reaches all addresses of a machine on the first network.
    pub(crate) fn wait_reached(&self, machine: &Machine) -> Result<()> {
        self.wait_for_answers(&machine.addresses())
    }

    /// Waits until everybody reaches these addresses.
    pub(crate) fn wait_for_answers(&self, addresses: &[String]) -> Result<()> {
        for address in addresses {
            for from in Place::ALL {
                e2e::wait::until(&format!("{from:?} to reach {address}"), PATIENCE, || {
                    Ok(self.shell(from, &format!("ping -c 1 -W 1 {address}")).is_ok().then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// The node on which a machine runs.
    pub(crate) fn node_of(&self, machine: &Machine) -> Result<String> {
        let vmi = self.kubectl.get(NAMESPACE, &format!("vmi/{}", machine.name))?;
        Ok(vmi["status"]["nodeName"].as_str().context("the machine is on no node")?.to_owned())
    }

    /// The pods of a machine that have not ended, by node.
    pub(crate) fn launchers(&self, machine: &Machine) -> Result<Vec<(String, String)>> {
        let pods = self.kubectl.get(NAMESPACE, "pods")?;
        let all = pods["items"].as_array().into_iter().flatten();
        let own = all.filter(|pod| pod["metadata"]["labels"]["app"] == machine.name);
        let live =
            own.filter(|pod| pod["status"]["phase"] != "Succeeded" && pod["status"]["phase"] != "Failed");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(live.map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]))).collect())
    }

    /// Recreates the pod of a node that pings.
    pub(crate) fn replace_peer(&self, node: &str) -> Result<()> {
        let pod = format!("peer-{node}");
        self.kubectl.run(&["-n", NAMESPACE, "delete", "pod", &pod, "--wait", "--timeout=170s"])?;
        start_peers(self.kubectl)
    }

    /// Runs kubectl with an input that KubeVirt's own servers must take. On a busy machine these are not ready now and then, which
    /// is reported, and asked again.
    pub(crate) fn ask_kubevirt(&self, args: &[&str], input: &str) -> Result<String> {
        e2e::wait::until("KubeVirt's servers", PATIENCE, || {
            let mut command = self.kubectl.command();
            match e2e::process::output_with_input(command.args(args), input) {
                Err(error) if is_not_ready(&format!("{error:#}")) => {
                    println!("KubeVirt does not answer {args:?}; again");
                    Ok(None)
                }
                result => result.map(Some).map_err(|error| Hopeless(format!("{error:#}")).into()),
            }
        })
    }

    /// Runs a shell command where it is said.
    pub(crate) fn shell(&self, place: Place, script: &str) -> Result<String> {
        match place.pod() {
            Some(pod) => self.kubectl.exec(NAMESPACE, pod, &["sh", "-c", script]),
            None => third_host(self.cluster, script),
        }
    }
}

fn is_not_ready(error: &str) -> bool {
    ["failed calling webhook", "ServiceUnavailable"].iter().any(|sign| error.contains(sign))
}

/// From where a machine is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A pod on node n1.
    N1,
    /// A pod on node n2.
    N2,
    /// A host that is not a node.
    Third,
}

impl Place {
    pub(crate) const ALL: [Self; 3] = [Self::N1, Self::N2, Self::Third];

    fn pod(self) -> Option<&'static str> {
        match self {
            Self::N1 => Some("peer-n1"),
            Self::N2 => Some("peer-n2"),
            Self::Third => None,
        }
    }

    /// The pod's place on that node.
    pub(crate) fn on(node: &str) -> Self {
        if node == "n1" { Self::N1 } else { Self::N2 }
    }
}

fn third_host(cluster: &Cluster, script: &str) -> Result<String> {
    let layout = cluster.layout().context("the third host is part of a local cluster")?;
    let mut command = namespaces::in_netns(&layout.netns("sw"));
    // The same ping as the pods'.
    let busybox = cluster.checkout().debian().join("bin/busybox");
    let script = script.replace("ping ", &format!("{} ping ", busybox.display()));
    e2e::process::output(command.args(["sh", "-c", &script]))
}

impl Drop for Stage {
    fn drop(&mut self) {
        let words = ["-n", NAMESPACE, "delete", "vm,vmim", "--all", "--wait", "--timeout=120s"];
        if let Err(error) = self.kubectl.run(&words) {
            println!("clean up machines: {error:#}");
        }
        let gone = self.kubectl.wait_until(NAMESPACE, "pods", PATIENCE, |pods| {
            let mut names = pods["items"].as_array()?.iter().map(|pod| pod["metadata"]["name"].as_str());
            names.all(|name| !name.unwrap_or_default().starts_with("virt-launcher")).then_some(())
        });
        if let Err(error) = gone {
            println!("machines' pods stay: {error:#}");
        }
    }
}

/// Plays one test on the stage; a failure comes with what the cluster has to say about it.
pub(crate) fn play(test: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !Cluster::permitted()? {
        return Ok(());
    }
    let cluster = CLUSTER.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    let cluster =
        cluster.as_ref().map_err(|error| anyhow!("the cluster with KubeVirt did not start: {error}"))?;
    let stage = Stage { cluster, kubectl: cluster.kubectl(), _turn: turn };
    cluster.explain(|| test(&stage))
}

fn start() -> Result<Cluster> {
    // As for the other tests' cluster: taken as it is by those who work on a test.
    let cluster = match std::env::var("MACVTAP_TEST_REUSE").as_deref() {
        Ok("1") => Cluster::open("kubevirt")?,
        _ => Cluster::with_product("kubevirt", Options { kubevirt: true, ..Options::default() })?,
    };
    kubevirt::install(&cluster)?;
    cluster.explain(|| furnish(&cluster))?;
    Ok(cluster)
}

/// Applies or creates a file of `examples/kubevirt` as it is.
pub(crate) fn apply_example(cluster: &Cluster, verb: &str, file: &str) -> Result<()> {
    let path = cluster.checkout().path("examples/kubevirt").join(file);
    cluster.kubectl().run(&[verb, "-f", &path.display().to_string()]).map(drop)
}

fn furnish(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    for pool in POOLS {
        apply_example(cluster, "apply", pool)?;
    }
    for pool in ["machines", "storage"] {
        kubectl.wait_for("", &format!("macvtapresourcepool/{pool}"), "condition=Ready", PATIENCE)?;
    }
    for (name, resource, migration) in
        [("follow", RESOURCE, "Follow"), ("fixed", RESOURCE, "Fixed"), ("second", STORAGE, "Follow")]
    {
        kubectl.apply(&network(name, resource, migration))?;
    }
    start_peers(kubectl)?;
    for address in THIRD {
        third_host(cluster, &format!("ip addr replace {address} dev data nodad"))?;
    }
    Ok(())
}

/// Starts the pods that ping, as far as they do not run.
fn start_peers(kubectl: &Kubectl) -> Result<()> {
    for (number, node) in ["n1", "n2"].iter().enumerate() {
        kubectl.apply(&kubevirt::peer(NAMESPACE, node, number + 1, RESOURCE))?;
    }
    for node in ["n1", "n2"] {
        kubectl.wait_for(NAMESPACE, &format!("pod/peer-{node}"), "condition=Ready", PATIENCE)?;
    }
    Ok(())
}
