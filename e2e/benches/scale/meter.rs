//! What the API server counts of requests, and what the kernel counts of processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use kube::api::ListParams;
use kube::core::Request;

/// Requests so far, by verb, resource with subresource, and whether they failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    counts: BTreeMap<(String, String, String), u64>,
}

impl Requests {
    /// What the API server has counted since it was started.
    pub(crate) async fn read(client: &Client) -> Result<Self> {
        let request = Request::new("/metrics").list(&ListParams::default()).context("ask for metrics")?;
        let text = client.request_text(request).await.context("read the API server's metrics")?;
        let mut counts = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, value)) = line.split_once("} ") else { continue };
            let label = |name: &str| {
                let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
                labels.get(start..)?.split('"').next()
            };
            let (Some(verb), Some(code), Some(resource)) = (label("verb"), label("code"), label("resource"))
            else {
                continue;
            };
            let subresource = label("subresource").filter(|name| !name.is_empty());
            let resource = subresource.map_or(resource.to_owned(), |sub| format!("{resource}/{sub}"));
            let value: f64 = value.trim().parse().unwrap_or_default();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a counter of requests"
            )]
            let value = value as u64;
            *counts.entry((verb.to_owned(), resource, code.to_owned())).or_default() += value;
        }
        Ok(Self { counts })
    }

    /// What was added since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().filter_map(|(key, now)| {
            let before = earlier.counts.get(key).copied().unwrap_or_default();
            (*now > before).then(|| (key.clone(), now - before))
        });
        Self { counts: counts.collect() }
    }

    /// Writes that succeeded, but for leases: they are renewed all the time, and that changes nothing.
    pub(crate) fn writes(&self) -> BTreeMap<String, u64> {
        let mut writes = BTreeMap::new();
        for ((verb, resource, code), count) in &self.counts {
            let reads = matches!(verb.as_str(), "GET" | "LIST" | "WATCH" | "CONNECT");
            if !reads && resource != "leases" && code.starts_with('2') {
                *writes.entry(format!("{verb} {resource}")).or_default() += count;
            }
        }
        writes
    }

    /// Requests about objects the operator uses that the server refused or could not serve.
    pub(crate) fn errors(&self) -> BTreeMap<String, u64> {
        let ours = ["macvtap", "network-attachment-definitions", "events", "leases"];
        let failed = self.counts.iter().filter(|((_, resource, code), _)| {
            ours.iter().any(|name| resource.starts_with(name))
                && (code.starts_with('4') || code.starts_with('5'))
        });
        failed.map(|((verb, resource, code), count)| (format!("{verb} {resource} {code}"), *count)).collect()
    }
}

/// Sums up.
pub(crate) fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}

/// The bytes that etcd has stored since it was started, whatever it has compacted since: its own metric.
pub(crate) fn stored(etcd: SocketAddr) -> Result<u64> {
    const METRIC: &str = "etcd_debugging_mvcc_total_put_size_in_bytes ";
    let mut stream = TcpStream::connect(etcd).context("connect to etcd")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("read etcd's metrics")?;
    let value = text.lines().find_map(|line| line.strip_prefix(METRIC)).context("etcd has no such metric")?;
    let value: f64 = value.trim().parse().context("a metric that is not a number")?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of bytes")]
    Ok(value as u64)
}

/// A process's resident memory now and at its peak, in KiB.
pub(crate) fn memory(pid: u32) -> Result<(u64, u64)> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("read status of {pid}"))?;
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    line("VmRSS:").zip(line("VmHWM:")).with_context(|| format!("process {pid} has no memory"))
}

/// The processor time a process has used.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("read stat of {pid}"))?;
    let (_, rest) = text.rsplit_once(')').context("a stat line without a command")?;
    let fields: Vec<u64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    // The unit is 1/100 s on every architecture that Linux supports.
    Ok(Duration::from_millis(fields.iter().sum::<u64>() * 10))
}
