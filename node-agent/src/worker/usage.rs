//! Which devices pods have, from the kubelet, from records and from what was just allocated.

mod witnesses;

pub(super) use witnesses::{Witnesses, at_start, recorded, starting};

use crate::attachments::cleanup::{self, Done, Troubles};
use crate::attachments::collector::{Collector, Liveness, Observation};
use crate::attachments::sandbox::{Fate, Sandboxes};
use crate::attachments::{Lost, LostLink, Unlisted, taps};
use crate::config::args::RunArguments;
use crate::devices::assignment::GRACE;
use crate::devices::nics::NicNames;
use crate::kubelet::directory::Happened;
use crate::kubelet::{Shared, checkpoint, instance, podresources};
use crate::pods::Listing;
use macvtap::device_id::DeviceId;
use macvtap::kernel::Rtnl;
use macvtap::kubelet_id::ServingKubelet;
use macvtap::paths::Paths;
use macvtap::record::{Attachment, Holder};
use macvtap::tap_pods::{self, TapNote};
use macvtap::{detach, records};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::warn;
use witnesses::{Records, all_recorded};

/// Between scans.
const PERIOD: Duration = Duration::from_secs(10);

/// Between scans while the kubelet has not listed a device that was allocated: once it has, its list shows when the device
/// is free again, and the pod may end before the period does.
const PENDING_PERIOD: Duration = Duration::from_secs(2);

/// Devices that pods have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// As far as anybody knows: the kubelet, records, or an Allocate of the last minute.
    pub(super) in_use: BTreeSet<DeviceId>,
    /// Those whose link vanished.
    pub(super) dead: BTreeSet<DeviceId>,
}

/// What a look has shown.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) usage: Usage,
    /// Devices that the kubelet listed.
    pub(super) listed: Vec<DeviceId>,
    /// When it was asked.
    pub(super) asked: Instant,
    /// Whether a device was allocated a moment ago that the kubelet has not listed.
    pub(super) is_pending: bool,
    /// Whether the kubelet is to write its checkpoint, as it does for every list of devices.
    pub(super) ask_for_checkpoint: bool,
}

/// Scans periodically and publishes every result. Removes orphans.
pub(super) async fn follow(
    arguments: RunArguments,
    shared: Arc<Shared>,
    happened: watch::Receiver<Happened>,
    seen: mpsc::Sender<Seen>,
) {
    let paths = shared.paths.clone();
    let silenced = tokio::task::spawn_blocking(move || taps::ignore_routers(&paths)).await;
    if let Ok(Err(error)) = silenced {
        let reason = crate::error_chain(&error);
        warn!(%reason, "IPv6 autoconfiguration of taps without a network not turned off");
    }
    let (mut restarts, kubelet_starts) = (happened.clone(), happened.borrow().kubelet_starts);
    let mut look = Look {
        arguments,
        shared,
        judge: Judge::default(),
        witnesses: Witnesses::default(),
        kubelet_starts,
        kubelet_since: Instant::now(),
        happened,
        lost: Lost::new(),
        unlisted: Unlisted::default(),
        is_logged: false,
    };
    loop {
        let Some(now) = look.once().await else { return };
        let pause = if now.is_pending { PENDING_PERIOD } else { PERIOD };
        if seen.send(now).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // What was allocated is in use from now on, and soon the kubelet will list the pod that holds it.
            () = look.shared.allocated.notified() => tokio::time::sleep(Duration::from_secs(1)).await,
            // Records that are made from now on are made under this kubelet.
            () = kubelet_restarted(&mut restarts, look.kubelet_starts) => {}
        }
    }
}

