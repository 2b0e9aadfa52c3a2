//! The loop around the engine: takes news, lets it decide, acts.

mod running;
mod status;
mod stored;

use super::problems::Findings;
use super::table_writer::TableWriter;
use super::usage::{Seen, Usage};
use crate::config::Configuration;
use crate::devices::assignment::GRACE;
use crate::devices::engine::{Engine, Step};
use crate::devices::nics::{self, InPod};
use crate::kubelet::Shared;
use crate::kubelet::directory::Happened;
use crate::kubelet::endpoint::Registration;
use crate::links::inventory::Change;
use crate::links::netlink::News;
use crate::pools::pool::Pool;
use crate::process::install::keep::Presence;
use crate::process::probe::Readiness;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap::table::WholeNic;
use macvtap_crds::v1alpha1::MacvtapNodeStateStatus;
use running::Running;
use status::REGISTERED_SOON;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

/// How long the end of one resource may take.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a kubelet may take to yield to a successor.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the disk may take for the table that is being written at a hand-over: until then this agent answers. Together
/// with the other times it stays below the chart's grace period.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// So long after its last stream has ended a resource can be registered by another: a kubelet that learns of the end later
/// than of the new registration blames that one, and takes all devices for lost. It does not say when it has learnt of the
/// end; allocations come here meanwhile, so the wait costs nothing. On a busy machine 1 ms was once not enough.
const NOTICED: Duration = Duration::from_millis(500);

/// Between tries to write a table that could not be written.
const TABLE_RETRY: Duration = Duration::from_secs(1);

/// How long a disk may take before what is on it is served instead.
const TABLE_SLOW: Duration = Duration::from_secs(1);

/// What the loop holds.
pub(super) struct Serving {
    engine: Engine,
    directory: PathBuf,
    happened: watch::Receiver<Happened>,
    shared: Arc<Shared>,
    readiness: watch::Sender<Readiness>,
    status: watch::Sender<Option<MacvtapNodeStateStatus>>,
    resources: BTreeMap<ResourceName, Running>,
    registrations: mpsc::UnboundedSender<()>,
    registration_news: Option<mpsc::UnboundedReceiver<()>>,
    configuration: Option<Configuration>,
    usage: Usage,
    /// What it has answered once at least.
    received: BTreeSet<Subject>,
    has_looked: bool,
    /// What was decided last, with the offers that are served.
    last: Option<Step>,
    started: Instant,
    table: TableWriter,
    table_error: Option<String>,
    /// Before then no table is written.
    table_retry: Option<Instant>,
    plugin: Presence,
    findings: Findings,
}

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Links,
    Addresses,
    Routes,
    Speeds,
}

impl Serving {
    pub(super) fn new(
        engine: Engine,
        directory: PathBuf,
        happened: watch::Receiver<Happened>,
        shared: Arc<Shared>,
        table: TableWriter,
        readiness: watch::Sender<Readiness>,
        status: watch::Sender<Option<MacvtapNodeStateStatus>>,
    ) -> Self {
        let (registrations, registration_news) = mpsc::unbounded_channel();
        let usage = Usage { in_use: engine.world.in_use.clone(), ..Usage::default() };
        Self {
            engine,
            directory,
            happened,
            shared,
            readiness,
            status,
            resources: BTreeMap::new(),
            registrations,
            registration_news: Some(registration_news),
            configuration: None,
            usage,
            received: BTreeSet::new(),
            has_looked: false,
            last: None,
            started: Instant::now(),
            table,
            table_error: None,
            table_retry: None,
            plugin: Presence::default(),
            findings: Findings::default(),
        }
    }

