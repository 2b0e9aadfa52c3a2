//! Thousands of macvtaps made and removed for real pods: what product and kernel keep of each must be nothing.
//!
//! Pods have many macvtaps each, so that most of the time goes into attaching and not into starting containers. Between
//! two samples everything is removed; what a sample after the first tenth has more than the last one is a leak.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::say;
use crate::{Cluster, Kubectl, Node, many_pods, wait};

/// How much is done.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Size {
    /// How many macvtaps are made and removed
    #[arg(long, default_value_t = 20_000)]
    cycles: u32,
    /// How many pods at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    pods: u32,
    /// How many macvtaps each pod has
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=50))]
    links: u32,
}

/// The namespace, the pool and the network.
const NAME: &str = "soak";

/// How long the pods of a round may take to start.
const PATIENCE: Duration = Duration::from_mins(10);

/// Samples that are taken beside the first one, which is from before the first pod.
const SAMPLES: u32 = 10;

/// Memory of agents may grow by so much between the second sample and the last, in KiB: freed blocks, which the allocator
/// keeps for each thread.
const AGENTS: u64 = 1024;

/// That of operators, of which there are two, in KiB. It grows in steps of up to 3 MiB, of which the last 8,000 of 20,000 cycles
/// had none: what is listed, not what was attached.
const OPERATORS: u64 = 8 * 1024;

/// Files, links and descriptors may differ by so many: connections come and go by themselves.
const FEW: u64 = 3;

/// What is there while no pod has a macvtap, on all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    cycles: u32,
    /// Anonymous memory of agents (supervisors and workers) and operators, in KiB.
    agents: u64,
    operators: u64,
    /// What they have open.
    descriptors: u64,
    /// Files and directories in the product's directories on the nodes.
    files: u64,
    /// Links, mounts and named network namespaces of the nodes.
    links: u64,
    mounts: u64,
    namespaces: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cycles, agents, operators, descriptors, files, links, mounts, namespaces } = self;
        write!(
            formatter,
            "{cycles:6} cycles: agents {agents} KiB, operators {operators} KiB, {descriptors} descriptors, {files} files, \
             {links} links, {mounts} mounts, {namespaces} network namespaces"
        )
    }
}

/// Runs it, prints the samples, and fails if something grew.
pub fn run(size: Size) -> Result<()> {
    let Some(cluster) = cluster()? else { return Ok(()) };
    cluster.explain(|| {
        let soaked = prepare(cluster, size).and_then(|()| soak(cluster, size));
        let cleaned = clean_up(cluster.kubectl());
        let grown = grown(&soaked?);
        cleaned?;
        ensure!(grown.is_empty(), "grew with the number of macvtaps made and removed: {}", grown.join(", "));
        Ok(())
    })
}

/// The shared cluster, nothing where it may not run. An error if its nodes are out of reach.
fn cluster() -> Result<Option<&'static Cluster>> {
    let Some(cluster) = Cluster::shared()? else { return Ok(None) };
    ensure!(
        !cluster.nodes().is_empty(),
        "this looks into nodes: it needs the local cluster, unset KUBECONFIG"
    );
    Ok(Some(cluster))
}

fn prepare(cluster: &Cluster, size: Size) -> Result<()> {
    clean_up(cluster.kubectl())?;
    many_pods::prepare(cluster, NAME, size.pods * size.links)
}

fn clean_up(kubectl: &Kubectl) -> Result<()> {
    many_pods::delete_namespace(kubectl, NAME)?;
    many_pods::delete_pool(kubectl, NAME)
}

/// All samples, the first from before the first pod.
fn soak(cluster: &Cluster, size: Size) -> Result<Vec<Sample>> {
    let mut samples = vec![sample(cluster, 0)?];
    say(samples[0]);
    let rounds = size.cycles.div_ceil(size.pods * size.links);
    let begun = Instant::now();
    for round in 1..=rounds {
        once(cluster.kubectl(), size, round)?;
        // As many samples as are wanted, evenly spread, and one at the end.
        if round * SAMPLES / rounds > (round - 1) * SAMPLES / rounds {
            samples.push(sample(cluster, round * size.pods * size.links)?);
            say(format_args!("{} after {:.0} s", samples[samples.len() - 1], begun.elapsed().as_secs_f64()));
        }
    }
    Ok(samples)
}

