//! The cluster the tests of this binary share, with the product installed as a user installs it.

use anyhow::{Result, ensure};
use e2e::{Cluster, Kubectl, Node};
use serde_json::Value;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a pool asks pods to ask for.
pub(crate) const PREFIX: &str = "macvtap.network.kubevirt.io";

/// How long the product may take to react on a busy machine. The kubelet alone reports device counts every 4 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Tests share two lower links a node, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// One test's turn on the cluster, with a namespace of its own that goes when the test ends.
pub(crate) struct Stage {
    pub(crate) cluster: &'static Cluster,
    pub(crate) kubectl: &'static Kubectl,
    pub(crate) nodes: &'static [Node],
    pub(crate) namespace: String,
    cleanup: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Waits for the turn, and for the cluster; none when this machine may not have one.
    fn new(namespace: &str) -> Result<Option<Self>> {
        let Some(cluster) = Cluster::shared()? else { return Ok(None) };
        ensure!(
            !cluster.nodes().is_empty(),
            "these tests look into nodes: they need the local cluster, unset KUBECONFIG"
        );
        Self::on(cluster, namespace).map(Some)
    }

    /// Waits for the turn on this cluster.
    pub(crate) fn on(cluster: &'static Cluster, namespace: &str) -> Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = Self {
            cluster,
            kubectl: cluster.kubectl(),
            nodes: cluster.nodes(),
            namespace: namespace.to_owned(),
            cleanup: Vec::new(),
            _turn: turn,
        };
        stage
            .kubectl
            .apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))?;
        Ok(stage)
    }

    pub(crate) fn node(&self, name: &str) -> Result<&'static Node> {
        self.cluster.node(name)
    }

    /// Applies a pool `name` with this spec, indented by two. It goes when the test ends.
    pub(crate) fn pool(&mut self, name: &str, spec: &str) -> Result<()> {
        self.cleanup.push(format!("macvtapresourcepool/{name}"));
        self.kubectl.apply(&format!(
            "apiVersion: {PREFIX}/v1alpha1\nkind: MacvtapResourcePool\nmetadata: {{name: {name}}}\nspec:\n{spec}"
        ))
    }

    /// Applies a network written by hand: with this resource annotation, and `extra` at the end of its configuration.
    pub(crate) fn network(&self, name: &str, resource: Option<&str>, extra: &str) -> Result<()> {
        let annotations =
            resource.map(|name| format!("k8s.v1.cni.cncf.io/resourceName: {name}")).unwrap_or_default();
        let config = format!(r#"{{"cniVersion": "0.3.1", "name": "{name}", "type": "macvtap"{extra}}}"#);
        self.kubectl.apply(&format!(
            "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n\
             metadata: {{name: {name}, namespace: {}, annotations: {{{annotations}}}}}\nspec: {{config: '{config}'}}\n",
            self.namespace
        ))
    }

    /// Waits until every node offers `count` of the resource; gives how long that took.
    pub(crate) fn wait_allocatable(&self, resource: &str, count: u64) -> Result<Duration> {
        let start = Instant::now();
        for node in self.nodes {
            self.kubectl.wait_until("", &format!("node/{}", node.name()), PATIENCE, |object| {
                (allocatable(object, resource) == Some(count)).then_some(())
            })?;
        }
        Ok(start.elapsed())
    }

    /// Waits for a condition of a pool; gives its message.
    pub(crate) fn pool_condition(
        &self,
        pool: &str,
        kind: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        self.kubectl.wait_until("", &format!("macvtapresourcepool/{pool}"), PATIENCE, |object| {
            condition(object, kind, status, reason)
        })
    }

    /// Checks that no device of `resource` is in use on any node: no record, no node; and that links are gone.
    pub(crate) fn nothing_left(&self, resource: &str) -> Result<()> {
        // Nothing is there of a node that never had a pod with a device.
        let files =
            "for d in attachments dev; do d=/run/macvtap/$d; [ ! -d $d ] || find $d -mindepth 1; done";
        for node in self.nodes {
            let left = node.exec(&["sh", "-c", files])?;
            ensure!(!left.contains(&format!("{resource}Mvp")), "{} keeps records: {left}", node.name());
            ensure!(!left.contains("/dev/"), "{} keeps device nodes: {left}", node.name());
        }
        Ok(())
    }

    /// Waits for an Event about an object whose message contains `words`; gives the message.
    pub(crate) fn event(&self, object: &str, words: &str) -> Result<String> {
        self.kubectl.wait_until(&self.namespace, "events", PATIENCE, |list| {
            let about = |event: &Value| event["involvedObject"]["name"] == object;
            let messages = list["items"].as_array()?.iter().filter(|event| about(event));
            let found =
                messages.filter_map(|event| event["message"].as_str()).find(|text| text.contains(words))?;
            Some(found.to_owned())
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let namespace = &self.namespace;
        let leave = |words: &[&str]| {
            if let Err(error) = self.kubectl.run(words) {
                println!("clean up after {namespace}: {error:#}");
            }
        };
        leave(&["delete", "namespace", namespace, "--wait", "--timeout=90s"]);
        for object in &self.cleanup {
            leave(&["delete", object, "--ignore-not-found", "--wait", "--timeout=90s"]);
        }
    }
}

/// Plays one test on its stage; a failure comes with what the cluster has to say about it.
pub(crate) fn play(namespace: &str, test: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let Some(mut stage) = Stage::new(namespace)? else { return Ok(()) };
    stage.cluster.explain(|| test(&mut stage))
}

/// How many of a resource a Node offers; none when it does not know it.
pub(crate) fn allocatable(node: &Value, resource: &str) -> Option<u64> {
    node["status"]["allocatable"][resource].as_str()?.parse().ok()
}

/// The message of an object's condition, if it has this status and reason.
pub(crate) fn condition(object: &Value, kind: &str, status: &str, reason: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found =
        conditions.iter().find(|c| c["type"] == kind && c["status"] == status && c["reason"] == reason)?;
    Some(found["message"].as_str().unwrap_or_default().to_owned())
}
