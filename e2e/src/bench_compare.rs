//! Plugin and agent in the same rounds as those of another commit, and which figures got worse by more than chance.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::images::{self, AGENT, PLUGIN};
use crate::layout::Checkout;
use crate::past::Past;
use crate::progress::say;
use crate::{process, results};

/// What the names of the other commit's figures end with.
const BESIDE: &str = "_beside";

/// Differences of fewer per cent are not reported, however certain.
const TOLERATED: f64 = 0.05;

/// How many standard errors apart two medians must be.
const CERTAIN: f64 = 4.0;

/// The benches of plugin and agent, next to which those of another release are measured in the same rounds.
pub fn calls(
    checkout: &Checkout,
    beside_plugin: Option<&Path>,
    beside_agent: Option<&Path>,
) -> Result<Command> {
    let (plugin, agent) = images::measured(checkout)?;
    let mut command = images::cargo(checkout, "bench")?;
    command.args(["-p", "macvtap-cni", "-p", "macvtap-node-agent"]);
    command.args(["--bench", "calls", "--bench", "agent", "--bench", "decisions"]);
    command.env("MACVTAP_PLUGIN", plugin).env("MACVTAP_AGENT", agent);
    for (name, program) in [("MACVTAP_BESIDE_PLUGIN", beside_plugin), ("MACVTAP_BESIDE_AGENT", beside_agent)]
    {
        if let Some(program) = program {
            let program = program.canonicalize().with_context(|| format!("find {}", program.display()))?;
            command.env(name, program);
        }
    }
    Ok(command)
}

/// Builds and measures both, prints every figure that differs, and returns whether none got worse.
pub fn run(checkout: &Checkout, base: &str) -> Result<bool> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--verify", "--quiet", &format!("{base}^{{commit}}")]);
    let commit = process::output(git.current_dir(checkout.root()));
    let commit = commit.with_context(|| format!("{base} is not a commit of this repository"))?;
    let commit = commit.trim();
    let directory = checkout.path("target/bench/compare");
    let past = Past { checkout, commit, directory };
    past.unpack()?;
    past.compile(base, &[PLUGIN, AGENT])?;
    let (plugin, agent) = (past.program(PLUGIN)?, past.program(AGENT)?);
    let status = calls(checkout, Some(&plugin), Some(&agent))?
        .env(results::COMMAND, format!("make bench-compare BASE={base}"))
        .status()
        .context("run the benches")?;
    ensure!(status.success(), "the benches failed");
    let all: Value = serde_json::from_slice(&std::fs::read(checkout.path(results::FILE))?)?;
    let differences = differences(all["results"].as_array().map_or(&[][..], Vec::as_slice));
    say(format_args!("\nThis tree against {base}:"));
    for difference in &differences {
        say(difference);
    }
    let worse = differences.iter().filter(|difference| difference.contains("WORSE")).count();
    say(format_args!("{worse} figures got worse by more than chance, {} differ", differences.len()));
    Ok(worse == 0)
}

/// A line for each figure that differs. Less is better for every figure of these benches.
fn differences(results: &[Value]) -> Vec<String> {
    let mut lines = Vec::new();
    for ours in results {
        let Some(name) = ours["name"].as_str() else { continue };
        let beside = format!("{name}{BESIDE}");
        let Some(base) = results.iter().find(|result| result["name"] == beside) else { continue };
        if let (Some(now), Some(before)) = (ours["p50"].as_f64(), base["p50"].as_f64())
            && (now - before).abs() > before * TOLERATED
            && (now - before).abs() > CERTAIN * error(ours).hypot(error(base))
        {
            let verdict = if now > before { "WORSE" } else { "better" };
            let percent = (now / before - 1.0) * 100.0;
            let unit = ours["unit"].as_str().unwrap_or_default();
            lines.push(format!("  {verdict:6} {name}: {before} to {now} {unit} ({percent:+.0} %)"));
        }
    }
    lines
}

/// The standard error of a median, from the quartiles (of a normal distribution); none of a single figure.
fn error(result: &Value) -> f64 {
    let number = |key: &str| result[key].as_f64();
    let (Some(low), Some(high), Some(n)) = (number("p25"), number("p75"), number("n")) else { return 0.0 };
    1.253 * (high - low) / 1.349 / n.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn figures(now: [f64; 3], before: [f64; 3]) -> Vec<String> {
        let figure = |name: &str, [low, p50, high]: [f64; 3]| json!({"name": name, "unit": "ms", "n": 100, "p25": low, "p50": p50, "p75": high});
        differences(&[figure("cni_add", now), figure("cni_add_beside", before)])
    }

    #[test]
    fn only_what_differs_by_more_than_chance_and_tolerance_is_reported() {
        assert_eq!(figures([1.15, 1.2, 1.25], [0.95, 1.0, 1.05]), ["  WORSE  cni_add: 1 to 1.2 ms (+20 %)"]);
        assert_eq!(figures([0.75, 0.8, 0.85], [0.95, 1.0, 1.05]), ["  better cni_add: 1 to 0.8 ms (-20 %)"]);
        // Within the tolerance; and within the noise.
        assert!(figures([1.03, 1.04, 1.05], [0.99, 1.0, 1.01]).is_empty());
        assert!(figures([0.2, 1.2, 2.2], [0.0, 1.0, 2.0]).is_empty());
    }
}
