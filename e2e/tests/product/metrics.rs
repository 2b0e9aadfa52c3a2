//! The dashboard of the chart on what real agents count, by a real Prometheus.

use crate::pods::{Guest, Pod};
use crate::prometheus::Prometheus;
use crate::stage::{PATIENCE, PREFIX, play};
use anyhow::{Context, Result, ensure};
use e2e::{Node, wait};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write, copy};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread;

/// Where an agent answers inside its node.
const METRICS: &str = "127.0.0.1:9469";

#[test]
fn the_queries_of_the_dashboard_about_agents_return_data() -> Result<()> {
    play("dashboard", |stage| {
        stage.pool(
            "dashboard",
            "  links: [{names: [dp0]}]\n  capacity: {perLink: 5}\n  networks: [{name: dashboard, namespaces: {names: [dashboard]}}]\n",
        )?;
        let resource = format!("{PREFIX}/dashboard");
        stage.wait_allocatable(&resource, 5)?;
        let doors = stage.nodes.iter().map(door).collect::<Result<Vec<_>>>()?;
        let prometheus = Prometheus::start()?;
        prometheus.scrape(&doors)?;
        Pod::apply(stage, "guest", "n1", Guest::Asks, &resource, Some("dashboard"), 1)?.ready(stage)?;

        let file = stage.cluster.checkout().path("charts/macvtap-operator/files/dashboard.json");
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
        let panels = dashboard["panels"].as_array().context("no panels")?;
        let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let of_agents = targets.filter_map(|target| target["expr"].as_str());
        let mut asked = 0;
        for query in of_agents.filter(|query| !query.contains("macvtap_operator_")) {
            let query = query.replace("[5m]", "[10s]").replace("[15m]", "[10s]");
            wait::until(&format!("data of {query}"), PATIENCE, || {
                Ok((prometheus.series(&query)? > 0).then_some(()))
            })?;
            asked += 1;
        }
        println!("{asked} queries about agents return data");
        ensure!(asked >= 10, "only {asked} queries were found");
        Ok(())
    })
}

/// An address of this machine that answers each request with the metrics of a node's agent.
fn door(node: &Node) -> Result<String> {
    let network = File::open(node.root()?.with_file_name("ns").join("net"))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || -> Result<()> {
        // This thread alone: the listener stays on the machine.
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        for client in listener.incoming() {
            // One that fails is a scrape that fails.
            let _ = client.map_err(Into::into).and_then(pass_on);
        }
        Ok(())
    });
    Ok(address)
}

fn pass_on(mut client: TcpStream) -> Result<()> {
    let mut head = [0; 4096];
    let _ = client.read(&mut head)?;
    let mut agent = TcpStream::connect(METRICS)?;
    agent.write_all(b"GET /metrics HTTP/1.0\r\nHost: agent\r\n\r\n")?;
    copy(&mut agent, &mut client)?;
    Ok(())
}
