//! What the agent counts. Labels come from closed sets: resources of the node's pools, and fixed words.

use macvtap::device_id::ResourceName;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tracing_appender::non_blocking::ErrorCounter;

/// All metrics.
pub struct Metrics {
    registry: Registry,
    devices: Family<DeviceLabels, Gauge>,
    allocations: Family<AllocationLabels, Counter>,
    allocate_seconds: Histogram,
    registrations: Family<ResourceLabels, Counter>,
    /// Events of links, changed or not.
    pub link_events: Counter,
    /// Full lists of links read.
    pub resyncs: Counter,
    /// Times events were lost because the kernel's buffer was full.
    pub overflows: Counter,
    /// Device tables written.
    pub table_writes: Counter,
    /// Device tables that could not be written.
    pub table_write_failures: Counter,
    /// Orphaned attachments removed: links, nodes and records of pods that are gone.
    pub orphans_removed: Counter,
    /// Attached devices that the kubelet does not list for their pods.
    pub unlisted: Gauge,
    /// Lost records of pods that still have their link, written again.
    pub adopted: Counter,
    log_lines_lost: Counter,
    log: OnceLock<ErrorCounter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DeviceLabels {
    resource: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AllocationLabels {
    resource: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResourceLabels {
    resource: String,
}

/// What an Allocate can end with.
const GRANTED: &str = "granted";
const REFUSED: &str = "refused";

/// Devices of one resource, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// Advertised and healthy.
    pub healthy: u32,
    /// Advertised and not.
    pub unhealthy: u32,
    /// Given to a pod.
    pub allocated: u32,
    /// Given to a pod, and its link vanished.
    pub dead: u32,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("macvtap"),
            devices: Family::default(),
            allocations: Family::default(),
            // 50 µs to 0.4 s.
            allocate_seconds: Histogram::new(exponential_buckets(50e-6, 3.0, 9)),
            registrations: Family::default(),
            link_events: Counter::default(),
            resyncs: Counter::default(),
            overflows: Counter::default(),
            table_writes: Counter::default(),
            table_write_failures: Counter::default(),
            orphans_removed: Counter::default(),
            unlisted: Gauge::default(),
            adopted: Counter::default(),
            log_lines_lost: Counter::default(),
            log: OnceLock::new(),
        };
        let registry = &mut metrics.registry;
        registry.register("devices", "Devices by resource and state", metrics.devices.clone());
        registry.register("allocations", "Allocate calls by result", metrics.allocations.clone());
        registry.register_with_unit(
            "allocate",
            "Time to answer an Allocate call",
            Unit::Seconds,
            metrics.allocate_seconds.clone(),
        );
        registry.register("registrations", "Registrations with the kubelet", metrics.registrations.clone());
        registry.register("link_events", "Link events from the kernel", metrics.link_events.clone());
        registry.register("link_resyncs", "Full lists of links read", metrics.resyncs.clone());
        registry.register(
            "link_event_overflows",
            "Link events lost by the kernel",
            metrics.overflows.clone(),
        );
        registry.register("table_writes", "Device tables written", metrics.table_writes.clone());
        registry.register(
            "table_write_failures",
            "Device tables that could not be written",
            metrics.table_write_failures.clone(),
        );
        registry.register(
            "orphans_removed",
            "Orphaned attachments of pods removed",
            metrics.orphans_removed.clone(),
        );
        registry.register(
            "unlisted_devices",
            "Attached devices that the kubelet does not list for their pods",
            metrics.unlisted.clone(),
        );
        registry.register(
            "records_adopted",
            "Lost attachment records written again",
            metrics.adopted.clone(),
        );
        registry.register(
            "log_lines_lost",
            "Log lines dropped because nobody read the log",
            metrics.log_lines_lost.clone(),
        );
        metrics
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Counts a finished Allocate.
    pub fn allocation(&self, resource: &ResourceName, granted: bool) {
        let result = if granted { GRANTED } else { REFUSED };
        let labels = AllocationLabels { resource: resource.to_string(), result };
        self.allocations.get_or_create(&labels).inc();
    }

    /// Notes how long an Allocate took.
    pub fn allocate_seconds(&self, took: Duration) {
        self.allocate_seconds.observe(took.as_secs_f64());
    }

    /// Counts a registration.
    pub fn registration(&self, resource: &ResourceName) {
        self.registrations.get_or_create(&ResourceLabels { resource: resource.to_string() }).inc();
    }

    /// Sets the numbers of devices of one resource.
    pub fn devices(&self, resource: &ResourceName, counts: DeviceCounts) {
        for (state, count) in [
            ("healthy", counts.healthy),
            ("unhealthy", counts.unhealthy),
            ("allocated", counts.allocated),
            ("dead", counts.dead),
        ] {
            let labels = DeviceLabels { resource: resource.to_string(), state };
            self.devices.get_or_create(&labels).set(count.into());
        }
    }

    /// Forgets a resource that is gone.
    pub fn forget(&self, resource: &ResourceName) {
        for state in ["healthy", "unhealthy", "allocated", "dead"] {
            self.devices.remove(&DeviceLabels { resource: resource.to_string(), state });
        }
        for result in [GRANTED, REFUSED] {
            self.allocations.remove(&AllocationLabels { resource: resource.to_string(), result });
        }
        self.registrations.remove(&ResourceLabels { resource: resource.to_string() });
    }

    /// Counts from now on what the log loses.
    pub fn watch_log(&self, lost: ErrorCounter) {
        // There is one log; it was started before anything that counts.
        let _ = self.log.set(lost);
    }

    /// All of them as `OpenMetrics` text.
    pub fn text(&self) -> String {
        let lost = self.log.get().map_or(0, ErrorCounter::dropped_lines);
        self.log_lines_lost.inner().store(lost.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text_and_what_is_gone_is_not() {
        let metrics = Metrics::default();
        let resource = "dataplane".parse().unwrap();
        metrics.allocation(&resource, true);
        metrics.allocation(&resource, false);
        metrics.registration(&resource);
        metrics.devices(&resource, DeviceCounts { healthy: 7, ..DeviceCounts::default() });
        let text = metrics.text();
        assert!(text.contains("macvtap_devices{resource=\"dataplane\",state=\"healthy\"} 7"), "{text}");
        assert!(
            text.contains("macvtap_allocations_total{resource=\"dataplane\",result=\"granted\"} 1"),
            "{text}"
        );
        metrics.forget(&resource);
        assert!(!metrics.text().contains("dataplane"), "{}", metrics.text());
    }

    #[test]
    fn every_metric_is_explained() {
        let metrics = Metrics::default();
        let resource = "dataplane".parse().unwrap();
        metrics.allocation(&resource, true);
        metrics.registration(&resource);
        metrics.devices(&resource, DeviceCounts::default());
        let documented = include_str!("../../../docs/operations.md");
        let text = metrics.text();
        let names: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        assert_eq!(names.len(), 13, "{text}");
        for name in names {
            let said = [format!("`{name}`"), format!("`{name}_total`")];
            assert!(
                said.iter().any(|name| documented.contains(name)),
                "docs/operations.md does not explain {name}"
            );
        }
    }
}
