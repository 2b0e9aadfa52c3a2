//! A sandbox that dies: its pod comes back in a new one, with the same device, although nobody asks the agent again.

use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, play};
use anyhow::{Result, ensure};
use e2e::chaos::{self, Figure};
use e2e::process;
use rustix::process::Signal;
use std::time::Instant;

#[test]
fn a_killed_sandbox_comes_back_with_the_same_device() -> Result<()> {
    let kills = chaos::times(1, 4);
    play("sandbox", |stage| {
        stage.pool("sandbox", &churn::pool("dp0", "sandbox"))?;
        let resource = format!("{PREFIX}/sandbox");
        stage.wait_allocatable(&resource, 20)?;
        let mut back = Vec::new();
        for (number, node) in [(1, "n1"), (2, "n2")] {
            let name = format!("victim-{node}");
            let pod = Pod::apply(stage, &name, node, Guest::Answers, &resource, Some("sandbox"), number)?;
            pod.ready(stage)?;
            let before = pod.attachment(stage)?;
            for kill in 1..=kills {
                let sandbox = pod.node(stage)?.pause_pid(&pod.namespace, &pod.name)?;
                let killed = Instant::now();
                process::send(sandbox, Signal::KILL);
                stage.kubectl.wait_until(&pod.namespace, &format!("pod/{name}"), 8 * PATIENCE, |object| {
                    let status = object["status"]["containerStatuses"].get(0)?;
                    let again = status["restartCount"].as_u64()? >= kill.into() && status["ready"] == true;
                    again.then_some(())
                })?;
                back.push(killed.elapsed());
                let after = pod.attachment(stage)?;
                let same = after.ifindex == before.ifindex && after.mac == before.mac;
                ensure!(same, "{before:?} became {after:?}");
                ensure!(after.node == format!("107:107 {}", after.link_device), "{after:?}");
            }
            let name = format!("asks-{node}");
            let asks = Pod::apply(stage, &name, node, Guest::Asks, &resource, Some("sandbox"), number + 10)?;
            asks.ready(stage)?;
            asks.pings(stage, "net1", &pod)?;
        }
        let figure = Figure::series("sandbox killed: to Ready again (with the kubelet's back-off)", &back);
        println!("{figure}");
        figure.record()?;
        churn::nothing_stays(stage, "sandbox")
    })
}
