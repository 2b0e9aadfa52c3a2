//! A control plane that is away: a node goes on with what it knows.

use crate::breaks::{Agent, Log};
use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, play};
use anyhow::{Context, Result, ensure};
use e2e::{Cluster, process, wait};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The API server is away for as long as this lives.
pub(crate) struct Outage<'a>(&'a Cluster);

impl<'a> Outage<'a> {
    pub(crate) fn begin(cluster: &'a Cluster) -> Result<Self> {
        cluster.kill_api_server()?;
        Ok(Self(cluster))
    }

    pub(crate) fn end(self) -> Result<()> {
        self.0.start_api_server()
    }
}

impl Drop for Outage<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.start_api_server() {
            println!("the API server does not come back: {error:#}");
        }
    }
}

#[test]
fn an_agent_that_starts_without_api_server_serves_what_it_served_last() -> Result<()> {
    play("outage", |stage| {
        stage.pool("outage", &churn::pool("dp0", "outage"))?;
        let resource = format!("{PREFIX}/outage");
        stage.wait_allocatable(&resource, 20)?;
        let [stays, restarts, loses] = pods(stage, &resource)?;
        let before = [stays.attachment(stage)?, restarts.attachment(stage)?, loses.attachment(stage)?];
        let node = stage.node("n1")?;
        let (former, log) = (Agent::on(node)?, Log::kubelet(stage, node)?);

        let outage = Outage::begin(stage.cluster)?;
        let begun = Instant::now();
        former.kill();
        let agent = wait::until("the agent's container again", Duration::from_mins(2), || {
            let agent = Agent::on(node)?;
            Ok((agent.supervisor != former.supervisor).then_some(agent))
        })?;
        log.moment(&["Got registration request", &resource], begun, Duration::from_mins(1))?;
        wait::until("readiness without API server", Duration::from_secs(20), || {
            Ok(agent.is_ready(node).then_some(()))
        })?;
        println!("killed and registered again without API server in {:.1} s", begun.elapsed().as_secs_f64());

        // A container that ends is started again where it was: the kubelet asks nobody.
        let [pid] = node.container_pids(&restarts.namespace, &restarts.name)?[..] else {
            anyhow::bail!("{} has no single container", restarts.name)
        };
        process::send(pid, Signal::KILL);
        wait::until("its container again", PATIENCE, || {
            let pids = node.container_pids(&restarts.namespace, &restarts.name)?;
            Ok((pids.len() == 1 && pids[0] != pid).then_some(()))
        })?;
        // A sandbox that ends is not: Multus asks the API server which networks a pod has.
        process::send(node.pause_pid(&loses.namespace, &loses.name)?, Signal::KILL);
        let record = records(stage, &loses)?;
        wait::until("the end of the lost sandbox's link", PATIENCE, || {
            Ok(records(stage, &loses)?.is_empty().then_some(()))
        })
        .with_context(|| format!("recorded before: {record:?}"))?;
        outage.end()?;

        for (pod, before) in [&stays, &restarts, &loses].into_iter().zip(&before) {
            pod.ready(stage)?;
            let after = wait::until("what it had", PATIENCE, || {
                let after = pod.attachment(stage)?;
                Ok((after.ifindex == before.ifindex && after.mac == before.mac).then_some(after))
            })?;
            ensure!(after.node == format!("107:107 {}", after.link_device), "{}: {after:?}", pod.name);
        }
        restarts.pings(stage, "net1", &stays)?;
        // The state is right soon after: nothing is lost, nothing counted twice.
        stage.wait_allocatable(&resource, 20)?;
        stage.kubectl.wait_until("", "macvtapnodestate/n1", 2 * PATIENCE, |state| {
            let pools = state["status"]["pools"].as_array()?;
            let pool = pools.iter().find(|pool| pool["name"] == "outage")?;
            (pool["allocated"] == 3 && pool["dead"].as_u64().unwrap_or(0) == 0).then_some(())
        })?;
        let fresh = Pod::apply(stage, "fresh", "n1", Guest::Asks, &resource, Some("outage"), 9)?;
        fresh.ready(stage)?;
        churn::nothing_stays(stage, "outage")
    })
}

fn pods(stage: &Stage, resource: &str) -> Result<[Pod; 3]> {
    let make = |name, guest, number| Pod::apply(stage, name, "n1", guest, resource, Some("outage"), number);
    let pods = [
        make("stays", Guest::Answers, 1)?,
        make("restarts", Guest::Asks, 2)?,
        make("loses", Guest::Asks, 3)?,
    ];
    for pod in &pods {
        pod.ready(stage)?;
    }
    Ok(pods)
}

/// The attachment records of a pod.
fn records(stage: &Stage, pod: &Pod) -> Result<Vec<String>> {
    let listing = stage.node(&pod.node)?.exec(&[
        "sh",
        "-c",
        &format!("grep -l '\"{}\"' /run/macvtap/attachments/* || true", pod.name),
    ])?;
    Ok(listing.lines().map(str::to_owned).collect())
}
