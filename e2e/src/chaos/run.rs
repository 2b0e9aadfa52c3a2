//! One run: the cluster prepared, faults and pods and judge at once, the end, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::faults::{Breaker, Excuses};
use super::history::History;
use super::judge::Judge;
use super::kube_ovn::{self, Keeper};
use super::leases::{self, Leases};
use super::load::{self, Pools};
use super::observe;
use super::plan::{self, Kind, Step};
use super::settle::{self, Fates};
use super::snapshot::{NAMESPACE, POOLS, PREFIX};
use crate::layout::{self, Checkout};
use crate::progress::say;
use crate::{Cluster, KubeOvn, Kubectl, Options};

/// How often the state is observed.
const STEP: Duration = Duration::from_secs(1);

/// Every so many observations the pools are read, too.
const POOLS_EVERY: u32 = 5;

/// So long after the last fault every pod runs, and everything that is reported is true.
const CONVERGED: Duration = Duration::from_mins(3);

/// So long after the last pod nothing is left.
const CLEAN: Duration = Duration::from_mins(3);

/// So long after the last pod kube-ovn has released all addresses whose pods its controller saw end.
const RELEASED: Duration = Duration::from_mins(1);

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Decides everything; a random one when absent.
    pub seed: Option<u64>,
    /// For how many minutes faults are injected.
    pub minutes: u64,
    /// Only these faults; all kinds when empty.
    pub only: Vec<Kind>,
}

/// Runs it, prints what came of it, and fails with seed, history and violation when a rule did not hold.
pub fn run(settings: &Settings) -> Result<()> {
    if !Cluster::permitted()? {
        return Ok(());
    }
    let cluster = &Cluster::from_env_with(Options { kube_ovn: true, ..Options::default() })?;
    let kube_ovn = cluster.kube_ovn();
    let kube_ovn = kube_ovn.context("this looks into nodes: it needs the local cluster, unset KUBECONFIG")?;
    let seed = settings.seed.unwrap_or_else(random);
    say(format_args!("== chaos for {} minutes, seed {seed}", settings.minutes));
    prepare(cluster)?;
    let run = Run {
        cluster,
        seed,
        history: History::new(),
        judge: Mutex::default(),
        excuses: Mutex::default(),
        keeper: Keeper::new(kube_ovn),
        stop: AtomicBool::new(false),
    };
    let ended = run.all(settings);
    let kept = run.keep()?;
    match ended {
        Ok(report) => {
            say(format_args!("seed {seed}: no violation in {} minutes\n{report}", settings.minutes));
            clean_up(cluster)?;
            kube_ovn::delete_subnet(cluster.kubectl())
        }
        Err(error) => {
            // The cluster stays as it is: it can be looked at.
            let found = cluster.diagnose().unwrap_or_default();
            let again = format!("macvtap-cluster chaos --seed {seed} --minutes {}", settings.minutes);
            Err(error.context(format!("{found}\nseed {seed}; history in {}; again: {again}", kept.display())))
        }
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Short enough to type.
    RandomState::new().hash_one(Instant::now()) % 1_000_000
}

fn prepare(cluster: &Cluster) -> Result<()> {
    clean_up(cluster)?;
    let kubectl = cluster.kubectl();
    kubectl.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}"))?;
    kube_ovn::apply_subnet(kubectl)?;
    Pools::NORMAL.apply(kubectl)?;
    for network in ["chaos-a", "chaos-addressed", "chaos-b", kube_ovn::NETWORK] {
        kubectl.wait_until(
            NAMESPACE,
            &format!("net-attach-def/{network}"),
            Duration::from_secs(30),
            |_| Some(()),
        )?;
    }
    for (pool, node) in POOLS.iter().flat_map(|pool| cluster.nodes().iter().map(move |node| (pool, node))) {
        let resource = format!("{PREFIX}/{pool}");
        kubectl.wait_until("", &format!("node/{}", node.name()), Duration::from_mins(1), |object| {
            let offered = object["status"]["allocatable"][&resource].as_str()?.parse::<u64>().ok();
            (offered == Some(Pools::NORMAL.devices)).then_some(())
        })?;
    }
    Ok(())
}