    /// Runs until one of its inputs ends, which none does before the process.
    pub(super) async fn run(
        &mut self,
        mut news: mpsc::Receiver<News>,
        mut pools: mpsc::Receiver<Configuration>,
        mut usage: mpsc::Receiver<Seen>,
        mut plugin: watch::Receiver<Presence>,
    ) {
        let Some(mut registrations) = self.registration_news.take() else { return };
        self.publish_state();
        let mut wake: Option<Instant> = None;
        // What is held back until then is published without any other reason.
        let mut late = Some(self.started + REGISTERED_SOON);
        loop {
            let mut change = Change::Nothing;
            tokio::select! {
                heard = news.recv() => {
                    let Some(heard) = heard else { return };
                    change = change | self.hear(heard);
                    // What came meanwhile belongs to the same decision.
                    while let Ok(heard) = news.try_recv() {
                        change = change | self.hear(heard);
                    }
                }
                configuration = pools.recv() => {
                    let Some(configuration) = configuration else { return };
                    self.configure(configuration);
                    change = Change::Something;
                }
                seen = usage.recv() => {
                    let Some(Seen { usage, listed, asked, ask_for_checkpoint, .. }) = seen else { return };
                    if ask_for_checkpoint {
                        self.repeat_list();
                    }
                    let first = !std::mem::replace(&mut self.has_looked, true);
                    change = Change::from(first || usage != self.usage);
                    self.engine.world.in_use.clone_from(&usage.in_use);
                    self.usage = usage;
                    // Not before: a device is known by the note of its allocation until it is known otherwise.
                    self.shared.ledger.confirm(listed.iter(), asked);
                }
                _ = registrations.recv() => {
                    while registrations.try_recv().is_ok() {}
                    self.publish_state();
                }
                // Nothing is published where the agent does not install it.
                Ok(()) = plugin.changed() => {
                    self.plugin = plugin.borrow_and_update().clone();
                    self.publish_state();
                }
                written = self.table.written() => {
                    self.note_written(written);
                    change = Change::Something;
                }
                () = sleep_until(wake) => change = Change::Something,
                () = sleep_until(late) => {
                    late = None;
                    self.publish_state();
                }
            }
            match (change, self.missing()) {
                (Change::Nothing, _) => {}
                (Change::Something, None) => wake = self.step().await,
                (Change::Something, Some(_)) => self.publish_state(),
            }
        }
    }

    /// Makes room for a successor that waits for the node's lock; it registers as soon as it has that.
    pub(super) async fn hand_over(&mut self) {
        for running in self.resources.values() {
            running.hand_over.cancel();
        }
        // For all together: the kubelet that does not answer is one.
        let deadline = tokio::time::Instant::now() + HAND_OVER_TIMEOUT;
        for running in self.resources.values_mut() {
            let handed =
                running.registered.wait_for(|registration| *registration == Registration::HandedOver);
            let _ = tokio::time::timeout_at(deadline, handed).await;
        }
        tokio::time::sleep(NOTICED).await;
    }

    /// Releases the node's lock as soon as no table is being written. Returns whether it did: a disk may hang.
    pub(super) async fn release_node(&mut self) -> bool {
        tokio::time::timeout(RELEASE_TIMEOUT, self.table.release()).await.is_ok()
    }

    /// Ends every resource and leaves no socket. Does not wait for the disk.
    pub(super) async fn stop(self) {
        for running in self.resources.values() {
            running.stop.cancel();
        }
        for running in self.resources.into_values() {
            running.relay.abort();
            let _ = tokio::time::timeout(STOP_TIMEOUT, running.task).await;
        }
    }

