//! `connectivity`: pods on the links of a pool reach each other through their taps, on every pair of nodes.
//!
//! On each node one pod answers and another one asks all of them, and ends; what it printed is read from its log, so no right
//! to execute something in pods is needed. What was made is removed also when the user interrupts.

mod manifest;
mod outcome;

use crate::args::Connectivity;
use crate::cluster::Cluster;
use crate::facts::{Facts, Scope, items, pod as pods};
use crate::output;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, ResourceExt as _};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_crds::v1alpha1::settings::{DeviceType, Mode};
use macvtap_operator::network::kind::NetworkAttachmentDefinition;
use manifest::{Run, Spot};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// The interval between two reads of the pods.
const AGAIN: Duration = Duration::from_millis(500);

/// Connects, prints the outcome, and returns whether everybody reached everybody.
pub(crate) async fn run(cluster: &Cluster, args: &Connectivity) -> Result<bool> {
    let namespace = args.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
    let scope = Scope { installation: "macvtap-system".to_owned(), namespace: Some(namespace.clone()) };
    let facts = Facts::read(cluster, &scope).await;
    let plan = prepare(&facts, args, namespace)?;
    let stage = Stage { cluster, run: &plan, deadline: Instant::now() + args.timeout };
    let outcome = tokio::select! {
        outcome = stage.play() => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        () = terminated() => Err(anyhow!("terminated")),
    };
    let cleaned = stage.clean().await;
    let outcome = match (outcome, cleaned) {
        (Ok(outcome), cleaned) => cleaned.map(|()| outcome)?,
        (Err(error), Ok(())) => return Err(error),
        (Err(error), Err(left)) => return Err(anyhow!("{error:#}; also: {left:#}")),
    };
    output::write(&outcome.text(&plan))?;
    Ok(outcome.is_well())
}

/// A number that no other run has: in containers, process IDs are alike.
fn number() -> u32 {
    let random = RandomState::new().hash_one(std::process::id()).to_le_bytes();
    u32::from_le_bytes([random[0], random[1], random[2], random[3]])
}

/// Waits for SIGTERM.
async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// Chooses pool, nodes and image.
fn prepare(facts: &Facts, args: &Connectivity, namespace: String) -> Result<Run> {
    let pools = facts.pools.as_ref().map_err(|unread| anyhow!("read the pools: {}", unread.text()))?;
    let pool = choose(pools, args.pool.as_deref())?;
    let name = pool.name_any();
    let resource = pool.resource_name().with_context(|| {
        format!("pool {name} has a resource for each link; name a pool with one resource")
    })?;
    let mut spots = Vec::new();
    for state in items(&facts.states) {
        let node = state.name_any();
        let Some(of_pool) = facts.pool_status(&node, &name) else { continue };
        if of_pool.allocatable.saturating_sub(of_pool.allocated) < 2 {
            continue;
        }
        let links = state.status.as_ref().map_or(&[][..], |status| &status.links);
        let mtu =
            links.iter().filter(|link| of_pool.links.contains(&link.name)).filter_map(|link| link.mtu).min();
        spots.push(Spot { node, mtu: mtu.unwrap_or(1500) });
    }
    spots.truncate(usize::from(args.nodes));
    ensure!(
        !spots.is_empty(),
        "no node has two free devices of pool {name}; `kubectl macvtap explain pool {name}` shows why"
    );
    let image = args.image.clone().or_else(|| image_beside(facts)).context(
        "the agent's image cannot be read, beside which tapguest is looked for; name an image with the program tapguest with --image",
    )?;
    let wanted = pool.spec.settings.macvtap.as_ref().and_then(|macvtap| macvtap.mtu);
    let lowest = spots.iter().map(|spot| spot.mtu).min().unwrap_or(1500);
    let same_node = pool.spec.settings.macvtap.as_ref().is_none_or(|macvtap| macvtap.mode == Mode::Bridge);
    Ok(Run {
        namespace,
        pool: name,
        resource: format!("{}/{resource}", pool.spec.settings.resource_prefix),
        image,
        spots,
        mtu: wanted.map_or(lowest, |wanted| wanted.min(lowest)),
        same_node,
        number: number(),
    })
}

