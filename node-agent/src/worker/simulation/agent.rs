//! An agent: the product's engine, collector and clean-up, joined as `worker` joins them, with what it serves given to the
//! played kubelet.

use super::Planted;
use super::machine::{Hands, Machine, NODE, Trouble};
use super::node::{Clock, SimulatedKubelet};
use crate::attachments::cleanup::{self, Troubles};
use crate::attachments::collector::{Collector, Liveness, Observation};
use crate::attachments::sandbox::{self, Fate};
use crate::devices::assignment::{self, GRACE};
use crate::devices::engine::{Engine, Step};
use crate::devices::nics::NicNames;
use crate::devices::offer::Offer;
use crate::kubelet::{Ledger, instance};
use crate::links::link::Link;
use crate::pods::{Listing, PodName};
use crate::pools::pool::Pool;
use crate::worker::usage;
use macvtap::device_id::DeviceId;
use macvtap::kernel::{Kernel, Place};
use macvtap::kubelet_id::{self, ServingKubelet};
use macvtap::link::By;
use macvtap::netns::NetnsId;
use macvtap::paths::Paths;
use macvtap::record::{Attachment, Holder};
use macvtap::tap_pods::{self, TapNote};
use macvtap::{records, table_file};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

pub(super) struct SimulatedWorker {
    pub(super) engine: Engine,
    collector: Collector,
    troubles: Troubles,
    ledger: Ledger,
    usage: BTreeSet<DeviceId>,
    witnesses: usage::Witnesses,
    kubelet_starts: u64,
    kubelet_since: Instant,
    look: Looking,
    planted: Option<Planted>,
}

/// How far a look at pods has come. Things happen between its parts.
enum Looking {
    Not,
    Recorded(Heard),
    Asked(Heard),
}

/// What a look has heard.
struct Heard {
    records: Vec<Attachment>,
    damaged: Vec<DeviceId>,
    /// The kubelet that served before it was asked.
    serving: Option<ServingKubelet>,
    listing: Option<Listing>,
    asked: Instant,
}

impl SimulatedWorker {
    pub(super) fn start(
        paths: &Paths,
        plugins: &Path,
        boot: &str,
        now: Instant,
        starts: u64,
        planted: Option<Planted>,
    ) -> Self {
        let mut engine = crate::worker::engine(paths, plugins, boot.to_owned(), false).unwrap();
        if planted == Some(Planted::ForgottenTable) {
            engine = Engine::new(assignment::empty(boot, false), boot.to_owned(), false);
        }
        let ledger = Ledger::default();
        engine.world.in_use = usage::at_start(paths, plugins, &NicNames::default(), &ledger, now);
        Self {
            usage: engine.world.in_use.clone(),
            engine,
            collector: Collector::default(),
            troubles: Troubles::new(),
            ledger,
            witnesses: usage::Witnesses::default(),
            kubelet_starts: starts,
            kubelet_since: now,
            look: Looking::Not,
            planted,
        }
    }

    pub(super) fn allocated(&mut self, device: DeviceId, now: Instant) {
        self.ledger.note(device, now);
    }

    fn recent(&self, now: Instant) -> BTreeSet<DeviceId> {
        self.ledger.recent(GRACE, now).into_iter().collect()
    }

    /// Hears of links and pools, decides, stores the table if the disk takes it, and serves. Ends early if it dies, before or
    /// after the table is on the disk.
    pub(super) fn decide(
        &mut self,
        links: Vec<Link>,
        pools: Vec<Pool>,
        disk: Disk<'_>,
        kubelet: &mut SimulatedKubelet,
        now: Instant,
    ) {
        let _ = self.engine.world.inventory.reset(links);
        self.engine.world.pools = pools;
        self.engine.world.in_use.clone_from(&self.usage);
        let recent = self.recent(now);
        self.engine.world.in_use.extend(recent);
        if self.planted == Some(Planted::NothingInUse) {
            self.engine.world.in_use.clear();
        }
        let step = self.engine.step(now);
        if !step.table_changed {
            kubelet.offered = step.offers;
            return;
        }
        if self.planted == Some(Planted::ServedEarly) {
            kubelet.offered.clone_from(&step.offers);
        } else {
            self.serve_stored(&step, kubelet);
        }
        if disk.full || disk.dies == Some(Dies::BeforeTheTable) {
            return;
        }
        table_file::store(disk.paths, &step.evolution.table).unwrap();
        if disk.dies == Some(Dies::AfterTheTable) {
            return;
        }
        self.engine.stored(step.evolution.table);
        let step = self.engine.step(now);
        if step.table_changed {
            self.serve_stored(&step, kubelet);
        } else {
            kubelet.offered = step.offers;
        }
    }

    /// What of an offer is on the disk already.
    fn serve_stored(&self, step: &Step, kubelet: &mut SimulatedKubelet) {
        kubelet.offered.retain(|resource, _| step.offers.contains_key(resource));
        for (resource, offer) in &step.offers {
            let entry = self.engine.on_disk(resource);
            let stored = entry.map(|entry| Offer::of_table(resource, entry));
            kubelet.offered.insert(resource.clone(), offer.common_with(stored.as_ref()));
        }
    }

