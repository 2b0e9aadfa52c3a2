//! `plan`: what pools would take, before they are applied.
//!
//! The operator's own functions decide which pools a node gets, the agent's own which of them gets each link; only the
//! links come from the node states instead of the kernel. What these do not report is named.

mod links;
mod node;
mod source;

use crate::args::Plan;
use crate::cluster::{Cluster, Unread};
use crate::facts::{Facts, Scope, items};
use crate::output;
use crate::report::{Diagnostic, Report, Section};
use anyhow::{Result, anyhow, bail};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use macvtap_crds::v1alpha1::MacvtapResourcePool;
use macvtap_operator::catalog::Catalog;
use node::{NodePlan, Sums};

/// The most nodes that are listed one by one.
const NODES_MAX: usize = 30;

/// Plans, prints the report, and returns whether every pool would be served.
pub(crate) async fn run(cluster: &Cluster, args: &Plan) -> Result<bool> {
    let planned = source::read(&args.filename)?;
    let scope =
        Scope { installation: "macvtap-system".to_owned(), namespace: Some(cluster.namespace.clone()) };
    let facts = Facts::read(cluster, &scope).await;
    for (what, unread) in [
        ("pools", facts.pools.as_ref().err()),
        ("node states", facts.states.as_ref().err()),
        ("nodes", facts.nodes.as_ref().err()),
    ] {
        if let Some(unread) = unread {
            bail!("read the {what}: {}; a plan needs them", unread.text());
        }
    }
    let mut judged = Vec::new();
    for pool in &planned {
        judged.push(dry_run(cluster, pool).await);
    }
    let report = plan(&facts, &planned, judged);
    output::print(&report, args.shown.output)?;
    Ok(!report.has_failed())
}

/// Has the API server judge a pool without storing it.
async fn dry_run(cluster: &Cluster, pool: &MacvtapResourcePool) -> Diagnostic {
    let name = pool.name_any();
    let api: Api<MacvtapResourcePool> = Api::all(cluster.client.clone());
    let params = PatchParams::apply("kubectl-macvtap-plan").dry_run().force();
    match api.patch(&name, &params, &Patch::Apply(pool)).await.map_err(Unread::from) {
        Ok(_) => Diagnostic::ok(format!("the API server would accept pool {name}")),
        Err(Unread::Forbidden(why)) => Diagnostic::skipped(format!(
            "whether the API server would accept pool {name} is not known: {why}"
        )),
        Err(unread) => Diagnostic::failed(format!("the API server refuses pool {name}: {}", unread.text()))
            .because("Refused")
            .remedy("correct the pool"),
    }
}

/// The report on these pools.
fn plan(facts: &Facts, planned: &[MacvtapResourcePool], mut judged: Vec<Diagnostic>) -> Report {
    let after = source::merged(items(&facts.pools), planned, facts.now);
    let catalog = Catalog::new(after.iter());
    for pool in planned {
        if let Err(rejection) = catalog.verdict(&pool.name_any()) {
            let found = Diagnostic::failed(format!(
                "the operator would not accept pool {}: {rejection}",
                pool.name_any()
            ));
            judged.push(found.because(rejection.reason().as_str()).remedy("correct the pool"));
        }
    }
    let names: Vec<String> = planned.iter().map(kube::ResourceExt::name_any).collect();
    let mut sections = vec![Section::new("pools", judged)];
    let mut sums = Sums::default();
    let mut unknown = Vec::new();
    let mut plans: Vec<NodePlan> =
        items(&facts.nodes).iter().filter_map(|node| node::plan(facts, node, &catalog, &names)).collect();
    for plan in &plans {
        sums.add(plan);
        unknown.extend(plan.unknown.iter().cloned());
    }
    // The nodes that lose or lack something first.
    plans.sort_by_key(|plan| std::cmp::Reverse(plan.worst()));
    let more = plans.len().saturating_sub(NODES_MAX);
    let listed = plans.into_iter().take(NODES_MAX);
    sections.extend(listed.map(|plan| Section::new(format!("node {}", plan.node), plan.diagnostics)));
    if more > 0 {
        sections.push(Section::new("further nodes", vec![Diagnostic::skipped(format!("{more} more nodes"))]));
    }
    if sums.nodes == 0 {
        let found =
            Diagnostic::failed("no node with an agent would get these pools").because("NoMatchingNodes");
        sections.push(Section::new(
            "nodes",
            vec![found.remedy("correct nodeSelector, or check the agents' DaemonSet")],
        ));
    }
    unknown.sort();
    unknown.dedup();
    let unknown = unknown.into_iter().take(NODES_MAX).map(Diagnostic::skipped).collect();
    sections.push(Section::new("what the node states do not contain", unknown));
    Report { sections, conclusion: sums.conclusion(&names) }
}

/// The error of a file that holds no pool.
fn nothing(place: &str) -> anyhow::Error {
    anyhow!("{place} holds no MacvtapResourcePool; give the manifest that you would apply")
}
