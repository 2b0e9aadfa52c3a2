//! `macvtap-cluster`: a local Kubernetes for people and for the Makefile.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use e2e::layout::{Checkout, Layout};
use e2e::progress::{self, say};
use e2e::suite::{self, Selection, Stage};
use e2e::{
    Cluster, Multus, Options, bench_compare, bench_pods, bench_report, chaos, chart_readme, components, demo,
    images, prerequisites, relay, release, results, soak,
};

/// A real Kubernetes on this machine: etcd, control plane, and one or two nodes with kubelet, containerd and Multus.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster, or repair it
    Up {
        #[command(flatten)]
        name: Name,
        /// How many nodes: n1 with containerd 2, n2 with containerd 1.6
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
        nodes: u8,
        /// How Multus is installed
        #[arg(long, value_enum, default_value_t = Multus::Thin)]
        multus: Multus,
        /// With kube-ovn, which gives addresses to networks of pods
        #[arg(long)]
        kube_ovn: bool,
        /// With nodes of the kinds that the tests' own nodes are not: moved directories, user namespaces.
        #[arg(long)]
        field: bool,
        /// With nodes on which KubeVirt can run
        #[arg(long)]
        kubevirt: bool,
    },
    /// End a cluster and leave nothing of it, in whatever state it is
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Show nodes, daemons and pods
    Status {
        #[command(flatten)]
        name: Name,
    },
    /// Run kubectl: macvtap-cluster kubectl -- get pods
    Kubectl {
        #[command(flatten)]
        name: Name,
        /// What kubectl should do
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print the path of the kubeconfig file
    Kubeconfig {
        #[command(flatten)]
        name: Name,
    },
    /// Run a program in a node's network and mount namespaces
    Exec {
        #[command(flatten)]
        name: Name,
        /// n1 or n2
        node: String,
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<String>,
    },
    /// Import an image archive into every node
    Load {
        #[command(flatten)]
        name: Name,
        /// What `docker save` or `macvtap-cluster images` wrote
        archive: PathBuf,
    },
    /// Print the last lines of a component's log, or the names of all components
    Logs {
        #[command(flatten)]
        name: Name,
        /// kube-apiserver, n1-kubelet, ...
        component: Option<String>,
        /// How many lines
        #[arg(long, default_value_t = 100)]
        lines: usize,
    },
    /// Collect logs and states of everything, for those who were not there
    Diagnose {
        #[command(flatten)]
        name: Name,
    },
    /// Install what the machine lacks, and say why
    Prerequisites,
    /// Build Kubernetes, etcd, containerd, Multus and Helm from their pinned modules
    Build,
    /// Build the container images and print their sizes
    Images {
        /// Which ones; all of them if none is named
        #[arg(value_parser = images::ALL)]
        names: Vec<String>,
    },
    /// Write the chart's README from the comments of its values
    ChartReadme,
    /// Write everything of a release to `dist`: programs, images, chart, manifests, checksums
    Release,
    /// Show the whole product: build, cluster, install, pools, pods that ping each other
    Demo {
        /// With the real KubeVirt instead: a machine boots, answers, and migrates
        #[arg(long)]
        kubevirt: bool,
    },
    /// Run checks and tests, and print a summary
    Test {
        /// Which kinds; all of them if none is named
        stages: Vec<Stage>,
        /// Only tests whose name contains this
        #[arg(long)]
        matching: Option<String>,
        /// Run them so many times, until one fails
        #[arg(long)]
        repeat: Option<u32>,
    },
    /// Measure what an agent costs on a node with 512 links while pods of others come and go
    BenchIdle {
        /// How long idle, and how long with pods
        #[arg(long, default_value_t = 20)]
        seconds: u32,
        /// Another release's macvtap-node-agent, measured the same way
        #[arg(long)]
        beside: Option<PathBuf>,
    },
    /// Inject faults at random, several at once, while pods come and go, and check a model of the cluster throughout
    Chaos {
        /// Decides what happens; a random one is printed
        #[arg(long)]
        seed: Option<u64>,
        /// For how long faults are injected
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
        /// Only faults of these kinds
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<chaos::Kind>,
    },
    /// Run the tests that inject one fault after the other with full counts, and print what that gave
    Faults {
        /// Only tests whose name contains this
        #[arg(long)]
        matching: Option<String>,
    },
    /// Make and remove many macvtaps for pods of a real cluster: memory, descriptors, files and links must not grow
    Soak(soak::Size),
    /// Measure plugin and agent as they are shipped
    Bench {
        /// Another plugin to measure in the same rounds, such as an earlier release's
        #[arg(long)]
        beside_plugin: Option<PathBuf>,
        /// Another agent to measure in the same run
        #[arg(long)]
        beside_agent: Option<PathBuf>,
    },
    /// Measure what guests get of each other through macvtaps, beside other ways
    BenchDataPath,
    /// Measure plugin and agent in the same rounds as those of another commit, and fail if they are slower
    BenchCompare {
        /// The commit to compare with
        base: String,
    },
    /// Write tables and plots of the documentation from what the benches recorded
    BenchReport,
    /// Measure how long many pods with a macvtap take on a cluster, beside a plugin that does nothing
    BenchPods(bench_pods::Size),
    /// Measure the operator on a cluster of many simulated nodes
    BenchScale {
        /// How many nodes
        #[arg(long, default_value_t = 5000)]
        nodes: usize,
        /// How many pools, all on every node
        #[arg(long, default_value_t = 20)]
        pools: usize,
        /// Another operator to measure in the same call, such as an earlier release's
        #[arg(long, requires = "other_chart")]
        other_operator: Option<PathBuf>,
        /// The chart of the other operator
        #[arg(long, requires = "other_operator")]
        other_chart: Option<PathBuf>,
    },
    /// Passes connections to a cluster's API server on
    #[command(hide = true)]
    Relay { netns: PathBuf, port_file: PathBuf, wanted: u16 },
}

