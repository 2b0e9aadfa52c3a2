//! Reads configurations that node states name.

use super::{Configs, UNREAD, api};
use crate::clock;
use crate::refusal;
use crate::states::Content;
use jiff::Timestamp;
use kube::{Client, Error};
use std::sync::Arc;
use std::time::Duration;

/// How often it is tried to read a configuration. The watch of node states waits for it.
const TRIES: u32 = 8;

impl Configs {
    /// The content of the configuration with this name; or why there is none.
    pub async fn content(&self, client: &Client, name: &str) -> Result<Arc<Content>, String> {
        {
            let mut inner = self.lock();
            if let Some(content) = inner.contents.get(name) {
                return Ok(Arc::clone(content));
            }
            let (now, time) = (clock::now(), self.pause * UNREAD);
            inner.unread.retain(|_, (since, _)| between(*since, now) < time);
            if let Some((_, why)) = inner.unread.get(name) {
                return Err(why.clone());
            }
        }
        let read = self.fetch(client, name).await;
        if let Err(why) = &read {
            self.lock().unread.insert(name.to_owned(), (clock::now(), why.clone()));
        }
        read
    }

    /// Reads the configuration of this name from the API server.
    pub(super) async fn fetch(&self, client: &Client, name: &str) -> Result<Arc<Content>, String> {
        let api = api(client);
        let mut pause = self.pause;
        let mut last = String::new();
        for _ in 0..TRIES {
            match api.get(name).await {
                Ok(object) => {
                    let content = Arc::new(Content::read(name, &object.data["spec"]["pools"])?);
                    self.lock().keep(&content);
                    return Ok(content);
                }
                Err(Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    return Err(refusal::text(&Error::Api(status)));
                }
                Err(error) => last = refusal::chain(&error),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(last)
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}
