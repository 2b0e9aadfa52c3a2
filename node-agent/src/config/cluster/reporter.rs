//! Writes the status of the node state whenever it changes, and again when the API server has another one.

use crate::config::events::Announcer;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::DefaultBackoff;
use macvtap_crds::AGENT_FIELD_MANAGER;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapNodeStateStatus};
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Numbers of allocated devices change with every pod, and carrier may come and go many times a second; they are written
/// this often at most. What carrier means for devices is written at once, and has its own delays.
const COUNTS_PERIOD: Duration = Duration::from_secs(30);

/// Everything else is written at once, but not more often than this.
const PERIOD: Duration = Duration::from_millis(250);

/// A node state of any release.
pub(super) type NodeStateObject = DeserializeGuard<MacvtapNodeState>;

/// A node state as the API server holds it, as far as the writer of its status needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    uid: Option<String>,
    /// The resource version, which grows with every write.
    version: Option<u64>,
    /// Whether the status is known: an object of another release cannot be read.
    is_readable: bool,
    status: Option<MacvtapNodeStateStatus>,
    /// It is not older than this: when the list before it was requested, or the write was answered.
    since: Instant,
}

/// What has been written, and when the next write is due.
#[derive(Default)]
struct Progress {
    written: Option<LastWrite>,
    /// When the last write began.
    tried_at: Option<Instant>,
    /// No write before this moment, whatever changes: the API server is not reachable, or refuses.
    blocked_until: Option<Instant>,
    backoff: DefaultBackoff,
}

/// A status that was written.
struct LastWrite {
    wanted: MacvtapNodeStateStatus,
    /// The object as the API server stored it: with another schema not everything is kept.
    stored: Stored,
}

/// A status that is written next.
struct Next<'n> {
    wanted: &'n MacvtapNodeStateStatus,
    seen: &'n Stored,
    at: Instant,
}

impl Stored {
    /// Returns what an object of the API server contains that is not older than `since`.
    pub(super) fn of(DeserializeGuard(state): &NodeStateObject, since: Instant) -> Self {
        let of = |metadata: &ObjectMeta, is_readable, status| Self {
            uid: metadata.uid.clone(),
            version: metadata.resource_version.as_ref().and_then(|version| version.parse().ok()),
            is_readable,
            status,
            since,
        };
        match state {
            Ok(state) => of(&state.metadata, true, state.status.clone()),
            Err(invalid) => of(&invalid.metadata, false, None),
        }
    }
}

impl LastWrite {
    /// Whether the API server no longer holds what was written: the object was recreated, or its status was replaced by
    /// somebody else, for example from a backup. An earlier version only means that the watch is behind, unless its list
    /// was requested after the write: then all versions went back, as when etcd itself was restored.
    fn is_lost(&self, seen: &Stored) -> bool {
        let replaced = seen.is_readable && self.stored.is_readable && seen.status != self.stored.status;
        let is_later = seen.version > self.stored.version || seen.since > self.stored.since;
        seen.uid != self.stored.uid || (is_later && replaced)
    }
}

impl Progress {
    /// Returns what to write and when; none while the status is written, and while there is no object to write to.
    fn next<'n>(
        &mut self,
        wanted: Option<&'n MacvtapNodeStateStatus>,
        seen: Option<&'n Stored>,
        now: Instant,
    ) -> Option<Next<'n>> {
        let (wanted, seen) = (wanted?, seen?);
        self.written.take_if(|written| written.is_lost(seen));
        let period = match &self.written {
            Some(written) if written.wanted == *wanted => return None,
            Some(written) if differ_in_details_only(&written.wanted, wanted) => COUNTS_PERIOD,
            None | Some(_) => PERIOD,
        };
        let at = self.tried_at.map_or(now, |tried| tried + period);
        // An API server that has answered a list since is reachable.
        let blocked = self.blocked_until.filter(|_| self.tried_at.is_none_or(|tried| seen.since <= tried));
        Some(Next { wanted, seen, at: blocked.map_or(at, |until| at.max(until)) })
    }

    fn succeeded(&mut self, wanted: &MacvtapNodeStateStatus, stored: Stored) {
        self.written = Some(LastWrite { wanted: wanted.clone(), stored });
        if self.blocked_until.take().is_some() {
            info!("status written again");
            self.backoff = DefaultBackoff::default();
        }
    }

    fn failed(&mut self, reason: &str, now: Instant) {
        if self.blocked_until.is_none() {
            warn!(reason, "status not written, trying again at growing intervals");
        }
        self.blocked_until = self.backoff.next().map(|wait| now + wait);
    }
}

/// Writes the status until nobody reports one any more.
pub(super) async fn report(
    client: Client,
    node: String,
    mut status: watch::Receiver<Option<MacvtapNodeStateStatus>>,
    mut state: watch::Receiver<Option<Stored>>,
) {
    let announcer = Announcer::new(client.clone(), &node);
    let api = Api::all(client);
    let mut progress = Progress::default();
    // What was announced last, and for which object. What an earlier agent announced is not announced again.
    let mut said = None;
    let mut object = None;
    loop {
        let wanted = status.borrow_and_update().clone();
        let seen = state.borrow_and_update().clone();
        let now = Instant::now();
        let next = progress.next(wanted.as_ref(), seen.as_ref(), now);
        let due = next.as_ref().map(|next| next.at);
        if let Some(Next { wanted, seen, .. }) = next.filter(|next| next.at <= now) {
            if object.as_ref() != Some(&seen.uid) {
                said = seen.status.clone();
                object = Some(seen.uid.clone());
            }
            progress.tried_at = Some(now);
            match write(&api, &node, wanted).await {
                Ok(stored) => {
                    debug!("status written");
                    announcer.announce(said.as_ref(), wanted).await;
                    said = Some(wanted.clone());
                    progress.succeeded(wanted, stored);
                }
                Err(problem) => progress.failed(&crate::error_chain(&problem), Instant::now()),
            }
            continue;
        }
        tokio::select! {
            () = sleep_until(due) => {}
            changed = status.changed() => if changed.is_err() { return },
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}

async fn write(
    api: &Api<NodeStateObject>,
    node: &str,
    status: &MacvtapNodeStateStatus,
) -> Result<Stored, kube::Error> {
    // The agent is the only writer and knows the status whole, so it replaces what is there, even if that is not as the
    // schema has it. To apply it would need an object that the API server can compare with its schema.
    let operations = json!([{"op": "add", "path": "/status", "value": status.clone().brief()}]);
    let operations = serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
    let parameters =
        PatchParams { field_manager: Some(AGENT_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let stored = api.patch_status(node, &parameters, &Patch::<()>::Json(operations)).await?;
    Ok(Stored::of(&stored, Instant::now()))
}

/// Whether nothing changed but numbers of devices in use, and carrier and speed of links whose state is as before.
fn differ_in_details_only(one: &MacvtapNodeStateStatus, other: &MacvtapNodeStateStatus) -> bool {
    let without = |status: &MacvtapNodeStateStatus| {
        let mut status = status.clone();
        status.totals.allocated = 0;
        for link in &mut status.links {
            (link.carrier, link.speed_mbps) = (false, None);
        }
        for pool in &mut status.pools {
            pool.allocated = 0;
        }
        status
    };
    without(one) == without(other)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
