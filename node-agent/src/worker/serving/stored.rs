//! What is served of a step while its table is not on the disk.

use super::{Serving, TABLE_RETRY};
use crate::devices::engine::Step;
use crate::devices::nics::NicNames;
use crate::devices::offer::Offer;
use crate::worker::table_writer::WriteOutcome;
use macvtap::device_id::ResourceName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tracing::error;

impl Serving {
    /// Takes note of what became of a table.
    pub(super) fn note_written(&mut self, written: WriteOutcome) {
        match written {
            WriteOutcome::Stored(table) => {
                self.shared.metrics.table_writes.inc();
                self.engine.stored(table);
                self.shared.nics.send_replace(Arc::new(NicNames::of(self.engine.table())));
                (self.table_error, self.table_retry) = (None, None);
            }
            WriteOutcome::Failed(reason) => {
                self.shared.metrics.table_write_failures.inc();
                if self.table_error.is_none() {
                    error!(%reason, "device table not written, the last list is served");
                }
                self.table_error = Some(reason);
                self.table_retry = Some(Instant::now() + TABLE_RETRY);
            }
        }
    }

    /// What of an offer the plugin finds on the disk, whether or not it was served before.
    pub(super) fn stored_part(&self, offer: &Offer) -> Offer {
        let entry = self.engine.on_disk(&offer.resource);
        offer.common_with(entry.map(|entry| Offer::of_table(&offer.resource, entry)).as_ref())
    }

    /// Starts what is not served yet with what of it is on the disk: pods that come now can have that, and those that have
    /// a device keep it in the kubelet's sight.
    pub(super) fn start_stored(&mut self, step: &Step) {
        for (resource, offer) in &step.offers {
            if !self.resources.contains_key(resource) {
                let running = self.start(resource.clone(), self.stored_part(offer));
                self.resources.insert(resource.clone(), running);
            }
        }
    }

    pub(super) fn served(&self) -> BTreeMap<ResourceName, Offer> {
        let offers = self.resources.iter();
        offers
            .map(|(resource, running)| (resource.clone(), running.offer.borrow().as_ref().clone()))
            .collect()
    }
}
