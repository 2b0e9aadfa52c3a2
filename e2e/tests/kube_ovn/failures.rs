//! kube-ovn is away, or late, when a pod needs it. These tests run alone: all others need it too.

use crate::addresses::made_again;
use crate::pods::{Pod, interface};
use crate::stage::{Stage, play_alone};
use anyhow::{Context, Result, ensure};
use e2e::{kube_ovn, process, wait};
use rustix::process::Signal;
use std::path::Path;
use std::time::Duration;

/// Waits until our plugin is at work for a pod.
fn adding(stage: &Stage, pod: &str) -> Result<u32> {
    let wanted = [
        "CNI_COMMAND=ADD".to_owned(),
        "CNI_IFNAME=net1".to_owned(),
        format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={pod};", stage.namespace),
    ];
    let is_ours = |proc: &Path| {
        let environment = std::fs::read(proc.join("environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let name = std::fs::read_to_string(proc.join("comm")).unwrap_or_default();
        name.trim() == "macvtap" && wanted.iter().all(|word| environment.contains(word))
    };
    wait::until(&format!("the ADD of {pod}"), Duration::from_secs(30), || {
        Ok(process::find(is_ours).first().copied())
    })
}

fn never_failed(stage: &Stage, pod: &str) -> Result<()> {
    let complaints = stage.complaints(pod)?;
    ensure!(complaints.is_empty(), "its sandbox had to be made again: {complaints:?}");
    Ok(())
}

#[test]
fn an_add_outlasts_the_restart_of_the_daemon() -> Result<()> {
    play_alone("restart", |stage| {
        stage.network("net", "172.23.0.0/24")?;
        let kube_ovn = stage.kube_ovn()?;
        let node = stage.node("n1")?;
        kube_ovn.kill_daemon(node)?;
        // Its socket stays behind: nobody answers there.
        node.exec(&["test", "-S", kube_ovn::SOCKET])?;
        let pods = [Pod::on("refused", "net")];
        stage.apply(&pods)?;
        adding(stage, "refused")?;
        kube_ovn.start_daemon(node)?;
        kube_ovn.wait_daemon(node)?;
        stage.ready(&pods)?;
        never_failed(stage, "refused")?;

        kube_ovn.kill_daemon(node)?;
        node.exec(&["rm", "-f", kube_ovn::SOCKET])?;
        let pods = [Pod::on("absent", "net")];
        stage.apply(&pods)?;
        adding(stage, "absent")?;
        kube_ovn.start_daemon(node)?;
        kube_ovn.wait_daemon(node)?;
        stage.ready(&pods)?;
        never_failed(stage, "absent")?;
        let found = interface(stage, "absent", "net1")?;
        ensure!(found.addresses.len() == 1, "{found:?}");
        Ok(())
    })
}

#[test]
fn an_add_outlasts_a_controller_that_is_late() -> Result<()> {
    play_alone("late", |stage| {
        stage.network("net", "172.23.1.0/24")?;
        let processes = stage.cluster.processes().context("it is local")?;
        let controller = processes.pid(kube_ovn::CONTROLLER).context("the controller runs")?;
        process::send(controller, Signal::STOP);
        // An address that the pod brought along makes the daemon answer before it can.
        let pods = [
            Pod::on("plain", "net"),
            Pod::on("with-address", "net").says(&stage.key("net", "ip_address"), "172.23.1.50"),
        ];
        let stopped = stage.apply(&pods).and_then(|()| {
            adding(stage, "plain")?;
            adding(stage, "with-address")
        });
        process::send(controller, Signal::CONT);
        stopped?;
        stage.ready(&pods)?;
        for pod in &pods {
            never_failed(stage, &pod.name)?;
        }
        ensure!(
            interface(stage, "with-address", "net1")?.addresses == ["172.23.1.50/24"],
            "the one asked for"
        );
        Ok(())
    })
}

#[test]
fn pods_end_while_the_daemon_is_away_and_a_sandbox_is_made_again_when_it_is_back() -> Result<()> {
    play_alone("away", |stage| {
        stage.network("net", "172.23.2.0/24")?;
        let kube_ovn = stage.kube_ovn()?;
        let node = stage.node("n1")?;
        let pods = [Pod::on("ends", "net"), Pod::on("stays", "net")];
        stage.apply(&pods)?;
        stage.ready(&pods)?;
        let before = interface(stage, "stays", "net1")?;
        kube_ovn.kill_daemon(node)?;
        stage.delete("ends")?;
        let records = "ls /run/macvtap/attachments | wc -l; ls /run/macvtap/dev | wc -l";
        let left = node.exec(&["sh", "-c", records])?;
        ensure!(left.split_whitespace().all(|count| count == "1"), "one device is in use: {left}");
        kube_ovn.start_daemon(node)?;
        kube_ovn.wait_daemon(node)?;
        made_again(stage, "stays", "n1")?;
        let after = interface(stage, "stays", "net1")?;
        ensure!(after == before, "before {before:?}, after {after:?}");
        Ok(())
    })
}
