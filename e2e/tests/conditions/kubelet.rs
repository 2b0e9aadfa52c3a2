//! A kubelet that does not answer.

use crate::{NODE, Scene};
use anyhow::Result;

/// Starts the kubelet again, whatever became of the test.
struct Away(&'static e2e::Node);

impl Drop for Away {
    fn drop(&mut self) {
        if let Err(error) = self.0.start_kubelet() {
            println!("the kubelet does not come back: {error:#}");
        }
    }
}

pub(crate) fn away(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(20..=20)?;
    let node = scene.stage.node(NODE)?;
    node.kill_kubelet()?;
    let away = Away(node);
    scene.pool("cx-kubelet", "  links: [{names: [cx20]}]\n")?;
    scene.reach("part n1/cx-kubelet Ready False KubeletUnreachable")?;
    scene.reach("node n1 Ready False KubeletUnreachable")?;
    drop(away);
    scene.heals("pool cx-kubelet Ready True AllNodesReady")
}
