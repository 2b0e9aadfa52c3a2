//! The operator's executable against a real API server. Agents are played by the tests: they write what an agent would.

mod api;

use anyhow::{Context as _, Result, ensure};
use api::{Api, Program};
use serde_json::{Value, json};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// A cluster that consists of an API server, these Nodes and the operator.
struct Scene {
    // Ends before the server does.
    operator: Option<Program>,
    api: Api,
}

impl Scene {
    /// With Multus' kind, if wanted.
    fn new(nodes: &[&str], multus: bool) -> Result<Self> {
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

    fn start(&mut self) -> Result<()> {
        let args = ["--listen", "127.0.0.1:0"];
        self.operator = Some(Program::start("macvtap-operator", &args, self.api.kubectl.kubeconfig())?);
        Ok(())
    }

    fn node(&self, name: &str, labels: &Value) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        self.api.replace(&node)
    }

    fn namespace(&self, name: &str, labels: &Value) -> Result<()> {
        let metadata = json!({"name": name, "labels": labels});
        self.api.replace(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
    }

    fn pool(&self, name: &str, spec: &Value) -> Result<()> {
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
    fn told(&self, node: &str, pools: &[(&str, &str)]) -> Result<()> {
        self.api.kubectl.wait_until("", &format!("mns/{node}"), DEADLINE, |state| {
            let entries = state.pointer("/spec/pools")?.as_array()?;
            let found: Vec<_> =
                entries.iter().filter_map(|p| p["name"].as_str().zip(p["phase"].as_str())).collect();
            (found == pools).then_some(())
        })
    }

    /// Answers for the agent of a node: what it was told is applied, and each pool has 50 devices, so many in use.
    fn answer(&self, node: &str, allocated: u32) -> Result<()> {
        let state = self.api.kubectl.get("", &format!("mns/{node}"))?;
        let entries = state.pointer("/spec/pools").and_then(Value::as_array).cloned().unwrap_or_default();
        let pools: Vec<Value> = entries
            .iter()
            .map(|pool| {
                json!({
                    "name": pool["name"], "generation": pool["generation"], "links": ["dp0"],
                    "capacity": 50, "allocatable": 50, "allocated": allocated,
                    "conditions": [condition("Ready", "True", "Serving")],
                })
            })
            .collect();
        let status =
            json!({"observedHash": state["spec"]["configHash"], "agentVersion": "test", "pools": pools});
        self.api.patch_status(&format!("mns/{node}"), &status)
    }

    /// Waits until a condition of a pool has this status and reason; gives its message.
    fn says(&self, pool: &str, kind: &str, status: &str, reason: &str) -> Result<String> {
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

    fn ready_nodes(&self, pool: &str, summary: &str) -> Result<()> {
        self.api.kubectl.wait_until("", &format!("mrp/{pool}"), DEADLINE, |pool| {
            (pool.pointer("/status/nodes/summary")? == summary).then_some(())
        })
    }

    /// The network's configuration and annotation, once it is there.
    fn network(&self, namespace: &str, name: &str) -> Result<(Value, String)> {
        self.api.kubectl.wait_until(namespace, &format!("{NETWORKS}/{name}"), DEADLINE, |network| {
            let config = serde_json::from_str(network.pointer("/spec/config")?.as_str()?).ok()?;
            let annotations = network.pointer("/metadata/annotations")?;
            Some((config, annotations["k8s.v1.cni.cncf.io/resourceName"].as_str()?.to_owned()))
        })
    }

    fn gone(&self, namespace: &str, resource: &str) -> Result<()> {
        e2e::wait::until(&format!("{namespace}/{resource} to go"), DEADLINE, || {
            let mut args = vec!["get", resource, "--ignore-not-found", "-o", "name"];
            if !namespace.is_empty() {
                args.extend(["-n", namespace]);
            }
            Ok(self.api.kubectl.run(&args)?.trim().is_empty().then_some(()))
        })
    }

    fn versions(&self) -> Result<String> {
        let format = "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}";
        self.api.kubectl.run(&["get", "mrp,mns,net-attach-def", "-A", "-o", format])
    }
}

const NETWORKS: &str = "network-attachment-definitions.k8s.cni.cncf.io";

const MULTUS_KIND: &str = include_str!("api/network-kind.yaml");

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    let time = "2026-01-01T00:00:00Z";
    json!({"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": time})
}

fn network(name: &str, namespaces: &Value) -> Value {
    json!({"networks": [{"name": name, "namespaces": namespaces}]})
}

fn foreign(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"config": "{\"type\": \"bridge\"}"},
    })
}

