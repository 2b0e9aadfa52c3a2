//! Upgrade from the first release and back, while pods run, start and end: operator and agents each a release ahead of the
//! other on the way.

#![expect(clippy::print_stdout, reason = "what was measured belongs in the test's output")]

#[allow(dead_code, reason = "shared with the tests of the agent, which use all of it")]
#[path = "../agent/breaks.rs"]
mod breaks;
#[allow(dead_code, reason = "shared with the tests of the agent, which use all of it")]
#[path = "../agent/churn.rs"]
mod churn;
#[allow(dead_code, reason = "shared with the tests of the product, which use all of it")]
#[path = "../product/pods.rs"]
mod pods;
#[allow(dead_code, reason = "shared with the tests of the product, which use all of it")]
#[path = "../product/stage.rs"]
mod stage;
mod uninstall;

use anyhow::{Context, Result, ensure};
use breaks::{Log, Watch, never_unhealthy};
use e2e::layout::Checkout;
use e2e::{Cluster, Options, first_release, images, install, process};
use pods::{Attachment, Guest, Pod};
use stage::{PATIENCE, PREFIX, Stage};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const NAME: &str = "upgrade";
const OPERATORS: &str = "deployment/macvtap-operator";
const AGENTS: &str = "daemonset/macvtap-node-agent";

/// What is installed after a step, by the versions that operators and agents report.
#[derive(Clone, Copy)]
struct Step {
    title: &'static str,
    take: fn(&Cluster) -> Result<()>,
    operators: &'static str,
    agents: &'static str,
}

const OLD: &str = first_release::VERSION;
const NEW: &str = env!("CARGO_PKG_VERSION");

/// Agents go ahead of their operators, operators go back before their agents: the agents of the first release cannot read node
/// states that were written for newer ones.
const STEPS: [Step; 5] = [
    Step { title: "agents ahead", take: upgrade_agents, operators: OLD, agents: NEW },
    Step { title: "operators follow", take: resume, operators: NEW, agents: NEW },
    Step { title: "operators back", take: roll_back_operators, operators: OLD, agents: NEW },
    Step { title: "agents follow back", take: roll_back, operators: OLD, agents: OLD },
    Step { title: "everything ahead", take: upgrade, operators: NEW, agents: NEW },
];

#[test]
fn an_upgrade_from_the_first_release_and_the_way_back_refuse_no_pod_and_touch_none() -> Result<()> {
    if !Cluster::permitted()? {
        return Ok(());
    }
    let _turn = turn();
    let cluster: &'static Cluster = Box::leak(Box::new(with_first_release()?));
    let mut stage = Stage::on(cluster, NAME)?;
    cluster.explain(|| {
        stage.pool(NAME, &churn::pool("dp0", NAME))?;
        let resource = format!("{PREFIX}/{NAME}");
        stage.wait_allocatable(&resource, 20)?;
        let steady = steady(&stage, &resource)?;
        for (number, step) in (1..).zip(STEPS) {
            play(&stage, step, &resource, &steady)?;
            // Both understand each other: a pool that is written now reaches the kubelets.
            let name = format!("after-{number}");
            stage.pool(&name, &churn::pool_of(number, "dp1", &name))?;
            stage.wait_allocatable(&format!("{PREFIX}/{name}"), number)?;
            stage.kubectl.run(&["delete", &format!("macvtapresourcepool/{name}"), "--timeout=60s"])?;
        }
        churn::nothing_stays(&stage, NAME)
    })
}

/// The tests of this program install releases of their own, one after the other on one cluster.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster with the first release as its users installed it.
fn with_first_release() -> Result<Cluster> {
    let checkout = Checkout::here();
    images::build(&checkout, &images::ALL)?;
    first_release::build(&checkout)?;
    let cluster = Cluster::up(NAME, Options::default())?;
    install::remove(&cluster)?;
    for archive in first_release::archives(&checkout) {
        cluster.load(&archive)?;
    }
    let chart = first_release::chart(&checkout);
    let chart = chart.to_str().context("the path of the checkout is not UTF-8")?;
    let mut words = vec!["upgrade", "--install", install::RELEASE, chart, "--create-namespace"];
    let operator = format!("operator.image={}", first_release::reference("macvtap-operator"));
    let agent = format!("agent.image={}", first_release::reference("macvtap-node-agent"));
    words.extend(["--set", &operator, "--set", &agent]);
    helm(&cluster, &words)?;
    install::wait_ready(&cluster)?;
    Ok(cluster)
}

/// Pods that run all the time, one on each node, and what they hold.
fn steady(stage: &Stage, resource: &str) -> Result<Vec<(Pod, Attachment)>> {
    let mut steady = Vec::new();
    for (number, node, guest) in [(1, "n1", Guest::Answers), (2, "n2", Guest::Asks)] {
        let pod = Pod::apply(stage, &format!("steady-{node}"), node, guest, resource, Some(NAME), number)?;
        pod.ready(stage)?;
        let attachment = pod.attachment(stage)?;
        steady.push((pod, attachment));
    }
    Ok(steady)
}

