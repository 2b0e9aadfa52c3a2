//! Whatever happened, in whatever order: in the end everything is as an operator would make it that sees the cluster
//! for the first time, and nobody writes any more.
//!
//! The events are random and can be had again: `CONVERGE_SEED=<number>` repeats a sequence that failed.

#![allow(clippy::print_stdout, reason = "the seed and what happened belong in the test's output")]

mod api;
#[path = "api/outcome.rs"]
mod outcome;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use api::{Api, Program};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How many events a sequence has.
const EVENTS: usize = 100;

/// How long it may take until everything is quiet, on a busy machine.
const DEADLINE: Duration = Duration::from_mins(3);

/// For how long nothing may be written until that counts as quiet: longer than anything waits for its turn, and than a
/// killed operator keeps its lease (15 s).
const QUIET: Duration = Duration::from_secs(18);

const NETWORKS: &str = "network-attachment-definitions.k8s.cni.cncf.io";
const NETWORK_KIND: &str = include_str!("api/network-kind.yaml");
const POOL_LABEL: &str = "macvtap.network.kubevirt.io/pool";

/// Random objects and edits.
#[derive(Debug)]
struct Random(outcome::Random);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.below(limit)
    }

    fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        self.0.one_of(words)
    }

    fn node(&mut self) -> String {
        format!("node-{}", self.below(5))
    }

    fn pool(&mut self) -> String {
        format!("pool-{}", self.below(5))
    }

    fn namespace(&mut self) -> String {
        format!("space-{}", self.below(4))
    }

    fn network(&mut self) -> String {
        format!("net-pool-{}", self.below(5))
    }

    fn labels(&mut self) -> Value {
        json!({"zone": self.one_of(&["a", "b"]), "macvtap": self.one_of(&["yes", "yes", "no"])})
    }

    fn zones(&mut self) -> Value {
        match self.below(3) {
            0 => json!({"matchLabels": {"zone": "a"}}),
            1 => json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}),
            _ => Value::Null,
        }
    }

    fn namespaces(&mut self) -> Value {
        match self.below(3) {
            0 => {
                let names = BTreeSet::from([self.namespace(), self.namespace()]);
                json!({"names": names})
            }
            1 => json!({"selector": {"matchLabels": {"macvtap": "yes"}}}),
            _ => json!({"names": [self.namespace()], "selector": {"matchLabels": {"zone": "b"}}}),
        }
    }

    /// What can be edited in a pool, all of it; null takes a field away.
    fn pool_spec(&mut self, name: &str) -> Value {
        let network = json!({"name": format!("net-{name}"), "namespaces": self.namespaces()});
        json!({
            "links": [{"names": ["dp0"]}],
            "priority": self.below(3),
            "nodeSelector": self.zones(),
            "advertisement": self.one_of(&["Enabled", "Enabled", "Enabled", "DryRun"]),
            "macvtap": {"mtu": 1400 + self.below(3) * 50},
            "networks": if self.below(4) == 0 { Value::Null } else { json!([network]) },
        })
    }
}

/// A cluster of objects, its agents and the operator.
struct World {
    // Ends before the server does.
    operator: Option<Program>,
    api: Api,
    random: Random,
}

impl World {
    fn new(seed: u64) -> Result<Self> {
        let api = Api::with_controllers()?;
        api.kubectl.apply(NETWORK_KIND)?;
        api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", NETWORKS])?;
        let mut world = Self { operator: None, api, random: Random(outcome::Random(seed)) };
        for number in 0..3 {
            for (kind, name) in [("Node", "node"), ("Namespace", "space")] {
                let metadata = json!({"name": format!("{name}-{number}"), "labels": world.random.labels()});
                world.api.replace(&json!({"apiVersion": "v1", "kind": kind, "metadata": metadata}))?;
            }
        }
        world.start()?;
        Ok(world)
    }

    fn start(&mut self) -> Result<()> {
        let args = ["--listen", "127.0.0.1:0"];
        self.operator = Some(Program::start("macvtap-operator", &args, self.api.kubectl.kubeconfig())?);
        Ok(())
    }

