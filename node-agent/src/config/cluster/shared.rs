//! The pools of a node state that names a configuration, which many nodes have in common. It never changes, so it is read
//! once and not watched.

use super::reporter::NodeStateObject;
use super::{EAGERNESS, RETRY};
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::api::{Api, ApiResource, DynamicObject, GetParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::DefaultBackoff;
use kube::{Client, Error};
use macvtap_crds::v1alpha1::nodeconfig::name_of;
use macvtap_crds::v1alpha1::{MacvtapNodeConfig, NodePool};
use serde::Deserialize;
use std::time::Duration;
use tracing::{info, warn};

/// What follows from a node state, or from a configuration that has been read for one.
#[derive(Debug)]
pub(super) enum Found {
    /// This state, with its pools.
    State(Option<Box<NodeStateObject>>),
    /// The state has no pools that could be served, and why.
    Problem(String),
    /// Nothing yet.
    Nothing,
}

/// Why a configuration is not there.
#[derive(Debug, PartialEq)]
enum Unread {
    /// Somebody has to do something.
    Wrong(String),
    /// The API server is away or busy.
    Away(String),
}

/// Configurations by name.
pub(super) struct Shared {
    api: Api<DynamicObject>,
    /// The last one that was read.
    last: Option<(String, Vec<NodePool>)>,
    waiting: Option<Waiting>,
}

/// A state whose configuration is being read.
struct Waiting {
    state: NodeStateObject,
    name: String,
    backoff: DefaultBackoff,
    is_logged: bool,
    read: BoxFuture<'static, Result<Vec<NodePool>, Unread>>,
}

impl Shared {
    pub(super) fn new(client: Client) -> Self {
        // As it is: the name is the hash of what the API server has.
        let api = Api::all_with(client, &ApiResource::erase::<MacvtapNodeConfig>(&()));
        Self { api, last: None, waiting: None }
    }

    /// Gives a state its pools. The last state counts: one that waits for its configuration is forgotten when another comes.
    pub(super) fn resolve(&mut self, state: Option<NodeStateObject>) -> Found {
        let waiting = self.waiting.take();
        let Some(DeserializeGuard(Ok(sound))) = &state else { return Found::State(state.map(Box::new)) };
        // Who writes pools beside the name of a configuration does not know what that is for.
        let Some(name) = sound.spec.config.clone().filter(|_| sound.spec.pools.is_none()) else {
            return Found::State(state.map(Box::new));
        };
        let state = DeserializeGuard(Ok(sound.clone()));
        if let Some((_, pools)) = self.last.as_ref().filter(|(last, _)| *last == name) {
            return Found::State(Some(Box::new(with_pools(state, pools))));
        }
        self.waiting = Some(match waiting.filter(|waiting| waiting.name == name) {
            Some(waiting) => Waiting { state, ..waiting },
            None => Waiting {
                state,
                read: read(self.api.clone(), name.clone(), Duration::ZERO).boxed(),
                name,
                backoff: DefaultBackoff::default(),
                is_logged: false,
            },
        });
        Found::Nothing
    }

    /// Reads the configuration for which a state waits; waits for ever if none does. May be dropped and called again.
    pub(super) async fn read(&mut self) -> Found {
        let Some(waiting) = &mut self.waiting else { return std::future::pending().await };
        let pools = (&mut waiting.read).await;
        let problem = match pools {
            Ok(pools) => {
                let Some(Waiting { state, name, .. }) = self.waiting.take() else { return Found::Nothing };
                info!(config = name, "shared configuration read");
                let state = with_pools(state, &pools);
                self.last = Some((name, pools));
                return Found::State(Some(Box::new(state)));
            }
            Err(problem) => problem,
        };
        let pause = waiting.backoff.next().map_or(RETRY, |pause| pause / EAGERNESS);
        waiting.read = read(self.api.clone(), waiting.name.clone(), pause).boxed();
        match problem {
            Unread::Wrong(problem) => Found::Problem(problem),
            Unread::Away(reason) => {
                if !std::mem::replace(&mut waiting.is_logged, true) {
                    warn!(config = waiting.name, reason, "shared configuration not read, trying again");
                }
                Found::Nothing
            }
        }
    }
}

fn with_pools(mut state: NodeStateObject, pools: &[NodePool]) -> NodeStateObject {
    if let Ok(state) = &mut state.0 {
        state.spec.pools = Some(pools.to_vec());
    }
    state
}

/// Reads a configuration after a pause.
async fn read(api: Api<DynamicObject>, name: String, pause: Duration) -> Result<Vec<NodePool>, Unread> {
    tokio::time::sleep(pause).await;
    // It never changes, so the API server may take it from its cache, which may not show it yet.
    let cached = api.get_with(&name, &GetParams::any()).await;
    let read = match cached {
        Err(Error::Api(status)) if status.code == 404 => api.get(&name).await,
        cached => cached,
    };
    let object = match read {
        Ok(object) => object,
        Err(Error::Api(status)) if status.code == 404 => {
            return Err(Unread::Wrong(format!(
                "spec.config names MacvtapNodeConfig {name}, which does not exist; the operator makes it again within a minute"
            )));
        }
        Err(Error::Api(status)) if status.code == 403 => {
            return Err(Unread::Wrong(format!(
                "the agent may not read MacvtapNodeConfig {name}, which spec.config names: allow it to get macvtapnodeconfigs, as the chart does; {}",
                status.message
            )));
        }
        Err(problem) => return Err(Unread::Away(crate::error_chain(&problem))),
    };
    let pools = &object.data["spec"]["pools"];
    if name_of(pools) != name {
        return Err(Unread::Wrong(format!(
            "MacvtapNodeConfig {name}, which spec.config names, is not what the operator wrote: delete it, and the operator makes it again"
        )));
    }
    Vec::deserialize(pools).map_err(|problem| {
        Unread::Wrong(format!("MacvtapNodeConfig {name}, which spec.config names, cannot be read: {problem}"))
    })
}

#[cfg(test)]
mod tests;