    /// The next part of a look at records and pods. Of its last part, which cleans up, a call may be refused.
    pub(super) fn look(
        &mut self,
        paths: &Paths,
        machine: &mut Machine,
        kubelet: &mut SimulatedKubelet,
        clock: Clock<'_>,
        trouble: Option<Trouble>,
    ) {
        self.look = match std::mem::replace(&mut self.look, Looking::Not) {
            Looking::Not => {
                if std::mem::replace(&mut self.kubelet_starts, kubelet.starts) != kubelet.starts {
                    self.kubelet_since = clock.now;
                }
                let serving = self.serving(paths, clock.plugins);
                let found = records::list(paths).unwrap();
                let damaged = found.damaged.into_iter().map(|(id, _)| id).collect();
                let asked = clock.now;
                Looking::Recorded(Heard { records: found.records, damaged, serving, listing: None, asked })
            }
            Looking::Recorded(heard) => {
                let listing = kubelet.listing(clock.since).map(|listing| self.heard(listing));
                Looking::Asked(Heard { listing, asked: clock.now, ..heard })
            }
            Looking::Asked(heard) => {
                // The kubelet writes its checkpoint for the list that it is sent then.
                if self.judge(paths, machine, clock, heard, trouble) {
                    kubelet.note(clock.plugins);
                }
                Looking::Not
            }
        };
    }

    /// The kubelet that serves, as it is noted for records.
    fn serving(&self, paths: &Paths, plugins: &Path) -> Option<ServingKubelet> {
        let noted = kubelet_id::read(paths).filter(|_| self.planted == Some(Planted::RestartUnnoticed));
        noted.or_else(|| instance::observe(paths, plugins))
    }

    fn heard(&self, mut listing: Listing) -> Listing {
        if self.planted == Some(Planted::ListOfDevicesBelieved) {
            let with: BTreeSet<&PodName> = listing.devices.values().collect();
            listing.pods.retain(|pod| with.contains(pod) || *pod == super::node::agent());
        }
        listing
    }

    /// Returns whether the kubelet must write its checkpoint.
    fn judge(
        &mut self,
        paths: &Paths,
        machine: &mut Machine,
        clock: Clock<'_>,
        Heard { records, damaged, serving, listing, asked }: Heard,
        trouble: Option<Trouble>,
    ) -> bool {
        let (own, allocated) = (super::node::agent(), self.recent(clock.now));
        let kubelet = self.serving(paths, clock.plugins).filter(|kubelet| serving.as_ref() == Some(kubelet));
        let memory = crate::kubelet::checkpoint::memory(clock.plugins, kubelet.as_ref());
        let seen = Observation {
            records: &records,
            damaged: &damaged,
            listing: listing.as_ref(),
            memory: memory.as_ref(),
            allocated: &allocated,
            own_pod: Some(&own),
            node: Some(super::node::NAME),
            kubelet: kubelet.as_ref().map(|kubelet| kubelet.id.as_str()),
            kubelet_since: self.kubelet_since,
            now: asked,
        };
        let eyes = Eyes { machine: RefCell::new(machine), paths, planted: self.planted };
        let mut plan = self.collector.plan(&seen, &eyes);
        plan.dead.retain(|(record, _)| records::stands(paths, record));
        let mut hands = Hands::new(machine, NODE).troubled(trouble);
        if self.planted == Some(Planted::NumberGivenUp) {
            plan.dead.iter().for_each(|(record, _)| records::release_tap(paths, record).unwrap());
        }
        cleanup::clean_through(paths, &mut hands, &plan, &mut self.troubles);
        let listed: Vec<DeviceId> =
            listing.iter().flat_map(|listing| listing.devices.keys().cloned()).collect();
        let names = NicNames::default();
        self.usage = self.witnesses.update(listing, clock.plugins, &names, usage::recorded(paths));
        let is_behind = usage::starting(&self.ledger, clock.plugins, &names, &mut self.usage, clock.now);
        self.usage.extend(allocated);
        self.ledger.confirm(listed.iter(), asked);
        is_behind || plan.ask_for_checkpoint
    }
}

/// When an agent is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dies {
    BeforeTheTable,
    AfterTheTable,
}

/// The state directory.
#[derive(Clone, Copy)]
pub(super) struct Disk<'d> {
    pub(super) paths: &'d Paths,
    pub(super) full: bool,
    pub(super) dies: Option<Dies>,
}

/// What the collector sees of the machine.
struct Eyes<'e> {
    machine: RefCell<&'e mut Machine>,
    paths: &'e Paths,
    planted: Option<Planted>,
}

impl Liveness for Eyes<'_> {
    fn link_exists(&self, record: &Attachment) -> bool {
        let mut machine = self.machine.borrow_mut();
        let mut hands = Hands::new(&mut machine, NODE);
        let place = match &record.holder {
            Holder::Host => Some(Place::Numbered(NetnsId(NODE))),
            Holder::Pod { netns, netns_inode, .. } => {
                let number = hands.number(Path::new(netns), *netns_inode).unwrap();
                number.or(record.netns_id.map(NetnsId)).map(Place::Numbered)
            }
        };
        let Some(place) = place else { return true };
        let found = hands.find(place, &By::Index(record.ifindex)).unwrap();
        found.is_some_and(|link| link.is_macvtap() && link.lower == Some(record.lower_ifindex))
    }

    fn sandbox(&self, record: &Attachment) -> Fate {
        if matches!(self.planted, Some(Planted::OneWitness | Planted::ListOfDevicesBelieved)) {
            return sandbox::tests::gone();
        }
        let Holder::Pod { netns_inode: inode, netns, .. } = &record.holder else { return Fate::Unknown };
        let machine = self.machine.borrow();
        let number = record.netns_id.unwrap();
        let at = machine.spaces.get(&number);
        let is =
            |path: &str, id: u64| machine.spaces.values().any(|s| s.path == Path::new(path) && s.inode == id);
        if at.is_none() {
            sandbox::tests::gone()
        } else if is(netns, *inode) || machine.spaces.values().any(|space| space.inode == *inode) {
            Fate::Alive
        } else {
            sandbox::tests::gone()
        }
    }

    fn tap_note(&self, device: &DeviceId) -> Option<TapNote> {
        tap_pods::read(self.paths, device)
    }
}
