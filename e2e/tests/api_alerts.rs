//! The alerts of the chart fire and clear, in the tests of Prometheus' own tool.

use anyhow::{Context as _, Result};
use e2e::layout::Checkout;
use e2e::{prerequisites, process};
use std::process::Command;

/// The rules, below the root of the checkout.
const RULES: &str = "charts/macvtap-operator/files/alerts.yaml";

#[test]
fn promtool_accepts_the_rules_and_each_alert_fires_and_clears() -> Result<()> {
    let checkout = Checkout::here();
    prerequisites::ensure(&checkout)?;
    let dir = tempfile::tempdir()?;
    for file in [RULES, "e2e/tests/alerts/rules_test.yaml"] {
        let path = checkout.path(file);
        std::fs::copy(&path, dir.path().join(path.file_name().context("no name")?))?;
    }
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "rules_test.yaml"]] {
        let mut promtool = Command::new(checkout.debian().join("usr/bin/promtool"));
        process::output(promtool.args(args).current_dir(dir.path()))?;
    }
    Ok(())
}
