//! `status`: pools, nodes and links on one screen.

use crate::cluster::Cluster;
use crate::facts::{Agent, Facts, Scope, items};
use crate::output::{self, Colour, Format};
use anyhow::{Result, bail};
use kube::ResourceExt as _;
use macvtap_crds::condition::{self, ConditionType};
use macvtap_crds::v1alpha1::nodestate::NodeLink;
use macvtap_crds::v1alpha1::{MacvtapNodeState, MacvtapResourcePool};
use serde::Serialize;

/// So many links fit on a screen.
const LINKS_MAX: usize = 40;

/// What is shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    pools: Vec<PoolRow>,
    nodes: Vec<NodeRow>,
    links: Vec<LinkRow>,
}

/// A pool in one line.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    name: String,
    resource: String,
    nodes: String,
    devices: String,
    ready: String,
    reason: String,
}

/// A node in one line.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeRow {
    name: String,
    agent: &'static str,
    pools: String,
    links: String,
    devices: String,
    ready: String,
    reason: String,
}

/// A link in one line.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinkRow {
    node: String,
    link: String,
    kind: String,
    carrier: bool,
    pools: Vec<String>,
    reason: String,
    message: String,
}

/// Prints it.
pub(crate) async fn run(cluster: &Cluster, format: Format) -> Result<()> {
    let scope =
        Scope { installation: "macvtap-system".to_owned(), namespace: Some(cluster.namespace.clone()) };
    let facts = Facts::read(cluster, &scope).await;
    for (what, unread) in
        [("pools", facts.pools.as_ref().err()), ("node states", facts.states.as_ref().err())]
    {
        if let Some(unread) = unread {
            bail!("read the {what}: {}; `kubectl macvtap check` reports what is missing", unread.text());
        }
    }
    let status = status(&facts);
    match format {
        Format::Text => output::write(&text(&status, Colour::of_stdout())),
        Format::Json | Format::Yaml => output::print_value(&status, format),
    }
}

fn status(facts: &Facts) -> Status {
    Status {
        pools: items(&facts.pools).iter().map(pool_row).collect(),
        nodes: items(&facts.states).iter().map(|state| node_row(facts, state)).collect(),
        links: items(&facts.states).iter().flat_map(link_rows).collect(),
    }
}

fn pool_row(pool: &MacvtapResourcePool) -> PoolRow {
    let status = pool.status.clone().unwrap_or_default();
    let ready = condition::find(&status.conditions, ConditionType::Ready);
    PoolRow {
        name: pool.name_any(),
        resource: status.resource.unwrap_or_default(),
        nodes: status.nodes.summary,
        devices: format!("{}/{}", status.devices.allocated, status.devices.allocatable),
        ready: ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
        reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
    }
}

fn node_row(facts: &Facts, state: &MacvtapNodeState) -> NodeRow {
    let name = state.name_any();
    let status = state.status.clone().unwrap_or_default();
    let ready = condition::find(&status.conditions, ConditionType::Ready);
    NodeRow {
        agent: match facts.agent(&name) {
            Agent::Ready => "ready",
            Agent::NotReady(_) => "not ready",
            Agent::Missing => "missing",
            Agent::Unknown => "unknown",
        },
        name,
        pools: status.totals.pools,
        links: status.totals.links,
        devices: format!("{}/{}", status.totals.allocated, status.totals.allocatable),
        ready: ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
        reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
    }
}

fn link_rows(state: &MacvtapNodeState) -> impl Iterator<Item = LinkRow> {
    let links = state.status.as_ref().map_or(&[][..], |status| &status.links);
    links.iter().map(|link: &NodeLink| LinkRow {
        node: state.name_any(),
        link: link.name.clone(),
        kind: link.kind.clone(),
        carrier: link.carrier,
        pools: link.pools.clone(),
        reason: link.reason.clone().unwrap_or_default(),
        message: link.message.clone().unwrap_or_default(),
    })
}

