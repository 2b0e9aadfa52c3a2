//! A kubelet that dies and comes back: it admits pods about a second after it has made its socket, and whoever is not
//! registered by then loses them.

use crate::breaks::{Agent, Log};
use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PREFIX, allocatable, play};
use anyhow::{Result, ensure};
use e2e::chaos::{self, Figure};
use e2e::wait;
use std::time::{Duration, Instant};

/// A kubelet takes devices back from ended pods when it admits another one, but not yet when it admits the first after its
/// start: here those are all there are, so each round costs a device.
const DEVICES: u64 = 100;

#[test]
fn no_pod_bound_while_the_kubelet_is_away_is_lost_and_the_agent_leaks_nothing() -> Result<()> {
    let restarts = chaos::times(5, 50);
    // A pod each time would be waited for each time; this many show it.
    let with_a_pod = chaos::times(5, 20);
    play("restarts", |stage| {
        stage.pool("restarts", &churn::pool_of(DEVICES, "dp0", "restarts"))?;
        let resource = format!("{PREFIX}/restarts");
        stage.wait_allocatable(&resource, DEVICES)?;
        let node = stage.node("n1")?;
        let steady = Pod::apply(stage, "steady", "n1", Guest::Answers, &resource, Some("restarts"), 1)?;
        steady.ready(stage)?;
        let before = steady.attachment(stage)?;
        let agent = Agent::on(node)?;
        let (mut registered, mut ready, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..restarts {
            node.kill_kubelet()?;
            let pod = (round < with_a_pod).then(|| {
                let name = format!("bound-{round}");
                Pod::apply(stage, &name, "n1", Guest::Asks, &resource, Some("restarts"), 2)
            });
            let pod = pod.transpose()?;
            let log = Log::kubelet(stage, node)?;
            let begun = Instant::now();
            node.start_kubelet()?;
            // Its device manager listens from this line on.
            log.moment(&["Starting device plugin registration server"], begun, Duration::from_mins(1))?;
            let listens = begun.elapsed();
            let asked =
                log.moment(&["Got registration request", &resource], begun, Duration::from_mins(1))?;
            registered.push(asked.saturating_sub(listens));
            if let Some(pod) = pod {
                ensure!(!churn::is_refused(stage, &pod)?, "{} was refused in round {round}", pod.name);
                ready.push(begun.elapsed());
                // Waited for: a kubelet that dies again takes the end of this pod, and its device, into the next round.
                pod.delete(stage)?;
            }
            stage.kubectl.wait_until("", "node/n1", Duration::from_mins(1), |object| {
                (allocatable(object, &resource) == Some(DEVICES)).then_some(())
            })?;
            wait::until("an agent that is ready", Duration::from_secs(20), || {
                Ok(agent.is_ready(node).then_some(()))
            })?;
            descriptors.push(agent.descriptors()?);
        }
        ensure!(Agent::on(node)? == agent, "the agent was started again");
        // The kubelet answers for a pod once it has heard of it from the API server, a moment after it started.
        let after = wait::until("a kubelet that knows the running pod", Duration::from_secs(20), || {
            steady.attachment(stage).map(Some)
        })?;
        ensure!(after == before, "the running pod was touched");
        let open =
            wait::until("no more open files than after the first restart", Duration::from_secs(20), || {
                let now = agent.descriptors()?;
                Ok((now <= descriptors[0]).then_some(now))
            })?;
        println!("open files of the agent after each restart: {descriptors:?}, at the end {open}");
        for figure in [
            Figure::series("kubelet restart: it listens to registered again", &registered),
            Figure::series("kubelet restart: start to Ready of the pod bound meanwhile", &ready),
            Figure::count("kubelet restart: pods lost", "pods", 0, ready.len()),
            Figure::count("kubelet restart: descriptors leaked", "files", 0, descriptors.len()),
        ] {
            println!("{figure}");
            figure.record()?;
        }
        churn::nothing_stays(stage, "restarts")
    })
}