#[derive(clap::Args)]
struct Name {
    /// The cluster
    #[arg(long, default_value = "demo")]
    name: String,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("macvtap-cluster: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let checkout = Checkout::here();
    match command {
        Command::Up { name, nodes, multus, kube_ovn, field, kubevirt } => {
            up(&name.name, Options { nodes, multus, kube_ovn, field, kubevirt })?;
        }
        Command::Down { name } => Cluster::down(&name.name)?,
        Command::Status { name } => status(&Cluster::open(&name.name)?),
        Command::Kubectl { name, args } => {
            return exit(Cluster::open(&name.name)?.kubectl().command().args(args));
        }
        Command::Kubeconfig { name } => print(Layout::new(&name.name)?.kubeconfig().display()),
        Command::Exec { name, node, program } => {
            return exit(Cluster::open(&name.name)?.node(&node)?.command()?.args(program));
        }
        Command::Load { name, archive } => Cluster::open(&name.name)?.load(&archive)?,
        Command::Logs { name, component, lines } => {
            logs(&Cluster::open(&name.name)?, component.as_deref(), lines);
        }
        Command::Diagnose { name } => print(Cluster::open(&name.name)?.diagnose()?),
        Command::Prerequisites => {
            prerequisites::ensure(&checkout)?;
            prerequisites::report(&checkout);
        }
        Command::Build => {
            prerequisites::ensure(&checkout)?;
            components::build(&checkout)?;
        }
        Command::Images { names } => build_images(&checkout, &names)?,
        Command::ChartReadme => chart_readme::write(&checkout)?,
        Command::Release => print(release::run(&checkout)?.display()),
        Command::Demo { kubevirt: false } => demo::run()?,
        Command::Demo { kubevirt: true } => demo::kubevirt::run()?,
        Command::Test { stages, matching, repeat } => {
            let stages = if stages.is_empty() { Stage::ALL.to_vec() } else { stages };
            suite::run(&stages, &Selection { matching, repeat, ..Selection::default() })?;
        }
        Command::Chaos { seed, minutes, only } => chaos::run(&chaos::Settings { seed, minutes, only })?,
        Command::Faults { matching } => inject_faults(matching)?,
        Command::Bench { beside_plugin, beside_agent } => {
            return bench(&checkout, beside_plugin.as_deref(), beside_agent.as_deref());
        }
        Command::BenchDataPath => return bench_data_path(&checkout),
        Command::BenchCompare { base } => {
            prerequisites::ensure(&checkout)?;
            return Ok(if bench_compare::run(&checkout, &base)? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::BenchReport => bench_report::write(&checkout)?,
        Command::BenchPods(size) => bench_pods::run(size)?,
        Command::Soak(size) => soak::run(size)?,
        Command::BenchIdle { seconds, beside } => return bench_idle(&checkout, seconds, beside),
        Command::BenchScale { nodes, pools, other_operator, other_chart } => {
            return bench_scale(&checkout, nodes, pools, other_operator.zip(other_chart));
        }
        Command::Relay { netns, port_file, wanted } => relay::serve(&netns, &port_file, wanted)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(name: &str, options: Options) -> Result<()> {
    let cluster = Cluster::up(name, options)?;
    print(cluster.kubectl().run(&["get", "nodes", "-o", "wide"])?.trim_end());
    print(format_args!("\nexport KUBECONFIG={}", cluster.kubectl().kubeconfig().display()));
    Ok(())
}

fn status(cluster: &Cluster) {
    if let Some(processes) = cluster.processes() {
        for name in processes.names() {
            let state =
                processes.pid(&name).map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
            print(format_args!("{name:28} {state}"));
        }
    }
    for question in ["nodes", "pods -A"] {
        let words: Vec<&str> = ["get"].into_iter().chain(question.split(' ')).collect();
        let answer = cluster.kubectl().run(&words).unwrap_or_else(|error| format!("{error:#}"));
        print(format_args!("\n{}", answer.trim_end()));
    }
}

fn logs(cluster: &Cluster, component: Option<&str>, lines: usize) {
    let Some(processes) = cluster.processes() else { return };
    match component {
        Some(component) => print(processes.tail(component, lines)),
        None => processes.names().iter().for_each(print),
    }
}

fn build_images(checkout: &Checkout, names: &[String]) -> Result<()> {
    prerequisites::ensure(checkout)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for image in images::build(checkout, if names.is_empty() { &images::ALL } else { &names })? {
        // Tenths, rounded up: a size is compared with a budget.
        let tenths = (image.size * 10).div_ceil(1024 * 1024);
        let digest = image.digest.get(..12).unwrap_or_default();
        print(format_args!("{:36} {:3}.{} MiB  {digest}", image.reference, tenths / 10, tenths % 10));
    }
    for (step, seconds) in progress::times(checkout) {
        say(format_args!("  {step}: {seconds} s last time"));
    }
    Ok(())
}

fn inject_faults(matching: Option<String>) -> Result<()> {
    if matching.is_none() {
        chaos::clear()?;
    }
    let selection = Selection { matching, program: Some("agent"), full: true, ..Selection::default() };
    let ended = suite::run(&[Stage::Cluster], &selection);
    print(chaos::table()?);
    print(format_args!("{}", chaos::path().display()));
    ended
}

fn bench(checkout: &Checkout, beside_plugin: Option<&Path>, beside_agent: Option<&Path>) -> Result<ExitCode> {
    prerequisites::ensure(checkout)?;
    let mut command = bench_compare::calls(checkout, beside_plugin, beside_agent)?;
    exit(command.env(results::COMMAND, "make bench"))
}

fn bench_data_path(checkout: &Checkout) -> Result<ExitCode> {
    prerequisites::ensure(checkout)?;
    let mut command = images::cargo(checkout, "bench")?;
    command.args(["-p", "macvtap-cni", "--bench", "data_path"]);
    exit(command.env(results::COMMAND, "make bench-data-path"))
}

fn bench_idle(checkout: &Checkout, seconds: u32, beside: Option<PathBuf>) -> Result<ExitCode> {
    prerequisites::ensure(checkout)?;
    let (_, agent) = images::measured(checkout)?;
    let mut command = images::cargo(checkout, "bench")?;
    command.args(["-p", "macvtap-node-agent", "--bench", "idle"]);
    command.env("MACVTAP_AGENT", agent).env("MACVTAP_SECONDS", seconds.to_string());
    command.envs(beside.map(|beside| ("MACVTAP_BESIDE", beside)));
    exit(&mut command)
}

fn bench_scale(
    checkout: &Checkout,
    nodes: usize,
    pools: usize,
    other: Option<(PathBuf, PathBuf)>,
) -> Result<ExitCode> {
    prerequisites::ensure(checkout)?;
    components::build(checkout)?;
    let operator = images::measured_operator(checkout)?;
    let mut command = images::cargo(checkout, "bench")?;
    command.args(["-p", "e2e", "--bench", "scale", "--"]);
    command.args(["--nodes", &nodes.to_string(), "--pools", &pools.to_string(), "--operator"]).arg(operator);
    if let Some((program, chart)) = other {
        command.arg("--other-operator").arg(program).arg("--other-chart").arg(chart);
    }
    exit(&mut command)
}

/// Runs a command on our terminal and ends as it ended.
fn exit(command: &mut std::process::Command) -> Result<ExitCode> {
    let status = command.status().context("run it")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    Ok(ExitCode::from(code))
}

/// Results go to standard output; a closed pipe is not an error.
fn print(text: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{text}");
}