fn text(status: &Status, colour: Colour) -> String {
    let mut text = String::new();
    let mut section = |title: &str, head: &[&str], rows: Vec<Vec<String>>| {
        text.push_str(&colour.heading(title));
        text.push('\n');
        if rows.is_empty() {
            text.push_str("none\n\n");
            return;
        }
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        text.push_str(&output::table(&rows));
        text.push('\n');
    };
    let pools = status.pools.iter().map(|row| {
        [&row.name, &row.resource, &row.nodes, &row.devices, &row.ready, &row.reason]
            .map(Clone::clone)
            .to_vec()
    });
    section("pools", &["NAME", "RESOURCE", "NODES", "DEVICES IN USE", "READY", "REASON"], pools.collect());
    let nodes = status.nodes.iter().map(|row| {
        let agent = row.agent.to_owned();
        vec![
            row.name.clone(),
            agent,
            row.pools.clone(),
            row.links.clone(),
            row.devices.clone(),
            row.ready.clone(),
            row.reason.clone(),
        ]
    });
    section(
        "nodes",
        &["NAME", "AGENT", "POOLS", "LINKS", "DEVICES IN USE", "READY", "REASON"],
        nodes.collect(),
    );
    // Links with a problem in a pool come first: they must not fall off the screen.
    let mut links: Vec<&LinkRow> = status.links.iter().collect();
    links.sort_by_key(|row| (row.pools.is_empty() || row.reason.is_empty(), row.pools.is_empty()));
    let more = links.len().saturating_sub(LINKS_MAX);
    links.truncate(LINKS_MAX);
    links.sort_by(|a, b| (&a.node, &a.link).cmp(&(&b.node, &b.link)));
    let links = links.into_iter().map(|row| {
        let carrier = if row.carrier { "yes" } else { "no" };
        let pools = if row.pools.is_empty() { "-".to_owned() } else { row.pools.join(",") };
        vec![
            row.node.clone(),
            row.link.clone(),
            row.kind.clone(),
            carrier.to_owned(),
            pools,
            row.reason.clone(),
            row.message.clone(),
        ]
    });
    section("links", &["NODE", "LINK", "KIND", "CARRIER", "POOLS", "REASON", "MESSAGE"], links.collect());
    if more > 0 {
        text.push_str("not all links fit here: `kubectl macvtap status -o yaml`\n");
    }
    text.trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{condition, nothing, pool, state};
    use serde_json::json;

    #[test]
    fn pools_nodes_and_links_are_on_one_screen() {
        let mut facts = nothing();
        let mut dp = pool("dp", json!({}));
        dp.status = Some(crate::testing::object(json!({
            "resource": "macvtap.network.kubevirt.io/dp", "nodes": {"summary": "1/1"},
            "devices": {"allocatable": 50, "allocated": 2}, "conditions": [condition("Ready", "True", "AllNodesReady", "")],
        })));
        facts.pools = Ok(vec![dp]);
        facts.states = Ok(vec![state(
            "n1",
            json!({
                "totals": {"pools": "1/1", "links": "1/2", "allocatable": 50, "allocated": 2},
                "conditions": [condition("Ready", "True", "AsExpected", "")],
                "links": [
                    {"name": "dp0", "kind": "Veth", "carrier": true, "pools": ["dp"]},
                    {"name": "eth0", "kind": "Physical", "carrier": true, "reason": "NotSelected", "message": "no pool selects eth0"},
                ],
            }),
        )]);
        let wanted = "pools
NAME  RESOURCE                        NODES  DEVICES IN USE  READY  REASON
dp    macvtap.network.kubevirt.io/dp  1/1    2/50            True   AllNodesReady

nodes
NAME  AGENT    POOLS  LINKS  DEVICES IN USE  READY  REASON
n1    missing  1/1    1/2    2/50            True   AsExpected

links
NODE  LINK  KIND      CARRIER  POOLS  REASON       MESSAGE
n1    dp0   Veth      yes      dp
n1    eth0  Physical  yes      -      NotSelected  no pool selects eth0
";
        assert_eq!(text(&status(&facts), Colour::none()), wanted);
    }
}
