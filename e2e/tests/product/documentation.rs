//! The commands of the documentation, run as they are written, in the state in which the reader is.

use crate::stage::{PATIENCE, PREFIX, Stage, allocatable, play};
use anyhow::{Context as _, Result, ensure};
use e2e::layout::Checkout;
use e2e::{install, process, wait};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::process::Command;
use tempfile::TempDir;

/// Beginnings of commands that are run elsewhere, each with the file that runs them.
const ELSEWHERE: [(&str, &str); 26] = [
    ("make ", "e2e/tests/api_documentation.rs"),
    ("for image in ", "e2e/src/release.rs"),
    ("tar ", "e2e/src/release.rs"),
    ("helm install macvtap charts/macvtap-operator ", "e2e/src/install.rs"),
    (
        "helm upgrade macvtap charts/macvtap-operator --namespace macvtap-system -f ",
        "e2e/tests/upgrade/main.rs",
    ),
    ("helm upgrade macvtap macvtap-operator-", "e2e/tests/upgrade/main.rs"),
    (
        "helm upgrade macvtap charts/macvtap-operator --namespace macvtap-system --reuse-values ",
        "e2e/tests/upgrade/main.rs",
    ),
    ("helm rollback ", "e2e/tests/upgrade/main.rs"),
    ("helm uninstall ", "e2e/tests/upgrade/uninstall.rs"),
    ("kubectl delete mrp --all", "e2e/tests/upgrade/uninstall.rs"),
    ("kubectl delete crd ", "e2e/tests/upgrade/uninstall.rs"),
    ("kubectl delete namespace ", "e2e/tests/upgrade/uninstall.rs"),
    ("rm -rf /opt/cni/bin/macvtap ", "e2e/tests/upgrade/uninstall.rs"),
    ("kubectl patch node NODE ", "e2e/tests/upgrade/uninstall.rs"),
    (
        "helm upgrade macvtap charts/macvtap-operator --namespace macvtap-system --reset-then-reuse-values --set agent.maxSurge=0 ",
        "e2e/tests/api_documentation.rs",
    ),
    (
        "helm upgrade macvtap charts/macvtap-operator --namespace macvtap-system --reset-then-reuse-values --set webhook.enabled=true",
        "e2e/tests/product/webhook.rs",
    ),
    (
        "kubectl --namespace macvtap-system rollout status deployment/macvtap-webhook",
        "e2e/tests/product/webhook.rs",
    ),
    ("kubectl macvtap migrate ", "e2e/tests/api_migrate.rs"),
    ("kubectl get cm -n kube-system macvtap-deviceplugin-config ", "e2e/tests/api_migrate.rs"),
    ("kubectl apply -f examples/standalone/", "e2e/tests/standalone/main.rs"),
    ("kubectl apply --server-side -f dist/install.yaml", "e2e/tests/api_chart.rs"),
    ("kubectl delete -f dist/install.yaml", "e2e/tests/api_chart.rs"),
    ("kubectl patch kubevirt ", "e2e/src/kubevirt.rs"),
    ("kubectl apply -f examples/kubevirt/pool.yaml", "e2e/tests/kubevirt/examples.rs"),
    ("kubectl apply -f examples/kubevirt/vm.yaml", "e2e/tests/kubevirt/examples.rs"),
    ("kubectl create -f examples/kubevirt/migration.yaml", "e2e/tests/kubevirt/examples.rs"),
];

/// Beginnings of commands that need what is missing here, each with that.
const UNTRIED: [(&str, &str); 4] = [
    ("tcpdump ", "a program of the reader's node"),
    ("ip link set PF vf N trust ", "a NIC with virtual functions"),
    ("ip link set PF vf N spoofchk ", "a NIC with virtual functions"),
    ("kubectl exec POD -- ping -M do ", "an image with the ping of iputils"),
];

/// What stands in a command for a name of the reader's cluster, and that name here.
const NAMES: [(&str, &str); 7] = [
    ("mrp NAME", "mrp dataplane"),
    ("pod NAME", "pod a"),
    ("POOL", "dataplane"),
    ("NODE", "n1"),
    ("POD", "a"),
    ("LINK", "dp0"),
    ("NAMESPACE", "default"),
];

