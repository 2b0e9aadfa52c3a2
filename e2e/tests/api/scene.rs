//! A cluster without kubelets: an API server, Nodes that are only objects, the operator's executable, and agents that
//! the tests play by writing what an agent would.

// Each test program uses a part of it.
#![allow(dead_code, reason = "shared by several test programs")]

use crate::api::{Api, Program};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A cluster that consists of an API server, these Nodes and the operator.
pub(crate) struct Scene {
    // Ends before the server does.
    pub(crate) operator: Option<Program>,
    pub(crate) api: Api,
}

impl Scene {
    /// With Multus' kind, if wanted.
    pub(crate) fn new(nodes: &[&str], multus: bool) -> Result<Self> {
        let api = Api::own()?;
        if multus {
            api.kubectl.apply(MULTUS_KIND)?;
            api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", NETWORKS])?;
        }
        let mut scene = Self { operator: None, api };
        for node in nodes {
            scene.node(node, &json!({}))?;
        }
        scene.start()?;
        Ok(scene)
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&mut self, further: &[&str]) -> Result<()> {
        let args = [&["--listen", "127.0.0.1:0"], further].concat();
        self.operator = Some(Program::start("macvtap-operator", &args, self.api.kubectl.kubeconfig())?);
        Ok(())
    }

    /// Starts the operator again: of what it finds not ready it believes since when that is, of other nodes it trusts its own
    /// clock.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.restart_with(&[])
    }

    /// The same with these further arguments.
    pub(crate) fn restart_with(&mut self, further: &[&str]) -> Result<()> {
        if let Some(operator) = self.operator.take() {
            operator.terminate()?;
        }
        self.start_with(further)
    }

    pub(crate) fn node(&self, name: &str, labels: &Value) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        self.api.replace(&node)
    }

    pub(crate) fn namespace(&self, name: &str, labels: &Value) -> Result<()> {
        let metadata = json!({"name": name, "labels": labels});
        self.api.replace(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
    }

    pub(crate) fn pool(&self, name: &str, spec: &Value) -> Result<()> {
        let mut full = json!({"links": [{"names": ["dp0"]}]});
        for (key, value) in spec.as_object().into_iter().flatten() {
            full[key] = value.clone();
        }
        self.api.replace(&json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
            "kind": "MacvtapResourcePool",
            "metadata": {"name": name},
            "spec": full,
        }))
    }

    /// Waits until a node was told of exactly these pools, each with its phase.
    pub(crate) fn expect_pools(&self, node: &str, pools: &[(&str, &str)]) -> Result<()> {
        self.api.kubectl.wait_until("", &format!("mns/{node}"), DEADLINE, |state| {
            let entries = state.pointer("/spec/pools")?.as_array()?;
            let phase = |pool: &'_ Value| pool["phase"].as_str().unwrap_or("Active").to_owned();
            let found: Vec<_> =
                entries.iter().filter_map(|p| Some((p["name"].as_str()?, phase(p)))).collect();
            let found: Vec<_> = found.iter().map(|(name, phase)| (*name, phase.as_str())).collect();
            (found == pools).then_some(())
        })
    }

    /// Answers for the agent of a node: what it was told is applied, and each pool has 50 devices, so many in use.
    pub(crate) fn answer(&self, node: &str, allocated: u32) -> Result<()> {
        self.answer_with(node, allocated, &condition("Ready", "True", "Serving"))
    }

    /// The same with another condition Ready of every pool.
    pub(crate) fn answer_with(&self, node: &str, allocated: u32, ready: &Value) -> Result<()> {
        let state = self.api.kubectl.get("", &format!("mns/{node}"))?;
        self.api.patch_status(&format!("mns/{node}"), &answered(&state, allocated, ready))
    }

    /// Makes a node one that has not been Ready for long.
    pub(crate) fn not_ready(&self, node: &str) -> Result<()> {
        let condition = condition("Ready", "Unknown", "NodeStatusUnknown");
        self.api.patch_status(&format!("node/{node}"), &json!({"conditions": [condition]}))
    }

    /// Makes the pod of a node's agent, ready or not ready for long.
    pub(crate) fn agent(&self, node: &str, ready: bool) -> Result<()> {
        let name = format!("agent-{node}");
        let labels = json!({"app.kubernetes.io/name": "macvtap-node-agent"});
        self.api.replace(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {
                "nodeName": node,
                "automountServiceAccountToken": false,
                "containers": [{"name": "agent", "image": "none"}],
            },
        }))?;
        let condition = condition("Ready", if ready { "True" } else { "False" }, "Test");
        self.api.patch_status(&format!("pod/{name}"), &json!({"conditions": [condition]}))
    }

    /// Waits for an event about a pool.
    pub(crate) fn event(&self, pool: &str, reason: &str) -> Result<()> {
        let field = format!("involvedObject.name={pool},reason={reason}");
        e2e::wait::until(&format!("event {reason} of {pool}"), DEADLINE, || {
            let args = ["get", "events", "-A", "--field-selector", &field, "-o", "name"];
            Ok((!self.api.kubectl.run(&args)?.trim().is_empty()).then_some(()))
        })
    }

    /// The names of the pools that a node was told of.
    pub(crate) fn spec_of(&self, node: &str) -> Result<Value> {
        Ok(self.api.kubectl.get("", &format!("mns/{node}"))?["spec"]["pools"].clone())
    }

    /// Waits until a condition of a pool has this status and reason; gives its message.
    pub(crate) fn says(&self, pool: &str, kind: &str, status: &str, reason: &str) -> Result<String> {
        let look = |pool: &Value| {
            let conditions = pool.pointer("/status/conditions")?.as_array()?;
            let found = conditions.iter().find(|condition| condition["type"] == kind)?;
            let same = found["status"] == status && found["reason"] == reason;
            same.then(|| found["message"].as_str().unwrap_or_default().to_owned())
        };
        self.api
            .kubectl
            .wait_until("", &format!("mrp/{pool}"), DEADLINE, look)
            .with_context(|| format!("{pool} never said {kind}={status} for {reason}"))
    }

    pub(crate) fn ready_nodes(&self, pool: &str, summary: &str) -> Result<()> {
        self.api.kubectl.wait_until("", &format!("mrp/{pool}"), DEADLINE, |pool| {
            (pool.pointer("/status/nodes/summary")? == summary).then_some(())
        })
    }

    /// The network's configuration and annotation, once it is there.
    pub(crate) fn network(&self, namespace: &str, name: &str) -> Result<(Value, String)> {
        self.api.kubectl.wait_until(namespace, &format!("{NETWORKS}/{name}"), DEADLINE, |network| {
            let config = serde_json::from_str(network.pointer("/spec/config")?.as_str()?).ok()?;
            let annotations = network.pointer("/metadata/annotations")?;
            Some((config, annotations["k8s.v1.cni.cncf.io/resourceName"].as_str()?.to_owned()))
        })
    }

    pub(crate) fn gone(&self, namespace: &str, resource: &str) -> Result<()> {
        e2e::wait::until(&format!("{namespace}/{resource} to go"), DEADLINE, || {
            let mut args = vec!["get", resource, "--ignore-not-found", "-o", "name"];
            if !namespace.is_empty() {
                args.extend(["-n", namespace]);
            }
            Ok(self.api.kubectl.run(&args)?.trim().is_empty().then_some(()))
        })
    }

    pub(crate) fn versions(&self) -> Result<String> {
        let format = "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}";
        self.api.kubectl.run(&["get", "mrp,mns,net-attach-def", "-A", "-o", format])
    }
}