/// Takes a step while pods come and go, and checks that none of them nor of the steady ones noticed.
fn play(stage: &Stage, step: Step, resource: &str, steady: &[(Pod, Attachment)]) -> Result<()> {
    let Step { title, take, operators, agents } = step;
    let logs = stage.nodes.iter().map(|node| Log::kubelet(stage, node)).collect::<Result<Vec<_>>>()?;
    let offers = Watch::offers(stage.kubectl, resource)?;
    let begun = Instant::now();
    let took = churn::during(stage, &["n1", "n2"], resource, NAME, || {
        take(stage.cluster)?;
        runs(stage, "macvtap-operator", operators)?;
        runs(stage, "macvtap-node-agent", agents)?;
        Ok(begun.elapsed())
    });
    let (took, fates) = took.with_context(|| format!("{title}: operators {operators}, agents {agents}"))?;
    let unhealthy: usize = logs.iter().map(|log| unhealthy_lines(log, resource)).sum::<Result<usize>>()?;
    println!(
        "{title} (operators {operators}, agents {agents}) in {:.1} s: {} pods ran, {} were refused; \
         the kubelets lost the resource {unhealthy} times",
        took.as_secs_f64(),
        fates.ready,
        fates.refused,
    );
    ensure!(fates.refused == 0, "{title}: {} of {} pods were refused", fates.refused, fates.pods());
    logs.iter().try_for_each(|log| never_unhealthy(log, resource))?;
    offers.offered_always(20).with_context(|| title.to_owned())?;
    for (pod, before) in steady {
        let now = pod.attachment(stage)?;
        ensure!(now == *before, "{title}: {} was touched: {before:?} became {now:?}", pod.name);
    }
    let [(answers, _), (asks, _)] = steady else { return Ok(()) };
    asks.pings(stage, "net1", answers)
}

fn unhealthy_lines(log: &Log, resource: &str) -> Result<usize> {
    Ok(log.lines(&["Mark all resources Unhealthy", &format!("resourceName=\"{resource}\"")])?.len())
}

/// Waits until all pods of a program, and no other, are of this release.
fn runs(stage: &Stage, program: &str, version: &str) -> Result<()> {
    let tag = if version == NEW { "dev" } else { version };
    let image = format!("localhost/{program}:{tag}");
    stage.kubectl.wait_until(install::NAMESPACE, "pods", 3 * PATIENCE, |list| {
        let own = |pod: &&serde_json::Value| pod["metadata"]["labels"]["app.kubernetes.io/name"] == program;
        let mut pods = list["items"].as_array()?.iter().filter(own).peekable();
        pods.peek()?;
        pods.all(|pod| pod["spec"]["containers"][0]["image"] == image.as_str()).then_some(())
    })
}

/// The command of docs/versions.md, with the images that were built here.
fn helm_upgrade(cluster: &Cluster) -> Result<()> {
    let chart = cluster.checkout().path("charts/macvtap-operator");
    let chart = chart.to_str().context("the path of the checkout is not UTF-8")?;
    let image = r#"{"registry":"localhost","tag":"dev"}"#;
    let [operator, agent] = ["operator", "agent"].map(|component| format!("{component}.image={image}"));
    let words = ["upgrade", install::RELEASE, chart, "--reset-then-reuse-values"];
    helm(cluster, &[&words[..], &["--set-json", &operator, "--set-json", &agent]].concat())
}

fn upgrade(cluster: &Cluster) -> Result<()> {
    helm_upgrade(cluster)?;
    install::wait_ready(cluster)
}

/// The commands of docs/upgrade.md: the operators first, with the newer chart.
fn roll_back_operators(cluster: &Cluster) -> Result<()> {
    let chart = cluster.checkout().path("charts/macvtap-operator");
    let chart = chart.to_str().context("the path of the checkout is not UTF-8")?;
    let tag = format!("operator.image.tag={OLD}");
    helm(cluster, &["upgrade", install::RELEASE, chart, "--reuse-values", "--set", &tag])?;
    wait(cluster, OPERATORS)
}

/// Then everything, to the first revision.
fn roll_back(cluster: &Cluster) -> Result<()> {
    helm(cluster, &["rollback", install::RELEASE, "1"])?;
    install::wait_ready(cluster)
}

/// The operators stay as they are until [`resume`].
fn upgrade_agents(cluster: &Cluster) -> Result<()> {
    rollout(cluster, "pause", OPERATORS)?;
    helm_upgrade(cluster)?;
    wait(cluster, AGENTS)
}

fn resume(cluster: &Cluster) -> Result<()> {
    rollout(cluster, "resume", OPERATORS)?;
    wait(cluster, OPERATORS)
}

fn wait(cluster: &Cluster, workload: &str) -> Result<()> {
    let words = ["-n", install::NAMESPACE, "rollout", "status", workload, "--timeout=180s"];
    cluster.kubectl().run(&words).map(drop)
}

fn rollout(cluster: &Cluster, verb: &str, workload: &str) -> Result<()> {
    cluster.kubectl().run(&["-n", install::NAMESPACE, "rollout", verb, workload]).map(drop)
}

fn helm(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let mut command = install::helm(cluster);
    process::output(command.args(words).args(["-n", install::NAMESPACE])).map(drop)
}
