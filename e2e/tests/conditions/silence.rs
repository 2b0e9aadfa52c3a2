//! An agent that does not hear and is not heard.

use crate::{OTHER, Scene};
use anyhow::{Result, ensure};
use e2e::Node;
use std::time::Duration;

/// The node's agent cannot reach the API server as long as this lives; its kubelet can.
pub(crate) struct Silence(&'static Node);

/// The address by which pods reach the API server.
const API: &str = e2e::layout::API_SERVICE;

impl Silence {
    fn rule(node: &Node, verb: &str) -> Result<()> {
        node.exec(&["iptables", "-t", "raw", verb, "OUTPUT", "-d", API, "-j", "DROP"]).map(drop)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = Self::rule(self.0, "-D");
    }
}

/// Cuts the agent off and changes a pool.
pub(crate) fn begin(scene: &mut Scene<'_>) -> Result<Silence> {
    let spec = |mtu: u32| {
        format!(
            "  nodeSelector: {{matchLabels: {{kubernetes.io/hostname: {OTHER}}}}}\n  \
             links: [{{names: [dp1]}}]\n  macvtap: {{mtu: {mtu}}}\n"
        )
    };
    scene.stage.pool("cx-silent", &spec(1400))?;
    scene.heals("pool cx-silent Ready True AllNodesReady")?;
    scene.heals("node n2 Ready True AsExpected")?;
    let node = scene.stage.node(OTHER)?;
    Silence::rule(node, "-I")?;
    let silence = Silence(node);
    scene.stage.pool("cx-silent", &spec(1300))?;
    scene.reach("pool cx-silent Progressing True NodesUpdating")?;
    scene.reach("sample cx-silent n2 Updating")?;
    Ok(silence)
}

impl Silence {
    /// Waits for what a long silence means, and lets the agent speak again.
    pub(crate) fn end(self, scene: &mut Scene<'_>) -> Result<()> {
        let long = Duration::from_secs(150);
        scene.within(long, "sample cx-silent n2 Unreachable")?;
        scene.within(long, "pool cx-silent Degraded True NodesUnreachable")?;
        drop(self);
        // A connection that lost its packets notices after a while.
        scene.within(long, "pool cx-silent Ready True AllNodesReady")?;
        scene.heals("pool cx-silent Degraded False AsExpected")?;
        let seen = scene.stage.kubectl.get("", "macvtapresourcepools/cx-silent")?;
        ensure!(seen["status"]["nodes"]["unreachable"] == 0, "{}", seen["status"]);
        Ok(())
    }
}
