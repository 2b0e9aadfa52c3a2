//! What the loop publishes: readiness to probes, numbers to metrics, the status to the reporter.

use super::Serving;
use crate::kubelet::endpoint::Registration;
use crate::process::metrics::DeviceCounts;
use crate::process::probe::Readiness;
use crate::report::nodestate::{self, View};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use macvtap::device_id::{DeviceId, ResourceName};
use macvtap_crds::v1alpha1::MacvtapNodeStateStatus;
use std::collections::BTreeMap;
use std::time::Duration;
use tracing::info;

/// A kubelet that takes a resource does so in milliseconds; one that never asks for its list is given up later than this.
pub(super) const REGISTERED_SOON: Duration = Duration::from_secs(4);

/// What the kubelet knows, by resource.
type Registrations = BTreeMap<ResourceName, Registration>;

impl Serving {
    /// Publishes the present state to probes, metrics and the reporter.
    pub(super) fn publish_state(&self) {
        let registrations: Registrations = self
            .resources
            .iter()
            .map(|(resource, running)| (resource.clone(), running.registered.borrow().clone()))
            .collect();
        self.tell_readiness(&registrations);
        self.count();
        if self.configuration.as_ref().is_none_or(|configuration| configuration.hash.is_none()) {
            // Nobody reads it.
            self.status.send_if_modified(|before| before.take().is_some());
        } else if let Some(status) = self.status_of(&registrations) {
            self.status.send_if_modified(|before| {
                let changed = before.as_ref() != Some(&status);
                *before = Some(status);
                changed
            });
        }
    }

    fn tell_readiness(&self, registrations: &Registrations) {
        let readiness = self.readiness_of(registrations);
        self.readiness.send_if_modified(|before| {
            let changed = *before != readiness;
            if changed {
                info!(?readiness, "readiness changed");
                *before = readiness;
            }
            changed
        });
    }

    fn count(&self) {
        for (resource, running) in &self.resources {
            let counts = running.offer.borrow().counts();
            let of = |devices: &mut dyn Iterator<Item = &DeviceId>| {
                u32::try_from(devices.filter(|device| device.resource() == resource).count())
                    .unwrap_or(u32::MAX)
            };
            self.shared.metrics.devices(
                resource,
                DeviceCounts {
                    healthy: counts.allocatable,
                    unhealthy: counts.capacity.saturating_sub(counts.allocatable),
                    allocated: of(&mut self.engine.world.in_use.iter()),
                    dead: of(&mut self.usage.dead.iter()),
                },
            );
        }
    }

    /// The status; none as long as the first one would be incomplete: trouble that an agent does not know yet is not over.
    fn status_of(&self, registrations: &Registrations) -> Option<MacvtapNodeStateStatus> {
        let (configuration, step) = (self.configuration.as_ref()?, self.last.as_ref()?);
        let before = self.status.borrow().clone();
        let registering = self.started.elapsed() < REGISTERED_SOON
            && registrations.values().any(|registration| *registration == Registration::Pending);
        if before.is_none() && (registering || !self.has_looked) {
            return None;
        }
        Some(nodestate::status(&View {
            engine: &self.engine,
            step,
            configuration,
            registrations,
            in_use: &self.engine.world.in_use,
            dead: &self.usage.dead,
            table_error: self.table_error.as_deref(),
            plugin: &self.plugin,
            boot_id: self.engine.boot_id(),
            before: before.as_ref(),
            now: &Time(Timestamp::now()),
        }))
    }

    fn readiness_of(&self, registrations: &Registrations) -> Readiness {
        if let Some(reason) = &self.table_error {
            return Readiness::NotReady(reason.clone());
        }
        if let Some(reason) = &self.plugin.missing {
            return Readiness::NotReady(reason.clone());
        }
        if let Some(missing) = self.missing() {
            return Readiness::NotReady(missing.to_owned());
        }
        let waiting = registrations.iter().find_map(|(resource, registration)| match registration {
            Registration::Done => None,
            Registration::Pending => Some(format!("resource {resource} is being registered")),
            Registration::Failed(reason) | Registration::Unreachable(reason) => {
                Some(format!("resource {resource}: {reason}"))
            }
            Registration::HandedOver => Some(format!("resource {resource} is handed over")),
        });
        waiting.map_or(Readiness::Ready, Readiness::NotReady)
    }
}
