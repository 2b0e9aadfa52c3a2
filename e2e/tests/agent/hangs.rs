//! What the agent waits for hangs for seconds: the kernel's lock of links, the disk of its state. Pods that come meanwhile
//! are late at most.

use crate::breaks::{Agent, Log, never_unhealthy};
use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, play};
use anyhow::{Context, Result, ensure};
use e2e::chaos::{self, Figure};
use e2e::{Node, install, process, wait};
use std::time::Instant;

/// Links of one group, which the kernel deletes in one go under its lock. Arguments: namespace, how many pairs.
const MAKE_LINKS: &str = "ip netns add $1 && for i in $(seq $2); do \
    echo link add a$i group 77 type veth peer name b$i group 77; done | ip -n $1 -batch -";

/// So many pairs take about two seconds.
const PAIRS: &str = "8000";

/// A namespace that goes.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = process::output(std::process::Command::new("ip").args(["netns", "del", &self.0]));
    }
}

/// Holds the kernel's lock of links, which all namespaces share; gives for how long.
fn hold_links(namespace: &str) -> Result<std::time::Duration> {
    let namespace = Namespace(namespace.to_owned());
    let mut make = std::process::Command::new("sh");
    process::output(make.args(["-c", MAKE_LINKS, "sh", &namespace.0, PAIRS]))?;
    let begun = Instant::now();
    let mut delete = std::process::Command::new("ip");
    process::output(delete.args(["-n", &namespace.0, "link", "del", "group", "77"]))?;
    Ok(begun.elapsed())
}

#[test]
fn links_that_are_locked_for_seconds_make_pods_late_and_no_more() -> Result<()> {
    let times = chaos::times(1, 5);
    play("locked", |stage| {
        stage.pool("locked", &churn::pool("dp0", "locked"))?;
        let resource = format!("{PREFIX}/locked");
        stage.wait_allocatable(&resource, 20)?;
        let node = stage.node("n1")?;
        let (before, log) = (Agent::on(node)?, Log::kubelet(stage, node)?);
        let name = format!("{}-locked", stage.cluster.layout().context("a local cluster has a layout")?.id);
        let (held, fates) = churn::during(stage, &["n1", "n2"], &resource, "locked", || {
            (0..times).map(|_| hold_links(&name)).collect::<Result<Vec<_>>>()
        })?;
        for figure in [
            Figure::series("links locked: for so long", &held),
            Figure::count("links locked: pods refused", "pods", u64::try_from(fates.refused)?, fates.pods()),
        ] {
            println!("{figure}");
            figure.record()?;
        }
        ensure!(fates.refused == 0, "{fates:?}");
        ensure!(Agent::on(node)? == before, "the agent was started again");
        never_unhealthy(&log, &resource)?;
        churn::nothing_stays(stage, "locked")
    })
}

/// A file system of its own for the agent's state on a node, which can be made to hang.
struct Disk<'s> {
    node: &'static Node,
    stage: &'s Stage,
}

/// Puts a file system with the same content in the place of the state's directory.
const MOUNT: &str = "set -e; cd /run; dd if=/dev/zero of=state.img bs=1M count=16 status=none; mkfs.ext4 -q state.img; \
    mkdir -p state; mount -o loop,noatime state.img state; cp -a /var/lib/macvtap/. state/; umount state; \
    mount -o loop,noatime state.img /var/lib/macvtap";

/// The other way round.
const UNMOUNT: &str = "fsfreeze -u /var/lib/macvtap 2>/dev/null; cp -a /var/lib/macvtap/. /run/state/; \
    umount -l /var/lib/macvtap; cp -a /run/state/. /var/lib/macvtap/; rm -rf /run/state /run/state.img";

impl<'s> Disk<'s> {
    fn new(stage: &'s Stage, node: &'static Node) -> Result<Self> {
        let disk = Self { node, stage };
        disk.run(MOUNT)?;
        disk.restart_agent()?;
        Ok(disk)
    }

    fn run(&self, script: &str) -> Result<()> {
        self.node.exec(&["sh", "-c", script]).map(drop)
    }

    /// A container keeps what was mounted when it started.
    fn restart_agent(&self) -> Result<()> {
        let on = format!("spec.nodeName={}", self.node.name());
        let label = "app.kubernetes.io/name=macvtap-node-agent";
        let words = ["-n", install::NAMESPACE, "delete", "pod", "-l", label, "--field-selector", &on];
        self.stage.kubectl.run(&words)?;
        let words = ["-n", install::NAMESPACE, "rollout", "status", "daemonset/macvtap-node-agent"];
        self.stage.kubectl.run(&[&words[..], &["--timeout=90s"]].concat())?;
        wait::until("an agent that is ready", PATIENCE, || {
            Ok(Agent::on(self.node).ok().filter(|agent| agent.is_ready(self.node)).map(drop))
        })
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.run(UNMOUNT).and_then(|()| self.restart_agent()) {
            println!("the state of {} stays on its own disk: {error:#}", self.node.name());
        }
    }
}

#[test]
fn a_state_disk_that_hangs_holds_up_no_pod() -> Result<()> {
    play("hungdisk", |stage| {
        stage.pool("hungdisk", &churn::pool("dp0", "hungdisk"))?;
        let resource = format!("{PREFIX}/hungdisk");
        stage.wait_allocatable(&resource, 20)?;
        let node = stage.node("n2")?;
        let disk = Disk::new(stage, node)?;
        stage.wait_allocatable(&resource, 20)?;
        let agent = Agent::on(node)?;
        disk.run("fsfreeze -f /var/lib/macvtap")?;
        // The table of the other number of devices cannot be written.
        stage.kubectl.run(&[
            "patch",
            "macvtapresourcepool/hungdisk",
            "--type=merge",
            "-p",
            r#"{"spec":{"capacity":{"perLink":21}}}"#,
        ])?;
        stage.kubectl.wait_until("", "node/n1", PATIENCE, |node| {
            (crate::stage::allocatable(node, &resource) == Some(21)).then_some(())
        })?;
        let begun = Instant::now();
        let pod = Pod::apply(stage, "pod", "n2", Guest::Asks, &resource, Some("hungdisk"), 1)?;
        pod.ready(stage)?;
        let took = begun.elapsed();
        let figure = Figure::series("state disk hangs: pod to Ready", &[took]);
        println!("{figure}");
        figure.record()?;
        // A kubelet that comes back finds the resource too.
        node.kill_kubelet()?;
        let again = Pod::apply(stage, "again", "n2", Guest::Asks, &resource, Some("hungdisk"), 2)?;
        node.start_kubelet()?;
        ensure!(!churn::is_refused(stage, &again)?, "the pod bound meanwhile was refused");
        disk.run("fsfreeze -u /var/lib/macvtap")?;
        stage.wait_allocatable(&resource, 21)?;
        ensure!(Agent::on(node)? == agent, "the agent was started again");
        churn::nothing_stays(stage, "hungdisk")
    })
}
