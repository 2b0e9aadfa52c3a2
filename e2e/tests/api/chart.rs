//! Helm and the chart, for tests on an API server.

use super::Api;
use anyhow::{Context as _, Result, ensure};
use e2e::layout::Checkout;
use e2e::process;
use std::process::Command;

/// The namespace of the release.
pub(crate) const NAMESPACE: &str = "macvtap-system";

/// Runs Helm and gives what it printed.
pub(crate) fn helm(api: &Api, args: &[&str]) -> Result<String> {
    let checkout = Checkout::here();
    let home = checkout.artefacts().join("helm");
    let mut command = Command::new(checkout.bin().join("helm"));
    command.env("HELM_CACHE_HOME", home.join("cache")).env("HELM_CONFIG_HOME", home.join("config"));
    command.env("HELM_DATA_HOME", home.join("data")).env("KUBECONFIG", api.kubectl.kubeconfig());
    process::output(command.args(args))
}

/// Installs or upgrades the chart as release `release`, with `--set` words.
pub(crate) fn install(api: &Api, values: &[&str]) -> Result<String> {
    run(api, &["upgrade", "--install", "release"], &["--create-namespace"], values)
}

/// What the chart yields, with `--set` words.
pub(crate) fn rendered(api: &Api, values: &[&str]) -> Result<String> {
    run(api, &["template", "release"], &["--kube-version=1.35.0"], values)
}

/// What the chart yields with a file of values.
pub(crate) fn rendered_with(api: &Api, file: &str) -> Result<String> {
    run(api, &["template", "release"], &["--kube-version=1.35.0", "-f", file], &[])
}

fn run(api: &Api, verb: &[&str], options: &[&str], values: &[&str]) -> Result<String> {
    let chart = Checkout::here().path("charts/macvtap-operator");
    let chart = chart.to_string_lossy();
    let set = values.iter().flat_map(|value| ["--set", value]);
    let args: Vec<&str> = verb
        .iter()
        .copied()
        .chain([&*chart, "-n", NAMESPACE])
        .chain(options.iter().copied())
        .chain(set)
        .collect();
    helm(api, &args)
}

/// Expects a failure that says these words.
pub(crate) fn refused<T>(result: Result<T>, words: &str) -> Result<()> {
    let error = result.err().with_context(|| format!("it was allowed, without {words:?}"))?;
    let text = format!("{error:#}");
    ensure!(text.contains(words), "refused without {words:?}: {text}");
    Ok(())
}
