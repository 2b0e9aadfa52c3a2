//! The CNI plugin under a running agent: its file goes, its directory is exchanged, as updates of a node do.

use crate::churn;
use crate::pods::{Guest, Pod};
use crate::stage::{PATIENCE, PREFIX, condition, play};
use anyhow::{Result, ensure};
use e2e::Node;

/// Every plugin of the node but ours, in a directory that takes the place of the runtime's.
const EXCHANGE: &str = "cd /opt/cni && cp -a bin next && rm next/macvtap && mv bin kept && mv next bin";

/// The runtime's directory leads to one that no agent has ever seen.
const EXCHANGE_OUT_OF_SIGHT: &str = "cd /opt/cni && cp -a bin /var/lib/cni/elsewhere && rm /var/lib/cni/elsewhere/macvtap && \
     mv bin kept && ln -s /var/lib/cni/elsewhere bin";

/// The directory that was there when the agent started, with what is in it.
const RESTORE: &str =
    "cd /opt/cni && rm -rf next /var/lib/cni/elsewhere && [ ! -d kept ] || { rm -rf bin && mv kept bin; }";

/// Puts the node's directory back.
struct Exchanged(&'static Node);

impl Drop for Exchanged {
    fn drop(&mut self) {
        if let Err(error) = self.0.exec(&["sh", "-c", RESTORE]) {
            println!("/opt/cni of {} stays exchanged: {error:#}", self.0.name());
        }
    }
}

#[test]
fn a_plugin_that_an_update_took_is_back_and_one_that_cannot_come_back_is_said() -> Result<()> {
    play("plugin", |stage| {
        stage.pool("plugin", &churn::pool("dp0", "plugin"))?;
        let resource = format!("{PREFIX}/plugin");
        stage.wait_allocatable(&resource, 20)?;
        let node = stage.node("n1")?;
        let runs = |name: &str, number| -> Result<()> {
            let pod = Pod::apply(stage, name, "n1", Guest::Asks, &resource, Some("plugin"), number)?;
            pod.ready(stage)?;
            pod.delete(stage)
        };
        node.exec(&["rm", "/opt/cni/bin/macvtap"])?;
        runs("removed", 1)?;

        let exchanged = Exchanged(node);
        node.exec(&["sh", "-c", EXCHANGE])?;
        runs("exchanged", 2)?;
        drop(exchanged);

        let exchanged = Exchanged(node);
        node.exec(&["sh", "-c", EXCHANGE_OUT_OF_SIGHT])?;
        let state = |status: &'static str, reason: &'static str| {
            stage.kubectl.wait_until("", "macvtapnodestate/n1", PATIENCE, |object| {
                condition(object, "Ready", status, reason)
            })
        };
        let message = state("False", "PluginMissing")?;
        ensure!(message.contains("/opt/cni/bin"), "{message}");
        stage.kubectl.wait_until("", "macvtapresourcepool/plugin", PATIENCE, |object| {
            let samples = object["status"]["samples"].as_array()?;
            samples.iter().any(|sample| sample["reason"] == "PluginMissing").then_some(())
        })?;
        drop(exchanged);
        state("True", "AsExpected")?;
        runs("restored", 3)?;
        churn::nothing_stays(stage, "plugin")
    })
}
