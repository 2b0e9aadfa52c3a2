//! What the operator counts. Labels come from closed sets and the names of pools.

use axum::http::Method;
use macvtap_crds::condition::ConditionType;
use macvtap_crds::v1alpha1::settings::Advertisement;
use macvtap_crds::v1alpha1::{MacvtapResourcePool, MacvtapResourcePoolStatus};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

/// All metrics.
pub struct Metrics {
    registry: Registry,
    /// 1 while this operator leads.
    pub leading: Gauge,
    /// Writes that were held back because this operator did not lead.
    pub refused_writes: Counter,
    /// How late the watch shows the operator's own writes of node states.
    pub watch_lag: Histogram,
    reconcile_seconds: Family<ControllerLabels, Histogram>,
    reconcile_failures: Family<ControllerLabels, Counter>,
    queue_depth: Family<ControllerLabels, Gauge>,
    api_requests: Family<RequestLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    unreadable: Family<KindLabels, Counter>,
    pool_nodes: Family<PoolLabels, Gauge>,
    pool_devices: Family<PoolLabels, Gauge>,
    pool_conditions: Family<ConditionLabels, Gauge>,
    pool_dry_run: Family<PoolLabel, Gauge>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ControllerLabels {
    controller: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ConditionLabels {
    pool: String,
    condition: &'static str,
}

/// The conditions that have a gauge.
const CONDITIONS: [ConditionType; 8] = [
    ConditionType::Accepted,
    ConditionType::Ready,
    ConditionType::Available,
    ConditionType::Progressing,
    ConditionType::Degraded,
    ConditionType::NetworksReady,
    ConditionType::Terminating,
    ConditionType::Stalled,
];

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("macvtap_operator"),
            leading: Gauge::default(),
            refused_writes: Counter::default(),
            // 1 ms to 262 s.
            watch_lag: Histogram::new(exponential_buckets(1e-3, 4.0, 10)),
            // 0.1 ms to 26 s.
            reconcile_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(1e-4, 4.0, 10))
            }),
            reconcile_failures: Family::default(),
            queue_depth: Family::default(),
            api_requests: Family::default(),
            watch_errors: Family::default(),
            unreadable: Family::default(),
            pool_nodes: Family::default(),
            pool_devices: Family::default(),
            pool_conditions: Family::default(),
            pool_dry_run: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("leading", "1 while this operator leads", self.leading.clone());
        registry.register(
            "refused_writes",
            "Writes held back without the lease",
            self.refused_writes.clone(),
        );
        registry.register_with_unit(
            "watch_lag",
            "Time from the answer to a write of a node state until the watch shows it",
            Unit::Seconds,
            self.watch_lag.clone(),
        );
        registry.register_with_unit(
            "reconcile",
            "Time of one reconcile",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register("reconcile_failures", "Reconciles that failed", self.reconcile_failures.clone());
        registry.register("queue_depth", "Keys that wait for a reconcile", self.queue_depth.clone());
        registry.register("api_requests", "Requests by method and answer", self.api_requests.clone());
        registry.register("watch_errors", "Interruptions of watches", self.watch_errors.clone());
        registry.register("unreadable_objects", "Objects seen that cannot be read", self.unreadable.clone());
        registry.register("pool_nodes", "Nodes of a pool by state", self.pool_nodes.clone());
        registry.register("pool_devices", "Devices of a pool by state", self.pool_devices.clone());
        registry.register(
            "pool_condition",
            "1 while a pool's condition is True",
            self.pool_conditions.clone(),
        );
        registry.register(
            "pool_dry_run",
            "1 while a pool is a dry run, which is meant to serve nothing",
            self.pool_dry_run.clone(),
        );
    }

    /// Notes a reconcile that ended.
    pub fn reconciled(&self, controller: &'static str, took: Duration, failed: bool) {
        let labels = ControllerLabels { controller };
        self.reconcile_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if failed {
            self.reconcile_failures.get_or_create(&labels).inc();
        }
    }

    /// Sets how many wait.
    pub fn queue_depth(&self, controller: &'static str, depth: usize) {
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        self.queue_depth.get_or_create(&ControllerLabels { controller }).set(depth);
    }

    /// A method as a label.
    pub fn method(&self, method: &Method) -> &'static str {
        match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        }
    }

    /// Counts a request and its answer; none when there was no answer.
    pub fn api_request(&self, method: &'static str, code: Option<u16>) {
        let code = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        self.api_requests.get_or_create(&RequestLabels { method, code }).inc();
    }

    /// Counts an interruption of a watch.
    pub fn watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabels { kind }).inc();
    }

    /// Counts an object that cannot be read.
    pub fn unreadable(&self, kind: &'static str) {
        self.unreadable.get_or_create(&KindLabels { kind }).inc();
    }

    /// Sets everything about a pool.
    pub fn pool(&self, pool: &MacvtapResourcePool, status: &MacvtapResourcePoolStatus) {
        let is_dry_run = pool.spec.settings.advertisement == Advertisement::DryRun;
        let pool = pool.metadata.name.as_deref().unwrap_or_default();
        self.pool_dry_run.get_or_create(&PoolLabel { pool: pool.to_owned() }).set(is_dry_run.into());
        let nodes = &status.nodes;
        let devices = &status.devices;
        for (state, count) in [
            ("matched", nodes.matched),
            ("updated", nodes.updated),
            ("ready", nodes.ready),
            ("degraded", nodes.degraded),
            ("unreachable", nodes.unreachable),
        ] {
            self.pool_nodes.get_or_create(&PoolLabels { pool: pool.to_owned(), state }).set(count.into());
        }
        for (state, count) in [
            ("capacity", devices.capacity),
            ("allocatable", devices.allocatable),
            ("allocated", devices.allocated),
            ("dead", devices.dead),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.pool_devices.get_or_create(&PoolLabels { pool: pool.to_owned(), state }).set(count);
        }
        self.conditions(pool, |kind| macvtap_crds::condition::holds(&status.conditions, kind));
    }

    /// Says of a pool that cannot be read only that it is stalled, or being deleted: of its nodes nothing is known.
    pub fn unreadable_pool(&self, pool: &str, is_terminating: bool) {
        self.forget(pool);
        let holding = if is_terminating { ConditionType::Terminating } else { ConditionType::Stalled };
        self.conditions(pool, |kind| kind == holding);
    }

    fn conditions(&self, pool: &str, holds: impl Fn(ConditionType) -> bool) {
        for kind in CONDITIONS {
            let labels = ConditionLabels { pool: pool.to_owned(), condition: kind.as_str() };
            self.pool_conditions.get_or_create(&labels).set(holds(kind).into());
        }
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &str) {
        for state in ["matched", "updated", "ready", "degraded", "unreachable"] {
            self.pool_nodes.remove(&PoolLabels { pool: pool.to_owned(), state });
        }
        for state in ["capacity", "allocatable", "allocated", "dead"] {
            self.pool_devices.remove(&PoolLabels { pool: pool.to_owned(), state });
        }
        for kind in CONDITIONS {
            let labels = ConditionLabels { pool: pool.to_owned(), condition: kind.as_str() };
            self.pool_conditions.remove(&labels);
        }
        self.pool_dry_run.remove(&PoolLabel { pool: pool.to_owned() });
    }

    /// Forgets all pools: another operator reports them now.
    pub fn forget_all(&self) {
        self.pool_nodes.clear();
        self.pool_devices.clear();
        self.pool_conditions.clear();
        self.pool_dry_run.clear();
    }

    /// Everything, in the `OpenMetrics` format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;
    use serde_json::json;

    /// Everything that a running operator could show.
    fn full() -> Metrics {
        let metrics = Metrics::default();
        metrics.reconciled("pools", Duration::from_millis(1), true);
        metrics.queue_depth("nodes", 3);
        metrics.api_request("PATCH", Some(409));
        metrics.watch_error("nodes");
        metrics.unreadable("pool");
        metrics.pool(&pool("dp", json!({})), &MacvtapResourcePoolStatus::default());
        metrics
    }

    #[test]
    fn what_is_counted_can_be_scraped() {
        let text = full().text();
        for line in [
            "macvtap_operator_leading 0",
            "macvtap_operator_reconcile_seconds_count{controller=\"pools\"} 1",
            "macvtap_operator_reconcile_failures_total{controller=\"pools\"} 1",
            "macvtap_operator_queue_depth{controller=\"nodes\"} 3",
            "macvtap_operator_api_requests_total{method=\"PATCH\",code=\"409\"} 1",
            "macvtap_operator_pool_nodes{pool=\"dp\",state=\"ready\"} 0",
            "macvtap_operator_pool_condition{pool=\"dp\",condition=\"Ready\"} 0",
            "macvtap_operator_pool_dry_run{pool=\"dp\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_guide_names_every_metric_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let rows =
            guide.lines().filter_map(|line| line.strip_prefix("| `macvtap_operator_")?.split('`').next());
        let mut named: Vec<String> = rows.map(|name| format!("macvtap_operator_{name}")).collect();
        let text = full().text();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let mut served: Vec<String> = types
            .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
            .collect();
        named.sort();
        served.sort();
        assert_eq!(named, served);
        // Alerts select by these words, so the guide must list what is served.
        let has_words = |line: &&str| line.starts_with("macvtap_operator_pool_") && line.contains("\",");
        for line in text.lines().filter(has_words) {
            let (name, rest) = line.split_once('{').unwrap();
            let value = rest.rsplit('"').nth(1).unwrap();
            let row = guide.lines().find(|row| row.starts_with(&format!("| `{name}`"))).unwrap();
            let mut words = row.split(|c: char| !c.is_ascii_alphanumeric());
            assert!(words.any(|word| word == value), "docs/operations.md does not list {value} of {name}");
        }
    }

    #[test]
    fn a_dry_run_is_told_apart_from_a_pool_that_no_node_serves() {
        let metrics = full();
        let dry = pool("dp", json!({"advertisement": "DryRun"}));
        metrics.pool(&dry, &MacvtapResourcePoolStatus::default());
        assert!(metrics.text().contains("macvtap_operator_pool_dry_run{pool=\"dp\"} 1"));
    }

    #[test]
    fn of_a_pool_that_cannot_be_read_any_more_only_that_is_said() {
        let metrics = full();
        metrics.unreadable_pool("dp", false);
        let text = metrics.text();
        assert!(!text.contains("macvtap_operator_pool_nodes{pool=\"dp\""), "{text}");
        assert!(!text.contains("macvtap_operator_pool_devices{pool=\"dp\""), "{text}");
        let holding = || -> Vec<String> {
            let text = metrics.text();
            let gauges = text.lines().filter_map(|line| line.strip_prefix("macvtap_operator_pool_condition"));
            gauges.filter_map(|gauge| gauge.strip_suffix(" 1").map(str::to_owned)).collect()
        };
        assert_eq!(holding(), ["{pool=\"dp\",condition=\"Stalled\"}"]);
        metrics.unreadable_pool("dp", true);
        assert_eq!(holding(), ["{pool=\"dp\",condition=\"Terminating\"}"]);
    }

    #[test]
    fn a_pool_that_is_gone_leaves_no_series() {
        let metrics = full();
        metrics.forget("dp");
        assert!(!metrics.text().contains("pool=\"dp\""));
        metrics.pool(&pool("dp", json!({})), &MacvtapResourcePoolStatus::default());
        metrics.forget_all();
        assert!(!metrics.text().contains("pool=\"dp\""));
    }
}
