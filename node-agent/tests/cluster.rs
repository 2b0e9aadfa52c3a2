//! The agent and a real API server: its node state is what it serves, and where it reports.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, its helpers too")]

#[cfg(test)]
mod support;

use e2e::layout::Checkout;
use e2e::{ApiServer, Kubectl};
use macvtap::netns::Netns;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::attachments::lost;
use support::kubelet::{Kubelet, await_true};
use support::{Agent, DEADLINE, Node, is_root, metric};

const NODE: &str = "n1";

/// A node, a kubelet, and an API server on the node's loopback address.
struct Scene {
    kubectl: Kubectl,
    // Ends before the node does.
    server: Option<ApiServer>,
    kubelet: Kubelet,
    node: Node,
}

impl Scene {
    fn new() -> Self {
        let node = Node::new();
        node.add_link("dp0");
        let kubelet = Kubelet::start(&node);
        let server = inside(&node, || ApiServer::start().unwrap());
        let scene = Self { kubectl: server.kubectl().clone(), server: Some(server), kubelet, node };
        let crds = Checkout::here().path("crds/yaml").to_string_lossy().into_owned();
        scene.kubectl(&["apply", "--server-side", "-f", &crds]);
        scene.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", &crds]);
        scene
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        inside(&self.node, || self.kubectl.run(arguments).unwrap())
    }

    /// Writes the node's spec, as the operator does.
    fn tell(&self, hash: &str, pools: &[Value]) {
        let state = json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1",
            "kind": "MacvtapNodeState",
            "metadata": {"name": NODE},
            "spec": {"configHash": hash, "pools": pools},
        });
        inside(&self.node, || self.kubectl.apply(&state.to_string()).unwrap());
    }

    fn status(&self) -> Value {
        let state = inside(&self.node, || self.kubectl.get("", &format!("mns/{NODE}")).unwrap());
        state["status"].clone()
    }

    /// Waits until the status is as wanted.
    fn await_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "not in {DEADLINE:?}: {what}: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A pod that an ADD served once, and whose link is nowhere.
    fn lose(&self, pod: &str, slot: u32) {
        let device = format!("dataplaneMvp{slot}");
        self.node.record(&lost(&device, pod));
        self.kubelet.add_pod(pod, &device);
    }

    fn record(&self, slot: u32) -> PathBuf {
        self.node.path(&format!("/run/macvtap/attachments/dataplaneMvp{slot}"))
    }

    /// Name of the object and reason of every Event there is.
    fn events(&self) -> Vec<(String, String)> {
        let events: Value =
            serde_json::from_str(&self.kubectl(&["get", "events", "-A", "-o", "json"])).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = events["items"].as_array().unwrap().iter();
        events.map(|event| (text(&event["involvedObject"]["name"]), text(&event["reason"]))).collect()
    }

    fn command(&self) -> Command {
        let mut command = self.node.agent_command();
        command.env("KUBECONFIG", self.kubectl.kubeconfig()).args(["--node-name", NODE]);
        command
    }

    fn agent(&self) -> Agent {
        Agent::start(self.command())
    }
}

fn inside<T: Send>(node: &Node, work: impl FnOnce() -> T + Send) -> T {
    Netns::open(&node.netns()).unwrap().enter(work).unwrap()
}

fn pool(name: &str, fields: &Value) -> Value {
    let mut pool = json!({
        "name": name, "uid": "u", "generation": 3, "phase": "Active", "resourceName": name,
        "links": [{"names": ["dp0"]}], "capacity": {"perLink": 20},
    });
    pool.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    pool
}

/// Status and reason of a condition. A normal one is left out of a node state.
fn condition<'s>(entry: &'s Value, kind: &str) -> (&'s str, &'s str) {
    let conditions = entry["conditions"].as_array().into_iter().flatten();
    let mut conditions = conditions.filter(|condition| condition["type"] == kind);
    match conditions.next() {
        Some(found) => (found["status"].as_str().unwrap(), found["reason"].as_str().unwrap()),
        None => (if kind == "Ready" { "True" } else { "False" }, "AsExpected"),
    }
}

fn count(events: &[(String, String)], object: &str, reason: &str) -> usize {
    events.iter().filter(|(name, why)| name == object && why == reason).count()
}