/// Kinds of others that this cluster does not have.
const FOREIGN: [&str; 2] = ["vmim", "ips.kubeovn.io"];

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    /// The heading above it.
    section: String,
    /// Commands have none.
    language: String,
    text: String,
}

impl Block {
    /// Its commands, each on one line.
    fn commands(&self) -> Vec<String> {
        let text = self.text.replace("\\\n ", "");
        let lines = text.lines().map(|line| line.split("  #").next().unwrap_or_default());
        lines.map(|line| line.trim().to_owned()).collect()
    }
}

/// What sentences and tables let the reader ask the cluster.
fn questions(page: &str) -> Vec<String> {
    let prose: String = page.split("\n```").step_by(2).collect();
    let spans = prose.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_question = |span: &&str| {
        let asked = ["kubectl get ", "kubectl describe ", "kubectl explain "];
        let kind = asked.iter().find_map(|verb| span.strip_prefix(verb));
        kind.is_some_and(|kind| !FOREIGN.contains(&kind))
    };
    spans.filter(is_question).map(str::to_owned).collect()
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let (mut section, mut is_code) = (String::new(), false);
    for line in page.lines() {
        if let Some(language) = line.strip_prefix("```") {
            is_code = !is_code;
            if is_code {
                let (section, language) = (section.clone(), language.to_owned());
                found.push(Block { section, language, text: String::new() });
            }
        } else if let Some(block) = found.last_mut().filter(|_| is_code) {
            block.text.extend([line, "\n"]);
        } else if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
    }
    found
}

struct Page {
    blocks: Vec<Block>,
    questions: Vec<String>,
}

/// Every page of the documentation by its name.
fn pages() -> Result<BTreeMap<String, Page>> {
    let checkout = Checkout::here();
    let mut pages = BTreeMap::from([("README.md".to_owned(), checkout.path("README.md"))]);
    for entry in std::fs::read_dir(checkout.path("docs"))? {
        let entry = entry?;
        pages.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
    }
    pages.retain(|_, path| path.extension().is_some_and(|kind| kind == "md"));
    let read = |(name, path)| {
        let text = std::fs::read_to_string(path)?;
        Ok((name, Page { blocks: blocks(&text), questions: questions(&text) }))
    };
    pages.into_iter().map(read).collect()
}

fn is_listed(list: &[(&str, &str)], command: &str) -> bool {
    list.iter().any(|(beginning, _)| command.starts_with(beginning))
}

#[test]
fn each_command_that_is_run_elsewhere_is_in_the_documentation_and_each_block_without_a_language_has_commands()
-> Result<()> {
    let commands: Vec<String> = pages()?
        .into_values()
        .flat_map(|page| page.blocks)
        .filter(|block| block.language.is_empty())
        .flat_map(|block| block.commands())
        .collect();
    for (beginning, place) in ELSEWHERE.iter().chain(&UNTRIED) {
        ensure!(commands.iter().any(|command| command.starts_with(beginning)), "no page has `{beginning}`");
        let is_file = Checkout::here().path(place).is_file();
        ensure!(is_file || is_listed(&UNTRIED, beginning), "{place} does not exist");
    }
    let programs = ["kubectl", "helm", "ip"];
    for command in
        commands.iter().filter(|command| !is_listed(&ELSEWHERE, command) && !is_listed(&UNTRIED, command))
    {
        let program = command.split(' ').next().unwrap_or_default();
        ensure!(programs.contains(&program), "`{command}` is not a command that these tests run");
    }
    Ok(())
}

/// Somebody with a terminal, in a directory with charts and examples.
struct Reader<'s> {
    stage: &'s Stage,
    dir: TempDir,
    /// The agent's pod on the first node.
    agent: String,
    commands: usize,
}

impl<'s> Reader<'s> {
    fn new(stage: &'s Stage) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let checkout = stage.cluster.checkout();
        for name in ["charts", "examples", "crds"] {
            symlink(checkout.path(name), dir.path().join(name))?;
        }
        symlink(checkout.path("examples/standalone/config.yaml"), dir.path().join("config.yaml"))?;
        let label = "app.kubernetes.io/name=macvtap-node-agent";
        let first = "--field-selector=spec.nodeName=n1";
        let words = ["-n", install::NAMESPACE, "get", "pods", "-l", label, first, "-o", "name"];
        let agent = stage.kubectl.run(&words)?.trim().to_owned();
        Ok(Self { stage, dir, agent, commands: 0 })
    }

