//! How long many pods with a macvtap each take until the last one is Ready, beside the same pods with a plugin that does
//! nothing: what is left is what the product costs on top of scheduler, kubelet, Multus and runtime.
//!
//! Runs alternate, and each pair is compared by itself: a machine that is busy for a while slows both.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::layout::{self, Checkout};
use crate::progress::say;
use crate::{Cluster, Multus, Options, many_pods, results};

/// How much is measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Size {
    /// How many pods at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=220))]
    pods: u8,
    /// How many pairs of runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    pairs: u8,
}

/// Its own cluster.
const CLUSTER: &str = "pods";

/// The namespace, the pool and the product's network.
const NAME: &str = "manypods";

/// The network whose plugin does nothing, and that plugin.
const NOTHING: &str = "nothing";

/// The least that a plugin can do: it answers.
const PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"0.3.1","interfaces":[],"ips":[]}' ;;
VERSION) echo '{"cniVersion":"0.3.1","supportedVersions":["0.3.1"]}' ;;
esac
"#;

/// How long all pods may take.
const PATIENCE: Duration = Duration::from_mins(10);

/// Measures, prints and records.
pub fn run(size: Size) -> Result<()> {
    if !Cluster::permitted()? {
        return Ok(());
    }
    // Where Multus is a program that asks the API server in each call, it gives up after a second: with so many at once on
    // few processors, the last Ready shows the kubelet's next attempt.
    let options = Options { multus: Multus::Thick, ..Options::default() };
    let cluster = &Cluster::with_product(CLUSTER, options)?;
    cluster.explain(|| {
        let measured = prepare(cluster, size).and_then(|()| measure(cluster, size));
        // Whatever happened: what was put aside for the plugin that does nothing must not stay.
        let cleaned = clean_up(cluster);
        record(&measured?, size)?;
        cleaned
    })
}

fn prepare(cluster: &Cluster, size: Size) -> Result<()> {
    many_pods::prepare(cluster, NAME, size.pods.into())?;
    let resource = many_pods::resource(NAME);
    cluster.kubectl().apply(&format!(
        "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n\
         metadata: {{name: {NOTHING}, namespace: {NAME}, annotations: {{k8s.v1.cni.cncf.io/resourceName: {resource}}}}}\n\
         spec: {{config: '{{\"cniVersion\": \"0.3.1\", \"name\": \"{NOTHING}\", \"type\": \"{NOTHING}\"}}'}}\n"
    ))?;
    for node in cluster.nodes() {
        layout::write(&node.cni_bin().join(NOTHING), PLUGIN)?;
        node.exec(&["chmod", "755", &format!("/opt/cni/bin/{NOTHING}")])?;
    }
    Ok(())
}

fn measure(cluster: &Cluster, size: Size) -> Result<Vec<(Duration, Duration)>> {
    let mut pairs = Vec::new();
    // Caches of the first run, of images and of programs, belong to neither.
    once(cluster, size, NAME)?;
    for pair in 1..=size.pairs {
        // The runtime still removes the pods of one run during the next: neither is always the second.
        let order = if pair % 2 == 0 { [NAME, NOTHING] } else { [NOTHING, NAME] };
        let [first, second] = [once(cluster, size, order[0])?, once(cluster, size, order[1])?];
        let (ours, floor) = if order[0] == NAME { (first, second) } else { (second, first) };
        say(format_args!(
            "  pair {pair}: {:.2} s with macvtap, {:.2} s with a plugin that does nothing",
            ours.as_secs_f64(),
            floor.as_secs_f64()
        ));
        pairs.push((ours, floor));
    }
    Ok(pairs)
}

/// From the first pod's creation to the last one's readiness.
fn once(cluster: &Cluster, size: Size, network: &str) -> Result<Duration> {
    let kubectl = cluster.kubectl();
    if network == NOTHING {
        stand_in_nodes(cluster, true)?;
    }
    let pods: String =
        (0..size.pods).map(|number| many_pods::pod(NAME, &format!("pod-{number}"), network, 1)).collect();
    let begun = Instant::now();
    kubectl.apply(&pods)?;
    let took = many_pods::await_ready(kubectl, NAME, PATIENCE).map(|()| begun.elapsed());
    many_pods::delete(kubectl, NAME)?;
    if network == NOTHING {
        stand_in_nodes(cluster, false)?;
    }
    took
}

/// The runtime looks for the device node of every device it was promised, also when nobody makes a link: the null device
/// stands in for all of them, or goes again.
fn stand_in_nodes(cluster: &Cluster, make: bool) -> Result<()> {
    for node in cluster.nodes() {
        let table: Value = serde_json::from_str(&node.exec(&["cat", "/var/lib/macvtap/devices.json"])?)
            .context("read the device table")?;
        let links = table["resources"][NAME]["links"].as_array().context("the pool is not in the table")?;
        let mut script = Vec::new();
        for range in links.iter().filter_map(|link| link["ranges"].as_array()).flatten() {
            let first = range["firstIfindex"].as_u64().context("a range has no first index")?;
            let count = range["count"].as_u64().context("a range has no count")?;
            let paths = (first..first + count).map(|ifindex| format!("/run/macvtap/dev/{ifindex}"));
            // A run that was ended has left its own.
            script.extend(paths.map(|path| {
                if make { format!("[ -e {path} ] || mknod {path} c 1 3") } else { format!("rm -f {path}") }
            }));
        }
        node.exec(&["sh", "-ec", &script.join("\n")])?;
    }
    Ok(())
}

fn clean_up(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    many_pods::delete_namespace(kubectl, NAME)?;
    if kubectl.get("", &format!("mrp/{NAME}")).is_ok() {
        stand_in_nodes(cluster, false)?;
    }
    for node in cluster.nodes() {
        layout::remove(&node.cni_bin().join(NOTHING))?;
    }
    many_pods::delete_pool(kubectl, NAME)
}

/// One result: medians of both, and the median of the pairs' ratios.
fn result(pairs: &[(Duration, Duration)], pods: u8) -> Value {
    let (ours, floor): (Vec<f64>, Vec<f64>) =
        pairs.iter().map(|(ours, floor)| (ours.as_secs_f64(), floor.as_secs_f64())).unzip();
    let ratios: Vec<f64> = ours.iter().zip(&floor).map(|(ours, floor)| ours / floor).collect();
    let mut result = results::values(&format!("cluster_{pods}_pods_last_ready"), "s", &ours, Some(&floor));
    let mut ratios = results::values("", "", &ratios, None);
    result["ratio"] = ratios["p50"].take();
    result["ratio_min"] = ratios["min"].take();
    result["ratio_max"] = ratios["max"].take();
    result
}

/// Puts the result in the place of an earlier one.
fn record(pairs: &[(Duration, Duration)], size: Size) -> Result<()> {
    let result = result(pairs, size.pods);
    say(&result);
    results::merge(Checkout::here().root(), &[result]).context("record the result")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pairs_are_compared_one_by_one() {
        let pair = |ours, floor| (Duration::from_millis(ours), Duration::from_millis(floor));
        // The second pair ran on a busy machine.
        let result = result(&[pair(1030, 1000), pair(4000, 4000), pair(1050, 1000)], 64);
        assert_eq!(result["ratio"], 1.03);
        assert_eq!((&result["p50"], &result["floor_p50"]), (&json!(1.05), &json!(1.0)));
    }
}
