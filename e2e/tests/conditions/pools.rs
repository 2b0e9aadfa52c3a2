//! What the operator says of pools that cannot work together, and of rollouts.

use crate::Scene;
use anyhow::Result;

/// Rules between pools, and selectors that mean nobody.
pub(crate) fn rules(scene: &mut Scene<'_>) -> Result<()> {
    scene.links(14..=14)?;
    let spec = "  resourceName: cx-rule\n  links: [{names: [cx14]}]\n";
    scene.pool("cx-first", spec)?;
    scene.reach("pool cx-first Accepted True Valid")?;
    scene.pool("cx-second", spec)?;
    scene.reach("pool cx-second Accepted False ResourceNameConflict")?;
    scene.reach("pool cx-second Ready False NotAccepted")?;
    let nobody = "  nodeSelector: {matchLabels: {cx: nobody}}\n  links: [{names: [cx14]}]\n";
    scene.stage.pool("cx-nobody", nobody)?;
    scene.reach("pool cx-nobody Ready False NoMatchingNodes")?;
    scene.stage.kubectl.run(&["delete", "macvtapresourcepool", "cx-first", "--wait", "--timeout=60s"])?;
    scene.heals("pool cx-second Ready True AllNodesReady")
}

/// A change that goes wrong on its first node halts, and is taken back.
pub(crate) fn staged(scene: &mut Scene<'_>) -> Result<()> {
    let spec = |mtu: u32| {
        format!(
            "  links: [{{names: [dp0]}}]\n  macvtap: {{mtu: {mtu}}}\n  \
             rollout: {{type: Staged, staged: {{batch: 1, maxDegraded: 0}}}}\n"
        )
    };
    scene.stage.pool("cx-staged", &spec(1400))?;
    scene.heals("pool cx-staged Ready True AllNodesReady")?;
    // More than the links of the nodes have.
    scene.stage.pool("cx-staged", &spec(20_000))?;
    scene.reach("sample cx-staged n2 Waiting")?;
    scene.reach("pool cx-staged Progressing False RolloutHalted")?;
    scene.stage.pool("cx-staged", &spec(1300))?;
    scene.heals("pool cx-staged Ready True AllNodesReady")?;
    scene.heals("pool cx-staged Progressing False UpToDate")?;
    scene
        .stage
        .kubectl
        .run(&["delete", "macvtapresourcepool", "cx-staged", "--wait", "--timeout=60s"])
        .map(drop)
}
