//! Lower links that vanish, come back, change their name, are given to a bridge, or flap: under pods that run.

use crate::breaks::Watch;
use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, Stage, allocatable, condition, play};
use anyhow::{Context, Result, ensure};
use e2e::chaos::{self, Figure};
use e2e::{Node, namespaces, process};
use serde_json::Value;
use std::time::Duration;

/// The link that is broken, on n1. Its other end is a port of the cluster's switch.
const LINK: &str = "dp1";
const PORT: &str = "n1-dp1";

/// What the tests make of it meanwhile.
const RENAMED: &str = "moved1";
const BRIDGE: &str = "br-chaos";

/// A node whose link is as it was when this goes, whatever happened.
struct Broken<'s> {
    node: &'static Node,
    stage: &'s Stage,
}

impl<'s> Broken<'s> {
    fn new(stage: &'s Stage) -> Result<Self> {
        Ok(Self { node: stage.node("n1")?, stage })
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        self.node.exec(&[&["ip"], words].concat()).map(drop)
    }

    /// Runs a program where the other end of the link is.
    fn at_switch(&self, program: &[&str]) -> Result<()> {
        let layout = self.stage.cluster.layout().context("a local cluster has a layout")?;
        process::output(namespaces::in_netns(&layout.netns("sw")).args(program)).map(drop)
    }

    fn carrier(&self, state: &str) -> Result<()> {
        self.at_switch(&["ip", "link", "set", PORT, state])
    }

    /// Recreates the link, with another MAC and another index.
    fn recreate(&self) -> Result<()> {
        namespaces::ensure_node(self.node.layout())
    }
}

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        for words in [
            &["link", "set", RENAMED, "name", LINK][..],
            &["link", "del", BRIDGE],
            &["link", "set", LINK, "nomaster", "up"],
        ] {
            // What was not done needs no undoing.
            let _ = self.ip(words);
        }
        let restored = self.recreate().and_then(|()| self.carrier("up"));
        if let Err(error) = restored {
            println!("{LINK} stays broken: {error:#}");
        }
    }
}

#[test]
fn a_link_deleted_under_a_pod_is_told_and_serves_again_when_it_is_made_anew() -> Result<()> {
    play("lostlink", |stage| {
        let (resource, pod) = serve(stage, "lostlink", LINK)?;
        let broken = Broken::new(stage)?;
        broken.ip(&["link", "del", LINK])?;
        offers(stage, &resource, 0)?;
        node_pool(stage, "lostlink", |pool| (pool["dead"] == 1 && pool["allocatable"] == 0).then_some(()))?;
        let message = node_pool(stage, "lostlink", |pool| {
            condition(&serde_json::json!({"status": pool}), "Degraded", "True", "DevicesDead")
        })?;
        println!("{message}");
        node_event(stage, "DevicesDead", "lostlink")?;
        stage.pool_condition("lostlink", "Ready", "False", "NodesNotReady")?;
        // It lost a network, not its life.
        pod.exec(stage, &["true"])?;

        broken.recreate()?;
        offers(stage, &resource, 20)?;
        let next = Pod::apply(stage, "next", "n1", Guest::Asks, &resource, Some("lostlink"), 2)?;
        next.ready(stage)?;
        let far = Pod::apply(stage, "far", "n2", Guest::Answers, &resource, Some("lostlink"), 3)?;
        far.ready(stage)?;
        next.pings(stage, "net1", &far)?;
        node_pool(stage, "lostlink", |pool| (pool["dead"] == 1 && pool["allocated"] == 2).then_some(()))?;
        pod.delete(stage)?;
        node_pool(stage, "lostlink", |pool| {
            let degraded = condition(&serde_json::json!({"status": pool}), "Degraded", "True", "DevicesDead");
            (degraded.is_none() && pool["dead"].as_u64().unwrap_or(0) == 0).then_some(())
        })?;
        churn::nothing_stays(stage, "lostlink")
    })
}

#[test]
fn a_link_that_changes_its_name_keeps_its_devices() -> Result<()> {
    play("renamed", |stage| {
        let (resource, pod) = serve(stage, "renamed", &format!("{LINK}, {RENAMED}"))?;
        let before = pod.attachment(stage)?;
        let broken = Broken::new(stage)?;
        let watch = Watch::offers(stage.kubectl, &resource)?;
        broken.ip(&["link", "set", LINK, "name", RENAMED])?;
        node_pool(stage, "renamed", |pool| (pool["links"] == serde_json::json!([RENAMED])).then_some(()))?;
        let far = Pod::apply(stage, "far", "n2", Guest::Answers, &resource, Some("renamed"), 2)?;
        let next = Pod::apply(stage, "next", "n1", Guest::Asks, &resource, Some("renamed"), 3)?;
        far.ready(stage)?;
        next.ready(stage)?;
        next.pings(stage, "net1", &far)?;
        broken.ip(&["link", "set", RENAMED, "name", LINK])?;
        node_pool(stage, "renamed", |pool| (pool["links"] == serde_json::json!([LINK])).then_some(()))?;
        watch.offered_always(20)?;
        ensure!(pod.attachment(stage)? == before, "the running pod was touched");
        churn::nothing_stays(stage, "renamed")
    })
}

