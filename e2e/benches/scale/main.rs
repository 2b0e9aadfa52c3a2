//! The operator with thousands of nodes: a real etcd, API server and garbage collector, the operator as it is shipped,
//! Nodes that are objects only, and their agents in this process.
//!
//! The figure that matters is the time from an edit of a pool that every node has to the last node's new spec. Its
//! floor is the time that the same number of the same writes take without the operator: the same objects through the
//! same client library, as many at once, with the same agents answering; so it is the API server's own limit, in the
//! same run. Results go to `target/bench/results.json`.
//!
//! The limits of a real cluster are on: operator and agents are service accounts with the chart's rights and its flow
//! schemas, not members of system:masters, and etcd waits for the disk. Another operator, such as an earlier release's,
//! is measured in the same call with `--other-operator` and `--other-chart`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints its figures and what went wrong"
)]

mod arguments;
mod cluster;
mod environment;
mod fleet;
mod meter;
mod operator;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use arguments::{Arguments, Subject};
use clap::Parser as _;
use cluster::FIRST_MTU;
use e2e::api_server::{Account, ApiServer};
use e2e::layout::Checkout;
use e2e::results::{self, durations, figure};
use environment::{connect, install, watch_verdicts};
use fleet::{Fleet, Form};
use kube::Client;
use meter::{Requests, total};
use operator::Operator;
use serde_json::Value;

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_mins(30);

/// How many Nodes are deleted at the end.
const DELETED: usize = 50;

const NETWORK_KIND: &str = include_str!("../../tests/api/network-kind.yaml");

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    for subject in Subject::all(&arguments) {
        println!("== {}", subject.program.display());
        measure(&arguments, subject).await?;
    }
    Ok(())
}

async fn measure(arguments: &Arguments, subject: Subject) -> Result<()> {
    let mut bench = Bench::start(arguments.clone(), subject).await?;
    bench.fill().await?;
    for _ in 0..bench.arguments.rounds {
        bench.round().await?;
        bench.save().await?;
    }
    bench.rest().await?;
    bench.save().await?;
    bench.lose_leader().await?;
    bench.lose_nodes().await?;
    for result in bench.save().await? {
        println!("{result}");
    }
    Ok(())
}

/// The cluster, and what was measured so far.
struct Bench {
    arguments: Arguments,
    subject: Subject,
    operator: Option<Operator>,
    fleet: Fleet,
    client: Client,
    mtu: u32,
    begun: Requests,
    filled: Duration,
    edits: Vec<Duration>,
    floors: Vec<Duration>,
    settled: Vec<Duration>,
    starts: Vec<Duration>,
    cpu: Vec<Duration>,
    server_cpu: Vec<Duration>,
    stored: Vec<u64>,
    state_bytes: u64,
    rewritten: u64,
    unreachable: Arc<AtomicU32>,
    failovers: Vec<Duration>,
    memory: (u64, u64),
    writes_at_start: u64,
    writes_at_rest: u64,
    server: ApiServer,
}

