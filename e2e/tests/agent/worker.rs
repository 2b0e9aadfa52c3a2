//! The agent's worker killed at moments nobody chose, while pods come and go.

use crate::breaks::{Agent, Log, random};
use crate::churn::{self, Fates};
use crate::pods::{Guest, Pod};
use crate::stage::{PREFIX, play};
use anyhow::{Result, ensure};
use e2e::chaos::{self, Figure};
use std::time::{Duration, Instant};

#[test]
fn killing_the_worker_loses_no_pod_that_was_admitted_and_leaves_nothing() -> Result<()> {
    let kills = chaos::times(5, 100);
    play("worker", |stage| {
        stage.pool("worker", &churn::pool("dp0", "worker"))?;
        let resource = format!("{PREFIX}/worker");
        stage.wait_allocatable(&resource, 20)?;
        let steady = Pod::apply(stage, "steady", "n1", Guest::Answers, &resource, Some("worker"), 1)?;
        let asks = Pod::apply(stage, "asks", "n1", Guest::Asks, &resource, Some("worker"), 2)?;
        steady.ready(stage)?;
        asks.ready(stage)?;
        let before = [steady.attachment(stage)?, asks.attachment(stage)?];
        let node = stage.node("n1")?;
        let (gaps, fates) = churn::during(stage, &["n1", "n1"], &resource, "worker", || {
            let mut gaps = Vec::new();
            let first = Agent::on(node)?;
            for _ in 0..kills {
                std::thread::sleep(Duration::from_millis(random(1500)));
                let (agent, log) = (Agent::on(node)?, Log::agent(node)?);
                ensure!(agent.supervisor == first.supervisor, "the supervisor died");
                let killed = Instant::now();
                agent.kill_worker();
                // Its log is read a moment after it is written: the gap is not longer than this.
                gaps.push(log.moment(&["resource registered", "worker"], killed, Duration::from_secs(20))?);
            }
            Ok(gaps)
        })?;
        let Fates { refused, .. } = fates;
        for figure in [
            Figure::series("worker killed: to registered again", &gaps),
            Figure::count(
                "worker killed: pods refused in the gap",
                "pods",
                u64::try_from(refused)?,
                fates.pods(),
            ),
        ] {
            println!("{figure}");
            figure.record()?;
        }
        ensure!([steady.attachment(stage)?, asks.attachment(stage)?] == before, "running pods were touched");
        asks.pings(stage, "net1", &steady)?;
        stage.wait_allocatable(&resource, 20)?;
        // What came and went is gone, what stays is counted.
        churn::counted(stage, "worker", 2)?;
        churn::nothing_stays(stage, "worker")?;
        churn::counted(stage, "worker", 0)
    })
}