/// All pods of a round until they are Ready, and until they have ended.
fn once(kubectl: &Kubectl, size: Size, round: u32) -> Result<()> {
    let networks = vec![NAME; size.links as usize].join(",");
    let pod = |number| many_pods::pod(NAME, &format!("soak-{round}-{number}"), &networks, size.links);
    kubectl.apply(&(0..size.pods).map(pod).collect::<String>())?;
    many_pods::await_ready(kubectl, NAME, PATIENCE)?;
    many_pods::delete(kubectl, NAME)
}

/// Waits until no node has a record of a macvtap, and counts.
fn sample(cluster: &Cluster, cycles: u32) -> Result<Sample> {
    let mut sample = Sample { cycles, ..Sample::default() };
    for node in cluster.nodes() {
        let root = node.root()?;
        let records = root.join("run/macvtap/attachments");
        wait::until(&format!("the end of all macvtaps of {}", node.name()), Duration::from_mins(5), || {
            Ok((files(&records) == 0).then_some(()))
        })?;
        sample.files += files(&root.join("run/macvtap")) + files(&root.join("var/lib/macvtap"));
        sample.links += count(node, "ls /sys/class/net")?;
        sample.mounts += count(node, "cat /proc/self/mountinfo")?;
        sample.namespaces += count(node, "ls /run/netns")?;
        for pid in programs(node, "macvtap-node-agent")? {
            sample.agents += memory(pid)?;
            sample.descriptors += descriptors(pid)?;
        }
        for pid in programs(node, "macvtap-operator")? {
            sample.operators += memory(pid)?;
            sample.descriptors += descriptors(pid)?;
        }
    }
    Ok(sample)
}

/// How many lines a command prints on a node.
fn count(node: &Node, script: &str) -> Result<u64> {
    let lines = node.exec(&["sh", "-c", script])?.lines().count();
    u64::try_from(lines).context("count lines")
}

/// Files and directories below a directory, which need not exist.
fn files(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| 1 + if entry.path().is_dir() { files(&entry.path()) } else { 0 }).sum()
}

/// The first processes of containers that run this program, and their children.
fn programs(node: &Node, program: &str) -> Result<Vec<u32>> {
    let tasks = node.ctr(&["tasks", "ls"])?;
    let pids = tasks.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
    let runs = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split('\0').next().is_some_and(|first| first.ends_with(program))
    };
    let mut found: Vec<u32> = pids.filter(runs).collect();
    for pid in found.clone() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(found)
}

/// Anonymous memory of a process, in KiB.
fn memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let Some(number) = line.and_then(|line| line.split_whitespace().next()?.parse().ok()) else {
        bail!("{path} has no RssAnon")
    };
    Ok(number)
}

fn descriptors(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/fd");
    let open = fs::read_dir(&path).with_context(|| format!("list {path}"))?.count();
    u64::try_from(open).context("count descriptors")
}

/// What is larger in the last sample than after the first tenth, by more than chance.
fn grown(samples: &[Sample]) -> Vec<String> {
    let (Some(early), Some(late)) = (samples.get(1), samples.last()) else { return Vec::new() };
    let figures = [
        ("memory of agents, KiB", early.agents, late.agents, AGENTS + early.agents / 10),
        ("memory of operators, KiB", early.operators, late.operators, OPERATORS),
        ("descriptors", early.descriptors, late.descriptors, FEW),
        ("files", early.files, late.files, FEW),
        ("links", early.links, late.links, FEW),
        ("mounts", early.mounts, late.mounts, FEW),
        ("network namespaces", early.namespaces, late.namespaces, FEW),
    ];
    let more = figures.into_iter().filter(|(_, early, late, allowed)| *late > early + allowed);
    more.map(|(name, early, late, _)| format!("{name}: {early} to {late}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_after_the_first_tenth_is_named() {
        let early =
            Sample { cycles: 2000, agents: 8000, operators: 20_000, descriptors: 90, ..Sample::default() };
        let first = Sample { agents: 4000, ..Sample::default() };
        let grows = |late: Sample| grown(&[first, early, late]);
        assert_eq!(grows(early), [""; 0]);
        assert_eq!(grows(Sample { agents: 9800, descriptors: 93, files: 3, ..early }), [""; 0]);
        assert_eq!(grows(Sample { agents: 9900, ..early }), ["memory of agents, KiB: 8000 to 9900"]);
        assert_eq!(
            grows(Sample { operators: 28_193, ..early }),
            ["memory of operators, KiB: 20000 to 28193"]
        );
        assert_eq!(grows(Sample { files: 4, links: 4, ..early }), ["files: 0 to 4", "links: 0 to 4"]);
    }
}