fn clean_up(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let rest = ["--ignore-not-found", "--wait", "--timeout=180s"];
    kubectl.run(&[&["delete", "namespace", NAMESPACE], &rest[..]].concat())?;
    kubectl.run(&[&["delete", "macvtapresourcepool"], &POOLS[..], &rest].concat()).map(drop)
}

struct Run<'c> {
    cluster: &'c Cluster,
    seed: u64,
    history: History,
    judge: Mutex<Judge>,
    excuses: Mutex<Excuses>,
    keeper: Keeper<'c>,
    stop: AtomicBool,
}

/// What there was to wait for after the last pod.
struct Rest {
    took: Duration,
    /// Leases that nobody will ever release.
    leases: usize,
    /// Addresses that kube-ovn released only when its controller started again.
    addresses: usize,
}

impl Run<'_> {
    fn all(&self, settings: &Settings) -> Result<String> {
        thread::scope(|scope| {
            scope.spawn(|| self.keeper.run(&self.history));
            let ended = self.break_and_repair(settings);
            self.keeper.end();
            ended
        })
    }

    fn break_and_repair(&self, settings: &Settings) -> Result<String> {
        let kinds = if settings.only.is_empty() { &Kind::ALL[..] } else { &settings.only };
        let steps = plan::plan(self.seed, Duration::from_secs(settings.minutes * 60), kinds);
        let (counts, watched) = thread::scope(|scope| {
            let load =
                scope.spawn(|| load::run(self.cluster.kubectl(), &self.history, self.seed, &self.stop));
            let judge = scope.spawn(|| self.watch());
            self.inject(&steps);
            let repaired = self.breaker().repair();
            self.stop.store(true, Ordering::Relaxed);
            let counts = load.join().ok().context("the thread that makes pods panicked")?;
            let watched = judge.join().ok().context("the judge's thread panicked")?;
            repaired.context("repair the cluster after the last fault")?;
            anyhow::Ok((counts, watched?))
        })?;
        let (fates, converged) = self.converge()?;
        let rest = self.nothing_left()?;
        Ok(report(
            &steps,
            &format!(
                "{} workloads made, {} deleted, {watched} observations; at the end {} pods ready, {} refused by a kubelet without \
             agent, {} excused, {} leases of sandboxes that a killed runtime forgot, {} addresses that kube-ovn released late\n\
             converged {:.0} s after the last fault, nothing left {:.0} s after the last pod",
                counts.made,
                counts.deleted,
                fates.ready,
                fates.refused,
                fates.excused,
                rest.leases,
                rest.addresses,
                converged.as_secs_f64(),
                rest.took.as_secs_f64(),
            ),
        ))
    }

    fn breaker(&self) -> Breaker<'_> {
        Breaker {
            cluster: self.cluster,
            history: &self.history,
            judge: &self.judge,
            keeper: &self.keeper,
            excuses: &self.excuses,
        }
    }

    /// Every fault on a thread of its own: they overlap.
    fn inject(&self, steps: &[Step]) {
        thread::scope(|scope| {
            for step in steps {
                while self.history.now() < step.begin && !self.stopped() {
                    thread::sleep(Duration::from_millis(20));
                }
                if self.stopped() {
                    return;
                }
                scope.spawn(move || self.breaker().play(step));
            }
        });
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Observes until the end or the first violation; gives how often.
    fn watch(&self) -> Result<u32> {
        let mut observations = 0_u32;
        while !self.stopped() {
            let begun = Instant::now();
            if let Err(error) = self.look(observations.is_multiple_of(POOLS_EVERY)) {
                self.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
            observations += 1;
            thread::sleep(STEP.saturating_sub(begun.elapsed()));
        }
        Ok(observations)
    }

    fn look(&self, pools: bool) -> Result<()> {
        let seen = observe::snapshot(self.cluster, self.history.now(), pools)?;
        let found = self.judge.lock().unwrap_or_else(PoisonError::into_inner).observe(&seen);
        if found.is_empty() {
            return Ok(());
        }
        for violation in &found {
            self.history.say(format_args!("VIOLATION {violation:?}"));
        }
        self.history.note(format_args!("{seen:#?}"));
        bail!("{found:#?}")
    }

    /// Waits until a cluster that was broken is as one that was not; gives how long that took.
    fn converge(&self) -> Result<(Fates, Duration)> {
        let begun = Instant::now();
        let excuses = self.excuses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            self.look(false)?;
            let seen = observe::snapshot(self.cluster, self.history.now(), true)?;
            let waits = waits(self.cluster.kubectl()).unwrap_or_default();
            let (fates, wanting) = settle::unsettled(&seen, &excuses, &waits);
            if wanting.is_empty() {
                return Ok((fates, begun.elapsed()));
            }
            if begun.elapsed() > CONVERGED {
                self.history.note(format_args!("{seen:#?}"));
                bail!("not converged {CONVERGED:?} after the last fault:\n{}", wanting.join("\n"));
            }
            thread::sleep(STEP);
        }
    }

    /// Deletes every pod and waits until nothing of them is left. An address of which kube-ovn's controller missed the end of
    /// the pod is released when the controller starts.
    fn nothing_left(&self) -> Result<Rest> {
        let words = ["-n", NAMESPACE, "delete", "deployments,pods", "--all", "--wait", "--timeout=180s"];
        self.cluster.kubectl().run(&words)?;
        let begun = Instant::now();
        let mut addresses = 0;
        let devices = Pools::NORMAL.devices * u64::try_from(self.cluster.nodes().len())?;
        loop {
            let seen = observe::snapshot(self.cluster, self.history.now(), true)?;
            let mut left = settle::left(&seen, devices);
            let leases = self.leases()?;
            left.extend(leases.left);
            let unreleased = settle::unreleased(&seen);
            if addresses == 0 && !unreleased.is_empty() && begun.elapsed() > RELEASED {
                self.history.say(format_args!("kube-ovn's controller is restarted for {unreleased:?}"));
                addresses = unreleased.len();
                self.keeper.without(crate::kube_ovn::CONTROLLER, KubeOvn::kill_controller, || ())?;
            }
            left.extend(unreleased);
            if left.is_empty() {
                return Ok(Rest { took: begun.elapsed(), leases: leases.forgotten, addresses });
            }
            if begun.elapsed() > CLEAN {
                bail!("left {CLEAN:?} after the last pod:\n{}", left.join("\n"));
            }
            thread::sleep(STEP);
        }
    }

    /// The addresses that the nodes still lease.
    fn leases(&self) -> Result<Leases> {
        let excuses = self.excuses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found = Leases::default();
        for node in self.cluster.nodes() {
            let name = node.name();
            let of_node = leases::of(&name, &node.root()?, excuses.runtime_killed.contains(&name));
            found.left.extend(of_node.left);
            found.forgotten += of_node.forgotten;
        }
        Ok(found)
    }

    /// Writes the history to a file.
    fn keep(&self) -> Result<PathBuf> {
        let path = Checkout::here().path(&format!("target/chaos/history-{}.txt", self.seed));
        layout::write(&path, self.history.text())?;
        Ok(path)
    }
}

/// Why pods do not start, by UID: their latest warning.
fn waits(kubectl: &Kubectl) -> Result<BTreeMap<String, String>> {
    let events = observe::get(kubectl, &["events", "-n", NAMESPACE])?;
    let mut waits: BTreeMap<String, (String, String)> = BTreeMap::new();
    for event in events["items"].as_array().into_iter().flatten().filter(|event| event["type"] == "Warning") {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let uid = word(&event["involvedObject"]["uid"]);
        let said = (word(&event["lastTimestamp"]), word(&event["message"]));
        let latest = waits.entry(uid).or_default();
        if said.0 >= latest.0 {
            *latest = said;
        }
    }
    Ok(waits.into_iter().map(|(uid, (_, message))| (uid, message)).collect())
}

fn report(steps: &[Step], rest: &str) -> String {
    let kinds: BTreeSet<Kind> = steps.iter().map(|step| step.kind).collect();
    let mut text = format!("{} faults:", steps.len());
    for kind in kinds {
        let count = steps.iter().filter(|step| step.kind == kind).count();
        // Writing to a String does not fail.
        let _ = write!(text, " {kind:?} {count},");
    }
    format!("{}\n{rest}", text.trim_end_matches(','))
}
