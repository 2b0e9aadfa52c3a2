//! A real Prometheus with the chart's rules, which scrapes programs of a test.

#![allow(clippy::print_stderr, reason = "a failed test shows the program's log")]

use anyhow::{Context as _, Result};
use e2e::layout::{self, Checkout};
use e2e::{prerequisites, process, wait};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_mins(1);

/// The rules, below the root of the checkout.
pub(crate) const RULES: &str = "charts/macvtap-operator/files/alerts.yaml";

/// A Prometheus that ends with this value.
pub(crate) struct Prometheus {
    child: Child,
    dir: TempDir,
}

impl Prometheus {
    /// Starts one that evaluates the chart's rules every second, on a time scale that a test can wait for.
    pub(crate) fn start() -> Result<Self> {
        let checkout = Checkout::here();
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        layout::write(&path("alerts.yaml"), hastened(&std::fs::read_to_string(checkout.path(RULES))?))?;
        layout::write(&path("targets.json"), "[]")?;
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [path("alerts.yaml")],
            "scrape_configs": [{"job_name": "macvtap", "file_sd_configs": [{"files": [path("targets.json")]}]}],
        });
        layout::write(&path("prometheus.json"), config.to_string())?;
        let log = File::create(path("log"))?;
        let child = Command::new(program("prometheus")?)
            .args(["--web.listen-address=127.0.0.1:0", "--log.level=info"])
            .arg(format!("--config.file={}", path("prometheus.json").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start prometheus")?;
        let started = Self { child, dir };
        wait::until("prometheus to be ready", DEADLINE, || started.ask("/-/ready").map(Some))?;
        Ok(started)
    }

    /// Scrapes these addresses from now on.
    pub(crate) fn scrape(&self, addresses: &[String]) -> Result<()> {
        let path = self.dir.path().join("targets.json");
        let next = path.with_extension("next");
        layout::write(&next, json!([{"targets": addresses}]).to_string())?;
        std::fs::rename(next, path).context("replace the targets")
    }

    /// Waits until an alert fires, for this pool if one is named.
    pub(crate) fn fires(&self, alert: &str, pool: Option<&str>) -> Result<()> {
        self.wait(&format!("alert {alert} of {pool:?} to fire"), |found| {
            found.iter().any(|a| is(a, alert, pool))
        })
    }

    /// Waits until an alert no longer fires.
    pub(crate) fn clears(&self, alert: &str, pool: Option<&str>) -> Result<()> {
        self.wait(&format!("alert {alert} of {pool:?} to end"), |found| {
            !found.iter().any(|a| is(a, alert, pool))
        })
    }

    /// The number of series that a query yields.
    pub(crate) fn series(&self, query: &str) -> Result<usize> {
        let encoded: String =
            query.bytes().flat_map(|byte| format!("%{byte:02x}").into_bytes()).map(char::from).collect();
        let answer = self.json(&format!("/api/v1/query?query={encoded}"))?;
        answer.pointer("/data/result").and_then(Value::as_array).map(Vec::len).context("no result")
    }

    fn wait(&self, what: &str, holds: impl Fn(&[Value]) -> bool) -> Result<()> {
        wait::until(what, DEADLINE, || {
            let answer = self.json("/api/v1/alerts")?;
            let alerts = answer.pointer("/data/alerts").and_then(Value::as_array);
            let firing = alerts.into_iter().flatten().filter(|alert| alert["state"] == "firing");
            Ok(holds(&firing.cloned().collect::<Vec<_>>()).then_some(()))
        })
    }

    fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.ask(path)?).context("read the answer of prometheus")
    }

    /// The body of an answer. HTTP 1.0 has no chunks.
    fn ask(&self, path: &str) -> Result<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log"))?;
        let address = log.split("msg=\"Listening on\" address=").nth(1).context("not listening yet")?;
        let mut stream = TcpStream::connect(address.split_whitespace().next().unwrap_or_default())?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
        anyhow::ensure!(head.contains(" 200 "), "{head}: {body}");
        Ok(body.to_owned())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- prometheus\n{}", process::tail(&self.dir.path().join("log"), 20));
        }
    }
}

/// A program of Debian's package, unpacked if it is not yet.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let checkout = Checkout::here();
    prerequisites::ensure(&checkout)?;
    Ok(checkout.debian().join("usr/bin").join(name))
}

fn is(found: &Value, alert: &str, pool: Option<&str>) -> bool {
    let labels = &found["labels"];
    labels["alertname"] == alert && pool.is_none_or(|pool| labels["pool"] == pool)
}

/// The rules with every window's minute taken for a second, and alerts that fire after a second.
fn hastened(rules: &str) -> String {
    let mut text = rules.to_owned();
    for start in ["for: ", "[", "offset "] {
        let mut parts = text.split(start);
        let mut changed = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            let (number, rest) = part.split_at(digits);
            let is_duration = digits > 0 && rest.starts_with(['m', 'h']);
            let number = if is_duration && start == "for: " { "1" } else { number };
            let rest = if is_duration { format!("s{}", &rest[1..]) } else { rest.to_owned() };
            changed.extend([start, number, &rest]);
        }
        text = changed;
    }
    text
}
