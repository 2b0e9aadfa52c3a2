//! What the log says of pools and links: every change once.

use crate::devices::engine::{Engine, Step, World};
use crate::devices::offer::LinkState;
use crate::pools::selection;
use macvtap::device_id::ResourceName;
use macvtap_crds::v1alpha1::reason::LinkReason;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{info, warn};

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Pools without a link, and why.
    empty: BTreeMap<String, String>,
    /// Links of resources with unhealthy devices, and why they are.
    unhealthy: BTreeSet<(ResourceName, String, LinkReason)>,
}

impl Findings {
    /// Says what changed. A pool without a link is not a failure, and nobody finds out why if nobody says so; where there
    /// is no API server, the log is all there is.
    pub(super) fn log(&mut self, engine: &Engine, step: &Step) {
        let World { pools, inventory, .. } = &engine.world;
        let reasons = pools.iter().enumerate().filter_map(|(index, pool)| {
            Some((pool.name.clone(), selection::why_empty(pools, inventory, &step.selection, index)?))
        });
        let reasons: BTreeMap<String, String> = reasons.collect();
        for (pool, reason) in &reasons {
            if self.empty.get(pool) != Some(reason) {
                warn!(%pool, %reason, "pool has no link");
            }
        }
        self.empty = reasons;
        let unhealthy = unhealthy(step);
        for (resource, link, reason) in unhealthy.difference(&self.unhealthy) {
            warn!(%resource, link, %reason, "devices unhealthy");
        }
        for (resource, link, reason) in self.unhealthy.difference(&unhealthy) {
            info!(%resource, link, %reason, "no longer so");
        }
        self.unhealthy = unhealthy;
    }
}

fn unhealthy(step: &Step) -> BTreeSet<(ResourceName, String, LinkReason)> {
    let runs = step.offers.iter().flat_map(|(resource, offer)| {
        offer.runs.iter().filter(|offered| offered.run.advertised).map(move |offered| (resource, offered))
    });
    let sick = runs.filter_map(|(resource, offered)| match offered.state {
        LinkState::Healthy => None,
        LinkState::Unhealthy(reason) => Some((resource.clone(), offered.link.clone(), reason)),
    });
    sick.collect()
}
