//! Recreates configurations that somebody deleted, and deletes those that no node state has named for long.

use super::{Configs, api};
use crate::clock;
use crate::refusal;
use crate::states::{Content, States};
use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Client, Error, ResourceExt};
use macvtap_crds::CONFIG_LABEL;
use macvtap_crds::v1alpha1::nodeconfig::is_name;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often configurations are compared with the node states that name them.
const PERIOD: Duration = Duration::from_mins(1);

/// For how long no state may have named a configuration before it is deleted. An agent reads it after its state.
const UNUSED: Duration = Duration::from_mins(10);

/// How many are listed at once.
const PAGE: u32 = 500;

/// Configurations by name, with their UIDs.
type Found = BTreeMap<String, Option<String>>;

impl Configs {
    /// Sweeps again and again until the shutdown.
    pub async fn keep(&self, client: &Client, states: &States, shutdown: &CancellationToken) {
        let mut is_logged = false;
        loop {
            match self.sweep(client, states, clock::now()).await {
                Ok(()) => is_logged = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        let error = refusal::chain(&error);
                        tracing::warn!(
                            error,
                            "configurations not compared with the node states that name them"
                        );
                    }
                }
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_none() {
                return;
            }
        }
    }

    /// Compares configurations with the states that name them.
    pub async fn sweep(&self, client: &Client, states: &States, now: Timestamp) -> Result<(), Error> {
        // Before the list, so that none which is created meanwhile looks missing.
        let named = states.configs(now);
        let found = found(client).await?;
        for name in named.iter().filter(|name| !found.contains_key(*name)) {
            self.recreate(client, states, name).await;
        }
        for name in self.unused(&found, &named, now) {
            self.delete(client, states, &name, found.get(&name).cloned().flatten(), now).await?;
        }
        Ok(())
    }

    /// Those that no state has named for long.
    fn unused(&self, found: &Found, named: &HashSet<String>, now: Timestamp) -> Vec<String> {
        let mut inner = self.lock();
        inner.unused_since.retain(|name, _| found.contains_key(name) && !named.contains(name));
        for name in found.keys().filter(|name| !named.contains(*name)) {
            inner.unused_since.entry(name.clone()).or_insert(now);
        }
        let is_due = |since: &Timestamp| {
            Duration::try_from(now.duration_since(*since)).is_ok_and(|unused| unused >= UNUSED)
        };
        let due = inner.unused_since.iter().filter(|(_, since)| is_due(since));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// Creates a configuration that states name and that does not exist.
    async fn recreate(&self, client: &Client, states: &States, name: &str) {
        let known = {
            let mut inner = self.lock();
            inner.exist.remove(name);
            inner.contents.get(name).cloned()
        };
        let from_state = || {
            let content = Content::of(&states.of_config(name)?).ok()?;
            (content.name == name).then(|| Arc::new(content))
        };
        // Where nobody knows its content, the states that name it are written again.
        let Some(content) = known.or_else(from_state) else { return };
        if self.ensure(client, &content).await {
            tracing::warn!(config = name, "configuration that node states name was missing, created again");
        }
    }

    /// Deletes a configuration, unless a state has begun to name it.
    async fn delete(
        &self,
        client: &Client,
        states: &States,
        name: &str,
        uid: Option<String>,
        now: Timestamp,
    ) -> Result<(), Error> {
        {
            let mut inner = self.lock();
            inner.doomed.insert(name.to_owned());
            inner.exist.remove(name);
        }
        // Who names it from now on asks first whether it is doomed.
        let deleted = if states.configs(now).contains(name) {
            Ok(())
        } else {
            let preconditions = Some(Preconditions { uid, resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            match api(client).delete(name, &params).await {
                Err(Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(()),
                deleted => deleted.map(drop),
            }
        };
        let mut inner = self.lock();
        inner.doomed.remove(name);
        inner.unused_since.remove(name);
        deleted
    }
}

/// Those that an operator made.
async fn found(client: &Client) -> Result<Found, Error> {
    let api = api(client);
    let mut found = Found::new();
    let mut params = ListParams::default().labels(CONFIG_LABEL).limit(PAGE);
    loop {
        let page = match api.list_metadata(&params).await {
            // The cluster does not have the kind.
            Err(Error::Api(status)) if status.code == 404 => return Ok(found),
            page => page?,
        };
        let ours = page.items.iter().filter(|config| is_name(&config.name_any()));
        found.extend(ours.map(|config| (config.name_any(), config.uid())));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}