fn choose<'p>(pools: &'p [MacvtapResourcePool], name: Option<&str>) -> Result<&'p MacvtapResourcePool> {
    let taps = |pool: &&MacvtapResourcePool| {
        pool.spec.settings.device_type == DeviceType::Macvtap && !pool.spec.settings.takes_whole_links()
    };
    if let Some(name) = name {
        let found = pools
            .iter()
            .find(|pool| pool.name_any() == name)
            .with_context(|| format!("pool {name} does not exist"))?;
        ensure!(taps(&found), "pool {name} gives whole links: two pods cannot be on one of them");
        return Ok(found);
    }
    let fit: Vec<_> = pools.iter().filter(taps).collect();
    match fit.as_slice() {
        [only] => Ok(only),
        [] => bail!("no pool has links that several pods can share"),
        many => {
            let names: Vec<String> = many.iter().map(|pool| pool.name_any()).collect();
            bail!("there are several pools; name one with --pool: {}", names.join(", "))
        }
    }
}

/// The image `tapguest` with the tag of the agent's, from the same place.
fn image_beside(facts: &Facts) -> Option<String> {
    let set = items(&facts.daemon_sets).first()?;
    let containers = &set.spec.as_ref()?.template.spec.as_ref()?.containers;
    let image = containers.first()?.image.as_deref()?;
    // A digest is that of one image.
    (image.contains("macvtap-node-agent") && !image.contains('@'))
        .then(|| image.replace("macvtap-node-agent", "tapguest"))
}

/// The cluster while the pods are in it.
struct Stage<'s> {
    cluster: &'s Cluster,
    run: &'s Run,
    deadline: Instant,
}

impl Stage<'_> {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), &self.run.namespace)
    }

    fn networks(&self) -> Api<NetworkAttachmentDefinition> {
        Api::namespaced(self.cluster.client.clone(), &self.run.namespace)
    }

    /// Makes network and pods, and reads what the asking ones printed.
    async fn play(&self) -> Result<outcome::Outcome> {
        let params = PostParams::default();
        self.networks().create(&params, &self.run.network()?).await.context("make a network")?;
        for (index, _) in self.run.spots.iter().enumerate() {
            self.pods()
                .create(&params, &self.run.answering(index)?)
                .await
                .context("make a pod that answers")?;
        }
        self.until("answering", |pod| pods::phase(pod) == "Running" && pods::is_ready(pod)).await?;
        for (index, _) in self.run.spots.iter().enumerate() {
            self.pods().create(&params, &self.run.asking(index)?).await.context("make a pod that asks")?;
        }
        self.until("asking", |pod| ["Succeeded", "Failed"].contains(&pods::phase(pod))).await?;
        let mut outcome = outcome::Outcome::default();
        for (index, spot) in self.run.spots.iter().enumerate() {
            let log = self
                .pods()
                .logs(&self.run.asking_name(index), &LogParams::default())
                .await
                .context("read a log")?;
            outcome.read(&spot.node, &log);
        }
        Ok(outcome)
    }

    /// Waits until all pods of a part are so.
    async fn until(&self, part: &str, wanted: impl Fn(&Pod) -> bool) -> Result<()> {
        let params = ListParams::default().labels(&self.run.selector(Some(part)));
        loop {
            let found = self.pods().list(&params).await.context("list the pods")?.items;
            let late = found.iter().find(|pod| !wanted(pod));
            let Some(late) = late else { return Ok(()) };
            if Instant::now() >= self.deadline {
                let why = pods::why_not_ready(late);
                // The pod is removed at the end, so the reason is reported now.
                bail!(
                    "pod {} on node {} does not get ready: {why}; `kubectl macvtap check` names faults of the installation",
                    late.name_any(),
                    pods::node(late).unwrap_or("?")
                );
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Removes everything.
    async fn clean(&self) -> Result<()> {
        let params = ListParams::default().labels(&self.run.selector(None));
        let delete = DeleteParams::default().grace_period(0);
        let pods = self.pods().delete_collection(&delete, &params).await;
        let network = self.networks().delete(&self.run.name(), &DeleteParams::default()).await;
        pods.with_context(|| {
            format!(
                "remove the pods: `kubectl -n {} delete pod -l {}`",
                self.run.namespace,
                self.run.selector(None)
            )
        })?;
        match network {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other
                .map(drop)
                .with_context(|| format!("remove network {}/{}", self.run.namespace, self.run.name())),
        }
    }
}