    /// What must be known before anything can be decided. Before routes and addresses are known the node's uplink looks
    /// free.
    fn missing(&self) -> Option<&'static str> {
        let lacks = |subject| !self.received.contains(&subject);
        if lacks(Subject::Links) {
            return Some("links of the node not read yet");
        }
        if lacks(Subject::Addresses) || lacks(Subject::Routes) {
            return Some("routes and addresses of the node not read yet");
        }
        if self.configuration.is_none() {
            return Some(
                "no configuration yet: the API server has not delivered it since the agent was installed; its log says why",
            );
        }
        // Links would be withdrawn that are fast enough.
        if lacks(Subject::Speeds) && self.engine.world.pools.iter().any(Pool::asks_for_speed) {
            return Some("speeds of the node's links not read yet");
        }
        None
    }

    /// Takes what the kernel reported; returns whether that calls for a decision.
    fn hear(&mut self, news: News) -> Change {
        let concerns = match &news {
            News::Changed(link) => self.engine.concerns(link) || self.concerned(link.ifindex),
            News::Gone(ifindex) => self.concerned(*ifindex),
            News::All(_)
            | News::Macvtap(_)
            | News::Speeds(_)
            | News::Addressed(_)
            | News::DefaultRoutes(_) => true,
        };
        let change = self.apply(news);
        if concerns { change } else { Change::Nothing }
    }

    /// Whether anything was decided by the link that has this index so far.
    fn concerned(&self, ifindex: u32) -> bool {
        self.engine.world.inventory.get(ifindex).is_some_and(|link| self.engine.concerns(link))
    }

    fn apply(&mut self, news: News) -> Change {
        let inventory = &mut self.engine.world.inventory;
        match news {
            News::All(links) => {
                let first = self.received.insert(Subject::Links);
                inventory.reset(links) | Change::from(first)
            }
            News::Changed(link) => inventory.apply(*link),
            News::Gone(ifindex) => inventory.remove(ifindex),
            News::Macvtap(present) => inventory.set_macvtap(present),
            News::Speeds(speeds) => {
                let first = self.received.insert(Subject::Speeds);
                let changes = speeds.into_iter().map(|(ifindex, speed)| inventory.set_speed(ifindex, speed));
                changes.fold(Change::from(first), std::ops::BitOr::bitor)
            }
            News::Addressed(links) => {
                let first = self.received.insert(Subject::Addresses);
                inventory.set_addressed(links) | Change::from(first)
            }
            News::DefaultRoutes(links) => {
                let first = self.received.insert(Subject::Routes);
                inventory.set_default_routes(links) | Change::from(first)
            }
        }
    }

    fn configure(&mut self, configuration: Configuration) {
        info!(
            pools = configuration.pools.len(),
            hash = configuration.hash.as_deref(),
            "configuration applied"
        );
        self.engine.world.pools.clone_from(&configuration.pools);
        self.configuration = Some(configuration);
    }

    /// Lets the engine decide, and acts. Returns when to run again.
    async fn step(&mut self) -> Option<Instant> {
        let now = Instant::now();
        // A pod that was admitted a moment ago: the next scan is a second away, and a pool that drains may not wait for it.
        self.engine.world.in_use.extend(self.shared.ledger.recent(GRACE, now));
        self.engine.world.in_pods = self.in_pods();
        let mut step = self.engine.step(now);
        let mut wake = step.wake;
        if step.table_changed {
            // Losses at once; what is new must be on the disk first, or the plugin would not know it.
            for (resource, running) in &self.resources {
                let offer = step.offers.get(resource).map(|offer| self.stored_part(offer));
                // What has left the table is not allocated while the next table is written.
                running.publish(offer.unwrap_or_else(|| running.offer.borrow().common_with(None)));
            }
            if self.table_retry.is_none_or(|retry| now >= retry) {
                self.table.write(&step.evolution.table);
            }
            let late = self.table.busy_since().map(|since| since + TABLE_SLOW);
            if let Some(late) = late.filter(|late| now < *late) {
                return wake.into_iter().chain([late]).min();
            }
            if late.is_some() && self.table_error.is_none() {
                let reason = format!(
                    "device table not written within {} s: the disk of the state directory does not answer; check it",
                    TABLE_SLOW.as_secs()
                );
                error!(reason, "device table not written, the last list is served");
                self.table_error = Some(reason);
            }
            self.start_stored(&step);
            step.offers = self.served();
            wake = wake.into_iter().chain(self.table_retry).min();
        } else {
            (self.table_error, self.table_retry) = (None, None);
            self.publish(&step);
        }
        // One thread serves all: first the lists go out, then comes what nobody waits for.
        tokio::task::yield_now().await;
        self.findings.log(&self.engine, &step);
        self.last = Some(step);
        self.publish_state();
        wake
    }

    /// Whole NICs that are in pods. A record of one that was unplugged there says so still; the last look knows better.
    fn in_pods(&self) -> BTreeMap<DeviceId, InPod> {
        let is_away = |nic: &WholeNic| self.engine.nic_on_node(nic).is_none();
        let mut in_pods = nics::in_pods(&self.shared.paths, self.engine.table(), is_away);
        in_pods.retain(|device, _| !self.usage.dead.contains(device));
        in_pods
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
