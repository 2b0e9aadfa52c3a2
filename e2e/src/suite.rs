//! `make test`: every kind of check in turn, each with its time and its result, all of them even after a failure.

mod outcome;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use outcome::{Outcome, count};
use serde::Deserialize;

use crate::layout::Checkout;
use crate::progress::say;
use crate::{
    Cluster, chaos, components, first_release, guest_lab, images, kube_ovn, kubevirt, layout, prerequisites,
    process,
};

/// One kind of check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Layout of the code.
    Format,
    /// Lints, warnings denied.
    Lint,
    /// Tests inside the crates: they need nothing.
    Unit,
    /// Tests of whole crates, most of them in network namespaces.
    Kernel,
    /// Tests in virtual machines.
    Guest,
    /// Tests on a real API server.
    Api,
    /// Tests on a real cluster.
    Cluster,
    /// Tests on real clusters with kube-ovn.
    KubeOvn,
    /// Upgrade from the first release and back on a real cluster. It builds that release, so it is run on its own.
    Upgrade,
    /// Tests on a real cluster with KubeVirt. Its programs take long to build, so it is run on its own.
    #[value(name = "kubevirt")]
    KubeVirt,
}

impl Stage {
    /// All that `make test` runs, the cheap ones first.
    pub const ALL: [Self; 8] = [
        Self::Format,
        Self::Lint,
        Self::Unit,
        Self::Kernel,
        Self::Guest,
        Self::Api,
        Self::Cluster,
        Self::KubeOvn,
    ];

    /// Whether its tests need a cluster with nodes.
    fn has_nodes(self) -> bool {
        matches!(self, Self::Cluster | Self::KubeOvn | Self::Upgrade | Self::KubeVirt)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Guest => "guest",
            Self::Api => "api",
            Self::Cluster => "cluster",
            Self::KubeOvn => "kube-ovn",
            Self::Upgrade => "upgrade",
            Self::KubeVirt => "kubevirt",
        }
    }
}

/// Which tests, and how often.
#[derive(Debug, Default)]
pub struct Selection {
    /// Only tests whose name contains this.
    pub matching: Option<String>,
    /// How often; 1 when absent.
    pub repeat: Option<u32>,
    /// Only this test program.
    pub program: Option<&'static str>,
    /// Whether tests that break things do it as often as it takes.
    pub full: bool,
}

/// Runs the stages, prints a summary, and fails when one of them failed.
pub fn run(stages: &[Stage], selection: &Selection) -> Result<()> {
    let checkout = Checkout::here();
    say("== what the tests need");
    if stages.len() > 1 {
        prerequisites::ensure_room(&checkout)?;
    }
    prepare(&checkout, stages)?;
    let mut outcomes = Vec::new();
    for stage in stages {
        say(format_args!("== {}", stage.name()));
        let outcome = run_stage(&checkout, *stage, selection)?;
        say(&outcome);
        if let Some(why) = outcome.why() {
            say(why);
        }
        outcomes.push(outcome);
        end_clusters(*stage)?;
    }
    summary(&outcomes)
}

/// Ends what the tests of a stage leave running, before the next one needs its share of the kernel's inotify instances.
fn end_clusters(stage: Stage) -> Result<()> {
    let tests = Cluster::tests();
    let names = match stage {
        Stage::Cluster => &[&tests, "standalone", "field"][..],
        Stage::KubeOvn => &["kube-ovn", "kube-ovn-thick"],
        Stage::Upgrade => &["upgrade", "uninstall"],
        Stage::KubeVirt => &["kubevirt"],
        Stage::Format | Stage::Lint | Stage::Unit | Stage::Kernel | Stage::Guest | Stage::Api => {
            return Ok(());
        }
    };
    for name in names.iter().filter(|_| rustix::process::geteuid().is_root()) {
        Cluster::down(name).with_context(|| format!("end the tests' cluster {name}"))?;
    }
    Ok(())
}

fn prepare(checkout: &Checkout, stages: &[Stage]) -> Result<()> {
    prerequisites::ensure(checkout)?;
    if stages.iter().any(|stage| *stage == Stage::Api || stage.has_nodes()) {
        components::build(checkout)?;
    }
    if stages.contains(&Stage::KubeOvn) {
        kube_ovn::build(checkout)?;
    }
    if stages.contains(&Stage::KubeVirt) {
        kubevirt::build(checkout)?;
    }
    if stages.contains(&Stage::Upgrade) {
        first_release::build(checkout)?;
    }
    if stages.iter().any(|stage| stage.has_nodes()) {
        images::build(checkout, &images::ALL)?;
    }
    Ok(())
}

fn run_stage(checkout: &Checkout, stage: Stage, selection: &Selection) -> Result<Outcome> {
    let log = checkout.artefacts().join("test").join(format!("{}.log", stage.name()));
    layout::write(&log, "")?;
    let start = Instant::now();
    let mut failure = None;
    for _ in 0..selection.repeat.unwrap_or(1) {
        let ended = match stage {
            Stage::Guest => guest_lab::logged(checkout, selection.matching.as_deref(), &log),
            _ => logged(checkout, &mut command(checkout, stage, selection)?, &log),
        };
        if let Err(error) = ended {
            failure = Some(format!("{error:#}"));
            break;
        }
    }
    let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    Ok(Outcome { stage: stage.name(), took: start.elapsed(), counts: count(&text), failure, log })
}

