//! An operator whose connections to the API server are delayed, throttled and cut while pools, nodes and namespaces
//! change.
//!
//! The events are random and can be had again: `UNSTEADY_SEED=<number>` repeats a sequence that failed.

#![allow(clippy::print_stdout, reason = "the seed and what happened belong in the test's output")]

mod api;
#[path = "api/direct.rs"]
mod direct;
#[path = "api/outcome.rs"]
mod outcome;
#[path = "api/relay.rs"]
mod relay;
#[path = "api/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, ensure};
use api::{Api, Program};
use direct::Direct;
use e2e::wait::{self, Hopeless};
use outcome::Random;
use relay::{Fault, Relay};
use scene::{MULTUS_KIND, NETWORKS, Scene, answered, condition, foreign, network};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How many events a sequence has.
const EVENTS: u64 = 12;

/// How long the agents answer between two events.
const BETWEEN: Duration = Duration::from_millis(700);

/// How often they do.
const TICK: Duration = Duration::from_millis(50);

/// How many nodes there are.
const NODES: u64 = 5;

/// How long everything may take to be as it should be once the connections are good again: a watch that was cut often
/// waits for half a minute.
const DEADLINE: Duration = Duration::from_secs(90);

/// For how long nothing may change until that counts as the end.
const QUIET: Duration = Duration::from_secs(2);

/// For how long a pool with a device in use is watched once its nodes drain it: longer than any watch and write are late
/// together.
const HELD: Duration = Duration::from_secs(11);

const STAGED: &str = "staged";
const PLAIN: &str = "plain";
const POOL_LABEL: &str = "macvtap.network.kubevirt.io/pool";

struct Storm {
    scene: Scene,
    direct: Direct,
    relay: Relay,
    random: Random,
    cuts: u32,
    edits: u64,
    /// How many devices of each pool are in use on the first node.
    in_use: u32,
    /// Whether node states name what has their pools.
    shares: bool,
}

