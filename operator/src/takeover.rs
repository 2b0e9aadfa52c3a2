//! What a new leader waits for before it writes: that its caches show all that the former one wrote. To act on less would
//! write specs again, and give turns in staged rollouts on top of those that are taken.

use crate::context::Context;
use crate::states::version;
use kube::api::{Api, ListParams};
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt};
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

/// How many objects are asked for at once.
const PAGE: u32 = 500;

/// How often the caches are compared with what was found.
const POLL: Duration = Duration::from_millis(50);

/// How long watches may take to catch up, before the API server is asked again: what was deleted meanwhile is waited for
/// in vain.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is asked.
const ROUNDS: usize = 3;

/// The versions of all objects of a kind at one time.
#[derive(Debug, Default)]
struct Versions {
    objects: HashMap<String, u64>,
    /// The version of the list itself.
    list: u64,
}

impl Versions {
    /// Asks the API server, for metadata only: the objects are in the cache already, most of them as they are.
    async fn read<K>(api: &Api<K>) -> Result<Self, kube::Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let mut found = Self::default();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = api.list_metadata(&params).await?;
            let number = |text: Option<&String>| text.and_then(|text| text.parse().ok());
            found.list = number(page.metadata.resource_version.as_ref()).unwrap_or_default();
            let objects = page
                .items
                .iter()
                .map(|object: &PartialObjectMeta<K>| (object.name_any(), version(&object.metadata)));
            found.objects.extend(objects);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(found),
            }
        }
    }

    /// Whether a cache with objects of these versions shows everything up to this list.
    fn are_shown(&self, mut cached: HashMap<String, u64>) -> bool {
        let shown =
            self.objects.iter().all(|(name, wanted)| cached.remove(name).is_some_and(|has| has >= *wanted));
        // What the list does not have was made after it; or it was deleted, and the cache does not know that yet.
        shown && cached.values().all(|has| *has > self.list)
    }
}

/// Waits until the caches of node states and pools show everything that had been written when it was called. Returns
/// whether they did in time.
pub async fn catch_up(context: &Context) -> Result<bool, kube::Error> {
    for _ in 0..ROUNDS {
        let states = Versions::read(&Api::<MacvtapNodeState>::all(context.client.clone())).await?;
        let pools = Versions::read(&Api::<MacvtapResourcePool>::all(context.client.clone())).await?;
        let shown = async {
            while !states.are_shown(cached_states(context)) || !pools.are_shown(cached_pools(context)) {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(PATIENCE, shown).await.is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn cached_states(context: &Context) -> HashMap<String, u64> {
    context.states.all().iter().map(|state| (state.name.clone(), state.version)).collect()
}

fn cached_pools(context: &Context) -> HashMap<String, u64> {
    context.pools.state().iter().map(|pool| (pool.name_any(), version(pool.meta()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_has_caught_up_when_it_shows_every_write_and_every_deletion() {
        let map = |pairs: &[(&str, u64)]| {
            pairs.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect::<HashMap<_, _>>()
        };
        let found = Versions { objects: map(&[("a", 5), ("b", 8)]), list: 10 };
        for shown in [&[("a", 5), ("b", 8)][..], &[("a", 12), ("b", 8), ("new", 11)]] {
            assert!(found.are_shown(map(shown)), "{shown:?}");
        }
        for late in [&[("a", 5)][..], &[("a", 5), ("b", 7)], &[("a", 5), ("b", 8), ("deleted", 10)]] {
            assert!(!found.are_shown(map(late)), "{late:?}");
        }
    }
}
