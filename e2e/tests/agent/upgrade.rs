//! Upgrades of the agent: the new one stands by, the old one hands over, and no pod notices.

use crate::breaks::{Agent, Log, Watch, never_unhealthy};
use crate::churn::{self, Fates};
use crate::pods::{Guest, Pod};
use crate::stage::{PREFIX, Stage, play};
use anyhow::{Result, ensure};
use e2e::chaos::{self, Figure};
use e2e::wait;
use std::time::{Duration, Instant};

const NAMESPACE: &str = "macvtap-system";
const DAEMON_SET: &str = "daemonset/macvtap-node-agent";

#[test]
fn an_upgrade_hands_over_without_a_moment_in_which_a_pod_could_be_refused() -> Result<()> {
    let rollouts = chaos::times(1, 6);
    play("upgrade", |stage| {
        stage.pool("upgrade", &churn::pool("dp0", "upgrade"))?;
        let resource = format!("{PREFIX}/upgrade");
        stage.wait_allocatable(&resource, 20)?;
        let mut steady = Vec::new();
        for (number, node) in [(1, "n1"), (2, "n2")] {
            let name = format!("steady-{node}");
            let pod = Pod::apply(stage, &name, node, Guest::Answers, &resource, Some("upgrade"), number)?;
            pod.ready(stage)?;
            let before = pod.attachment(stage)?;
            steady.push((pod, before));
        }
        let logs = stage.nodes.iter().map(|node| Log::kubelet(stage, node)).collect::<Result<Vec<_>>>()?;
        let offers = Watch::offers(stage.kubectl, &resource)?;
        let ((), fates) = churn::during(stage, &["n1", "n2"], &resource, "upgrade", || {
            (0..rollouts).try_for_each(|_| roll_out(stage))
        })?;

        let Fates { ready, refused } = fates;
        let hand_overs = usize::try_from(rollouts)? * stage.nodes.len();
        println!("{hand_overs} hand-overs: {ready} pods came and went, {refused} were refused");
        ensure!(refused == 0, "{refused} of {} pods were refused during an upgrade", fates.pods());
        for log in &logs {
            never_unhealthy(log, &resource)?;
            // The one that makes room and the successor's own, each time: without them nothing was handed over.
            let registered = log.lines(&["Got registration request", &resource])?.len();
            let wanted = 2 * usize::try_from(rollouts)?;
            ensure!(registered >= wanted, "{registered} registrations in {rollouts} hand-overs: {log:?}");
        }
        offers.offered_always(20)?;
        for (pod, before) in &steady {
            ensure!(pod.attachment(stage)? == *before, "{} was touched", pod.name);
        }
        Figure::count("upgrade: pods refused", "pods", u64::try_from(refused)?, fates.pods()).record()?;
        Figure::count("upgrade: unhealthy lines of the kubelet", "lines", 0, hand_overs).record()?;
        churn::nothing_stays(stage, "upgrade")
    })
}

/// Replaces the agent of every node, and waits until the former ones are gone.
fn roll_out(stage: &Stage) -> Result<()> {
    let before = stage.nodes.iter().map(Agent::on).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    stage.kubectl.run(&["-n", NAMESPACE, "rollout", "restart", DAEMON_SET])?;
    stage.kubectl.run(&["-n", NAMESPACE, "rollout", "status", DAEMON_SET, "--timeout=180s"])?;
    for (node, before) in stage.nodes.iter().zip(before) {
        wait::until("the new agent alone", Duration::from_mins(1), || {
            let now = Agent::on(node)?;
            Ok((now.supervisor != before.supervisor && now.is_ready(node)).then_some(()))
        })?;
    }
    println!("rolled out in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
