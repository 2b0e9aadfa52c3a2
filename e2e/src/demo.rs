//! `make demo`: from a fresh checkout to pods that ping each other over macvtap, and a cluster to play with.

pub mod kubevirt;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::progress::say;
use crate::{Cluster, Kubectl, Options, components, images, layout::Checkout, prerequisites};

/// The demo's cluster.
pub const NAME: &str = "demo";

/// The network that `examples/pools/dataplane.yaml` makes in this namespace.
const NAMESPACE: &str = "default";

/// A pool with a slip of the pen.
const MISSPELT: &str = "apiVersion: macvtap.network.kubevirt.io/v1alpha1
kind: MacvtapResourcePool
metadata: {name: misspelt}
spec: {links: [{names: [dp9]}]}
";

/// A virtual machine's stand-in: it has a tap, a number for its addresses, and either answers or asks.
struct Guest {
    node: &'static str,
    number: u8,
    asks: bool,
}

const GUESTS: [Guest; 4] = [
    Guest { node: "n1", number: 1, asks: true },
    Guest { node: "n1", number: 2, asks: false },
    Guest { node: "n2", number: 3, asks: true },
    Guest { node: "n2", number: 4, asks: false },
];

impl Guest {
    fn pod(&self) -> String {
        format!("guest-{}-{}", self.node, self.number)
    }

    fn v4(&self) -> String {
        format!("10.90.0.{}", self.number)
    }

    fn v6(&self) -> String {
        format!("fd90::{}", self.number)
    }

    fn manifest(&self) -> String {
        let program = if self.asks {
            "[sleep, infinity]".to_owned()
        } else {
            format!("[tapguest, respond, auto, \"-\", {}, \"{}\"]", self.v4(), self.v6())
        };
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {pod}
  labels: {{app: macvtap-demo}}
  annotations: {{k8s.v1.cni.cncf.io/networks: dataplane}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 1
  # What KubeVirt runs a virtual machine as.
  securityContext: {{runAsUser: 107, runAsGroup: 107, runAsNonRoot: true}}
  containers:
  - name: guest
    image: {image}
    imagePullPolicy: IfNotPresent
    command: {program}
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
    resources: {{limits: {{macvtap.network.kubevirt.io/dataplane: 1}}}}
---
",
            pod = self.pod(),
            node = self.node,
            image = images::reference("tapguest"),
        )
    }
}

/// Runs the demo and leaves the cluster up.
pub fn run() -> Result<()> {
    let start = Instant::now();
    prerequisites::check_root()?;
    let checkout = Checkout::here();
    say("== what the machine needs");
    prerequisites::ensure(&checkout)?;
    say("== build");
    let images = build(&checkout)?;
    let plugin = images::kubectl_plugin(&checkout)?;
    say("== cluster: two nodes, each with its own kubelet, containerd and Multus");
    let cluster = Cluster::up(NAME, Options::default())?;
    cluster.explain(|| {
        say("== operator and node agents, by their Helm chart");
        cluster.install(&images)?;
        show(cluster.kubectl())?;
        find_the_fault(cluster.kubectl(), &plugin)
    })?;
    say(format_args!("== done in {:.0} s", start.elapsed().as_secs_f64()));
    hint(&cluster, &plugin);
    Ok(())
}

/// Go and Rust at once: where one links with a single processor, the other has work for the second.
fn build(checkout: &Checkout) -> Result<Vec<images::Image>> {
    std::thread::scope(|scope| {
        let components = scope.spawn(|| components::build(checkout));
        let images = images::build(checkout, &images::ALL);
        components.join().map_err(|_| anyhow!("building the components panicked"))??;
        images
    })
}

fn show(kubectl: &Kubectl) -> Result<()> {
    say("== pools of examples/pools");
    let pools = Checkout::here().path("examples/pools").display().to_string();
    kubectl.run(&["apply", "-f", &pools])?;
    let deadline = Duration::from_mins(1);
    kubectl
        .wait_for("", "macvtapresourcepool/dataplane", "condition=Ready", deadline)
        .context("pool dataplane does not become Ready")?;
    let network = "network-attachment-definition/dataplane";
    kubectl.wait_until(NAMESPACE, network, deadline, |_| Some(()))?;
    print(kubectl, "get macvtapresourcepools")?;
    print(kubectl, "get macvtapnodestates")?;
    why_not(kubectl)?;

    say("\n== two pods on each node, each with a tap of the pool");
    start_guests(kubectl)?;
    print(kubectl, "get pods -o wide")?;

    say("\n== they ping each other through their taps: ARP and IPv4, neighbour discovery and IPv6");
    for from in GUESTS.iter().filter(|guest| guest.asks) {
        for to in GUESTS.iter().filter(|guest| !guest.asks) {
            for address in [to.v4(), to.v6()] {
                ping(kubectl, from, to, &address)?;
            }
        }
    }
    say("\n== what kubectl shows");
    print(kubectl, "get mrp,mns,net-attach-def,pods")
}