#[test]
fn a_link_given_to_a_bridge_is_told_and_serves_again_when_it_is_free() -> Result<()> {
    play("enslaved", |stage| {
        let (resource, pod) = serve(stage, "enslaved", LINK)?;
        let before = pod.attachment(stage)?;
        let broken = Broken::new(stage)?;
        broken.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        // The kernel refuses as long as a macvtap stands on it, and nothing changes.
        let refusal = broken.ip(&["link", "set", LINK, "master", BRIDGE]);
        ensure!(refusal.is_err(), "the kernel took a link with a macvtap into a bridge");
        ensure!(pod.attachment(stage)? == before, "the running pod was touched");
        pod.delete(stage)?;
        broken.ip(&["link", "set", LINK, "master", BRIDGE])?;
        offers(stage, &resource, 0)?;
        let message = stage.kubectl.wait_until("", "macvtapnodestate/n1", PATIENCE, |state| {
            let links = state["status"]["links"].as_array()?;
            let link = links.iter().find(|link| link["name"] == LINK && link["reason"] == "EnslavedTo")?;
            link["message"].as_str().map(str::to_owned)
        })?;
        println!("{message}");
        ensure!(message.contains(BRIDGE), "{message}");
        broken.ip(&["link", "set", LINK, "nomaster"])?;
        offers(stage, &resource, 20)?;
        let next = Pod::apply(stage, "next", "n1", Guest::Asks, &resource, Some("enslaved"), 2)?;
        next.ready(stage)?;
        churn::nothing_stays(stage, "enslaved")
    })
}

#[test]
fn a_carrier_that_flaps_changes_no_health_and_floods_nobody_and_one_that_stays_away_does() -> Result<()> {
    let seconds = chaos::times(5, 30);
    play("flapping", |stage| {
        let (resource, pod) = serve(stage, "flapping", LINK)?;
        let before = pod.attachment(stage)?;
        let far = Pod::apply(stage, "far", "n2", Guest::Asks, &resource, Some("flapping"), 2)?;
        far.ready(stage)?;
        let broken = Broken::new(stage)?;
        let watch = Watch::offers(stage.kubectl, &resource)?;
        let writes = Watch::start(stage.kubectl, &["mns", "n1"], "{.metadata.resourceVersion}")?;
        let script = format!(
            "for i in $(seq {}); do ip link set {PORT} down; sleep 0.05; ip link set {PORT} up; sleep 0.05; done",
            10 * seconds
        );
        let begun = std::time::Instant::now();
        broken.at_switch(&["sh", "-c", &script])?;
        let took = begun.elapsed();
        watch.offered_always(20)?;
        // The first line is what there was.
        let written = writes.lines().len() - 1;
        let figure = Figure::count(
            "carrier flapping: writes of the node state",
            "writes",
            u64::try_from(written)?,
            usize::try_from(20 * seconds)?,
        );
        println!("{figure}; {:.1} s", took.as_secs_f64());
        figure.record()?;
        let bearable = 5 + took.as_secs() / 5;
        ensure!(
            u64::try_from(written)? <= bearable,
            "{written} writes in {took:?}, at most {bearable} are bearable"
        );
        ensure!(pod.attachment(stage)? == before, "the running pod was touched");

        broken.carrier("down")?;
        offers(stage, &resource, 0)?;
        node_pool(stage, "flapping", |pool| {
            condition(&serde_json::json!({"status": pool}), "Degraded", "True", "LinksUnhealthy")
        })?;
        node_event(stage, "LinksUnhealthy", "flapping")?;
        broken.carrier("up")?;
        offers(stage, &resource, 20)?;
        ensure!(pod.attachment(stage)? == before, "the running pod was touched");
        far.pings(stage, "net1", &pod)?;
        churn::nothing_stays(stage, "flapping")
    })
}

/// A pool over these links and a pod on n1 that answers.
fn serve(stage: &mut Stage, name: &str, links: &str) -> Result<(String, Pod)> {
    stage.pool(name, &churn::pool(links, name))?;
    let resource = format!("{PREFIX}/{name}");
    stage.wait_allocatable(&resource, 20)?;
    let pod = Pod::apply(stage, "pod", "n1", Guest::Answers, &resource, Some(name), 1)?;
    pod.ready(stage)?;
    Ok((resource, pod))
}

/// Waits until n1 offers so many.
fn offers(stage: &Stage, resource: &str, count: u64) -> Result<()> {
    stage.kubectl.wait_until("", "node/n1", PATIENCE, |node| {
        (allocatable(node, resource) == Some(count)).then_some(())
    })
}

/// Waits for something in the pool's part of n1's state. Counts are written every half minute at most.
fn node_pool<T>(stage: &Stage, pool: &str, look: impl Fn(&Value) -> Option<T>) -> Result<T> {
    stage.kubectl.wait_until("", "macvtapnodestate/n1", 2 * PATIENCE, |state| {
        let pools = state["status"]["pools"].as_array()?;
        look(pools.iter().find(|found| found["name"] == pool)?)
    })
}

/// Waits for an Event on n1.
fn node_event(stage: &Stage, reason: &str, words: &str) -> Result<()> {
    stage.kubectl.wait_until("default", "events", Duration::from_secs(30), |list| {
        let about = |event: &&Value| {
            event["involvedObject"]["name"] == "n1"
                && event["reason"] == reason
                && event["message"].as_str().is_some_and(|message| message.contains(words))
        };
        list["items"].as_array()?.iter().find(about).map(|_| ())
    })
}
