//! Every condition and reason that an object can have, reached on a real cluster, and how it heals.
//!
//! `table.rs` says which reasons these are, and of the others where they are tested instead; a reason that is in
//! neither list fails a test.

#![expect(clippy::print_stdout, reason = "what was reached belongs in the test's output")]

mod facts;
mod in_use;
mod kubelet;
mod links;
mod networks;
#[allow(dead_code, reason = "shared with the tests of the product, which use all of it")]
#[path = "../product/pods.rs"]
mod pods;
mod pools;
mod silence;
#[allow(dead_code, reason = "shared with the tests of the product, which use all of it")]
#[path = "../product/stage.rs"]
mod stage;
mod table;

use anyhow::{Result, ensure};
use facts::Facts;
use stage::{Stage, play};
use std::collections::BTreeSet;

/// Pools of these tests mean this node, unless they say otherwise; the other one is silent most of the time.
pub(crate) const NODE: &str = "n1";
/// The other one.
pub(crate) const OTHER: &str = "n2";

/// What a scenario works with.
pub(crate) struct Scene<'s> {
    pub(crate) stage: &'s mut Stage,
    facts: Facts,
    reached: BTreeSet<(String, String)>,
}

impl Scene<'_> {
    /// Waits until an object has said this at any time since the beginning.
    pub(crate) fn reach(&mut self, fact: &str) -> Result<()> {
        self.facts.ever(fact)?;
        self.reached.insert(table::reason_of(fact));
        println!("  {fact}");
        Ok(())
    }

    /// Waits until an object says this now.
    pub(crate) fn heals(&mut self, fact: &str) -> Result<()> {
        self.facts.now(fact)?;
        self.reached.insert(table::reason_of(fact));
        println!("  {fact} (healed)");
        Ok(())
    }

    /// As `heals`, with more time.
    pub(crate) fn within(&mut self, deadline: std::time::Duration, fact: &str) -> Result<()> {
        self.facts.now_within(fact, deadline)?;
        self.reached.insert(table::reason_of(fact));
        println!("  {fact}");
        Ok(())
    }

    /// Applies a pool for [`NODE`]; `spec` is YAML, indented by two.
    pub(crate) fn pool(&mut self, name: &str, spec: &str) -> Result<()> {
        let spec = format!("  nodeSelector: {{matchLabels: {{kubernetes.io/hostname: {NODE}}}}}\n{spec}");
        self.stage.pool(name, &spec)
    }

    /// Changes a pool.
    pub(crate) fn edit(&self, name: &str, patch: &str) -> Result<()> {
        let pool = format!("macvtapresourcepool/{name}");
        self.stage.kubectl.run(&["patch", &pool, "--type=merge", "-p", patch]).map(drop)
    }

    /// Runs `ip` on [`NODE`], once for each line.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        let node = self.stage.node(NODE)?;
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
            node.exec(&words)?;
        }
        Ok(())
    }

    /// Makes links on [`NODE`], up and with carrier; the other end of `cx1` is `cy1`.
    pub(crate) fn links(&self, numbers: std::ops::RangeInclusive<u8>) -> Result<()> {
        for number in numbers {
            self.ip(&format!(
                "link add cx{number} type veth peer name cy{number}\nlink set cx{number} up\nlink set cy{number} up"
            ))?;
        }
        Ok(())
    }
}

/// Removes from a node what scenarios made there, whatever became of them.
struct Swept(&'static e2e::Node);

impl Drop for Swept {
    fn drop(&mut self) {
        // The other end of each goes with it.
        let script = "for link in $(ip -o link | sed -n 's/^[0-9]*: \\(cx[^:@]*\\).*/\\1/p'); do ip link del $link; done";
        let _ = self.0.exec(&["sh", "-c", script]);
    }
}

type Scenario = fn(&mut Scene<'_>) -> Result<()>;

/// What happens while the other node is silent.
const SCENARIOS: [(&str, Scenario); 8] = [
    ("links", links::refused),
    ("health", links::unhealthy),
    ("pools", pools::rules),
    ("networks", networks::networks),
    ("devices in use", in_use::devices),
    ("links that vanish", in_use::vanishing),
    ("the end of a pool", in_use::draining),
    ("the kubelet", kubelet::away),
];

#[test]
fn every_reason_is_reached_and_heals() -> Result<()> {
    play("conditions", |stage| {
        let _swept = Swept(stage.node(NODE)?);
        let facts = Facts::follow(stage.kubectl)?;
        let mut scene = Scene { stage, facts, reached: BTreeSet::new() };
        let mut failures = Vec::new();
        // Needs both nodes.
        if let Err(error) = pools::staged(&mut scene) {
            println!("  FAILED: {error:#}");
            failures.push(format!("a staged rollout: {error:#}"));
        }
        let silence = silence::begin(&mut scene)?;
        for (name, scenario) in SCENARIOS {
            println!("{name}");
            if let Err(error) = scenario(&mut scene) {
                println!("  FAILED: {error:#}");
                failures.push(format!("{name}: {error:#}"));
            }
        }
        if let Err(error) = silence.end(&mut scene) {
            failures.push(format!("silence: {error:#}"));
        }
        ensure!(failures.is_empty(), "{} scenarios failed:\n{}", failures.len(), failures.join("\n"));
        let missing: Vec<_> = table::reached().filter(|reason| !scene.reached.contains(reason)).collect();
        ensure!(missing.is_empty(), "the table says that these are reached here: {missing:?}");
        println!("{} reasons reached", scene.reached.len());
        Ok(())
    })
}