/// Waits until the kubelet has started more often than this.
async fn kubelet_restarted(happened: &mut watch::Receiver<Happened>, starts: u64) {
    if happened.wait_for(|happened| happened.kubelet_starts != starts).await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Look {
    arguments: RunArguments,
    shared: Arc<Shared>,
    judge: Judge,
    witnesses: Witnesses,
    kubelet_starts: u64,
    kubelet_since: Instant,
    happened: watch::Receiver<Happened>,
    lost: Lost,
    unlisted: Unlisted,
    is_logged: bool,
}

/// What is remembered of attachments from one scan to the next.
#[derive(Debug, Default)]
struct Judge {
    collector: Collector,
    troubles: Troubles,
}

/// What the attachments have shown.
#[derive(Debug)]
struct Judged {
    lost: Lost,
    unlisted: BTreeMap<DeviceId, Holder>,
    ask_for_checkpoint: bool,
    done: Done,
}

/// What was seen before the attachments are judged.
struct Before {
    records: Records,
    /// The kubelet that served before it was asked.
    kubelet: Option<ServingKubelet>,
    kubelet_since: Instant,
    now: Instant,
}

impl Judge {
    /// Judges the attachments, and removes orphans.
    fn judge(&mut self, shared: &Shared, listing: Option<&Listing>, before: &Before) -> Judged {
        let (paths, plugins) = (&shared.paths, &shared.plugins);
        let (records, damaged) = &before.records;
        let allocated = shared.ledger.recent(GRACE, before.now).into_iter().collect();
        let kubelet = instance::observe(paths, plugins);
        // Else one was asked and the other has its socket by now.
        let kubelet = kubelet.filter(|kubelet| before.kubelet.as_ref() == Some(kubelet));
        let has_taps = records.iter().any(|record| record.holder == Holder::Host);
        let memory = has_taps.then(|| checkpoint::memory(plugins, kubelet.as_ref())).flatten();
        let seen = Observation {
            records,
            damaged,
            listing,
            memory: memory.as_ref(),
            allocated: &allocated,
            own_pod: shared.ages.own(),
            node: shared.ages.node(),
            kubelet: kubelet.as_ref().map(|kubelet| kubelet.id.as_str()),
            kubelet_since: before.kubelet_since,
            now: before.now,
        };
        let mut plan = self.collector.plan(&seen, &NodeLiveness::new(paths));
        // The records were read a while ago: a pod that is ending has lost its link by right.
        plan.dead.retain(|(record, _)| records::stands(paths, record));
        let done = cleanup::clean(paths, &plan, &mut self.troubles);
        let lost = plan.dead.into_iter().map(|(record, pod)| {
            let link = LostLink::of(&record, pod);
            (record.device, link)
        });
        let (lost, ask_for_checkpoint) = (lost.collect(), plan.ask_for_checkpoint);
        Judged { lost, unlisted: plan.unlisted, ask_for_checkpoint, done }
    }
}

impl Look {
    async fn once(&mut self) -> Option<Seen> {
        let now = Instant::now();
        let starts = self.happened.borrow().kubelet_starts;
        if std::mem::replace(&mut self.kubelet_starts, starts) != starts {
            self.kubelet_since = now;
            self.shared.ages.forget(now);
        }
        let names = Arc::clone(&self.shared.nics.borrow());
        let (paths, plugins) = (self.shared.paths.clone(), self.shared.plugins.clone());
        // Before the kubelet is asked: what is recorded later may be of a pod that its answer does not know.
        let before = move || (instance::observe(&paths, &plugins), all_recorded(&paths));
        let (kubelet, records) = tokio::task::spawn_blocking(before).await.ok()?;
        let listing = self.ask_kubelet(&names).await;
        let answered = listing.is_some();
        if let Some(listing) = &listing {
            self.shared.ages.observe(listing, now);
        }
        self.shared.ledger.absolve(listing.iter().flat_map(|listing| &listing.devices), now);
        let listed: Vec<DeviceId> =
            listing.iter().flat_map(|listing| listing.devices.keys().cloned()).collect();
        let shared = Arc::clone(&self.shared);
        let (mut judge, mut witnesses) =
            (std::mem::take(&mut self.judge), std::mem::take(&mut self.witnesses));
        let kubelet_since = self.kubelet_since;
        // Files, and deletions that take the kernel 20 ms each: off the thread that answers the kubelet.
        let looked = tokio::task::spawn_blocking(move || {
            // Without records nothing is known of any attachment, not that there is none.
            let judged = records.map(|records| {
                judge.judge(&shared, listing.as_ref(), &Before { records, kubelet, kubelet_since, now })
            });
            let plugins = &shared.plugins;
            let mut in_use = witnesses.update(listing, plugins, &names, recorded(&shared.paths));
            let is_behind = starting(&shared.ledger, plugins, &names, &mut in_use, now);
            (judge, witnesses, judged, in_use, is_behind)
        });
        let (judged, mut in_use, mut ask_for_checkpoint);
        (self.judge, self.witnesses, judged, in_use, ask_for_checkpoint) = looked.await.ok()?;
        if let Some(judged) = judged {
            ask_for_checkpoint |= judged.ask_for_checkpoint;
            // A kubelet that says nothing has not given anybody a new pod.
            if answered {
                self.note_lost(judged.lost);
                self.note_unlisted(judged.unlisted, now);
            }
            self.shared.metrics.orphans_removed.inc_by(judged.done.removed);
            self.shared.metrics.adopted.inc_by(judged.done.adopted);
        }
        let recent = self.shared.ledger.recent(GRACE, now);
        let is_pending = recent.iter().any(|device| !listed.contains(device));
        in_use.extend(recent);
        let usage = Usage { in_use, dead: self.lost.keys().cloned().collect() };
        Some(Seen { usage, listed, asked: now, is_pending, ask_for_checkpoint })
    }

    fn note_lost(&mut self, lost: Lost) {
        if lost == self.lost {
            return;
        }
        for (device, link) in lost.iter().filter(|(device, _)| !self.lost.contains_key(*device)) {
            warn!(%device, pod = %link.pod.name, namespace = %link.pod.namespace, "link lost under a pod; only a new pod gets a working one");
        }
        self.lost.clone_from(&lost);
        self.shared.lost.send_replace(lost);
    }

    /// Counts the devices that pods keep although the kubelet takes them for free, and logs each once.
    fn note_unlisted(&mut self, unlisted: BTreeMap<DeviceId, Holder>, now: Instant) {
        self.shared.metrics.unlisted.set(unlisted.len().try_into().unwrap_or(i64::MAX));
        for (device, holder) in self.unlisted.update(unlisted, now) {
            warn!(%device, ?holder, "device is attached but the kubelet does not list it; it is kept while its pod may exist");
        }
    }

    async fn ask_kubelet(&mut self, names: &NicNames) -> Option<Listing> {
        let socket = &self.arguments.pod_resources_socket;
        match podresources::list(socket, |resource, id| names.device(resource, id)).await {
            Ok(None) => {
                if !std::mem::replace(&mut self.is_logged, true) {
                    let socket = socket.display();
                    warn!(%socket, "the kubelet serves no list of pods here; taps of pods that ended without a network are not removed");
                }
                None
            }
            Ok(listing) => {
                self.is_logged = false;
                listing
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_logged, true) {
                    let reason = crate::error_chain(&error);
                    warn!(%reason, "the kubelet does not say which devices pods have");
                }
                None
            }
        }
    }
}

/// This node's links and namespaces.
struct NodeLiveness<'n> {
    paths: &'n Paths,
    sandboxes: Sandboxes,
}

impl<'n> NodeLiveness<'n> {
    fn new(paths: &'n Paths) -> Self {
        let opened = Rtnl::node().inspect_err(|error| {
            let reason = crate::error_chain(error);
            warn!(%reason, "links of pods not checked");
        });
        Self { paths, sandboxes: Sandboxes::new(opened.ok()) }
    }
}

impl Liveness for NodeLiveness<'_> {
    fn link_exists(&self, record: &Attachment) -> bool {
        let lost = self.sandboxes.with_kernel(|kernel| detach::is_lost(kernel, record));
        !lost.unwrap_or_default()
    }

    fn sandbox(&self, record: &Attachment) -> Fate {
        self.sandboxes.fate(record)
    }

    fn tap_note(&self, device: &DeviceId) -> Option<TapNote> {
        tap_pods::read(self.paths, device)
    }
}