#[test]
fn a_pool_goes_from_node_states_to_ready_and_is_drained_before_it_goes() -> Result<()> {
    let scene = Scene::new(&["n1", "n2"], true)?;
    scene.namespace("tenant", &json!({}))?;
    scene.api.replace(&foreign("tenant", "other"))?;
    scene.pool("dp", &network("net", &json!({"names": ["tenant"]})))?;
    scene.told("n1", &[("dp", "Active")])?;
    scene.told("n2", &[("dp", "Active")])?;
    scene.says("dp", "Ready", "False", "NoMatchingNodes")?;
    let owner = scene.api.kubectl.get("", "mns/n1")?["metadata"]["ownerReferences"][0].clone();
    ensure!(owner["kind"] == "Node" && owner.get("blockOwnerDeletion").is_none(), "owner is {owner}");

    scene.answer("n1", 2)?;
    scene.answer("n2", 0)?;
    scene.ready_nodes("dp", "2/2")?;
    let message = scene.says("dp", "Ready", "True", "AllNodesReady")?;
    assert_eq!(message, "2 of 2 nodes offer devices");
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let (config, resource) = scene.network("tenant", "net")?;
    assert_eq!(config, json!({"cniVersion": "1.0.0", "name": "net", "type": "macvtap"}));
    assert_eq!(resource, "macvtap.network.kubevirt.io/dp");
    let table = scene.api.table(&["get", "mrp", "dp"])?;
    assert_eq!(table["NODES"], "2/2");
    assert_eq!((table["DEVICES"].as_str(), table["ALLOCATED"].as_str()), ("100", "2"));

    scene.api.kubectl.run(&["delete", "mrp", "dp", "--wait=false"])?;
    scene.told("n1", &[("dp", "Draining")])?;
    scene.answer("n2", 0)?;
    let message = scene.says("dp", "Terminating", "True", "DevicesInUse")?;
    ensure!(message.contains("n1 (2)"), "{message}");
    scene.network("tenant", "net").context("networks stay while devices are in use")?;
    scene.answer("n1", 1)?;
    scene.told("n2", &[])?;
    scene.told("n1", &[("dp", "Draining")])?;
    scene.answer("n1", 0)?;
    scene.gone("", "mrp/dp")?;
    scene.gone("tenant", &format!("{NETWORKS}/net"))?;
    scene.told("n1", &[])?;
    let other = scene.api.kubectl.get("tenant", &format!("{NETWORKS}/other"))?;
    assert_eq!(other["spec"]["config"], "{\"type\": \"bridge\"}");
    Ok(())
}

#[test]
fn of_two_pools_with_one_resource_name_the_older_keeps_it_until_it_goes() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("first", &json!({"resourceName": "dp"}))?;
    scene.says("first", "Accepted", "True", "Valid")?;
    scene.pool("another", &json!({"resourceName": "dp", "resourcePrefix": "example.com"}))?;
    let message = scene.says("another", "Accepted", "False", "ResourceNameConflict")?;
    ensure!(message.contains("pool first"), "{message}");
    scene.says("another", "Ready", "False", "NotAccepted")?;
    scene.told("n1", &[("first", "Active")])?;
    let event = format!("involvedObject.name={},reason=ResourceNameConflict", "another");
    e2e::wait::until("an event", DEADLINE, || {
        let events =
            scene.api.kubectl.run(&["get", "events", "-A", "--field-selector", &event, "-o", "name"])?;
        Ok((!events.trim().is_empty()).then_some(()))
    })?;
    scene.api.kubectl.run(&["delete", "mrp", "first"])?;
    scene.says("another", "Accepted", "True", "Valid")?;
    scene.told("n1", &[("another", "Active")])
}

#[test]
fn networks_follow_namespaces_are_repaired_and_never_take_what_is_not_ours() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.namespace("a", &json!({"macvtap": "yes"}))?;
    scene.namespace("b", &json!({}))?;
    scene.pool("dp", &network("net", &json!({"selector": {"matchLabels": {"macvtap": "yes"}}})))?;
    scene.network("a", "net")?;
    scene.namespace("b", &json!({"macvtap": "yes"}))?;
    scene.network("b", "net")?;
    scene.namespace("b", &json!({"macvtap": "no"}))?;
    scene.gone("b", &format!("{NETWORKS}/net"))?;

    let edit = r#"{"spec": {"config": "{}"}}"#;
    scene.api.kubectl.run(&["-n", "a", "patch", NETWORKS, "net", "--type=merge", "-p", edit])?;
    scene.api.kubectl.wait_until("a", &format!("{NETWORKS}/net"), DEADLINE, |network| {
        network["spec"]["config"].as_str()?.contains("macvtap").then_some(())
    })?;
    scene.api.kubectl.run(&["-n", "a", "delete", NETWORKS, "net"])?;
    scene.network("a", "net")?;

    scene.api.replace(&foreign("b", "net"))?;
    scene.namespace("b", &json!({"macvtap": "yes"}))?;
    let message = scene.says("dp", "NetworksReady", "False", "NADConflict")?;
    ensure!(message.contains("b/net"), "{message}");
    let config = scene.api.kubectl.get("b", &format!("{NETWORKS}/net"))?["spec"]["config"].clone();
    assert_eq!(config, "{\"type\": \"bridge\"}");
    scene.api.kubectl.run(&["delete", "mrp", "dp"])?;
    scene.gone("a", &format!("{NETWORKS}/net"))?;
    scene.api.kubectl.get("b", &format!("{NETWORKS}/net")).context("the foreign network is gone")?;
    Ok(())
}