#[test]
fn pools_that_a_state_shares_are_served_also_while_they_are_missing_and_the_agent_starts_again() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let pools = json!([pool("dataplane", &json!({}))]);
    let name = macvtap_crds::v1alpha1::nodeconfig::name_of(&pools);
    let object = |kind: &str, name: &str, spec: &Value| {
        let version = "macvtap.network.kubevirt.io/v1alpha1";
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec});
        inside(&scene.node, || scene.kubectl.apply(&object.to_string()).unwrap());
    };
    let share = || object("MacvtapNodeConfig", &name, &json!({"pools": pools}));
    share();
    object("MacvtapNodeState", NODE, &json!({"configHash": "h1", "config": name}));
    let agent = scene.agent();
    scene.kubelet.await_healthy("dataplane", 20);
    let is_well = |status: &Value| status["observedHash"] == "h1" && condition(status, "Ready").0 == "True";
    scene.await_status("the pool is ready", is_well);
    drop(agent);
    scene.kubectl(&["delete", "mnc", &name]);
    let _agent = scene.agent();
    scene.kubelet.await_healthy("dataplane", 20);
    let status = scene.await_status("the agent reports what is missing", |status| {
        condition(status, "Ready") == ("False", "SpecNotReadable")
    });
    let message = status["conditions"].to_string();
    assert!(message.contains(&name) && message.contains("does not exist"), "{message}");
    share();
    scene.await_status("the agent reads it", is_well);
}

#[test]
fn what_the_operator_writes_is_served_and_reported() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    let begun = Instant::now();
    let agent = scene.agent();
    let plugin = scene.kubelet.await_healthy("dataplane", 20);
    println!("exec to registration with the API: {:?}", plugin.registered_at - begun);
    assert!(!plugin.options.pre_start_required, "tap-only pods are forbidden in pools that say nothing");
    let status = scene.await_status("the pool is ready", |status| {
        status["observedHash"] == "h1"
            && status["pools"][0]["allocatable"] == 20
            && condition(status, "Ready").0 == "True"
    });
    assert_eq!(condition(&status, "Ready"), ("True", "AsExpected"));
    assert_eq!(
        status["pools"][0].get("conditions"),
        None,
        "a pool that is well says no more than its numbers"
    );
    assert!(status["observedGeneration"].as_i64() == Some(1), "{status:#}");
    assert_eq!(status["totals"]["pools"], "1/1");
    let link = status["links"].as_array().unwrap().iter().find(|link| link["name"] == "dp0").unwrap();
    assert_eq!((&link["kind"], &link["pools"]), (&json!("Veth"), &json!(["dataplane"])));
    let table = scene.kubectl(&["get", "mns", NODE, "--no-headers"]);
    assert!(table.contains("1/1") && table.contains("True"), "{table}");

    scene.tell("h1000", &[pool("dataplane", &json!({"capacity": {"perLink": 1000}}))]);
    scene.kubelet.await_healthy("dataplane", 1000);
    scene.await_status("a thousand devices are told", |status| status["observedHash"] == "h1000");
    println!(
        "with 1,000 devices: RssAnon {} KiB, VmRSS {} KiB",
        agent.memory("RssAnon"),
        agent.memory("VmRSS")
    );

    // Two pools want the link, and one asks for what is not there.
    scene.tell(
        "h2",
        &[
            pool("dataplane", &json!({"generation": 4, "capacity": {"perLink": 30}})),
            pool("late", &json!({})),
            pool("nowhere", &json!({"links": [{"names": ["nolink*"]}]})),
        ],
    );
    scene.kubelet.await_healthy("dataplane", 30);
    scene.kubelet.await_healthy("late", 0);
    let status = scene.await_status("all three are told", |status| status["observedHash"] == "h2");
    let [first, late, nowhere] = [0, 1, 2].map(|index| &status["pools"][index]);
    assert_eq!((&first["generation"], &first["contenders"]), (&json!(4), &json!(["late"])));
    assert_eq!(
        (condition(late, "Ready"), &late["contestedLinks"]),
        (("False", "NoMatchingLink"), &json!(["dp0"]))
    );
    assert_eq!(condition(nowhere, "Ready"), ("False", "NoMatchingLink"));
    assert_eq!(condition(&status, "Ready"), ("False", "PoolsNotReady"));
    await_true("the node's events tell it", || {
        let events = scene.kubectl(&["get", "events", "-A"]);
        events.contains("Warning") && events.contains("NoMatchingLink") && events.contains("node/n1")
    });
}