    /// One event. That it was refused, for the object is not there or there already, is not an error.
    fn event(&mut self) -> String {
        let (what, done) = match self.random.below(20) {
            0..=3 => self.node_event(),
            4..=9 => self.pool_event(),
            10..=12 => self.namespace_event(),
            13..=15 => self.network_event(),
            16 => ("kill the operator".to_owned(), self.restart()),
            _ => {
                let (node, allocated) = (self.random.node(), self.random.below(3));
                let done = self.state(&node).and_then(|state| self.answer(&state, u32::try_from(allocated)?));
                (format!("answer of {node} with {allocated}"), done)
            }
        };
        let outcome = match done {
            Ok(()) => "done".to_owned(),
            Err(error) => {
                let error = format!("{error:#}");
                error.rsplit("Error from server ").next().unwrap_or(&error).trim_end().to_owned()
            }
        };
        format!("{what}: {outcome}")
    }

    fn node_event(&mut self) -> (String, Result<()>) {
        let node = self.random.node();
        if self.random.below(4) == 0 {
            return (format!("delete {node}"), self.kubectl(&["delete", "node", &node, "--wait=false"]));
        }
        let metadata = json!({"name": node, "labels": self.random.labels()});
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
        (format!("label {node}"), self.api.replace(&object))
    }

    fn pool_event(&mut self) -> (String, Result<()>) {
        let pool = self.random.pool();
        if self.random.below(5) == 0 {
            return (format!("delete {pool}"), self.kubectl(&["delete", "mrp", &pool, "--wait=false"]));
        }
        let mut spec = self.random.pool_spec(&pool);
        let patch = json!({"spec": spec}).to_string();
        let patched = self.kubectl(&["patch", "mrp", &pool, "--type=merge", "-p", &patch]);
        if patched.is_ok() {
            return (format!("edit {pool}"), patched);
        }
        // Immutable, so only now; several pools want one name.
        spec["resourceName"] = json!(format!("resource-{}", self.random.below(4)));
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        let object = json!({
            "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
            "metadata": {"name": pool}, "spec": spec,
        });
        (format!("make {pool}"), self.api.replace(&object))
    }

    fn namespace_event(&mut self) -> (String, Result<()>) {
        let namespace = self.random.namespace();
        if self.random.below(4) == 0 {
            let done = self.kubectl(&["delete", "namespace", &namespace, "--wait=false"]);
            return (format!("delete {namespace}"), done);
        }
        let metadata = json!({"name": namespace, "labels": self.random.labels()});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        (format!("label {namespace}"), self.api.replace(&object))
    }

