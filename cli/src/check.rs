//! `check`: everything that macvtap networking stands on, one fact after the other.

mod agents;
mod before;
mod installation;
mod networks;
mod nodes;
mod pools;
mod rights;
mod webhook;

pub(crate) use agents::trouble as agent_trouble;
pub(crate) use installation::kinds;
pub(crate) use networks::{quotas, trouble as network_trouble};
pub(crate) use nodes::{of_link as link_trouble, of_state as node_state};
pub(crate) use pools::of_pool as pool_state;

use crate::args::Check;
use crate::cluster::Cluster;
use crate::facts::{Facts, Scope};
use crate::output;
use crate::report::{Level, Report, Section};
use anyhow::Result;
use std::time::Duration;
use tokio::time::Instant;

/// Between two passes of `--wait`.
const AGAIN: Duration = Duration::from_secs(2);

/// Checks, prints the report, and returns whether nothing failed.
pub(crate) async fn run(cluster: &Cluster, args: &Check) -> Result<bool> {
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    let report = loop {
        let report = pass(cluster, args).await;
        let over = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        if over || !report.has_failed() {
            break report;
        }
        tokio::time::sleep(AGAIN).await;
    };
    output::print(&report, args.shown.output)?;
    Ok(!report.has_failed())
}

/// One pass over the cluster.
pub(crate) async fn pass(cluster: &Cluster, args: &Check) -> Report {
    let scope = Scope { installation: args.namespace.clone(), namespace: None };
    let facts = Facts::read(cluster, &scope).await;
    if facts.version.is_err() {
        // Whatever else failed, failed for this reason.
        return concluded(vec![Section::new("cluster", vec![installation::api(&facts, &cluster.address)])]);
    }
    let rights = rights::read(cluster, args).await;
    if args.pre {
        before::report(&facts, cluster, args, rights).await
    } else {
        let webhook = webhook::check(cluster, facts.now).await;
        after(&facts, &cluster.address, rights, webhook)
    }
}

/// The report on an installation.
fn after(facts: &Facts, address: &str, rights: Section, webhook: Option<Section>) -> Report {
    let mut cluster = vec![installation::api(facts, address)];
    cluster.extend(installation::multus(facts));
    cluster.extend(installation::kinds(facts));
    let mut sections = vec![
        Section::new("cluster", cluster),
        rights,
        Section::new("operator", installation::operator(facts)),
        Section::new("agents", agents::check(facts)),
        Section::new("nodes", nodes::check(facts)),
        Section::new("pools", pools::check(facts)),
        Section::new("networks and quotas", networks::check(facts)),
    ];
    sections.extend(webhook);
    concluded(sections)
}

/// The report with its conclusion.
fn concluded(sections: Vec<Section>) -> Report {
    let mut report = Report { sections, conclusion: String::new() };
    let count = |level| report.of_level(level).count();
    let (failed, warnings) = (count(Level::Failed), count(Level::Warning));
    let tried = failed + warnings + count(Level::Ok);
    report.conclusion = match (failed, warnings) {
        (0, 0) => format!("all {tried} checks passed"),
        (0, _) => format!("{warnings} of {tried} checks gave a warning, none failed"),
        (_, 0) => format!("{failed} of {tried} checks failed"),
        _ => format!("{failed} of {tried} checks failed, {warnings} gave a warning"),
    };
    report
}
