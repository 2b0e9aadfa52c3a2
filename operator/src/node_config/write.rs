//! Creates configurations for node states that will name them.

use super::{Configs, api, object};
use crate::clock;
use crate::entry::Entry;
use crate::refusal;
use crate::states::Content;
use kube::api::PostParams;
use kube::{Client, Error};
use macvtap_crds::OPERATOR_FIELD_MANAGER;
use std::sync::Arc;
use std::time::Duration;

/// How long one is not created again after the API server has refused it.
const REFUSED: Duration = Duration::from_mins(1);

/// How long after the API server was too busy to create it, or away.
const BUSY: Duration = Duration::from_secs(1);

impl Configs {
    /// The content that has these pools.
    pub fn content_of(&self, pools: &[Arc<Entry>]) -> Option<Arc<Content>> {
        let mut inner = self.lock();
        let known = inner.contents.values().find(|content| content.entries == pools).cloned();
        known.or_else(|| {
            // A pool that JSON cannot express cannot be written in any form.
            let content = Arc::new(Content::of(pools).ok()?);
            inner.keep(&content);
            Some(content)
        })
    }

    /// Sees to it that a configuration exists. Returns whether a state may name it now: its write must be noted before, so
    /// that [`Self::sweep`] deletes none that a state is about to name.
    pub async fn ensure(&self, client: &Client, content: &Content) -> bool {
        if let Some(known) = self.is_usable(&content.name) {
            return known;
        }
        let _creating = self.creating.lock().await;
        if let Some(known) = self.is_usable(&content.name) {
            return known;
        }
        match self.create(client, content).await {
            Ok(()) => {
                let mut inner = self.lock();
                inner.exist.insert(content.name.clone());
                inner.refused.remove(&content.name);
                inner.logged = None;
                !inner.doomed.contains(&content.name)
            }
            Err((why, pause)) => {
                let mut inner = self.lock();
                let now = clock::now();
                inner.refused.retain(|_, until| now < *until);
                inner.refused.extend(now.checked_add(pause).map(|until| (content.name.clone(), until)));
                if inner.logged.as_ref() != Some(&why) {
                    tracing::warn!(
                        config = content.name,
                        reason = why,
                        "configuration not created, node states have their pools themselves"
                    );
                    inner.logged = Some(why);
                }
                false
            }
        }
    }

    /// Creates a configuration, unless one with its content exists. After a failure it is not tried again for a while.
    async fn create(&self, client: &Client, content: &Content) -> Result<(), (String, Duration)> {
        let object = serde_json::from_value(object(content)).map_err(|error| (error.to_string(), REFUSED))?;
        let params =
            PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.to_owned()), ..Default::default() };
        match api(client).create(&params, &object).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 409 => {
                self.fetch(client, &content.name).await.map(drop).map_err(|why| (why, REFUSED))
            }
            Err(error) => {
                let is_busy = matches!(&error, Error::Api(status) if status.code == 429);
                let is_final = refusal::is_refused(&error) && !is_busy;
                Err((refusal::chain(&error), if is_final { REFUSED } else { BUSY }))
            }
        }
    }

    /// Whether a state may name a configuration, if that is known.
    fn is_usable(&self, name: &str) -> Option<bool> {
        let inner = self.lock();
        if inner.doomed.contains(name) {
            return Some(false);
        }
        if inner.exist.contains(name) {
            return Some(true);
        }
        inner.refused.get(name).filter(|until| clock::now() < **until).map(|_| false)
    }
}