    fn network_event(&mut self) -> (String, Result<()>) {
        let (namespace, network) = (self.random.namespace(), self.random.network());
        let space = ["-n", &namespace];
        let name = format!("{namespace}/{network}");
        match self.random.below(4) {
            0 => {
                let words = ["delete", NETWORKS, &network];
                (format!("delete {name}"), self.kubectl(&[&space[..], &words].concat()))
            }
            1 => {
                let words = ["label", NETWORKS, &network, &format!("{POOL_LABEL}-")];
                (format!("take our label from {name}"), self.kubectl(&[&space[..], &words].concat()))
            }
            2 => {
                let edit = json!({"spec": {"config": "{}"}}).to_string();
                let words = ["patch", NETWORKS, &network, "--type=merge", "-p", &edit];
                (format!("edit {name}"), self.kubectl(&[&space[..], &words].concat()))
            }
            _ => {
                let object = json!({
                    "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                    "metadata": {"name": network, "namespace": namespace},
                    "spec": {"config": "{\"type\": \"bridge\"}"},
                });
                (format!("foreign {name}"), self.api.create(&object))
            }
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.operator = None;
        self.start()
    }

    fn kubectl(&self, words: &[&str]) -> Result<()> {
        self.api.kubectl.run(words).map(drop)
    }

    fn state(&self, node: &str) -> Result<Value> {
        self.api.kubectl.get("", &format!("mns/{node}"))
    }

    /// Answers for an agent: what the node was told is applied, and so many devices of each pool are in use.
    fn answer(&self, state: &Value, allocated: u32) -> Result<()> {
        let status = scene::answered(state, allocated, &scene::condition("Ready", "True", "Serving"));
        let name = state["metadata"]["name"].as_str().context("a state without name")?;
        self.api.patch_status(&format!("mns/{name}"), &status)
    }

    /// Has every agent answer, with no device in use, until nobody writes any more.
    fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        let (mut seen, mut since) = (String::new(), Instant::now());
        loop {
            for state in outcome::list(&self.api, "mns")? {
                let status = &state["status"];
                let applied = status["observedHash"] == state["spec"]["configHash"];
                let free = status["pools"]
                    .as_array()
                    .is_some_and(|pools| pools.iter().all(|pool| pool["allocated"] == 0));
                if !(applied && free) {
                    // The node may just have gone.
                    let _ = self.answer(&state, 0);
                }
            }
            let now = self.versions()?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= QUIET && self.complete()? {
                return Ok(());
            }
            ensure!(begun.elapsed() < DEADLINE, "not quiet, or not complete, after {DEADLINE:?}: {seen}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Whether nothing is on its way out, and every node has a state.
    fn complete(&self) -> Result<bool> {
        let names = |objects: &[Value]| -> Vec<String> {
            objects
                .iter()
                .filter_map(|object| Some(object["metadata"]["name"].as_str()?.to_owned()))
                .collect()
        };
        let (nodes, states, pools) = (
            outcome::list(&self.api, "nodes")?,
            outcome::list(&self.api, "mns")?,
            outcome::list(&self.api, "mrp")?,
        );
        let namespaces = outcome::list(&self.api, "namespaces")?;
        let ending = |object: &Value| object["metadata"].get("deletionTimestamp").is_some();
        Ok(names(&nodes) == names(&states) && !pools.iter().chain(&namespaces).any(ending))
    }

    fn versions(&self) -> Result<String> {
        let format = "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}";
        self.api.kubectl.run(&["get", "mrp,mns,net-attach-def", "-A", "-o", format])
    }
}

#[test]
fn whatever_happened_everything_ends_as_a_fresh_operator_would_make_it() -> Result<()> {
    let given = std::env::var("CONVERGE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("CONVERGE_SEED={seed}");
    let mut world = World::new(seed)?;
    let mut refused = 0;
    for number in 0..EVENTS {
        let event = world.event();
        refused += usize::from(!event.ends_with(": done"));
        println!("{number:3} {event}");
    }
    ensure!(refused < EVENTS / 2, "{refused} of {EVENTS} events changed nothing: the sequence proves little");
    world.settle().context("after the events")?;
    let converged = outcome::outcome(&world.api)?;
    println!("{} objects, {refused} of {EVENTS} events refused", converged.len());

    world.operator = None;
    world.kubectl(&["delete", "mns", "--all"])?;
    world.kubectl(&["delete", NETWORKS, "-A", "-l", POOL_LABEL])?;
    world.start()?;
    world.settle().context("a fresh operator")?;
    let fresh = outcome::outcome(&world.api)?;
    for (name, wanted) in &fresh {
        let found = converged.get(name);
        ensure!(
            found == Some(wanted),
            "{name}: a fresh operator makes {wanted}, the sequence ended with {found:?}"
        );
    }
    ensure!(fresh.len() == converged.len(), "left over: {:?}", converged.keys().collect::<Vec<_>>());

    let before = world.versions()?;
    world.restart()?;
    // The new operator has looked at everything once it has served a pool that was made after its start.
    let spec = json!({"links": [{"names": ["dp0"]}], "nodeSelector": {"matchLabels": {"none": "such"}}});
    world.api.replace(&json!({
        "apiVersion": "macvtap.network.kubevirt.io/v1alpha1", "kind": "MacvtapResourcePool",
        "metadata": {"name": "probe"}, "spec": spec,
    }))?;
    world.api.kubectl.wait_for("", "mrp/probe", "condition=Accepted", DEADLINE)?;
    world.kubectl(&["delete", "mrp", "probe", "--wait", "--timeout=60s"])?;
    ensure!(world.versions()? == before, "a restart wrote: {before} became {}", world.versions()?);
    Ok(())
}
