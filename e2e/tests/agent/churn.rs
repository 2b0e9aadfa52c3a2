//! Pods that come and go while something else happens, and what becomes of each.

use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, Stage};
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, Ordering};

/// What became of the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fates {
    /// They ran.
    pub(crate) ready: usize,
    /// The kubelet refused them when it admitted them, for good.
    pub(crate) refused: usize,
}

impl Fates {
    pub(crate) fn pods(self) -> usize {
        self.ready + self.refused
    }

    fn add(&mut self, refused: bool) {
        if refused { self.refused += 1 } else { self.ready += 1 }
    }
}

/// Makes one pod after the other on each of these nodes (a name may come twice) while `break_things` runs. An error if
/// any of them neither runs nor is refused.
pub(crate) fn during<T>(
    stage: &Stage,
    nodes: &[&str],
    resource: &str,
    network: &str,
    break_things: impl FnOnce() -> Result<T>,
) -> Result<(T, Fates)> {
    let stop = AtomicBool::new(false);
    let (result, made) = std::thread::scope(|scope| {
        let stop = &stop;
        let makers: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(maker, node)| {
                scope.spawn(move || one_after_the_other(stage, maker, node, resource, network, stop))
            })
            .collect();
        let result = break_things();
        stop.store(true, Ordering::Relaxed);
        let made: Vec<_> = makers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (result, made)
    });
    let result = result?;
    let mut all = Fates::default();
    for made in made {
        let fates = made.ok().context("a thread that makes pods panicked")??;
        all = Fates { ready: all.ready + fates.ready, refused: all.refused + fates.refused };
    }
    ensure!(all.ready > 0, "no pod ran meanwhile: {all:?}");
    Ok((result, all))
}

fn one_after_the_other(
    stage: &Stage,
    maker: usize,
    node: &str,
    resource: &str,
    network: &str,
    stop: &AtomicBool,
) -> Result<Fates> {
    let mut fates = Fates::default();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("churn-{maker}-{}", fates.pods());
        let pod = Pod::apply(stage, &name, node, Guest::Asks, resource, Some(network), 200)?;
        fates.add(is_refused(stage, &pod)?);
        // Its end is part of the noise.
        stage.kubectl.run(&["-n", &pod.namespace, "delete", "pod", &pod.name, "--wait=false"])?;
    }
    Ok(fates)
}

/// Waits until the pod is Ready, or was refused at admission; gives whether it was.
pub(crate) fn is_refused(stage: &Stage, pod: &Pod) -> Result<bool> {
    stage.kubectl.wait_until(&pod.namespace, &format!("pod/{}", pod.name), PATIENCE, |object| {
        let status = &object["status"];
        if status["phase"] == "Failed" {
            return (status["reason"] == "UnexpectedAdmissionError").then_some(true);
        }
        let conditions = status["conditions"].as_array()?;
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(false)
    })
}

/// Deletes every pod of the stage, and checks that nothing of them stays on any node: no record, no device node, no link.
pub(crate) fn nothing_stays(stage: &Stage, resource: &str) -> Result<()> {
    stage.kubectl.run(&["-n", &stage.namespace, "delete", "pods", "--all", "--wait", "--timeout=120s"])?;
    // An orphan is removed when it was seen twice, ten seconds apart.
    e2e::wait::until("the end of all attachments", PATIENCE, || stage.nothing_left(resource).map(Some))?;
    for node in stage.nodes {
        let links = node.exec(&["sh", "-c", "ip -o link show type macvtap | wc -l"])?;
        ensure!(links.trim() == "0", "{} keeps macvtaps: {links}", node.name());
    }
    Ok(())
}

/// Waits until the pool says that so many devices are in use, and none is dead. It says so every half minute at most.
pub(crate) fn counted(stage: &Stage, pool: &str, in_use: u64) -> Result<()> {
    stage.kubectl.wait_until("", &format!("macvtapresourcepool/{pool}"), 3 * PATIENCE, |pool| {
        let devices = &pool["status"]["devices"];
        let count = |what: &str| devices[what].as_u64().unwrap_or(0);
        (count("allocated") == in_use && count("dead") == 0).then_some(())
    })
}

/// A pool of this name over one link that gives its namespace a network of the same name: 20 devices a node.
pub(crate) fn pool(link: &str, name: &str) -> String {
    pool_of(20, link, name)
}

/// The same with so many devices a node.
pub(crate) fn pool_of(devices: u64, link: &str, name: &str) -> String {
    format!(
        "  links: [{{names: [{link}]}}]\n  capacity: {{perLink: {devices}}}\n  \
         networks: [{{name: {name}, namespaces: {{names: [{name}]}}}}]\n"
    )
}