impl Bench {
    /// Starts the servers, and makes Nodes and pools.
    async fn start(arguments: Arguments, subject: Subject) -> Result<Self> {
        let mut server = ApiServer::start_durable()?;
        let kubectl = server.kubectl();
        kubectl.apply(NETWORK_KIND)?;
        install(&server, &subject.chart)?;
        kubectl.run(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])?;
        server.start_controllers()?;
        let client = connect(server.kubeconfig()).await?;
        let begun = Instant::now();
        cluster::make_nodes(&client, arguments.nodes).await?;
        cluster::make_pools(&client, arguments.pools.into()).await?;
        say(&format!("{} nodes made", arguments.nodes), begun.elapsed());
        let agents = connect(&server.account(Account::Agent)?).await?;
        let nodes: Vec<String> = (0..arguments.nodes).map(cluster::node_name).collect();
        let fleet = Fleet::start(&agents, &nodes, &cluster::pool_name(0), subject.form);
        let begun = Requests::read(&client).await?;
        Ok(Self {
            operator: None,
            subject,
            fleet,
            mtu: FIRST_MTU,
            begun,
            filled: Duration::ZERO,
            edits: Vec::new(),
            floors: Vec::new(),
            settled: Vec::new(),
            starts: Vec::new(),
            cpu: Vec::new(),
            server_cpu: Vec::new(),
            stored: Vec::new(),
            state_bytes: 0,
            rewritten: 0,
            unreachable: watch_verdicts(client.clone()),
            failovers: Vec::new(),
            memory: (0, 0),
            writes_at_start: 0,
            writes_at_rest: 0,
            client,
            server,
            arguments,
        })
    }

    /// From the operator's start with nothing written to the last node's first spec.
    async fn fill(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut operator = self.operator()?;
        operator.ready().await?;
        let (nodes, pools) = (self.arguments.nodes, usize::from(self.arguments.pools));
        let last =
            self.fleet.until("the first specs", PATIENCE, |tally| tally.with_pools(pools) == nodes).await?;
        self.filled = last - begun;
        say("operator started to last first spec", self.filled);
        self.operator = Some(operator);
        self.settle().await?;
        say("... to every pool ready", begun.elapsed());
        Ok(())
    }

    /// The floor there and back without operator, a start of the operator, an edit there and back.
    async fn round(&mut self) -> Result<()> {
        if let Some(operator) = self.operator.take() {
            operator.kill()?;
        }
        let pool = cluster::pool_name(0);
        // The floor is what the API server can do for the objects of this checkout.
        if self.subject.form == Form::Brief {
            self.floor(&pool).await?;
        }
        self.start_and_edit(&pool).await
    }

    async fn floor(&mut self, pool: &str) -> Result<()> {
        let original = cluster::states(&self.client).await?;
        let other = cluster::edited(&self.client, &original, pool, self.mtu + 1).await?;
        for (states, mtu) in [(&other, self.mtu + 1), (&original, self.mtu)] {
            let used = self.used()?;
            let begun = Instant::now();
            cluster::write_specs(&self.client, states, self.arguments.at_once).await?;
            let last = self.told(mtu).await?;
            say("floor: last spec", last - begun);
            self.say_used(&used)?;
            self.floors.push(last - begun);
            self.answered().await?;
        }
        Ok(())
    }

    async fn start_and_edit(&mut self, pool: &str) -> Result<()> {
        let before = Requests::read(&self.client).await?;
        let mut operator = self.operator()?;
        let start = operator.ready().await?;
        say("start with everything there", start);
        self.starts.push(start);
        operator.leads().await?;
        // What it would write, it writes at once; the pools' pace is half a second.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut written = Requests::read(&self.client).await?.since(&before).writes();
        // Late answers of agents to the floor.
        written.remove("PATCH macvtapnodestates/status");
        println!("  writes after that start: {written:?}");
        self.writes_at_start += total(&written);

        for _ in 0..self.arguments.edits {
            self.edit(&operator, pool).await?;
        }
        self.operator = Some(operator);
        Ok(())
    }

    async fn edit(&mut self, operator: &Operator, pool: &str) -> Result<()> {
        self.mtu += 1;
        let before = Requests::read(&self.client).await?;
        let (cpu, server) = (meter::cpu(operator.pid())?, self.used()?);
        let stored = meter::stored(self.server.etcd())?;
        self.fleet.take_answers();
        let begun = Instant::now();
        cluster::edit_pool(&self.client, pool, self.mtu).await?;
        let last = self.told(self.mtu).await?;
        let edit = last - begun;
        let used = meter::cpu(operator.pid())?.saturating_sub(cpu);
        say("edit: last spec", edit);
        println!(
            "  {} specs/s; processor time: operator {:.1} s",
            rate(self.arguments.nodes, edit),
            used.as_secs_f64()
        );
        self.edits.push(edit);
        self.cpu.push(used);
        self.settle().await?;
        say("... to every pool ready", begun.elapsed());
        self.settled.push(begun.elapsed());
        println!("  writes: {:?}", Requests::read(&self.client).await?.since(&before).writes());
        self.say_used(&server)?;
        let server_cpu =
            self.used()?.into_iter().zip(&server).map(|(now, before)| now.saturating_sub(*before));
        self.server_cpu.push(server_cpu.sum());
        self.stored.push(meter::stored(self.server.etcd())?.saturating_sub(stored));
        self.state_bytes = cluster::state_bytes(&self.client).await?;
        println!("  etcd stored {:?} bytes; a node state has {} bytes", self.stored.last(), self.state_bytes);
        let answers = self.fleet.take_answers();
        println!(
            "  {} answers of agents, {} to a spec that was not the last any more; from spec to answer: p50 {:.3} s, last {:.3} s",
            answers.took.len(),
            answers.stale,
            results::percentile(&answers.took, 50).as_secs_f64(),
            results::percentile(&answers.took, 100).as_secs_f64()
        );
        println!("  nodes called unreachable so far, at most: {}", self.unreachable.load(Ordering::Relaxed));
        self.memory = meter::memory(operator.pid())?;
        Ok(())
    }

    /// What is written while nothing happens.
    async fn rest(&mut self) -> Result<()> {
        // Counts may still wait for their turn, half a minute at most.
        tokio::time::sleep(Duration::from_secs(35)).await;
        let before = Requests::read(&self.client).await?;
        tokio::time::sleep(Duration::from_secs(self.arguments.rest)).await;
        let written = Requests::read(&self.client).await?.since(&before).writes();
        println!("writes in {} s in steady state: {written:?}", self.arguments.rest);
        self.writes_at_rest = total(&written);
        Ok(())
    }

    /// The leader is killed when half of the nodes have heard of an edit; another operator, which stands by, goes on.
    async fn lose_leader(&mut self) -> Result<()> {
        let Some(leader) = self.operator.take() else { return Ok(()) };
        let mut heir = self.operator()?;
        heir.ready().await?;
        self.mtu += 1;
        let (mtu, half) = (self.mtu, self.arguments.nodes / 2);
        let before = Requests::read(&self.client).await?;
        let begun = Instant::now();
        cluster::edit_pool(&self.client, &cluster::pool_name(0), mtu).await?;
        self.fleet.until("half of the specs", PATIENCE, |tally| tally.with_mtu(mtu) >= half).await?;
        leader.kill()?;
        let killed = Instant::now();
        let last = self.told(mtu).await?;
        say("edit with the leader killed half way: last spec", last - begun);
        say("... after the kill", last.saturating_duration_since(killed));
        self.failovers.push(last - begun);
        self.operator = Some(heir);
        self.settle().await?;
        let writes = Requests::read(&self.client).await?.since(&before).writes();
        println!("  writes: {writes:?}");
        let specs = writes.get("PATCH macvtapnodestates").copied().unwrap_or_default();
        self.rewritten = specs.saturating_sub(self.arguments.nodes as u64);
        println!("  specs written twice: {}", self.rewritten);
        Ok(())
    }

    /// Nodes go, and their states with them; nobody recreates them.
    async fn lose_nodes(&mut self) -> Result<()> {
        let left = self.arguments.nodes.saturating_sub(DELETED);
        let begun = Instant::now();
        cluster::delete_nodes(&self.client, left..self.arguments.nodes).await?;
        self.fleet.until("states of deleted nodes to go", PATIENCE, |tally| tally.states() == left).await?;
        cluster::pools_ready(&self.client, left, PATIENCE).await?;
        say(&format!("{DELETED} nodes deleted to states collected and pools counted"), begun.elapsed());
        Ok(())
    }

    fn operator(&self) -> Result<Operator> {
        let log = Checkout::here().path("target/bench/operator.log");
        Operator::start(&self.subject.program, &self.server.account(Account::Operator)?, &log)
    }

    async fn told(&self, mtu: u32) -> Result<Instant> {
        let nodes = self.arguments.nodes;
        self.fleet.until("the last spec", PATIENCE, |tally| tally.with_mtu(mtu) == nodes).await
    }

    async fn answered(&self) -> Result<()> {
        self.fleet.until("every agent's answer", PATIENCE, fleet::Tally::all_answered).await.map(drop)
    }

    async fn settle(&self) -> Result<()> {
        self.answered().await?;
        cluster::pools_ready(&self.client, self.arguments.nodes, PATIENCE).await
    }

    /// The processor time that the servers have used so far.
    fn used(&self) -> Result<Vec<Duration>> {
        self.server.pids().map(|(_, pid)| meter::cpu(pid)).collect()
    }

    fn say_used(&self, before: &[Duration]) -> Result<()> {
        for ((name, pid), before) in self.server.pids().zip(before) {
            println!("  {name} {:.1} s", meter::cpu(pid)?.saturating_sub(*before).as_secs_f64());
        }
        Ok(())
    }

    /// Writes what was measured so far: a run of many minutes may be interrupted.
    async fn save(&self) -> Result<Vec<Value>> {
        let errors = Requests::read(&self.client).await?.since(&self.begun).errors();
        println!("errors of the API server so far: {errors:?}");
        let results = self.results(total(&errors));
        results::merge(Checkout::here().root(), &results)?;
        Ok(results)
    }

    fn results(&self, errors: u64) -> Vec<Value> {
        let (nodes, pools) = (self.arguments.nodes, self.arguments.pools);
        let name = |what: &str| format!("{what}_{nodes}_nodes_{pools}_pools{}", self.subject.label);
        let rate = rate(nodes, results::percentile(&self.edits, 50));
        let (now, peak) = self.memory;
        let mut results = vec![
            durations(&name("pool_edit"), &self.edits, (!self.floors.is_empty()).then_some(&*self.floors)),
            durations(&name("pool_edit_to_pools_ready"), &self.settled, None),
            durations(&name("operator_first_specs"), &[self.filled], None),
            durations(&name("operator_start"), &self.starts, None),
            durations(&name("operator_processor_time_of_edit"), &self.cpu, None),
            durations(&name("servers_processor_time_of_edit"), &self.server_cpu, None),
            figure(&name("etcd_bytes_of_edit"), "B", self.stored.iter().copied().max().unwrap_or_default()),
            figure(&name("node_state_bytes"), "B", self.state_bytes),
            figure(
                &name("nodes_wrongly_unreachable"),
                "nodes",
                self.unreachable.load(Ordering::Relaxed).into(),
            ),
            figure(&name("specs_written_twice_by_heir"), "specs", self.rewritten),
            figure(&name("operator_spec_writes_per_second"), "1/s", rate),
            figure(&name("operator_resident_memory"), "KiB", now),
            figure(&name("operator_resident_memory_peak"), "KiB", peak),
            figure(&name("operator_writes_at_start"), "writes", self.writes_at_start),
            figure(&name("operator_writes_at_rest"), "writes", self.writes_at_rest),
            figure(&name("api_errors"), "answers", errors),
        ];
        if !self.failovers.is_empty() {
            results.push(durations(&name("pool_edit_leader_killed"), &self.failovers, None));
        }
        results
    }
}

/// How many a second.
fn rate(count: usize, took: Duration) -> u64 {
    let milliseconds = took.as_millis().max(1);
    u64::try_from(count as u128 * 1000 / milliseconds).unwrap_or(u64::MAX)
}

fn say(what: &str, took: Duration) {
    println!("{what}: {:.2} s", took.as_secs_f64());
}