fn logged(checkout: &Checkout, command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options().append(true).open(log).with_context(|| format!("open {}", log.display()))?;
    command.current_dir(checkout.root()).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    // A failed test's chain of causes says more than the stack at its end.
    command.env("RUST_LIB_BACKTRACE", "0").env("CARGO_TERM_COLOR", "never");
    let status = command.status().context("run cargo")?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    bail!("cargo {} ended with {status}", words.join(" "))
}

/// What no crate of the workspace contains.
const FUZZING: [&str; 4] = [
    "fuzz/guided.rs",
    "fuzz/fuzz_targets/agent.rs",
    "fuzz/fuzz_targets/operator.rs",
    "fuzz/fuzz_targets/plugin.rs",
];

fn command(checkout: &Checkout, stage: Stage, selection: &Selection) -> Result<Command> {
    let mut command = Command::new("cargo");
    match stage {
        Stage::Format => {
            command.args(["fmt", "--all", "--check", "--"]).args(FUZZING);
            return Ok(command);
        }
        Stage::Lint => {
            command.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]);
            return Ok(command);
        }
        // Always the whole workspace: with `-p` Cargo would choose other features of what crates share, and compile
        // that again for each.
        Stage::Unit
        | Stage::Kernel
        | Stage::Guest
        | Stage::Api
        | Stage::Cluster
        | Stage::KubeOvn
        | Stage::Upgrade
        | Stage::KubeVirt => {
            command.args(["test", "--locked", "--no-fail-fast", "--workspace"]);
        }
    }
    if stage == Stage::Unit {
        command.args(["--lib", "--bins"]);
    }
    let wanted = |program: &&Program| {
        program.stage() == stage && selection.program.is_none_or(|name| program.name == name)
    };
    for program in programs(checkout)?.iter().filter(wanted) {
        command.args(["--test", &program.name]);
    }
    if stage == Stage::KubeOvn {
        // They wait most of their time, for kubelets and for time-outs of kube-ovn.
        command.env("RUST_TEST_THREADS", "6");
    }
    if selection.full {
        command.env(chaos::VARIABLE, "full");
    }
    command.args(&selection.matching).args(["--", "--show-output"]);
    Ok(command)
}

/// A test program: a file in some crate's `tests`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    package: String,
    name: String,
}

impl Program {
    /// Everything finds a stage, so that no test program is forgotten.
    fn stage(&self) -> Stage {
        if self.name.starts_with("api") {
            Stage::Api
        } else if self.name.starts_with("guest") {
            Stage::Guest
        } else if self.name.starts_with("kube_ovn") {
            Stage::KubeOvn
        } else if self.name.starts_with("upgrade") {
            Stage::Upgrade
        } else if self.name.starts_with("kubevirt") {
            Stage::KubeVirt
        } else if self.package == "e2e" {
            Stage::Cluster
        } else {
            Stage::Kernel
        }
    }
}

/// The part of `cargo metadata` that is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

fn programs(checkout: &Checkout) -> Result<BTreeSet<Program>> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]).current_dir(checkout.root());
    let metadata: Metadata =
        serde_json::from_str(&process::output(&mut command)?).context("read cargo metadata")?;
    let mut found = BTreeSet::new();
    for package in metadata.packages {
        for target in package.targets {
            if target.kind.iter().any(|kind| kind == "test") {
                found.insert(Program { package: package.name.clone(), name: target.name });
            }
        }
    }
    Ok(found)
}

/// The failures again, at the end, where a reader of a long log begins.
fn summary(outcomes: &[Outcome]) -> Result<()> {
    say("== summary");
    outcomes.iter().for_each(say);
    let failures: Vec<String> = outcomes.iter().filter_map(Outcome::why).collect();
    if failures.is_empty() {
        return Ok(());
    }
    failures.iter().for_each(say);
    bail!("{} of {} stages failed", failures.len(), outcomes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_program_of_the_workspace_has_a_stage() {
        let programs = programs(&Checkout::here()).unwrap();
        let own = Program { package: "e2e".to_owned(), name: "local_cluster".to_owned() };
        assert_eq!(own.stage(), Stage::Cluster);
        assert!(programs.contains(&own), "{programs:?}");
        // Cargo selects them by name alone, so a name in two crates would run in two stages.
        let names: BTreeSet<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        assert_eq!(
            names.len(),
            programs.len(),
            "two crates have a test program of the same name: {programs:?}"
        );
    }

    /// Applies each patch of `make plant` as that does.
    #[test]
    fn every_planted_fault_still_applies() {
        let checkout = Checkout::here();
        let patches = std::fs::read_dir(checkout.path(".ci/planted")).unwrap();
        let patches: Vec<_> = patches.map(|entry| entry.unwrap().path()).collect();
        assert!(!patches.is_empty());
        for patch in patches {
            let mut git = Command::new("git");
            git.args(["apply", "--check", "-C1"]).arg(&patch).current_dir(checkout.root());
            // A source without a repository of its own may be inside another one.
            git.env("GIT_CEILING_DIRECTORIES", checkout.root().parent().unwrap());
            let output = git.output().expect("git; install it");
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} does not apply: {why}; make it again", patch.display());
            let text = std::fs::read_to_string(&patch).unwrap();
            assert!(text.contains("\nTest: -p "), "{} names no test", patch.display());
        }
    }
}