/// The examples also name links that the demo's nodes do not have: their pools say so.
fn why_not(kubectl: &Kubectl) -> Result<()> {
    let pools = kubectl.get("", "macvtapresourcepools")?;
    for pool in pools["items"].as_array().into_iter().flatten() {
        let conditions = pool["status"]["conditions"].as_array().into_iter().flatten();
        for ready in
            conditions.filter(|condition| condition["type"] == "Ready" && condition["status"] != "True")
        {
            let name = pool["metadata"]["name"].as_str().unwrap_or_default();
            say(format_args!("  {name} is not Ready: {}", ready["message"].as_str().unwrap_or_default()));
        }
    }
    Ok(())
}

/// A pool that no node can serve, and how the plugin of kubectl finds out why.
fn find_the_fault(kubectl: &Kubectl, plugin: &Path) -> Result<()> {
    say("\n== a pool that cannot be served, on purpose: its link dp9 exists on no node");
    kubectl.apply(MISSPELT)?;
    let deadline = Duration::from_mins(1);
    kubectl.wait_until("", "macvtapresourcepool/misspelt", deadline, |pool| {
        let conditions = pool.pointer("/status/conditions")?.as_array()?;
        conditions.iter().find(|condition| condition["reason"] == "NoMatchingLinks").map(drop)
    })?;
    for question in ["status", "explain pool misspelt"] {
        let mut command = Command::new(plugin);
        command.env("KUBECONFIG", kubectl.kubeconfig()).args(question.split(' '));
        let out = command.output().with_context(|| format!("run {}", plugin.display()))?;
        let text = String::from_utf8_lossy(&out.stdout);
        say(format_args!("\n$ kubectl macvtap {question}\n{}", text.trim_end()));
        // It ends with 1 when something is wrong, as here.
        let wanted = i32::from(question != "status");
        ensure!(
            out.status.code() == Some(wanted),
            "{question} ended with {}: {}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(())
}

fn start_guests(kubectl: &Kubectl) -> Result<()> {
    let manifests: String = GUESTS.iter().map(Guest::manifest).collect();
    // A pod cannot be changed into what an older version of the demo did not know.
    if kubectl.apply(&manifests).is_err() {
        kubectl.delete(&manifests)?;
        kubectl.apply(&manifests)?;
    }
    for guest in &GUESTS {
        let pod = format!("pod/{}", guest.pod());
        kubectl.wait_for(NAMESPACE, &pod, "condition=Ready", Duration::from_mins(1))?;
    }
    Ok(())
}

fn ping(kubectl: &Kubectl, from: &Guest, to: &Guest, address: &str) -> Result<()> {
    let (v4, v6) = (from.v4(), from.v6());
    let program = ["tapguest", "ping", "auto", "-", &v4, &v6, address, "5"];
    let place = if from.node == to.node { "same node" } else { "other node" };
    let said = kubectl
        .exec(NAMESPACE, &from.pod(), &program)
        .with_context(|| format!("{} cannot reach {} ({place})", from.pod(), to.pod()))?;
    say(format_args!("  {} -> {} ({place}): {}", from.pod(), to.pod(), said.trim()));
    Ok(())
}

fn print(kubectl: &Kubectl, question: &str) -> Result<()> {
    let words: Vec<&str> = question.split(' ').collect();
    let answer = kubectl.run(&words)?;
    say(format_args!("\n$ kubectl {question}\n{}", answer.trim_end()));
    Ok(())
}

fn hint(cluster: &Cluster, plugin: &Path) {
    say(format_args!(
        "
The cluster stays up. Try it:
  export KUBECONFIG={}
  {} get mns n1 -o yaml        # every link of a node, and why it is or is not used
  {} exec -it guest-n1-1 -- sh
  {} check
`make demo` again is quick and takes up what you changed; `make cluster-down` ends the cluster.",
        cluster.kubectl().kubeconfig().display(),
        cluster.checkout().bin().join("kubectl").display(),
        cluster.checkout().bin().join("kubectl").display(),
        plugin.display(),
    ));
}
