//! A cluster whose node is what the other tests' nodes are not: containerd keeps network namespaces in its own state
//! directory, the kubelet's root directory is elsewhere, pods may have user namespaces of their own.

use anyhow::{Context, Result, ensure};
use e2e::layout::Checkout;
use e2e::{Cluster, Kubectl, Node, Options, images, install, wait};
use serde_json::Value;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_mins(1);
const RESOURCE: &str = "macvtap.network.kubevirt.io/field";

/// One pool, and so one test at a time.
static TURN: Mutex<()> = Mutex::new(());

const POOL: &str = "apiVersion: macvtap.network.kubevirt.io/v1alpha1
kind: MacvtapResourcePool
metadata: {name: field}
spec:
  links: [{names: [dp0]}]
  capacity: {perLink: 10}
  networks: [{name: field, namespaces: {names: [default]}}]
";

/// A node, and what a test does there.
struct Field {
    cluster: Cluster,
}

/// Runs a test on the cluster with the chart installed as its documentation says for such a node.
fn play(test: impl FnOnce(&Field) -> Result<()>) -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !Cluster::permitted()? {
        return Ok(());
    }
    images::build(&Checkout::here(), &images::ALL)?;
    let cluster = Cluster::up("field", Options { nodes: 1, field: true, ..Options::default() })?;
    let root = format!("agent.kubeletDir={}", cluster.node("n1")?.kubelet_root());
    install::product(&cluster, &[&root])?;
    let field = Field { cluster };
    field.cluster.explain(|| {
        field.kubectl().apply(POOL)?;
        field.kubectl().wait_until("", "node/n1", PATIENCE, |node| {
            (node["status"]["allocatable"][RESOURCE] == "10").then_some(())
        })?;
        let done = test(&field);
        field.kubectl().run(&["delete", "pods", "--all", "--grace-period=0", "--force", "--timeout=60s"])?;
        done
    })
}

impl Field {
    fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    fn node(&self) -> Result<&Node> {
        self.cluster.node("n1")
    }

    /// A pod that runs `command`, with further fields of its spec and of its container's security context.
    fn apply(&self, name: &str, command: &str, spec: &str, security: &str) -> Result<()> {
        self.kubectl().apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, annotations: {{k8s.v1.cni.cncf.io/networks: field}}}}
spec:
  terminationGracePeriodSeconds: 0
  {spec}
  containers:
  - name: guest
    image: localhost/tapguest:dev
    imagePullPolicy: Never
    command: [sh, -c, '{command}']
    securityContext: {{{security}}}
    resources: {{limits: {{{RESOURCE}: 1}}}}
"
        ))
    }

    fn ready(&self, name: &str) -> Result<()> {
        self.kubectl().wait_for("default", &format!("pod/{name}"), "condition=Ready", PATIENCE)
    }

    fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl().exec("default", pod, &["sh", "-c", script])
    }

    /// `major:minor` of the pod's link, and of the node of its name in the container.
    fn tap(&self, pod: &str) -> Result<[String; 2]> {
        let link = self.exec(pod, "cat /sys/class/net/net1/tap*/dev")?.trim().to_owned();
        let node = self.exec(pod, "stat -c %t:%T /dev/tap$(cat /sys/class/net/net1/ifindex)")?;
        let (major, minor) = node.trim().split_once(':').with_context(|| format!("stat said {node:?}"))?;
        let decimal = |hex| u32::from_str_radix(hex, 16).with_context(|| format!("stat said {node:?}"));
        Ok([link, format!("{}:{}", decimal(major)?, decimal(minor)?)])
    }

    /// Waits until the pool has so many devices in use: the agent reads that from the kubelet's list of pods' resources.
    fn counts(&self, count: u64) -> Result<()> {
        self.kubectl().wait_until("", "macvtapresourcepool/field", 2 * PATIENCE, |pool| {
            (pool["status"]["devices"]["allocated"].as_u64() == Some(count)).then_some(())
        })
    }
}

/// As a virtual machine's pod is.
const UNPRIVILEGED: &str =
    "runAsUser: 107, runAsGroup: 107, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}";

const ANSWERS: &str = "exec tapguest respond net1 - 198.51.100.1 fd00:5::1";

/// It opens its tap, and says so.
const OPENS: &str = "exec 3<>/dev/tap$(cat /sys/class/net/net1/ifindex) && exec sleep 100000";

