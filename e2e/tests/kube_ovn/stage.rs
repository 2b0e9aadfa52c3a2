//! The clusters the tests of this binary share, and one test's part of them.

use crate::pods::Pod;
use anyhow::{Context, Result, anyhow};
use e2e::{Cluster, KubeOvn, Kubectl, Multus, Node, Options, kube_ovn};
use serde_json::Value;
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// How long the product, kube-ovn and the kubelet together may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The resource of the pool that all tests share.
pub(crate) const RESOURCE: &str = "macvtap.network.kubevirt.io/kube-ovn";

/// Both nodes offer it, on a link that the examples leave alone. The tests that call the plugin by hand have devices of
/// their own, which the kubelet does not know.
const POOLS: &str = "
apiVersion: macvtap.network.kubevirt.io/v1alpha1
kind: MacvtapResourcePool
metadata: {name: kube-ovn}
spec:
  links: [{names: [dp1]}]
  overlap: Shared
  capacity: {perLink: 100}
---
apiVersion: macvtap.network.kubevirt.io/v1alpha1
kind: MacvtapResourcePool
metadata: {name: by-hand}
spec:
  links: [{names: [dp1]}]
  overlap: Shared
  capacity: {perLink: 20}
";

/// Tests run side by side, but for those that stop what all of them need.
static QUIET: RwLock<()> = RwLock::new(());

/// Holds others off, or only those who would disturb.
enum Turn {
    Beside { _held: RwLockReadGuard<'static, ()> },
    Alone { _held: RwLockWriteGuard<'static, ()> },
}

/// One test's part of the cluster: a namespace of its own, and the subnets of its networks. Both go when the test ends.
pub(crate) struct Stage {
    pub(crate) cluster: &'static Cluster,
    pub(crate) kubectl: &'static Kubectl,
    pub(crate) namespace: String,
    subnets: Vec<String>,
    turn: Turn,
}

impl Stage {
    fn new(cluster: &'static Cluster, namespace: &str, turn: Turn) -> Result<Self> {
        let kubectl = cluster.kubectl();
        kubectl.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))?;
        // No pod can be made before it is there.
        kubectl.wait_until(namespace, "serviceaccount/default", PATIENCE, |_| Some(()))?;
        Ok(Self { cluster, kubectl, namespace: namespace.to_owned(), subnets: Vec::new(), turn })
    }

