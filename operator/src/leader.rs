//! One of several operators writes: the one that holds a Lease, and only for as long as it surely does.
//!
//! The rules are client-go's: a lease is judged by how long *we* have seen it unchanged, never by comparing clocks of
//! two machines; each write of it names the version that was read, so of two that try at once one is refused. A
//! holder that could not renew for [`RENEW_DEADLINE`] stops writing, well before anybody may take the lease from it.

pub mod lease;
pub mod term;

use crate::refusal;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use lease::{SeenLease, Step};
use std::sync::Arc;
use std::time::Duration;
use term::Term;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a lease holds after its last renewal.
pub const LEASE: Duration = Duration::from_secs(15);

/// For how long after its last renewal the holder acts.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// The pause between two attempts.
pub const RETRY: Duration = Duration::from_secs(2);

/// How long one request may take, so that a connection that died leaves time for another.
const REQUEST: Duration = Duration::from_secs(4);

/// One candidate.
pub struct Elector {
    leases: Api<Lease>,
    name: String,
    identity: String,
    term: Arc<Term>,
    /// When the last attempt began: a sign of life.
    beat: watch::Sender<Instant>,
    observed: Option<SeenLease>,
    /// The last problem that was logged, so that each is logged once.
    logged: Option<String>,
    /// Whether the API server could not be heard since somebody asked.
    is_cut_off: bool,
}

impl Elector {
    /// A candidate of this identity for the lease `name` in `namespace`; `term` says to others when it leads.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        term: Arc<Term>,
    ) -> (Self, watch::Receiver<Instant>) {
        let leases = Api::namespaced(client, namespace);
        let (beat, beats) = watch::channel(Instant::now());
        (
            Self {
                leases,
                name: name.to_owned(),
                identity,
                term,
                beat,
                observed: None,
                logged: None,
                is_cut_off: false,
            },
            beats,
        )
    }

    /// Gives a sign of life.
    pub fn beat(&self) {
        self.beat.send_replace(Instant::now());
    }

    /// Whether the API server could not be heard at some time since this was asked: what was watched meanwhile may be old.
    pub fn was_cut_off(&mut self) -> bool {
        std::mem::take(&mut self.is_cut_off)
    }

    /// Waits until this candidate leads.
    pub async fn acquire(&mut self) {
        loop {
            let pause = match self.attempt(Instant::now() + REQUEST).await {
                Ok(None) => {
                    tracing::info!(lease = %self.name, identity = %self.identity, "leading");
                    return;
                }
                Ok(Some(wait)) => {
                    let holder = self.observed.as_ref().map_or("", |observed| observed.holder());
                    self.log_once(format!("standing by, {holder} leads"));
                    wait.min(RETRY)
                }
                Err(error) => {
                    self.log_once(format!("the lease cannot be acquired: {error}"));
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    /// Renews the lease; returns why this candidate leads no more.
    pub async fn keep(&mut self) -> String {
        loop {
            sleep(RETRY).await;
            let deadline = self.term.until().unwrap_or_else(Instant::now);
            let tried = self.attempt(deadline.min(Instant::now() + REQUEST)).await;
            let why = match tried {
                Ok(None) => continue,
                Ok(Some(_)) => {
                    self.term.end();
                    let holder = self.observed.as_ref().map_or("", |observed| observed.holder());
                    return format!("{holder} has taken the lease");
                }
                Err(error) => error,
            };
            // Attempts are short, so the next one may still come in time.
            if Instant::now() + RETRY >= deadline {
                tokio::time::sleep_until(deadline).await;
                self.term.end();
                return why;
            }
            tracing::warn!(error = why, "lease not renewed, trying again");
        }
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    pub async fn release(&mut self) {
        self.term.end();
        let Some(lease) = self.observed.as_ref().and_then(|observed| observed.released(&self.identity))
        else {
            return;
        };
        let params = PostParams::default();
        let release = self.leases.replace(&self.name, &params, &lease);
        match tokio::time::timeout(REQUEST, release).await {
            Ok(Ok(_)) => tracing::info!(lease = %self.name, "lease released"),
            Ok(Err(error)) => tracing::warn!(error = refusal::text(&error), "lease not released"),
            Err(_) => tracing::warn!("lease not released in time"),
        }
    }

    /// Tries once to have the lease: none when it is ours, else how long it surely is not.
    async fn attempt(&mut self, deadline: Instant) -> Result<Option<Duration>, String> {
        self.beat();
        let tried = timeout_at(deadline, self.look_and_write()).await;
        self.is_cut_off |= !matches!(tried, Ok(Ok(_) | Err(Error::Api(_))));
        match tried {
            Ok(result) => result.map_err(|error| refusal::text(&error)),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    async fn look_and_write(&mut self) -> Result<Option<Duration>, Error> {
        // A holder that nobody disturbs needs no look: the version in its write is the proof.
        if self.term.until().is_none() || self.observed.is_none() {
            self.look().await?;
        }
        let asked = Instant::now();
        let step = lease::step(self.observed.as_ref(), &self.identity, asked, jiff::Timestamp::now());
        let written = match step {
            Step::Wait(wait) => return Ok(Some(wait)),
            Step::Create(mut lease) => {
                lease.metadata.name = Some(self.name.clone());
                self.leases.create(&PostParams::default(), &lease).await
            }
            Step::Replace(lease) => self.leases.replace(&self.name, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(lease) => {
                self.observed = Some(SeenLease::new(lease, asked));
                self.term.hold(asked + RENEW_DEADLINE);
                Ok(None)
            }
            // Somebody else was faster, or ours is gone: look again.
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.look().await?;
                let now = Instant::now();
                let wall = jiff::Timestamp::now();
                match lease::step(self.observed.as_ref(), &self.identity, now, wall) {
                    Step::Wait(wait) => Ok(Some(wait)),
                    Step::Create(_) | Step::Replace(_) => Err(Error::Api(status)),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let found = self.leases.get_opt(&self.name).await?;
        let now = Instant::now();
        self.observed = found.map(|lease| match self.observed.take() {
            Some(before) => before.seen(lease, now),
            None => SeenLease::new(lease, now),
        });
        Ok(())
    }

    fn log_once(&mut self, text: String) {
        if self.logged.as_ref() != Some(&text) {
            tracing::info!(lease = %self.name, "{text}");
            self.logged = Some(text);
        }
    }
}