pub(crate) const NETWORKS: &str = "network-attachment-definitions.k8s.cni.cncf.io";

pub(crate) const MULTUS_KIND: &str = include_str!("network-kind.yaml");

pub(crate) fn condition(kind: &str, status: &str, reason: &str) -> Value {
    let time = "2026-01-01T00:00:00Z";
    json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": time})
}

/// The status by which an agent answers a spec: every pool has 50 devices, so many in use.
pub(crate) fn answered(state: &Value, allocated: u32, ready: &Value) -> Value {
    let entries = state.pointer("/spec/pools").and_then(Value::as_array).cloned().unwrap_or_default();
    let pools: Vec<Value> = entries
        .iter()
        .map(|pool| {
            json!({
                "name": pool["name"], "generation": pool["generation"], "links": ["dp0"],
                "capacity": 50, "allocatable": 50, "allocated": allocated,
                "conditions": [ready],
            })
        })
        .collect();
    json!({"observedHash": state["spec"]["configHash"], "agentVersion": "test", "pools": pools})
}

pub(crate) fn network(name: &str, namespaces: &Value) -> Value {
    json!({"networks": [{"name": name, "namespaces": namespaces}]})
}

pub(crate) fn foreign(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"config": "{\"type\": \"bridge\"}"},
    })
}