    pub(crate) fn node(&self, name: &str) -> Result<&'static Node> {
        self.cluster.node(name)
    }

    pub(crate) fn kube_ovn(&self) -> Result<KubeOvn<'static>> {
        self.cluster.kube_ovn().context("the cluster is local")
    }

    /// The provider of a network of this test, which its annotations on pods begin with.
    pub(crate) fn provider(&self, network: &str) -> String {
        format!("{network}.{}", self.namespace)
    }

    /// The name of one of kube-ovn's annotations for a network of this test.
    pub(crate) fn key(&self, network: &str, word: &str) -> String {
        format!("{}.kubernetes.io/{word}", self.provider(network))
    }

    /// A network written by hand, and a subnet of these addresses for it: `172.31.1.0/24`, or one of each family.
    pub(crate) fn network(&mut self, network: &str, cidr: &str) -> Result<()> {
        self.subnet(network, cidr, "")?;
        self.network_with(network, "")
    }

    /// A network without a subnet. `ipam` is what its IPAM configuration has beside the necessary.
    pub(crate) fn network_with(&self, network: &str, ipam: &str) -> Result<()> {
        self.raw_network(network, &self.config(network, ipam))
    }

    /// The configuration of one of this test's networks.
    pub(crate) fn config(&self, network: &str, ipam: &str) -> String {
        format!(
            r#"{{"cniVersion": "1.0.0", "name": "{network}", "type": "macvtap", "ipam": {{"type": "kube-ovn", "server_socket": "{}", "provider": "{}"{ipam}}}}}"#,
            kube_ovn::SOCKET,
            self.provider(network),
        )
    }

    pub(crate) fn raw_network(&self, network: &str, config: &str) -> Result<()> {
        self.kubectl.apply(&format!(
            "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n\
             metadata: {{name: {network}, namespace: {}, annotations: {{k8s.v1.cni.cncf.io/resourceName: {RESOURCE}}}}}\n\
             spec: {{config: '{config}'}}\n",
            self.namespace
        ))
    }

    /// The subnet of a network. `spec` are further lines, indented by two.
    pub(crate) fn subnet(&mut self, network: &str, cidr: &str, spec: &str) -> Result<()> {
        let name = format!("{}-{network}", self.namespace);
        let protocol = match (cidr.contains('.'), cidr.contains(':')) {
            (true, true) => "Dual",
            (true, false) => "IPv4",
            (false, _) => "IPv6",
        };
        self.kubectl.apply(&format!(
            "apiVersion: kubeovn.io/v1\nkind: Subnet\nmetadata: {{name: {name}}}\nspec:\n  protocol: {protocol}\n  \
             cidrBlock: '{cidr}'\n  provider: {}\n  disableGatewayCheck: true\n{spec}",
            self.provider(network)
        ))?;
        self.subnets.push(format!("subnet.kubeovn.io/{name}"));
        let subnet = format!("subnet.kubeovn.io/{name}");
        self.kubectl.wait_until("", &subnet, PATIENCE, |subnet| {
            let conditions = subnet["status"]["conditions"].as_array()?;
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(())
        })
    }

    /// Applies pods, all in one go.
    pub(crate) fn apply(&self, pods: &[Pod]) -> Result<()> {
        let manifests: Vec<String> = pods.iter().map(|pod| pod.manifest(&self.namespace)).collect();
        self.kubectl.apply(&manifests.join("---\n"))
    }

    /// Waits until pods are Ready.
    pub(crate) fn ready(&self, pods: &[Pod]) -> Result<()> {
        pods.iter().try_for_each(|pod| {
            let name = format!("pod/{}", pod.name);
            self.kubectl.wait_for(&self.namespace, &name, "condition=Ready", PATIENCE)
        })
    }

    pub(crate) fn delete(&self, pod: &str) -> Result<()> {
        let words = ["-n", &self.namespace, "delete", "pod", pod, "--wait", "--timeout=90s"];
        self.kubectl.run(&words).map(drop)
    }

    /// Waits for an annotation of a pod and gives it.
    pub(crate) fn annotation(&self, pod: &str, key: &str) -> Result<String> {
        self.kubectl.wait_until(&self.namespace, &format!("pod/{pod}"), PATIENCE, |pod| {
            pod["metadata"]["annotations"][key].as_str().map(str::to_owned)
        })
    }

    /// A pod's annotations now.
    pub(crate) fn annotations(&self, pod: &str) -> Result<Value> {
        let pod = self.kubectl.get(&self.namespace, &format!("pod/{pod}"))?;
        Ok(pod["metadata"]["annotations"].clone())
    }

    /// Waits for an Event about an object whose message contains all `words`; gives the message.
    pub(crate) fn event(&self, object: &str, words: &[&str]) -> Result<String> {
        let what = format!("an Event of {object} with {words:?}");
        self.kubectl
            .wait_until(&self.namespace, "events", PATIENCE, |list| {
                let messages = messages(list, object);
                messages.into_iter().find(|text| words.iter().all(|word| text.contains(word)))
            })
            .with_context(|| what)
    }

    fn restore(&self) -> Result<()> {
        let kube_ovn = self.kube_ovn()?;
        self.cluster.nodes().iter().try_for_each(|node| {
            kube_ovn.start_daemon(node)?;
            kube_ovn.wait_daemon(node)
        })
    }

    /// What the kubelet has complained about a pod so far.
    pub(crate) fn complaints(&self, pod: &str) -> Result<Vec<String>> {
        let list = self.kubectl.get(&self.namespace, "events")?;
        let mut failed = list;
        if let Some(items) = failed["items"].as_array_mut() {
            items.retain(|event| event["reason"] == "FailedCreatePodSandBox");
        }
        Ok(messages(&failed, pod))
    }
}