#[test]
fn a_pool_that_drains_keeps_what_is_in_use_and_goes_when_it_is_free() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    // Known by the kubelet's list alone, so that the pod's end is known by it too.
    scene.kubelet.add_pod("vm", "dataplaneMvp3");
    let _agent = scene.agent();
    scene.kubelet.await_healthy("dataplane", 20);
    await_true("the pod is known", || {
        metric(&scene.node, r#"macvtap_devices{resource="dataplane",state="allocated"}"#) == Some(1)
    });
    scene.tell("h2", &[pool("dataplane", &json!({"phase": "Draining"}))]);
    scene.kubelet.await_healthy("dataplane", 1);
    scene.await_status("it drains", |status| {
        status["observedHash"] == "h2" && condition(&status["pools"][0], "Ready") == ("False", "Draining")
    });
    scene.kubelet.remove_pods();
    scene.kubelet.await_healthy("dataplane", 0);
}

#[test]
fn an_agent_that_starts_while_the_api_server_is_down_serves_what_it_served_last() {
    if !is_root() {
        return;
    }
    let mut scene = Scene::new();
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    let mut agent = scene.agent();
    let before = scene.kubelet.await_healthy("dataplane", 20).endpoint;
    scene.await_status("it reports", |status| status["observedHash"] == "h1");
    agent.terminate();
    drop(scene.server.take());
    let begun = Instant::now();
    let agent = scene.agent();
    let plugin = scene
        .kubelet
        .await_plugin("dataplane", |plugin| plugin.endpoint != before && plugin.healthy() == Some(20));
    println!("exec to registration without the API: {:?}", plugin.registered_at - begun);
    await_true("it is ready", || {
        scene.node.agent_command().arg("probe").output().is_ok_and(|output| output.status.success())
    });
    assert!(agent.worker().is_some());
}

#[test]
fn a_node_state_that_comes_late_or_comes_again_is_reported_to_and_takes_nothing_while_it_is_away() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let agent = scene.agent();
    await_true("it waits", || agent.log().contains("configuration applied"));
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    scene.kubelet.await_healthy("dataplane", 20);
    scene.await_status("the first is reported to", |status| status["observedHash"] == "h1");
    scene.kubectl(&["delete", "mns", NODE]);
    await_true("the deletion is noticed", || agent.log().contains("node state deleted"));
    scene.kubelet.await_healthy("dataplane", 20);
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    scene.await_status("the second is reported to", |status| status["observedHash"] == "h1");
}

#[test]
fn a_link_that_vanished_under_a_pod_is_counted_and_told_on_the_pod_and_on_the_node() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    let agent = scene.agent();
    scene.kubelet.await_healthy("dataplane", 20);
    scene.lose("vm", 3);
    let status = scene.await_status("the dead device is counted", |status| status["totals"]["dead"] == 1);
    assert_eq!(condition(&status["pools"][0], "Degraded"), ("True", "DevicesDead"));
    assert_eq!(status["pools"][0]["dead"], 1);
    await_true("pod and node have an Event", || {
        let events = scene.events();
        count(&events, "vm", "LinkLost") == 1 && count(&events, NODE, "DevicesDead") == 1
    });
    await_true("it is in the log", || agent.log().contains("link lost under a pod"));
    assert!(scene.record(3).exists(), "the record guards the tap's number");
    await_true("it is in the metrics", || {
        metric(&scene.node, r#"macvtap_devices{resource="dataplane",state="dead"}"#) == Some(1)
    });
}

#[test]
fn a_loss_is_announced_once_also_by_an_agent_that_starts_later() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    scene.tell("h1", &[pool("dataplane", &json!({}))]);
    let mut agent = scene.agent();
    scene.kubelet.await_healthy("dataplane", 20);
    scene.lose("vm", 3);
    await_true("the loss is announced", || {
        let events = scene.events();
        count(&events, "vm", "LinkLost") == 1 && count(&events, NODE, "DevicesDead") == 1
    });
    agent.terminate();
    let _agent = scene.agent();
    scene.await_status("the agent is back", |status| {
        status["totals"]["dead"] == 1 && condition(&status["pools"][0], "Ready").0 == "True"
    });
    // What the new agent announces comes after what it would announce again.
    scene.lose("next", 4);
    scene.tell(
        "h2",
        &[pool("dataplane", &json!({})), pool("nowhere", &json!({"links": [{"names": ["no"]}]}))],
    );
    await_true("what is new is announced", || {
        let events = scene.events();
        count(&events, "next", "LinkLost") == 1 && count(&events, NODE, "NoMatchingLink") > 0
    });
    let events = scene.events();
    assert_eq!((count(&events, "vm", "LinkLost"), count(&events, NODE, "DevicesDead")), (1, 1), "{events:?}");
    assert_eq!(count(&events, NODE, "AsExpected"), 0, "nothing was well meanwhile: {events:?}");
}