impl Storm {
    fn new(seed: u64, shares: bool) -> Result<Self> {
        let api = Api::own()?;
        api.kubectl.apply(MULTUS_KIND)?;
        api.kubectl.run(&["wait", "--for=condition=Established", "--timeout=30s", "crd", NETWORKS])?;
        let config = api.kubectl.run(&["config", "view", "--raw", "--flatten", "-o", "json"])?;
        let mut config: Value = serde_json::from_str(&config)?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?;
        let relay = Relay::new(server.rsplit(':').next().context("no port")?.parse()?)?;
        config["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{}", relay.port));
        let far = api.kubectl.kubeconfig().with_file_name("far");
        std::fs::create_dir_all(&far)?;
        std::fs::write(far.join("kubeconfig"), config.to_string())?;
        let direct = Direct::new(api.kubectl.kubeconfig())?;
        let mut storm = Self {
            direct,
            scene: Scene { operator: None, api },
            relay,
            random: Random(seed),
            cuts: 0,
            edits: 0,
            in_use: 0,
            shares,
        };
        (0..NODES).try_for_each(|number| storm.scene.node(&format!("n{number}"), &json!({"zone": "a"})))?;
        storm.scene.api.create(&foreign("default", "net-plain"))?;
        storm.pools()?;
        storm.start()?;
        Ok(storm)
    }

    fn start(&mut self) -> Result<()> {
        let far = self.scene.api.kubectl.kubeconfig().with_file_name("far").join("kubeconfig");
        let from = if self.shares { "1" } else { "0" };
        let args = ["--listen", "127.0.0.1:0", "--namespace", "default", "--share-configs-from", from];
        self.scene.operator = Some(Program::start("macvtap-operator", &args, &far)?);
        Ok(())
    }

    /// Writes both pools, each time with an MTU that they never had.
    fn pools(&mut self) -> Result<()> {
        self.edit(STAGED)?;
        self.edit(PLAIN)
    }

    fn edit(&mut self, pool: &str) -> Result<()> {
        self.edits += 1;
        let zone = self.random.one_of(&["a", "b"]);
        let mut spec = network(&format!("net-{pool}"), &json!({"selector": {"matchLabels": {"zone": zone}}}));
        if pool == PLAIN {
            // Where the name belongs to somebody else.
            spec["networks"][0]["namespaces"]["names"] = json!(["default"]);
        } else {
            spec["rollout"] = json!({"type": "Staged", "staged": {"batch": 1, "maxDegraded": 0}});
        }
        spec["macvtap"] = json!({"mtu": 1400 + self.edits});
        self.scene.pool(pool, &spec)
    }

    fn happen(&mut self) -> Result<String> {
        let fault = match self.random.below(8) {
            0 if self.cuts < 3 => {
                self.cuts += 1;
                Fault::Cut
            }
            0 | 1 => Fault::Delay(Duration::from_millis(100 + self.random.below(900))),
            2 | 3 => Fault::Throttle(20_000 + u32::try_from(self.random.below(200_000))?),
            4 | 5 => self.behind()?,
            _ => Fault::None,
        };
        self.relay.set(fault);
        let number = self.random.below(NODES);
        let zone = json!({"zone": self.random.one_of(&["a", "b"])});
        let what = match self.random.below(6) {
            0 | 1 => self.edit(STAGED).map(|()| "edit the staged pool".to_owned()),
            2 | 3 => self.edit(PLAIN).map(|()| "edit the other pool".to_owned()),
            4 => self.scene.node(&format!("n{number}"), &zone).map(|()| format!("label n{number} {zone}")),
            _ => {
                let name = format!("space-{}", number % 3);
                self.scene.namespace(&name, &zone).map(|()| format!("label {name} {zone}"))
            }
        };
        Ok(format!("{fault:?}, {}", what?))
    }

    /// Some watches seconds behind the others.
    fn behind(&mut self) -> Result<Fault> {
        let late = Duration::from_millis(2000 + self.random.below(3000));
        Ok(Fault::Behind(late, u32::try_from(self.random.below(4))?))
    }

    /// Deletes a pool with devices in use: it stays until they are free.
    fn drain(&mut self) -> Result<()> {
        self.in_use = 1;
        self.occupy()?;
        let fault = self.behind()?;
        println!("drain, {fault:?}");
        self.relay.set(fault);
        self.scene.api.kubectl.run(&["delete", "mrp", PLAIN, "--wait=false"])?;
        // Only what the agents answer to the drain can be taken for its end.
        self.answer_until("n0 to drain the pool", |storm| {
            ensure!(storm.has_plain()?, "the pool was released with a device in use");
            let states = storm.direct.states()?;
            let pools = states.iter().filter(|state| state["metadata"]["name"] == "n0");
            let mut pools = pools.flat_map(|state| state["spec"]["pools"].as_array().into_iter().flatten());
            Ok(pools.any(|pool| pool["name"] == PLAIN && pool["phase"] == "Draining"))
        })?;
        self.answer_for(HELD, |storm| {
            ensure!(storm.has_plain()?, "the pool was released with a device in use");
            Ok(())
        })?;
        self.in_use = 0;
        self.occupy()?;
        self.relay.set(Fault::None);
        self.answer_until("the drained pool to go", |storm| storm.has_plain().map(|exists| !exists))
    }

    /// Whether the pool that is drained exists, with its network.
    fn has_plain(&self) -> Result<bool> {
        let pools = self.direct.pools()?;
        let exists = pools.iter().any(|pool| pool["metadata"]["name"] == PLAIN);
        let states = self.direct.states()?;
        let n0 = states.iter().find(|state| state["metadata"]["name"] == "n0").context("n0 has no state")?;
        let entries = n0["spec"]["pools"].as_array().into_iter().flatten();
        let is_held = entries.into_iter().any(|entry| entry["name"] == PLAIN);
        ensure!(is_held || self.in_use == 0, "n0 lost the pool with a device in use");
        Ok(exists)
    }

    /// Reports the devices in use of the first node.
    fn occupy(&self) -> Result<()> {
        let states = self.direct.states()?;
        let n0 = states.iter().find(|state| state["metadata"]["name"] == "n0").context("n0 has no state")?;
        self.direct.answer("n0", &self.answered(n0, self.in_use))
    }

    /// The answer of an agent that reads specs in every form, or of one that reads them in full only.
    fn answered(&self, state: &Value, in_use: u32) -> Value {
        let mut status = answered(state, in_use, &condition("Ready", "True", "Serving"));
        if self.shares {
            status["agentVersion"] = json!("0.2.0");
        }
        status
    }

    /// Answers for all agents for so long, and checks this each time.
    fn answer_for(&self, time: Duration, check: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.answer()?;
            check(self)?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Answers for all agents until this holds. What must never be ends that at once.
    fn answer_until(&self, what: &str, holds: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        wait::until(what, DEADLINE, || {
            let found = self.answer().and_then(|_| holds(self));
            Ok(found.map_err(|error| Hopeless(format!("{error:#}")))?.then_some(()))
        })
    }

    /// Compares the cluster with what must hold at any time, and answers for every agent that has something to answer.
    /// Returns whether none had.
    fn answer(&self) -> Result<bool> {
        let states = self.direct.states()?;
        let mut changing: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        for state in &states {
            let part = |place: &str| {
                let pools = state.pointer(place).and_then(Value::as_array).into_iter().flatten();
                pools.into_iter().find(|pool| pool["name"] == STAGED)
            };
            // An agent serves an unchanged one as before, whatever else the entry contains.
            let Some(entry) = part("/spec/pools").filter(|entry| entry["phase"] != "Unchanged") else {
                continue;
            };
            if part("/status/pools").is_none_or(|answer| answer["generation"] != entry["generation"]) {
                let mtu = entry.pointer("/macvtap/mtu").and_then(Value::as_u64).context("no MTU")?;
                let name = state["metadata"]["name"].as_str().context("a state without name")?;
                changing.entry(mtu).or_default().insert(name);
            }
        }
        for (mtu, nodes) in changing {
            ensure!(nodes.len() <= 1, "{nodes:?} change to MTU {mtu} at once");
        }
        let mut idle = true;
        for state in &states {
            if state["status"]["observedHash"] != state["spec"]["configHash"] {
                idle = false;
                let name = state["metadata"]["name"].as_str().context("no name")?;
                let in_use = if name == "n0" { self.in_use } else { 0 };
                self.direct.answer(name, &self.answered(state, in_use))?;
            }
        }
        for pool in self.direct.pools()? {
            let counts = &pool["status"]["nodes"];
            ensure!(counts["unreachable"].as_u64().unwrap_or_default() == 0, "every agent answers: {pool:#}");
            let conditions = pool["status"]["conditions"].as_array().into_iter().flatten();
            let halted = conditions.into_iter().any(|condition| condition["reason"] == "RolloutHalted");
            ensure!(!halted, "every node is well: {pool:#}");
        }
        Ok(idle)
    }

    /// Answers until everything is as it should be and nobody writes any more.
    fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        let (mut seen, mut since) = (String::new(), Instant::now());
        loop {
            let idle = self.answer()?;
            let now = self.versions()?;
            if now != seen || !idle {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= QUIET && self.complete()? {
                return Ok(());
            }
            ensure!(begun.elapsed() < DEADLINE, "not complete after {DEADLINE:?}: {seen}");
            std::thread::sleep(TICK);
        }
    }

    /// The versions of everything that the operator writes.
    fn versions(&self) -> Result<String> {
        let all = [self.direct.pools()?, self.direct.states()?, self.direct.networks()?].concat();
        let version = |object: &Value| {
            format!("{}={}", object["metadata"]["name"], object["metadata"]["resourceVersion"])
        };
        Ok(all.iter().map(version).collect::<Vec<_>>().join(" "))
    }

    /// Whether every node has both pools as they are now, and the pools say so.
    fn complete(&self) -> Result<bool> {
        let states = self.direct.states()?;
        for pool in self.direct.pools()? {
            let (meta, report) = (&pool["metadata"], &pool["status"]);
            let said = report["conditions"].as_array().into_iter().flatten();
            let is_ready = said.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let has = |state: &&Value| {
                let pools = state.pointer("/spec/pools").and_then(Value::as_array).into_iter().flatten();
                let entry = pools.into_iter().find(|entry| entry["name"] == meta["name"]);
                entry.is_some_and(|entry| entry["macvtap"]["mtu"] == pool["spec"]["macvtap"]["mtu"])
            };
            let told = states.iter().filter(has).count();
            if !is_ready
                || report["observedGeneration"] != meta["generation"]
                || told != usize::try_from(NODES)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[test]
fn whatever_becomes_of_its_connections_the_operator_keeps_its_promises_and_ends_as_a_fresh_one() -> Result<()>
{
    withstand(false)
}

#[test]
fn so_it_does_where_node_states_name_what_has_their_pools() -> Result<()> {
    withstand(true)
}

fn withstand(shares: bool) -> Result<()> {
    let given = std::env::var("UNSTEADY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("UNSTEADY_SEED={seed}");
    let mut storm = Storm::new(seed, shares)?;
    let theirs = |storm: &Storm| storm.scene.api.kubectl.get("default", &format!("{NETWORKS}/net-plain"));
    let before = theirs(&storm)?;
    for number in 0..EVENTS {
        println!("{number:2} {}", storm.happen()?);
        storm.answer_for(BETWEEN, |_| Ok(()))?;
    }
    storm.relay.set(Fault::None);
    storm.settle().context("after the events")?;
    let is_named = storm.scene.api.kubectl.run(&["get", "mns", "-o", "jsonpath={.items[*].spec.config}"])?;
    ensure!(is_named.trim().is_empty() != shares, "node states name {is_named:?}");
    let ended = outcome::outcome(&storm.scene.api)?;
    ensure!(theirs(&storm)? == before, "a network of somebody else was touched");

    storm.scene.operator.take().context("no operator")?.terminate()?;
    storm.scene.api.kubectl.run(&["delete", "mns", "--all"])?;
    storm.scene.api.kubectl.run(&["delete", NETWORKS, "-A", "-l", POOL_LABEL])?;
    storm.start()?;
    storm.settle().context("a fresh operator")?;
    let fresh = outcome::outcome(&storm.scene.api)?;
    ensure!(ended == fresh, "a fresh operator makes {fresh:#?}, the sequence ended with {ended:#?}");
    storm.drain()
}