    /// Does what a block says: applies a manifest, runs commands.
    fn follow(&mut self, block: &Block) -> Result<()> {
        if block.language == "yaml" {
            return self.stage.kubectl.apply(&block.text);
        }
        if !block.language.is_empty() {
            return Ok(());
        }
        for command in block.commands() {
            if !is_listed(&ELSEWHERE, &command) && !is_listed(&UNTRIED, &command) {
                self.run(&command).with_context(|| format!("section {}", block.section))?;
            }
        }
        Ok(())
    }

    fn run(&mut self, command: &str) -> Result<()> {
        let command = command.replace("AGENT-POD", &self.agent);
        let command = NAMES.iter().fold(command, |command, (name, here)| command.replace(name, here));
        self.commands += 1;
        if command.starts_with("ip ") {
            return self.stage.node("n1")?.exec(&["sh", "-ec", &command]).map(drop);
        }
        // As helm of the tests, so that nothing is written below the user's home.
        let helm = install::helm(self.stage.cluster);
        let bin = self.stage.cluster.checkout().bin();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-ec", &command]).current_dir(self.dir.path());
        shell.envs(helm.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.env("PATH", format!("{}:{path}", bin.display()));
        let said = process::output(&mut shell)?;
        println!("$ {command}\n{}", said.lines().take(4).collect::<Vec<_>>().join("\n"));
        Ok(())
    }
}

#[test]
fn a_reader_who_runs_the_commands_of_the_documentation_gets_what_it_promises() -> Result<()> {
    play("documentation", |stage| {
        let outcome = read_everything(stage);
        let leave =
            "delete mrp/dataplane pod/a pod/b pod/macvtap-a pod/macvtap-b --ignore-not-found --timeout=90s";
        stage.kubectl.run(&leave.split(' ').collect::<Vec<_>>())?;
        // Without what the commands have set.
        outcome.and(install::product(stage.cluster, &[]))
    })
}

fn read_everything(stage: &Stage) -> Result<()> {
    let pages = pages()?;
    let page = |name: &str| pages.get(name).with_context(|| format!("no page {name}"));
    let mut reader = Reader::new(stage)?;
    let (last, before): (Vec<_>, Vec<_>) =
        page("getting-started.md")?.blocks.iter().partition(|block| block.section == "5. Remove");
    for block in before {
        reader.follow(block)?;
    }
    // Pool, network and pods of that page are those of the others' commands.
    for (name, page) in &pages {
        let has_pods_of_its_own = matches!(name.as_str(), "README.md" | "getting-started.md");
        for block in page.blocks.iter().filter(|block| !has_pods_of_its_own && block.language.is_empty()) {
            reader.follow(block).with_context(|| name.clone())?;
        }
        for question in &page.questions {
            reader.run(question).with_context(|| name.clone())?;
        }
    }
    reader.run("ip link delete host0")?;
    for block in last {
        reader.follow(block)?;
    }
    restored(&mut reader)?;
    for block in page("README.md")?.blocks.iter().filter(|block| block.language.is_empty()) {
        reader.follow(block).context("README.md")?;
    }
    println!("{} commands were run", reader.commands);
    ensure!(reader.commands > 40, "only {} commands were found", reader.commands);
    Ok(())
}

/// The pool that docs/backup.md saved, as that page restores it.
fn restored(reader: &mut Reader<'_>) -> Result<()> {
    let stage = reader.stage;
    let saved = std::fs::read_to_string(reader.dir.path().join("saved-pools.yaml"))?;
    let is_of_the_cluster =
        |line: &str| line.starts_with("    uid:") || line.starts_with("    resourceVersion:");
    ensure!(!saved.lines().any(is_of_the_cluster), "{saved}");
    reader.run("kubectl apply -f saved-pools.yaml")?;
    reader.run("kubectl wait --for=condition=Available mrp --all --timeout=5m")?;
    stage.kubectl.run(&["delete", "mrp", "dataplane", "--timeout=90s"])?;
    let resource = format!("{PREFIX}/dataplane");
    wait::until("the pool to leave the node", PATIENCE, || {
        let node = stage.kubectl.get("", "node/n1")?;
        Ok(allocatable(&node, &resource).is_none_or(|count| count == 0).then_some(()))
    })
}