#[test]
fn a_pod_has_its_tap_and_is_counted_and_a_new_agent_leaves_it_alone() -> Result<()> {
    play(|field| {
        field.apply("answers", ANSWERS, "", UNPRIVILEGED)?;
        field.apply("asks", "exec sleep 100000", "", UNPRIVILEGED)?;
        field.ready("answers")?;
        field.ready("asks")?;
        let before = field.tap("answers")?;
        ensure!(before[0] == before[1], "{before:?}");
        let pings = || field.exec("asks", "tapguest ping net1 - 198.51.100.2 fd00:5::2 198.51.100.1 10");
        let said = pings()?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        field.counts(2)?;
        let words = ["-n", install::NAMESPACE, "rollout"];
        field.kubectl().run(&[&words[..], &["restart", "daemonset/macvtap-node-agent"]].concat())?;
        let status = ["status", "daemonset/macvtap-node-agent", "--timeout=90s"];
        field.kubectl().run(&[&words[..], &status].concat())?;
        let record = field.node()?.exec(&["sh", "-c", "cat /run/macvtap/attachments/*"])?;
        println!("{record}");
        ensure!(field.tap("answers")? == before, "the new agent touched a running pod");
        let said = pings()?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        field.kubectl().run(&["delete", "pods", "--all", "--timeout=60s"])?;
        field.counts(0)?;
        wait::until("no record", PATIENCE, || {
            let left = field.node()?.exec(&["sh", "-c", "ls /run/macvtap/attachments"])?;
            Ok((!left.contains("fieldMvp")).then_some(()))
        })
    })
}

#[test]
fn a_privileged_container_opens_the_tap_of_its_own_pod() -> Result<()> {
    play(|field| {
        field.apply("other", ANSWERS, "", UNPRIVILEGED)?;
        field.apply("privileged", OPENS, "", "runAsUser: 107, runAsGroup: 107, privileged: true")?;
        field.ready("other")?;
        field.ready("privileged")?;
        let [link, node] = field.tap("privileged")?;
        ensure!(link == node, "its link is {link}, its node {node}");
        Ok(())
    })
}

#[test]
fn a_pod_with_a_user_namespace_whose_tap_it_could_not_open_is_told_why_it_does_not_start() -> Result<()> {
    play(|field| {
        field.apply("mapped", OPENS, "hostUsers: false", UNPRIVILEGED)?;
        field.kubectl().wait_until("default", "events", PATIENCE, |events| {
            let about = |event: &&Value| event["involvedObject"]["name"] == "mapped";
            let mut messages = events["items"]
                .as_array()?
                .iter()
                .filter(about)
                .filter_map(|event| event["message"].as_str());
            messages.any(|message| message.contains("hostUsers")).then_some(())
        })
    })
}

/// Distributions, and the directories of this node that are mounted where a node of theirs has them.
const DISTRIBUTIONS: [(&str, &[[&str; 2]]); 2] = [
    (
        "k3s",
        &[
            ["/opt/cni/bin", "/var/lib/rancher/k3s/data/cni"],
            ["/var/lib/moved/kubelet/pod-resources", "/var/lib/kubelet/pod-resources"],
        ],
    ),
    ("k0s", &[["/var/lib/moved/kubelet", "/var/lib/k0s/kubelet"]]),
];

#[test]
fn a_pod_has_its_tap_and_is_counted_with_the_values_of_distributions() -> Result<()> {
    play(|field| {
        for (distribution, directories) in DISTRIBUTIONS {
            let begun = Instant::now();
            for [from, to] in directories {
                let mount = format!("mkdir -p {to} && {{ mountpoint -q {to} || mount --bind {from} {to}; }}");
                field.node()?.exec(&["sh", "-c", &mount])?;
            }
            install::product_for(&field.cluster, Some(distribution), &[])?;
            // The agent installs it again, by the directory of these values.
            field.node()?.exec(&["rm", "/opt/cni/bin/macvtap"])?;
            wait::until("the plugin", PATIENCE, || {
                field.node()?.exec(&["test", "-x", "/opt/cni/bin/macvtap"]).map(Some)
            })?;
            field.apply("guest", ANSWERS, "", UNPRIVILEGED)?;
            field.ready("guest").with_context(|| distribution.to_owned())?;
            let [link, node] = field.tap("guest")?;
            ensure!(link == node, "{distribution}: its link is {link}, its node {node}");
            field.counts(1).with_context(|| distribution.to_owned())?;
            field.kubectl().run(&["delete", "pod", "guest", "--timeout=60s"])?;
            field.counts(0)?;
            println!("{distribution}: {:.0} s", begun.elapsed().as_secs_f64());
        }
        Ok(())
    })
}