#[test]
fn a_cluster_without_multus_says_so_until_it_is_installed() -> Result<()> {
    let scene = Scene::new(&["n1"], false)?;
    scene.pool("dp", &network("net", &json!({"names": ["default", "missing"]})))?;
    scene.says("dp", "NetworksReady", "False", "NADKindMissing")?;
    scene.told("n1", &[("dp", "Active")])?;
    scene.api.kubectl.apply(MULTUS_KIND)?;
    scene.api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", NETWORKS])?;
    // The watch looks again with growing pauses of up to half a minute.
    let network = format!("{NETWORKS}/net");
    scene.api.kubectl.wait_until("default", &network, Duration::from_mins(1), |_| Some(()))?;
    let message = scene.says("dp", "NetworksReady", "False", "NamespaceNotFound")?;
    ensure!(message.contains("missing"), "{message}");
    scene.namespace("missing", &json!({}))?;
    scene.network("missing", "net")?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    Ok(())
}

#[test]
fn nodes_come_change_and_go() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    scene.pool("zoned", &json!({"nodeSelector": {"matchLabels": {"zone": "a"}}}))?;
    scene.pool("everywhere", &json!({"priority": 5, "resourceName": "e"}))?;
    scene.told("n1", &[("everywhere", "Active")])?;
    scene.node("n2", &json!({"zone": "a"}))?;
    scene.told("n2", &[("everywhere", "Active"), ("zoned", "Active")])?;
    scene.answer("n2", 1)?;
    scene.says("zoned", "Ready", "True", "AllNodesReady")?;
    scene.node("n2", &json!({"zone": "b"}))?;
    scene.told("n2", &[("everywhere", "Active"), ("zoned", "Draining")])?;
    scene.says("zoned", "Ready", "False", "NoMatchingNodes")?;
    scene.answer("n2", 0)?;
    scene.told("n2", &[("everywhere", "Active")])?;
    scene.api.kubectl.run(&["delete", "mns", "n1"])?;
    scene.told("n1", &[("everywhere", "Active")]).context("a deleted node state comes back")
}

#[test]
fn at_rest_and_after_a_restart_nothing_is_written() -> Result<()> {
    let mut scene = Scene::new(&["n1", "n2"], true)?;
    scene.pool("dp", &network("net", &json!({"names": ["default"]})))?;
    scene.told("n1", &[("dp", "Active")])?;
    scene.told("n2", &[("dp", "Active")])?;
    scene.answer("n1", 1)?;
    scene.answer("n2", 1)?;
    scene.ready_nodes("dp", "2/2")?;
    scene.says("dp", "Ready", "True", "AllNodesReady")?;
    scene.says("dp", "NetworksReady", "True", "AllNetworksReady")?;
    let before = scene.versions()?;
    let operator = scene.operator.take().context("no operator")?;
    assert_eq!(operator.terminate()?, Some(0), "an operator that is asked to end ends well");
    scene.start()?;
    // The new operator has looked at everything once it has served a pool that was made after its start.
    scene.pool("probe", &json!({"nodeSelector": {"matchLabels": {"none": "such"}}}))?;
    scene.says("probe", "Ready", "False", "NoMatchingNodes")?;
    scene.api.kubectl.run(&["delete", "mrp", "probe"])?;
    assert_eq!(scene.versions()?, before);
    Ok(())
}

#[test]
fn a_pool_that_cannot_be_read_stops_nobody() -> Result<()> {
    let scene = Scene::new(&["n1"], true)?;
    // What an older version of the kind let in, or a newer one knows: the schema is out of the way while it is made.
    let unknown = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    let crd = "macvtapresourcepools.macvtap.network.kubevirt.io";
    scene.api.kubectl.run(&["patch", "crd", crd, "--type=json", "-p", unknown])?;
    e2e::wait::until("the loose schema", DEADLINE, || {
        scene.pool("strange", &json!({"macvtap": {"mode": "Teleport"}})).map(Some)
    })?;
    scene.pool("sound", &json!({}))?;
    scene.told("n1", &[("sound", "Active")])?;
    scene.says("sound", "Accepted", "True", "Valid")?;
    let log = scene.operator.as_ref().map(Program::log).unwrap_or_default();
    ensure!(log.contains("pool cannot be read") && log.contains("strange"), "{log}");
    Ok(())
}