fn messages(list: &Value, object: &str) -> Vec<String> {
    let events = list["items"].as_array().into_iter().flatten();
    let about = events.filter(|event| event["involvedObject"]["name"] == object);
    about.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect()
}

impl Drop for Stage {
    fn drop(&mut self) {
        let namespace = &self.namespace;
        let leave = |words: &[&str]| {
            if let Err(error) = self.kubectl.run(words) {
                println!("clean up after {namespace}: {error:#}");
            }
        };
        // What a failed test stopped, others need.
        if matches!(self.turn, Turn::Alone { .. })
            && let Err(error) = self.restore()
        {
            println!("kube-ovn stays incomplete after {namespace}: {error:#}");
        }
        leave(&["delete", "namespace", namespace, "--wait", "--timeout=90s"]);
        for subnet in &self.subnets {
            leave(&["delete", subnet, "--ignore-not-found", "--wait", "--timeout=30s"]);
        }
    }
}

/// Plays one test beside others; a failure comes with what the cluster has to say about it.
pub(crate) fn play(namespace: &str, test: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let turn = Turn::Beside { _held: QUIET.read().unwrap_or_else(PoisonError::into_inner) };
    let Some(cluster) = thin()? else { return Ok(()) };
    cluster.explain(|| test(&mut Stage::new(cluster, namespace, turn)?))
}

/// Plays one test that stops what others need, alone.
pub(crate) fn play_alone(namespace: &str, test: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let turn = Turn::Alone { _held: QUIET.write().unwrap_or_else(PoisonError::into_inner) };
    let Some(cluster) = thin()? else { return Ok(()) };
    cluster.explain(|| test(&mut Stage::new(cluster, namespace, turn)?))
}

/// Plays one test on the cluster whose Multus is a daemon.
pub(crate) fn play_thick(namespace: &str, test: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let turn = Turn::Beside { _held: QUIET.read().unwrap_or_else(PoisonError::into_inner) };
    let options = Options { nodes: 1, multus: Multus::Thick, kube_ovn: true, ..Options::default() };
    let Some(cluster) = shared(&CLUSTER, "kube-ovn-thick", options)? else { return Ok(()) };
    cluster.explain(|| test(&mut Stage::new(cluster, namespace, turn)?))
}

/// The cluster with the plugin alone as Multus, and two nodes.
fn thin() -> Result<Option<&'static Cluster>> {
    static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
    shared(&CLUSTER, "kube-ovn", Options { kube_ovn: true, ..Options::default() })
}

fn shared(
    slot: &'static OnceLock<Result<Cluster, String>>,
    name: &str,
    options: Options,
) -> Result<Option<&'static Cluster>> {
    if !Cluster::permitted()? {
        return Ok(None);
    }
    let started = slot.get_or_init(|| start(name, options).map_err(|error| format!("{error:#}")));
    started.as_ref().map(Some).map_err(|error| anyhow!("cluster {name} did not start: {error}"))
}

fn start(name: &str, options: Options) -> Result<Cluster> {
    // As for the other tests' cluster: taken as it is by those who work on a test.
    let cluster = match std::env::var("MACVTAP_TEST_REUSE").as_deref() {
        Ok("1") => Cluster::open(name)?,
        _ => Cluster::with_product(name, options)?,
    };
    let kubectl = cluster.kubectl();
    kubectl.apply(POOLS)?;
    for node in cluster.nodes() {
        kubectl.wait_until("", &format!("node/{}", node.name()), PATIENCE, |node| {
            (node["status"]["allocatable"][RESOURCE] == "100").then_some(())
        })?;
    }
    Ok(cluster)
}
